"""What trainings look like that go wrong: ``python docs/figures/instability.py``, a minute on one thread."""

import sys
import tempfile
import warnings
from functools import partial
from importlib.resources import files

import pandas
import torch
from draw import CARD, INK, RED, TEAL, Picture
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from matplotlib.axes import Axes

from rnn_blocks import Elman, LanguageModel
from rnn_blocks.callbacks import AdaptiveGradientClipping, Fixed, GradientNormMonitor

TEXT = files("rnn_blocks.recipes").joinpath("data/corpora/rhymes.txt").read_text()
LETTERS = sorted(set(TEXT))
STEPS, CORRUPT = 200, 100


class CorruptBatch(Callback):
    """Makes the loss of one batch a thousand times what it is."""

    def on_before_backward(self, trainer: Trainer, pl_module: LanguageModel, loss: torch.Tensor) -> None:
        """Does it."""
        if trainer.global_step == CORRUPT:
            loss.data *= 1000
            loss.register_hook(lambda gradient: gradient * 1000)


def training(rate: float, *callbacks: Callback, init: str = "torch") -> pandas.DataFrame:
    """What was logged of an Elman network that learns nursery rhymes by letters, by plain SGD."""
    windows = torch.tensor([LETTERS.index(letter) for letter in TEXT]).unfold(0, 33, 4)
    seed_everything(1, verbose=False)
    layer = Elman(32, 64, init=init)
    model = LanguageModel(layer, vocab_size=len(LETTERS), optimizer=partial(torch.optim.SGD, lr=rate))
    with tempfile.TemporaryDirectory() as folder:
        logger = CSVLogger(folder)
        trainer = Trainer(
            max_steps=STEPS,
            callbacks=[*callbacks, GradientNormMonitor()],
            logger=logger,
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
        )
        samples = [(window[:-1], window[1:]) for window in windows]
        trainer.fit(model, torch.utils.data.DataLoader(samples, batch_size=16, shuffle=True))
        return pandas.read_csv(logger.experiment.metrics_file_path).groupby("step").first()


def panel(picture: Picture, place: tuple[float, float], title: str, logged: pandas.DataFrame) -> Axes:
    """The loss and the gradient norm of a training, and the threshold of its clipping."""
    left, bottom = place
    picture.title(left - 0.7, bottom + 3.0, title)
    axes = picture.inset(left, bottom, 5.7, 2.6)
    axes.semilogy(logged["grad_norm/total"], color=TEAL, lw=1)
    axes.semilogy(logged["train/loss"], color=INK, lw=1.2)
    if "grad_clip/threshold" in logged:
        axes.semilogy(logged["grad_clip/threshold"], color=RED, lw=1.2, ls="--")
    axes.set(xlim=(0, STEPS), ylim=(0.03, 3000), facecolor=CARD)
    axes.minorticks_off()
    axes.set_xlabel("step", size=9, labelpad=0)
    return axes


def main() -> None:
    """Draws all four."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # Lightning's advice on trainings of seconds
    picture = Picture(14, 8.2)
    explodes = training(2.0)
    panel(picture, (1.1, 4.7), "a  the norm jumps, and the loss with it", explodes)
    clipped = training(2.0, AdaptiveGradientClipping())
    axes = panel(picture, (8.0, 4.7), "b  the same, clipped now and then", clipped)
    for left, label, colour in ((0.2, "loss", INK), (0.35, "gradient norm", TEAL), (0.74, "threshold", RED)):
        axes.text(left, 0.88, label, color=colour, size=10, transform=axes.transAxes)
    short = training(2.0, AdaptiveGradientClipping(Fixed(0.05)))
    panel(picture, (1.1, 0.9), "c  every step clipped: hardly learns", short)
    corrupt = training(1.0, CorruptBatch())
    panel(picture, (8.0, 0.9), "d  one corrupt batch", corrupt)
    picture.save("instability")
    saved = training(1.0, CorruptBatch(), AdaptiveGradientClipping())
    for name, logged in {"a": explodes, "b": clipped, "c": short, "d": corrupt, "d, clipped": saved}.items():
        share = logged.get("grad_clip/clipped_fraction", pandas.Series([0.0])).mean()
        norms, losses = logged["grad_norm/total"], logged["train/loss"]
        told = f"{name}: norm median {norms.median():.3g}, max {norms.max():.3g}; clipped {share:.1%}; "
        sys.stdout.write(f"{told}loss {losses.iloc[0]:.3g}, of the last 20 steps {losses.tail(20).mean():.3g}\n")


if __name__ == "__main__":
    main()
