"""One call of torch's `nn.LSTM`, `nn.GRU` or `nn.RNN`, recorded and run again by the plain loop."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from rnn_blocks.callbacks.gradient_flow.state_replay import (
    Caught,
    Flow,
    Source,
    Surroundings,
    Tap,
    flow,
    gradients_of,
    last_steps_only,
    relative_error,
    squared_norms,
)

Step = Callable[[Any, Any], tuple[Tensor, Any]]


def torchs_arguments(
    module: nn.RNNBase, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Tensor | PackedSequence, Any] | None:
    """The input and the initial state of a call, if it is one that torch's own class takes: a subclass may take others.

    >>> torchs_arguments(nn.GRU(3, 4), [torch.ones(2, 3)], {})[1] is None
    True
    >>> torchs_arguments(nn.GRU(3, 4), [torch.ones(2, 3), [2]], {}) is None  # the lengths, perhaps
    True
    """
    given: dict[str, Any] = {**dict(zip(("input", "hx"), args, strict=False)), **kwargs}
    inputs: Any = given.get("input")
    hx = given.get("hx")
    data = inputs.data if isinstance(inputs, PackedSequence) else inputs
    if len(args) > 2 or given.keys() - {"input", "hx"} or not isinstance(data, Tensor):
        return None
    if data.dim() not in ((2, 3) if data is inputs else (2,)) or data.shape[-1] != module.input_size:
        return None
    if hx is not None and not _are_states(module, hx, _state_shape(module, inputs)):
        return None
    return inputs, hx


def _state_shape(module: nn.RNNBase, inputs: Tensor | PackedSequence) -> tuple[int, ...]:
    rows = module.num_layers * (2 if module.bidirectional else 1)
    if isinstance(inputs, PackedSequence):
        return rows, int(inputs.batch_sizes[0]), module.hidden_size
    if inputs.dim() == 2:
        return rows, module.hidden_size
    return rows, inputs.shape[0 if module.batch_first else 1], module.hidden_size


def _are_states(module: nn.RNNBase, states: Any, shape: tuple[int, ...]) -> bool:
    """Whether it is what torch's own class takes and gives for a state."""
    if (module.mode == "LSTM") != isinstance(states, tuple | list):
        return False
    tensors = states if module.mode == "LSTM" else [states]
    expected = [shape] * (2 if module.mode == "LSTM" else 1)
    return [getattr(tensor, "shape", None) for tensor in tensors] == expected


class TorchCall:
    """A call of a module of torch's: what it was given, and with which weights; all is copied.

    Its arguments are kept as ``(time, batch, features)``, sequences in the order of their lengths where they are
    packed.

    Args:
        module: whose call it is, without a projection.
        given: the input, as the module takes it: batch first or not, without a batch, or packed.
        hx: the initial state as the module takes it, or None.
    """

    def __init__(self, module: nn.RNNBase, given: Tensor | PackedSequence, hx: Any = None) -> None:
        self.module = module
        self.training = module.training
        self.state_shape = _state_shape(module, given)
        self.batch_sizes: Tensor | None = None
        self.order: Tensor | None = None
        self.unbatched = False
        self.lengths: Tensor | None = None
        if isinstance(given, PackedSequence):
            self.batch_sizes, self.order = given.batch_sizes, given.sorted_indices
            self.inputs, lengths = pad_packed_sequence(PackedSequence(given.data.detach(), given.batch_sizes))
            self.host_lengths = lengths
            self.lengths = lengths.to(self.inputs.device, non_blocking=True)
        else:
            self.unbatched = given.dim() == 2
            self.inputs = self._time_first(given.detach().clone())
        self.surroundings = Surroundings(self.inputs.device)
        states = () if hx is None else (hx if isinstance(hx, tuple | list) else (hx,))
        self.states = [self._rows_first(state.detach().clone()) for state in states]
        self.caught = Caught()

    def gives(self, output: Any) -> bool:
        """Whether an output is one that torch's own class gives: a subclass, or a hook, may make another of it."""
        if type(output) is not tuple or len(output) != 2:
            return False
        sequence, final = output
        features = self.module.hidden_size * (2 if self.module.bidirectional else 1)
        if self.batch_sizes is None:
            like = self.inputs[:, 0] if self.unbatched else self._time_first(self.inputs)
            alike = isinstance(sequence, Tensor) and sequence.shape == (*like.shape[:-1], features)
        else:
            steps = int(self.batch_sizes.sum())
            alike = isinstance(sequence, PackedSequence) and sequence.data.shape == (steps, features)
        a_tuple = type(final) is tuple
        return alike and a_tuple == (self.module.mode == "LSTM") and _are_states(self.module, final, self.state_shape)

    def gave(self, output: Any) -> Any:
        """Note what the call gave, and with which weights: those that are computed are so by then.

        Returns:
            What is to be used in its place.
        """
        flat = self.module._flat_weights
        self.weights = [None if weight is None else weight.detach().clone() for weight in flat]
        sequence, final = output
        if isinstance(sequence, PackedSequence):
            self.outputs = self._padded(sequence.data.detach())
            sequence = sequence._replace(data=self.caught.alias(0, sequence.data))
        else:
            self.outputs = self._time_first(sequence.detach().clone())
            sequence = self.caught.alias(0, sequence)
        if isinstance(final, tuple):
            return sequence, tuple(self.caught.alias(index, tensor) for index, tensor in enumerate(final, start=1))
        return sequence, self.caught.alias(1, final)

    def replay(self, source: Source) -> dict[str, Flow]:
        """The flow through each layer and direction, by what torch ends the names of its weights in."""
        levels = []
        with self.surroundings.again():
            below = self.inputs
            for number in range(self.module.num_layers):
                level = _Level(self, number, below)
                levels.append(level)
                below = level.outputs
        reached = self.caught.kept.get(0)
        if reached is not None:
            reached = self._time_first(reached) if self.batch_sizes is None else self._padded(reached)
        finals = [self.caught.kept.get(index) for index in (1, 2)]
        final_rows = [None if gradient is None else self._rows_first(gradient) for gradient in finals]
        flows: dict[str, Flow] = {}
        for level in reversed(levels):
            found, reached = level.flows(reached, final_rows, source)
            flows = found | flows
        # What went wrong in one layer, such as other masks between layers, shows in those above it.
        error = torch.stack([found.error for found in flows.values()]).max()
        flows = {name: replace(found, error=error) for name, found in flows.items()}
        return flows if len(flows) > 1 else {"": next(iter(flows.values()))}

    def cell(self, row: int) -> tuple[Callable[[Tensor], Tensor], Step]:
        """The input product of all steps, and a step, of one direction of one layer."""
        per_row = 4 if self.module.bias else 2
        weights = self.weights[row * per_row : (row + 1) * per_row]
        weight_ih, weight_hh, bias_ih, bias_hh = weights if self.module.bias else (*weights, None, None)
        assert weight_ih is not None
        assert weight_hh is not None
        return lambda inputs: linear(inputs, weight_ih, bias_ih), _step(self.module.mode, weight_hh, bias_hh)

    def initial_state(self, row: int) -> Any:
        """Of one direction of one layer: ``h``, or ``(h, c)``."""
        module = self.module
        count = 2 if module.mode == "LSTM" else 1
        zeros = self.inputs.new_zeros(self.inputs.shape[1], module.hidden_size)
        tensors = [state[row] for state in self.states] or [zeros] * count
        leaves = tuple(tensor.detach().requires_grad_() for tensor in tensors)
        return leaves if count == 2 else leaves[0]

    def dropped(self, outputs: Tensor) -> Tensor:
        """What the kernel's dropout between layers leaves: it draws for the steps there are, packed or not."""
        if not self.training or not self.module.dropout:
            return outputs
        if self.batch_sizes is None:
            return dropout(outputs, self.module.dropout)
        packed = pack_padded_sequence(outputs, self.host_lengths)
        return self._padded(dropout(packed.data, self.module.dropout))

    def _time_first(self, sequence: Tensor) -> Tensor:
        if self.unbatched:
            return sequence.unsqueeze(1)
        return sequence.transpose(0, 1) if self.module.batch_first else sequence

    def _rows_first(self, state: Tensor) -> Tensor:
        """``(layers · directions, batch, hidden_size)``, sequences in the order of the inputs kept here."""
        if self.unbatched:
            return state.unsqueeze(1)
        return state if self.order is None else state.index_select(1, self.order)

    def _padded(self, data: Tensor) -> Tensor:
        assert self.batch_sizes is not None
        return pad_packed_sequence(PackedSequence(data, self.batch_sizes))[0]


class _Level:
    """One layer of such a call, in a graph of its own that starts at its input."""

    def __init__(self, call: TorchCall, number: int, below: Tensor) -> None:
        from rnn_blocks.engine import run_loop, state_tensors
        from rnn_blocks.layers.bidirectional import reverse_time

        self.call, self.number = call, number
        self.directions = 2 if call.module.bidirectional else 1
        self.below = below.detach().requires_grad_()
        inputs = call.dropped(self.below) if number else self.below
        self.known = self._in_training(inputs.detach())
        self.taps: list[Tap] = []
        self.results: list[tuple[Tensor, list[Tensor]]] = []
        outputs = []
        for direction in range(self.directions):
            project, step = call.cell(number * self.directions + direction)
            known = self._own(self.known, direction)
            tap = Tap(step, known.unbind(0))
            ordered = reverse_time(inputs, call.lengths) if direction else inputs
            state = call.initial_state(number * self.directions + direction)
            result, after = run_loop(tap, project(ordered), state, lengths=call.lengths)
            self.taps.append(tap)
            self.results.append((result, state_tensors(after)))
            outputs.append(reverse_time(result, call.lengths) if direction else result)
        self.outputs = torch.cat(outputs, dim=-1).detach()

    def flows(
        self, reached: Tensor | None, finals: Sequence[Tensor | None], source: Source
    ) -> tuple[dict[str, Flow], Tensor]:
        """The flow in each direction, and what reaches the layer below."""
        call, flows, down = self.call, {}, torch.zeros_like(self.below)
        for direction, (tap, (result, after)) in enumerate(zip(self.taps, self.results, strict=True)):
            row = self.number * self.directions + direction
            ends = [
                (tensor, None if gradient is None else gradient[row])
                for tensor, gradient in zip(after, finals, strict=False)
            ]
            own = None if reached is None else self._own(reached, direction)
            *gradients, share = gradients_of([(result, own), *ends], [*tap.hidden, self.below])
            if source == "last":
                gradients = gradients_of([(result, last_steps_only(own, call.lengths)), *ends], tap.hidden)
            down = down + share
            error = relative_error(torch.stack(tap.differences), self._own(self.known, direction), call.lengths)
            name = f"l{self.number}" + ("_reverse" if direction else "")
            flows[name] = flow(squared_norms(gradients), call.lengths, error)
        return flows, down

    def _own(self, sequence: Tensor, direction: int) -> Tensor:
        """A direction's features, in the order in which it goes through the sequence."""
        from rnn_blocks.layers.bidirectional import reverse_time

        features = sequence.chunk(self.directions, dim=-1)[direction]
        return reverse_time(features, self.call.lengths) if direction else features

    def _in_training(self, inputs: Tensor) -> Tensor:
        """The layer's outputs as torch's kernel has them: handed out by the last layer, made again for those below."""
        call = self.call
        module = call.module
        if self.number == module.num_layers - 1:
            return call.outputs
        kernel = getattr(torch, {"LSTM": "lstm", "GRU": "gru"}.get(module.mode, module.mode.lower()))
        per_level = (4 if module.bias else 2) * self.directions
        weights = call.weights[self.number * per_level : (self.number + 1) * per_level]
        rows = range(self.number * self.directions, (self.number + 1) * self.directions)
        states = [call.initial_state(row) for row in rows]
        if module.mode == "LSTM":
            state: Any = tuple(torch.stack([pair[k] for pair in states]).detach() for k in (0, 1))
        else:
            state = torch.stack(states).detach()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "RNN module weights are not part"
            )  # of one block: no cause for alarm here
            if call.batch_sizes is None:
                outputs: Tensor
                outputs, *_ = kernel(inputs, state, weights, module.bias, 1, 0.0, False, module.bidirectional, False)
                return outputs
            data = pack_padded_sequence(inputs, call.host_lengths).data
            packed, *_ = kernel(
                data, call.batch_sizes, state, weights, module.bias, 1, 0.0, False, module.bidirectional
            )
            return call._padded(packed)


def _step(mode: str, weight_hh: Tensor, bias_hh: Tensor | None) -> Step:
    """Torch's equations of one step, the input product taken."""

    def lstm(projected: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, c = state
        i, f, g, o = (projected + linear(h, weight_hh, bias_hh)).chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return h, (h, c)

    def gru(projected: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        r, z, n = projected.chunk(3, dim=-1)
        from_r, from_z, from_n = linear(h, weight_hh, bias_hh).chunk(3, dim=-1)
        n = (n + (r + from_r).sigmoid() * from_n).tanh()
        h = n + (z + from_z).sigmoid() * (h - n)
        return h, h

    def elman(projected: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = projected + linear(h, weight_hh, bias_hh)
        h = h.relu() if mode == "RNN_RELU" else h.tanh()
        return h, h

    steps: dict[str, Step] = {"LSTM": lstm, "GRU": gru}
    return steps.get(mode, elman)
