"""What the package is, in one picture: ``python docs/figures/overview.py`` trains twice for it, ten seconds or so."""

import warnings
from functools import partial
from importlib.resources import files
from itertools import pairwise

import torch
from draw import BLUE, FAINT, GREEN, GREY, INK, ORANGE, RED, TEAL, Picture, Place
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from matplotlib.patches import FancyBboxPatch

from rnn_blocks import Elman, LanguageModel
from rnn_blocks.callbacks import AdaptiveGradientClipping

STEPS, RATE = 200, 2.0  # of the tutorial on the callbacks
PANELS = {"blocks": "#e8f0fa", "callbacks": "#fdf0e1", "recipes": "#f3ebf8"}
TERMINAL, PROMPT = "#26323f", "#9fd8dc"


class Losses(Callback):
    """The loss of each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Keeps it."""
        assert isinstance(outputs, dict)
        self.seen.append(float(outputs["loss"]))


def losses(*callbacks: Callback) -> list[float]:
    """Of an Elman network that learns nursery rhymes by letters, at a rate that is too high for it."""
    text = files("rnn_blocks.recipes").joinpath("data/corpora/rhymes.txt").read_text()
    letters = sorted(set(text))
    windows = torch.tensor([letters.index(letter) for letter in text]).unfold(0, 33, 4)
    seed_everything(1, verbose=False)
    model = LanguageModel(Elman(32, 64), vocab_size=len(letters), optimizer=partial(torch.optim.SGD, lr=RATE))
    seen = Losses()
    trainer = Trainer(
        max_steps=STEPS,
        callbacks=[seen, *callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    samples = [(window[:-1], window[1:]) for window in windows]
    trainer.fit(model, torch.utils.data.DataLoader(samples, batch_size=16, shuffle=True))
    return seen.seen


def panel(picture: Picture, left: float, name: str, says: str) -> None:
    """The ground of one of the three parts, with its name."""
    box = FancyBboxPatch((left, 0.35), 5.5, 6.6, "round,pad=0,rounding_size=0.25", fc=PANELS[name], ec="none", zorder=0)
    picture.axes.add_patch(box)
    picture.axes.text(left + 0.35, 6.5, name, size=17, weight="bold", va="center", zorder=4)
    picture.text(left + 0.35, 5.98, says, size=11, align="left")


def blocks(picture: Picture, left: float) -> None:
    """Two layers over three steps."""
    panel(picture, left, "blocks", "cells, layers and models, in plain torch")
    columns = [left + 1.3, left + 2.75, left + 4.2]
    heights = {"$x$": (1.55, GREY), "GRU": (2.75, BLUE), "LSTM": (3.95, ORANGE), "$y$": (5.1, GREEN)}
    boxes = {
        name: [picture.box(c, height, name, colour, width=1.0) for c in columns]
        for name, (height, colour) in heights.items()
    }
    for below, above in pairwise(boxes.values()):
        for start, end in zip(below, above, strict=True):
            picture.arrow(start, end)
    for name in ("GRU", "LSTM"):
        height = heights[name][0]
        places: list[Place] = [(left + 0.25, height), *boxes[name], (left + 5.25, height)]
        for start, end in pairwise(places):
            picture.arrow(start, end, colour=TEAL, width=1.7)
    picture.text(left + 2.75, 0.8, "state in, state out", size=11, colour=TEAL)


def callbacks(picture: Picture, left: float) -> None:
    """The same training, without and with clipping."""
    panel(picture, left, "callbacks", "see gradients, clip without a threshold")
    axes = picture.inset(left + 0.85, 1.85, 4.4, 3.6)
    without, clipped = losses(), losses(AdaptiveGradientClipping())
    axes.semilogy(without, color=RED, lw=1.3)
    axes.semilogy(clipped, color=TEAL, lw=1.8)
    axes.set_xlabel("step", size=9.5, labelpad=1)
    axes.set_ylabel("loss", size=9.5)
    axes.set(xlim=(0, STEPS), ylim=(1.1, 30))
    axes.set_yticks([2, 5, 10, 20], ["2", "5", "10", "20"])
    axes.minorticks_off()
    axes.text(STEPS, 24, "without", color=RED, size=11, ha="right")
    axes.text(STEPS, 1.35, "AdaptiveGradientClipping()", color=TEAL, size=10.5, ha="right", family="DejaVu Sans Mono")
    picture.text(left + 2.75, 0.8, "for any Lightning project", size=11, colour=TEAL)


def recipes(picture: Picture, left: float) -> None:
    """A command, and what its model says."""
    panel(picture, left, "recipes", "trainings that run with one command")
    corners = "round,pad=0,rounding_size=0.12"
    box = FancyBboxPatch((left + 0.3, 3.95), 4.9, 1.5, corners, fc=TERMINAL, ec="none", zorder=3)
    picture.axes.add_patch(box)
    mono = {"size": 9, "family": "DejaVu Sans Mono", "va": "center", "zorder": 4}
    lines = ("$ rnn-blocks cloze fit \\", "    --config rhymes", "$ rnn-blocks cloze predict …")
    for height, line in zip((5.12, 4.7, 4.28), lines, strict=True):
        picture.axes.text(left + 0.5, height, line.replace("$", r"\$"), color=PROMPT, **mono)
    picture.text(left + 2.75, 3.5, "Twinkle, twinkle, ___ star", size=12)
    told = {"little": 97.8, "all": 2.1, "dock": 0.04}  # as on the recipe's page
    for height, (word, percent) in zip((2.85, 2.3, 1.75), told.items(), strict=True):
        picture.axes.text(left + 1.35, height, word, ha="right", va="center", size=11, zorder=4)
        picture.axes.barh(height, 2.6 * percent / 100, 0.34, left=left + 1.5, color=TEAL, zorder=3)
        picture.axes.text(left + 1.6 + 2.6 * percent / 100, height, f"{percent:.3g} %", va="center", size=10, color=INK)
    picture.axes.plot([left + 1.5] * 2, [1.5, 3.1], color=FAINT, lw=1, zorder=2)
    picture.text(left + 2.75, 0.8, "tracked, resumable to the bit", size=11, colour=TEAL)


def main() -> None:
    """Draws it."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # Lightning's advice on trainings of seconds
    picture = Picture(18, 7.3)
    for k, draw in enumerate((blocks, callbacks, recipes)):
        draw(picture, 0.4 + 5.85 * k)
    picture.save("overview")


if __name__ == "__main__":
    main()
