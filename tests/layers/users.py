"""What users do to modules, on every cell and layer of the zoo: what the tests of it share."""

import pytest
import torch
import zoo
import zoo_layers
from torch import nn

from rnn_blocks.engine import map_state, state_tensors

CLOSE = {"rtol": 1e-8, "atol": 1e-10}
every_cell = pytest.mark.parametrize("name", zoo.rest_is_slow(zoo.CELLS, zoo.SOME))
every_layer = pytest.mark.parametrize("name", zoo_layers.LAYERS)


def matrices(cell):
    """Every real matrix of a cell and of its parts, with the module that has it."""
    return [
        (module, name)
        for module in cell.modules()
        for name, parameter in list(module.named_parameters(recurse=False))
        if parameter.dim() == 2 and not isinstance(module, nn.ParameterList)
    ]


def by_hand(cell, inputs, state):
    """Outputs ``(time, batch, …)`` and the last state, by the cell's methods alone; inputs have time first."""
    outputs, projected = [], cell.project(inputs)
    for t in range(len(inputs)):
        output, state = cell.step(map_state(lambda tensor: tensor[t], projected), state)  # noqa: B023
        outputs.append(output)
    return torch.stack(outputs), state


def total(outputs, state):
    parts = [outputs, *(part for part in state_tensors(state) if part.is_floating_point() or part.is_complex())]
    return sum((torch.view_as_real(part) if part.is_complex() else part).sin().sum() for part in parts)


def engines(cell):
    return ["auto", *(["fused"] if cell.fusable else []), "loop"]


def gradients(module):
    return {name: parameter.grad for name, parameter in module.named_parameters()}
