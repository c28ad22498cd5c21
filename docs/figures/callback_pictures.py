"""What the gradient callbacks draw, of three short trainings.

    PYTHONPATH=tests/benchmarks python docs/figures/callback_pictures.py [histogram] [advice] [flow]

The pictures are those of the callbacks themselves, with fewer colours, so that they take less room. All of them by
default; a minute or so on one thread.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from clipping_sweep import Endless
from clipping_trainings import AddingProblem, Batch, StandardLibraryCharacters, Training
from draw import IMAGES
from lightning.pytorch import Callback, Trainer
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim import SGD, Adam, Optimizer

from rnn_blocks import ElmanCell, LSTMCell, Recurrent, init_chrono
from rnn_blocks.callbacks import ClippingAdvisor, GradientFlowMonitor, GradientNormMonitor


class Characters(StandardLibraryCharacters):
    """An LSTM on the source of Python's standard library."""

    steps = 1000


class ElmanCharacters(Characters):
    """An Elman network on the same text, by plain SGD at a rate that is too high for it without clipping."""

    steps = 2000  # the advisor ends it after half of them, before the rate falls

    def __init__(self, seed: int, rate: float) -> None:
        super().__init__(seed, rate)
        self.model.lstm = nn.RNN(128, 128, batch_first=True)
        self.state: Tensor | None = None

    def loss(self, batch: Batch) -> Tensor:
        """Of a chunk, which the state of the last one is carried into."""
        outputs, state = self.model.lstm(self.model.embedding(batch[0]), self.state)
        self.state = state.detach()
        return cross_entropy(self.model.output(outputs).flatten(0, 1), batch[1].flatten())

    def make_optimizer(self) -> Optimizer:
        """Plain SGD."""
        return SGD(self.parameters(), lr=self.rate)


class ElmanBesideLSTM(AddingProblem):
    """Two networks on the same sequences of the adding problem, which know nothing of each other."""

    steps, length = 1200, 40

    def __init__(self, seed: int, rate: float) -> None:
        Training.__init__(self, seed, rate)
        self.elman, self.lstm = Recurrent(ElmanCell(2, 64)), Recurrent(init_chrono(LSTMCell(2, 64), self.length))
        self.elman_output, self.lstm_output = nn.Linear(64, 1), nn.Linear(64, 1)

    def loss(self, batch: Batch) -> Tensor:
        """The sum of both."""
        inputs, targets = batch
        pairs = (self.elman, self.elman_output), (self.lstm, self.lstm_output)
        return sum((mse_loss(output(layer(inputs)[0][:, -1]), targets) for layer, output in pairs), torch.zeros(()))

    def make_optimizer(self) -> Optimizer:
        """Adam, which an LSTM can do with."""
        return Adam(self.parameters(), lr=self.rate)


def histogram() -> None:
    """How the gradient norm is distributed."""
    pictures = drawn_by(GradientNormMonitor(histogram_every_n_steps=25), Characters(1, 0.02), log_every_n_steps=25)
    save("gradient_norm_histogram", [pictures["plots/gradient_norm_histogram"]])


def advice() -> None:
    """Which fixed threshold to take, of a training that explodes now and then."""
    pictures = drawn_by(ClippingAdvisor(steps=1000, stop=True), ElmanCharacters(1, 1.8))
    save("clipping_advice", [pictures["plots/clipping_advice"]])


def flow() -> None:
    """How far back gradients reach in an Elman network and in an LSTM."""
    pictures = drawn_by(GradientFlowMonitor(every_n_steps=25), ElmanBesideLSTM(1, 0.005))
    save("gradient_flow_monitor", [pictures[f"plots/gradient_flow/{name}"] for name in ("elman", "lstm")])


def drawn_by(callback: Callback, training: Training, *, log_every_n_steps: int = 50) -> dict[str, Image.Image]:
    """What a callback draws of a training, by name."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            callbacks=[callback],
            max_steps=training.steps,
            log_every_n_steps=log_every_n_steps,
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
        )
        trainer.fit(training, torch.utils.data.DataLoader(Endless(training), batch_size=None))
        paths = (path.relative_to(folder) for path in Path(folder).rglob("*.png"))
        return {str(path.with_suffix("")): Image.open(folder / path).convert("RGB") for path in paths}


def save(name: str, pictures: list[Image.Image]) -> None:
    """One below the other."""
    whole = Image.new("RGB", (pictures[0].width, sum(picture.height for picture in pictures)))
    for place, picture in zip(tops(pictures), pictures, strict=True):
        whole.paste(picture, (0, place))
    whole.quantize(255, method=Image.Quantize.MAXCOVERAGE, kmeans=2).save(IMAGES / f"{name}.png", optimize=True)


def tops(pictures: list[Image.Image]) -> Iterator[int]:
    """Where each begins."""
    top = 0
    for picture in pictures:
        yield top
        top += picture.height


PICTURES: dict[str, Callable[[], None]] = {"histogram": histogram, "advice": advice, "flow": flow}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for wanted in sys.argv[1:] or PICTURES:
        PICTURES[wanted]()
