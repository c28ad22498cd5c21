"""What the gradient callbacks draw, of three short trainings.

    PYTHONPATH=tests/benchmarks/clipping python docs/figures/callback_pictures.py [histogram] [advice] [flow]

The pictures are those of the callbacks themselves, with fewer colours, so that they take less room. All of them by
default; a minute or so on one thread.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from draw import IMAGES
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim import SGD, Adam, Optimizer
from trainings.sequences import AddingProblem
from trainings.text import Characters, LSTMLanguageModel
from trainings.training import Batch, Supervised

from rnn_blocks import ElmanCell, LSTMCell, Recurrent, init_chrono
from rnn_blocks.callbacks import ClippingAdvisor, GradientFlowMonitor, GradientNormMonitor


class WideCharacters(Characters):
    """An LSTM of 128 on the source of Python's standard library."""

    short, bptt = 1000, 50

    def make_model(self) -> nn.Module:
        """Its model."""
        return LSTMLanguageModel(128, 128)


class ElmanCharacters(WideCharacters):
    """An Elman network on the same text, by plain SGD at a rate that is too high for it without clipping."""

    short = 2000  # the advisor ends it after half of them, before the rate falls

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

    time = 40

    def __init__(self, seed: int, rate: float) -> None:
        Supervised.__init__(self, seed, rate)
        self.elman, self.lstm = Recurrent(ElmanCell(2, 64)), Recurrent(init_chrono(LSTMCell(2, 64), self.time))
        self.elman_output, self.lstm_output = nn.Linear(64, 1), nn.Linear(64, 1)

    def loss(self, batch: Batch) -> Tensor:
        """The sum of both."""
        inputs, targets = batch
        pairs = (self.elman, self.elman_output), (self.lstm, self.lstm_output)
        return sum((mse_loss(output(layer(inputs)[0][:, -1]), targets) for layer, output in pairs), torch.zeros(()))

    def make_optimizer(self) -> Optimizer:
        """Adam, which an LSTM can do with."""
        return Adam(self.parameters(), lr=self.rate)


class InTrainer(LightningModule):
    """A training of the bench as a Trainer takes it."""

    def __init__(self, training: Supervised) -> None:
        super().__init__()
        for name, part in training.named_children():
            self.add_module(name, part)
        self.training_of = [training]  # in a list, for its parts have their names here

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """The loss of the training's own batch."""
        [training] = self.training_of
        return training.loss(training.batch())

    def configure_optimizers(self) -> dict[str, object]:
        """Its optimizer and schedule."""
        [training] = self.training_of
        optimizer = training.make_optimizer()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, training.schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def histogram() -> None:
    """How the gradient norm is distributed."""
    pictures = drawn_by(GradientNormMonitor(histogram_every_n_steps=25), WideCharacters(1, 0.02), log_every_n_steps=25)
    save("gradient_norm_histogram", [pictures["plots/gradient_norm_histogram"]])


def advice() -> None:
    """Which fixed threshold to take, of a training that explodes now and then."""
    pictures = drawn_by(ClippingAdvisor(steps=1000, stop=True), ElmanCharacters(1, 1.8))
    save("clipping_advice", [pictures["plots/clipping_advice"]])


def flow() -> None:
    """How far back gradients reach in an Elman network and in an LSTM."""
    pictures = drawn_by(GradientFlowMonitor(every_n_steps=25), ElmanBesideLSTM(1, 0.005))
    save("gradient_flow_monitor", [pictures[f"plots/gradient_flow/{name}"] for name in ("elman", "lstm")])


def drawn_by(callback: Callback, training: Supervised, *, log_every_n_steps: int = 50) -> dict[str, Image.Image]:
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
        trainer.fit(InTrainer(training), torch.utils.data.DataLoader(torch.zeros(training.steps)))
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
