"""Layers for the tests of every layer, of input size 3."""

from collections.abc import Callable

import oracles
import torch
from torch import Tensor

from rnn_blocks import (
    GRU,
    LRU,
    LSTM,
    RGLRU,
    RHN,
    SLSTM,
    SRU,
    Bidirectional,
    Dilated,
    DilatedRecurrent,
    Elman,
    GRUCell,
    IndRNN,
    Layer,
    LayerNormGRU,
    LayerNormLSTM,
    LeakyIntegrator,
    LRUCell,
    LSTMCell,
    MinGRU,
    MinLSTM,
    PeepholeLSTM,
    Recurrent,
    Stack,
    VariationalDropout,
    WeightDrop,
)


def skipping(skip: str, **options) -> Layer:
    sizes = Stack.input_sizes(3, [4, 4, 2], skip=skip)
    cells = [make(i, o) for make, i, o in zip((GRUCell, LSTMCell, oracles.LeakySum), sizes, (4, 4, 2), strict=True)]
    return Stack([Recurrent(cell, engine="loop", **options) for cell in cells], skip=skip)


def both_ways(**options) -> Layer:
    return Bidirectional(Recurrent(oracles.LeakySum(3, 2), **options), LSTM(3, 4, num_layers=2, **options))


class ForeseenDropout(VariationalDropout):
    """Variational dropout of which a sequence that starts afresh gets noise that is known beforehand."""

    def initial_state(self, batch_size: int, like: Tensor) -> Tensor:
        return torch.linspace(0, 1, self.input_size, dtype=like.dtype, device=like.device).repeat(batch_size, 1)


def dropping(**options) -> Layer:
    middle = WeightDrop(LSTM(3, 4, num_layers=2, **options), 0.5).eval()
    return Stack([ForeseenDropout(3, 0.4, **options), middle, ForeseenDropout(4, 0.4, **options)])


LAYERS: dict[str, Callable[..., Layer]] = {
    "residual stack": lambda **options: skipping("residual", **options),
    "highway stack": lambda **options: skipping("highway", **options),
    "dense stack": lambda **options: skipping("dense", **options),
    "stack with its input skipped": lambda **options: skipping("input", **options),
    "bidirectional": both_ways,
    "variational dropout, weight drop in evaluation": dropping,
    "dilated": lambda **options: Dilated([LSTMCell(3, 4), oracles.LeakySum(4, 2)], [2, 3], **options),
    "dilated both ways": lambda **options: Bidirectional(DilatedRecurrent(GRUCell(3, 4), 2, **options)),
    "GRU of the paper": lambda **options: GRU(3, 4, reset_after=False, engine="loop", **options),
    "PeepholeLSTM": lambda **options: PeepholeLSTM(3, [4, 2], engine="loop", **options),
    "LayerNormLSTM": lambda **options: LayerNormLSTM(3, 4, num_layers=2, skip="input", engine="loop", **options),
    "LayerNormGRU": lambda **options: LayerNormGRU(3, 4, num_layers=2, skip="highway", engine="loop", **options),
    "IndRNN": lambda **options: IndRNN(3, 4, num_layers=2, skip="residual", engine="loop", **options),
    "SLSTM": lambda **options: SLSTM(3, 4, num_heads=2, engine="loop", **options),
    "RHN": lambda **options: RHN(3, 4, depth=2, bidirectional=True, engine="loop", **options),
    "LeakyIntegrator": lambda **options: LeakyIntegrator(3, [4, 2], learned=True, **options),
    "MinGRU": lambda **options: MinGRU(3, 4, bidirectional=True, **options),
    "MinLSTM": lambda **options: MinLSTM(3, 4, num_layers=2, skip="dense", **options),
    "SRU": lambda **options: SRU(3, 4, num_layers=2, **options),
    "RGLRU": lambda **options: RGLRU(3, 4, skip="residual", **options),
    "LRU": lambda **options: LRU(3, 4, **options),
    "LRU dilated both ways": lambda **options: Bidirectional(DilatedRecurrent(LRUCell(3, 4), 2, **options)),
    "bidirectional sum": lambda **options: Bidirectional(GRU(3, 4, **options), merge="sum"),
    "bidirectional of bidirectional": lambda **options: Bidirectional(both_ways(**options), merge="mean"),
    "bidirectional stack": lambda **options: Stack(
        [both_ways(**options), Bidirectional(Elman(6, 3, **options)), GRU(6, 2, **options)]
    ),
}
