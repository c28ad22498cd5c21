"""A program of a user's, which pyright reads in its strict mode: see check.py."""

from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from typing_extensions import assert_type

from rnn_blocks import GRU, LSTM, Bidirectional, Cell, LanguageModel, Recurrent, Stack, State
from rnn_blocks.callbacks import (
    AdaptiveGradientClipping,
    ClippingAdvisor,
    GradientClipper,
    GradientFlowMonitor,
    GradientNormMonitor,
)
from rnn_blocks.recipes import Filler, InputError, RunFolder, TextDataModule, read_metrics, runs


class Averaging(Cell):
    """A cell of one's own."""

    def __init__(self, size: int) -> None:
        super().__init__(size, size)

    def step(self, projected: State, state: State) -> tuple[Tensor, State]:
        """One step."""
        assert isinstance(projected, Tensor)
        assert isinstance(state, Tensor)
        state = 0.9 * state + 0.1 * projected
        return state, state


layer = Stack([GRU(64, 128), LSTM(128, 64, num_layers=2), Bidirectional(GRU(64, 32), GRU(64, 32))], dropout=0.1)
model = LanguageModel(layer, vocab_size=256, tie_weights=True)
assert_type(model.generate([1, 2], max_tokens=3), Tensor)
averaging = Recurrent(Averaging(8))

callbacks: list[Callback] = [
    GradientNormMonitor(gates=True),
    AdaptiveGradientClipping(),
    GradientFlowMonitor(),
    ClippingAdvisor(),
]
trainer = Trainer(max_epochs=1, callbacks=callbacks)
clipper = GradientClipper(torch.optim.SGD(model.parameters(), lr=0.1))
assert_type(clipper.summary(), str)

try:
    data = TextDataModule(source="corpus.txt", batch_size=4)
    folder = runs(Path("runs/cloze"))[-1]
    assert_type(folder, RunFolder)
    names, rows = read_metrics(folder.metrics)
    fills = Filler.load(folder.checkpoint("best"))("a ___ c", top_k=3)
    trainer.fit(model, data)
except InputError as error:
    message: str = str(error)
print(torch.__version__)
