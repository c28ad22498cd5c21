"""What the recurrent blocks are compared with: the equations written out step by step, and torch's own.

Nothing here uses the package's engines or steps: a mistake would have to be made twice to go unseen.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rnn_blocks import Cell, ElmanCell, GRUCell, LSTMCell
from rnn_blocks.engine import State, map_state, state_tensors

CELLS = {
    "elman-tanh": lambda i, h: ElmanCell(i, h),
    "elman-relu": lambda i, h: ElmanCell(i, h, nonlinearity="relu"),
    "lstm": LSTMCell,
    "gru": GRUCell,
}


class LeakySum(Cell):
    """A user's own cell: a step in plain torch with a nested state, one part of which counts the steps."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.mix = nn.Linear(input_size, hidden_size)

    def step(self, projected: Tensor, state: State) -> tuple[Tensor, State]:
        h, (count,) = state
        h = 0.9 * h + self.mix(projected).tanh() / (1 + count)
        return h * h, (h, (count + 1,))

    def initial_state(self, batch_size: int, like: Tensor) -> State:
        return like.new_zeros(batch_size, self.hidden_size), (like.new_ones(batch_size, 1),)


Equations = Callable[[Cell, Tensor, State], tuple[Tensor, State]]
EQUATIONS: dict[type[Cell], Equations] = {}


def equations_of(*kinds: type[Cell]) -> Callable[[Equations], Equations]:
    """Registers a function ``(cell, x, state) -> (output, state)``: one step of one sequence, without a batch.

    ``x`` is ``(input_size,)`` and every tensor of the state has its batch dimension taken off.
    """

    def register(function: Equations) -> Equations:
        EQUATIONS.update(dict.fromkeys(kinds, function))
        return function

    return register


def equations(cell: Cell, x: Tensor, state: State) -> tuple[Tensor, State]:
    """One step of one sequence by the equations of the cell's kind."""
    return EQUATIONS[type(cell)](cell, x, state)


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def by_gate(cell: Cell, *names: str) -> list[Tensor]:
    """Weights cut into one for each gate, ``(gates, hidden_size, …)``."""
    return [p.view(-1, cell.hidden_size, *p.shape[1:]) for p in (getattr(cell, name) for name in names)]


@equations_of(ElmanCell)
def elman(cell: ElmanCell, x: Tensor, h: State) -> tuple[Tensor, State]:
    a = cell.weight_ih @ x + cell.weight_hh @ h + cell.bias
    h = torch.tanh(a) if cell.nonlinearity == "tanh" else torch.clamp(a, min=0)
    return h, h


@equations_of(GRUCell)
def gru(cell: GRUCell, x: Tensor, h: State) -> tuple[Tensor, State]:
    W, U, b = by_gate(cell, "weight_ih", "weight_hh", "bias")
    r = sigmoid(W[0] @ x + b[0] + U[0] @ h)
    z = sigmoid(W[1] @ x + b[1] + U[1] @ h)
    from_before = r * (U[2] @ h + cell.bias_hn) if cell.reset_after else U[2] @ (r * h)
    n = torch.tanh(W[2] @ x + b[2] + from_before)
    h = (1 - z) * n + z * h
    return h, h


@equations_of(LSTMCell)
def lstm(cell: LSTMCell, x: Tensor, state: State) -> tuple[Tensor, State]:
    h, c = state
    W, U, b = by_gate(cell, "weight_ih", "weight_hh", "bias")
    i, f, o = (sigmoid(W[k] @ x + U[k] @ h + b[k]) for k in (0, 1, 3))
    c = f * c + i * torch.tanh(W[2] @ x + U[2] @ h + b[2])
    h = o * torch.tanh(c)
    return h, (h, c)


@equations_of(LeakySum)
def leaky_sum(cell: LeakySum, x: Tensor, state: State) -> tuple[Tensor, State]:
    h, (count,) = state
    h = 0.9 * h + torch.tanh(cell.mix.weight @ x + cell.mix.bias) / (1 + count)
    return h * h, (h, (count + 1,))


def run_by_hand(
    cells: Sequence[Cell],
    inputs: Tensor,
    states: Sequence[State],
    lengths: Sequence[int] | None = None,
    resets: Sequence[Sequence[bool]] | None = None,
) -> tuple[Tensor, list[State]]:
    """A stack of cells, sequence by sequence and step by step; ``inputs`` (batch, time, features), states per cell."""
    batch, time = inputs.shape[:2]
    fresh = [map_state(lambda tensor: tensor[0], cell.initial_state(1, inputs)) for cell in cells]
    outputs, finals = [], []
    for n in range(batch):
        state = [map_state(lambda tensor: tensor[n], part) for part in states]  # noqa: B023 (used at once)
        steps = []
        for t in range(time):
            if lengths is not None and t >= lengths[n]:
                steps.append(inputs.new_zeros(cells[-1].hidden_size))
                continue
            x = inputs[n, t]
            for k, cell in enumerate(cells):
                x, state[k] = equations(cell, x, fresh[k] if resets is not None and resets[n][t] else state[k])
            steps.append(x)
        outputs.append(torch.stack(steps))
        finals.append(state)
    after = [map_state(lambda *rows: torch.stack(rows), *(final[k] for final in finals)) for k in range(len(cells))]
    return torch.stack(outputs), after


def torch_twin(cells: Sequence[Cell]) -> nn.RNNBase:
    """Torch's module with the cells' weights."""
    first = cells[0]
    sizes = (first.input_size, first.hidden_size, len(cells))
    if isinstance(first, ElmanCell):
        twin: nn.RNNBase = nn.RNN(*sizes, nonlinearity=first.nonlinearity, batch_first=True)
    else:
        twin = (nn.LSTM if isinstance(first, LSTMCell) else nn.GRU)(*sizes, batch_first=True)
    twin = twin.to(first.weight_ih)
    with torch.no_grad():
        for k, cell in enumerate(cells):
            for name, value in zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), weights_of(cell), strict=True):
                getattr(twin, f"{name}_l{k}").copy_(value)
    return twin


def weights_of(cell: Cell) -> list[Tensor]:
    """The cell's weights as torch's modules have them, with two biases."""
    second = torch.zeros_like(cell.bias)
    if isinstance(cell, GRUCell):
        second = torch.cat([second[: 2 * cell.hidden_size], cell.bias_hn])
    return [cell.weight_ih, cell.weight_hh, cell.bias, second]


def twin_gradients(twin: nn.RNNBase, cells: Sequence[Cell]) -> list[Tensor]:
    """The twin's gradients in the order of the cells' ``parameters()``."""
    gradients = []
    for k, cell in enumerate(cells):
        gradients += [getattr(twin, f"{name}_l{k}").grad for name in ("weight_ih", "weight_hh", "bias_ih")]
        if isinstance(cell, GRUCell):
            gradients.append(getattr(twin, f"bias_hh_l{k}").grad[2 * cell.hidden_size :])
    return gradients


def random_state(state: State, scale: float = 0.7) -> State:
    """Random numbers in the place of ``state``'s."""
    if isinstance(state, Tensor) and not (state.is_floating_point() or state.is_complex()):
        return torch.randint_like(state, 0, 6)  # a count
    if isinstance(state, Tensor):
        return torch.randn_like(state) * scale
    return tuple(random_state(part, scale) for part in state)


def weighted_sum(outputs: Tensor, state: State, seed: int = 5) -> Tensor:
    """A scalar in which every output and every number of the state has a weight of its own, so no gradient hides."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64, device=outputs.device)
    for tensor in [outputs, *state_tensors(state)]:
        for part in torch.view_as_real(tensor).unbind(-1) if tensor.is_complex() else [tensor]:
            weights = torch.randn(part.shape, generator=generator, dtype=torch.float64).to(tensor.device)
            total = total + (part.double() * weights).sum()
    return total


def gradients_of(total: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Gradients, zero where ``total`` does not depend on a tensor."""
    if not total.requires_grad:
        return [torch.zeros_like(t) for t in tensors]
    found = torch.autograd.grad(total, list(tensors), allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, tensors, strict=True)]


def rows(state: State, at: slice | list[int]) -> State:
    """The states of some sequences."""
    return state[at] if isinstance(state, Tensor) else tuple(rows(part, at) for part in state)
