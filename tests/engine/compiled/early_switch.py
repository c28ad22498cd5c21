"""Small trainings in which compiled steps take over after a few sequences."""

import torch
import zoo
from torch import nn

from rnn_blocks import Recurrent

TIME = 4  # steps of a sequence, of which the first 10 begin a compilation, and the first 22 are recorded ones


def layer_of(name: str = "gru", seed: int = 1) -> Recurrent:
    torch.manual_seed(seed)
    return Recurrent(zoo.CELLS[name](3, 5))


def train(layer: nn.Module, sequences: int, *, batch: int = 2, begin: int = 0) -> nn.Module:
    """A few steps of descent on noise, which is another one at each sequence."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.5)
    for number in range(begin, begin + sequences):
        inputs = torch.randn(batch, TIME, 3, generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        outputs, _ = layer(inputs)
        outputs.square().sum().backward()
        optimizer.step()
    return layer
