"""Torch's own kernels (oneDNN on CPU, cuDNN on GPU) for the plain LSTM, GRU and Elman recurrences."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rnn_blocks.engine.products import multiplies_slowly
from rnn_blocks.engine.state import State, map_state

Kernel = Callable[..., tuple[Tensor, ...]]


def run_native(
    kernel: Kernel,
    inputs: Tensor,
    state: State,
    weights: list[Tensor],
    *,
    training: bool,
    lengths: Tensor | None = None,
) -> tuple[Tensor, State]:
    """Run ``torch.lstm``, ``torch.gru``, ``torch.rnn_tanh`` or ``torch.rnn_relu`` over one layer.

    Args:
        kernel: the torch function.
        inputs: ``(time, batch, input)``.
        state: ``(batch, hidden)``, or a pair of such for the LSTM.
        weights: ``[weight_ih, weight_hh, bias_ih, bias_hh]`` in torch's gate order.
        training: whether a backward pass may follow (cuDNN keeps what it needs for it).
        lengths: steps that count in each sequence, ``(batch,)``; zero is allowed.

    Returns:
        The outputs, ``(time, batch, hidden)``, zero past each length, and the state at each length.

    >>> w = [torch.zeros(3, 2), torch.zeros(3, 3), torch.zeros(3), torch.zeros(3)]
    >>> outputs, state = run_native(torch.rnn_tanh, torch.ones(4, 1, 2), torch.ones(1, 3), w, training=False)
    >>> outputs.shape, state.tolist()
    (torch.Size([4, 1, 3]), [[0.0, 0.0, 0.0]])
    """
    double = inputs.dtype == weights[0].dtype == torch.float64  # which autocast leaves as it is
    if inputs.device.type == "cpu" and torch.is_autocast_enabled("cpu") and not double:
        # Under CPU autocast torch.lstm asks oneDNN for a kernel that CPUs without AVX-512 lack, and raises; given
        # tensors of the lower precision it looks first.
        dtype = torch.get_autocast_dtype("cpu")
        run_in = torch.float32 if multiplies_slowly(dtype, inputs.device) else dtype
        inputs, weights = inputs.to(run_in), [weight.to(run_in) for weight in weights]
        state = map_state(lambda tensor: tensor.to(run_in), state)
        with torch.autocast("cpu", enabled=False):
            outputs, final = run_native(kernel, inputs, state, weights, training=training, lengths=lengths)
        return outputs.to(dtype), map_state(lambda tensor: tensor.to(dtype), final)
    if lengths is not None:
        return _run_ragged(kernel, inputs, state, weights, training, lengths)
    layered = map_state(lambda tensor: tensor.unsqueeze(0).contiguous(), state)  # (layers = 1, batch, hidden)
    outputs, *after = kernel(inputs, layered, weights, True, 1, 0.0, training, False, False)
    return outputs, _unlayered(after)


def _run_ragged(
    kernel: Kernel, inputs: Tensor, state: State, weights: list[Tensor], training: bool, lengths: Tensor
) -> tuple[Tensor, State]:
    # The kernels refuse sequences of length 0, so only the others go through.
    rows = lengths.nonzero().squeeze(1)
    hidden_size = weights[1].shape[1]
    if len(rows) == 0:
        nothing = sum((weight[:0].sum() for weight in weights), inputs[:, rows].sum())  # zero, but differentiable
        return inputs.new_zeros(*inputs.shape[:2], hidden_size) + nothing, state
    packed = pack_padded_sequence(inputs[:, rows], lengths[rows].cpu(), enforce_sorted=False)
    order, undo = packed.sorted_indices, packed.unsorted_indices
    layered = map_state(lambda tensor: tensor[rows][order].unsqueeze(0), state)
    data, *after = kernel(packed.data, packed.batch_sizes, layered, weights, True, 1, 0.0, training, False)
    padded, _ = pad_packed_sequence(packed._replace(data=data), total_length=inputs.shape[0])
    outputs = padded.new_zeros(*inputs.shape[:2], hidden_size).index_copy(1, rows, padded)
    final = map_state(lambda new, old: old.index_copy(0, rows, new[undo].to(old.dtype)), _unlayered(after), state)
    return outputs, final


def _unlayered(after: list[Tensor]) -> State:
    squeezed = tuple(tensor.squeeze(0) for tensor in after)
    return squeezed if len(squeezed) > 1 else squeezed[0]
