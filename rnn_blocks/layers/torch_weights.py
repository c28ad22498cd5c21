"""Weights from torch's own recurrent modules and back."""

from collections.abc import Iterator
from typing import TypedDict, TypeVar

import torch
from torch import Tensor, nn

from rnn_blocks.cells import ElmanCell, GRUCell, LSTMCell
from rnn_blocks.layers.bidirectional import Bidirectional
from rnn_blocks.layers.recurrent import Recurrent
from rnn_blocks.layers.recurrent_stack import RecurrentStack

NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")

AnyLayer = TypeVar("AnyLayer", bound=RecurrentStack)
AnyTorch = TypeVar("AnyTorch", bound=nn.RNNBase)
TorchCell = LSTMCell | GRUCell | ElmanCell


class Options(TypedDict):
    """What torch's modules and the ready-made layers call by the same name."""

    num_layers: int
    bidirectional: bool
    dropout: float
    batch_first: bool


def options_of_torch(module: nn.RNNBase, kind: type[nn.RNNBase]) -> Options:
    """The options of a module of torch's, once it is found to be of ``kind``.

    Raises:
        ValueError: for another module, and for one with a projection.

    >>> options_of_torch(nn.GRU(2, 3, num_layers=2), nn.GRU)
    {'num_layers': 2, 'bidirectional': False, 'dropout': 0.0, 'batch_first': False}
    """
    if not isinstance(module, kind):
        raise ValueError(f"expected a torch.nn.{kind.__name__}, got {type(module).__name__}")
    if module.proj_size:
        raise ValueError(
            f"an LSTM with a projection of its outputs has no counterpart here, got proj_size={module.proj_size}"
        )
    return {
        "num_layers": module.num_layers,
        "bidirectional": module.bidirectional,
        "dropout": float(module.dropout),
        "batch_first": module.batch_first,
    }


def options_for_torch(layer: RecurrentStack, kind: type[TorchCell]) -> tuple[int, int, Options]:
    """Input size, hidden size and options of torch's module like ``layer``, where there is one.

    Dropout is left at 0, since torch warns where there is nothing that it could fall between.

    Raises:
        ValueError: for layers of different widths, a skip, or cells that torch does not have.

    >>> import rnn_blocks
    >>> options_for_torch(rnn_blocks.GRU(2, 3), GRUCell)
    (2, 3, {'num_layers': 1, 'bidirectional': False, 'dropout': 0.0, 'batch_first': True})
    """
    if layer.skip is not None:
        raise ValueError(f"torch has no skips across layers, got skip={layer.skip!r}")
    cells = list(dict(_cells(layer, kind)).values())
    widths = [cell.hidden_size for cell in cells]
    if len(set(widths)) > 1:
        raise ValueError(f"torch's layers all have one hidden_size, got {widths}")
    options: Options = {
        "num_layers": len(layer.layers),
        "bidirectional": len(cells) > len(layer.layers),
        "dropout": 0.0,
        "batch_first": layer.batch_first,
    }
    return layer.input_size, widths[0], options


@torch.no_grad()
def read_weights(layer: AnyLayer, module: nn.RNNBase, kind: type[TorchCell]) -> AnyLayer:
    """Make ``layer``'s weights, dtype, device and mode those of torch's module; returns ``layer``.

    Torch's two biases add up to the one here, but for what the reset gate of a GRU acts on. Without biases, those here
    are zero.

    >>> import rnn_blocks
    >>> module = nn.RNN(2, 3)
    >>> layer = read_weights(rnn_blocks.Elman(2, 3), module, ElmanCell)
    >>> torch.equal(layer.layers[0].cell.bias, module.bias_ih_l0 + module.bias_hh_l0)
    True
    """
    weight = next(module.parameters())
    layer.to(device=weight.device, dtype=weight.dtype).train(module.training)
    for suffix, cell in _cells(layer, kind):
        cell.weight_ih.copy_(getattr(module, f"weight_ih_{suffix}"))
        cell.weight_hh.copy_(getattr(module, f"weight_hh_{suffix}"))
        if not module.bias:
            for name in ("bias", "bias_hn"):
                if hasattr(cell, name):
                    getattr(cell, name).zero_()
            continue
        first, second = (getattr(module, f"{name}_{suffix}") for name in ("bias_ih", "bias_hh"))
        if isinstance(cell, GRUCell):
            assert cell.bias_hn is not None
            gates, candidate = second.split([2 * cell.hidden_size, cell.hidden_size])
            cell.bias_hn.copy_(candidate)
            second = torch.cat([gates, torch.zeros_like(candidate)])
        cell.bias.copy_(first + second)
    return layer


@torch.no_grad()
def write_weights(layer: RecurrentStack, module: AnyTorch, kind: type[TorchCell]) -> AnyTorch:
    """Make the weights, dtype, device, dropout and mode of torch's module those of ``layer``; returns ``module``.

    >>> import rnn_blocks
    >>> layer = rnn_blocks.LSTM(2, 3)
    >>> module = write_weights(layer, nn.LSTM(2, 3), LSTMCell)
    >>> torch.equal(module.bias_ih_l0, layer.layers[0].cell.bias), bool(module.bias_hh_l0.any())
    (True, False)
    """
    weight = next(layer.parameters())
    module.to(device=weight.device, dtype=weight.dtype).train(layer.training)
    module.dropout = layer.dropout
    for suffix, cell in _cells(layer, kind):
        for name, value in zip(NAMES, cell.native_weights(), strict=True):
            parameter: Tensor = getattr(module, f"{name}_{suffix}")
            parameter.copy_(value)
    return module


def _cells(layer: RecurrentStack, kind: type[TorchCell]) -> Iterator[tuple[str, TorchCell]]:
    """The cells, each with what torch ends the names of its weights in."""
    for k, level in enumerate(layer.layers):
        both = (level.forward_layer, level.backward_layer) if isinstance(level, Bidirectional) else (level,)
        for direction, suffix in zip(both, (f"l{k}", f"l{k}_reverse"), strict=False):
            cell = direction.cell if isinstance(direction, Recurrent) else direction
            if type(cell) is not kind:
                raise ValueError(f"torch has layers of plain {kind.__name__}s only, got {type(cell).__name__}")
            if isinstance(cell, GRUCell) and not cell.reset_after:
                raise ValueError("torch's GRU has its reset gate after the recurrent product, got reset_after=False")
            yield suffix, cell
