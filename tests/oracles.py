"""What the recurrent blocks are compared with: the equations written out step by step, and torch's own.

Nothing here uses the package's engines or steps: a mistake would have to be made twice to go unseen.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rnn_blocks import Cell, ElmanCell, GRUCell, LSTMCell
from rnn_blocks.engine import State, state_tensors

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


def equations(cell: Cell, x: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """One step for one sequence, ``x`` (input_size,), each gate with weights of its own."""
    h = state[0]
    gates = len(cell.weight_hh) // cell.hidden_size
    W, U, b = (p.view(gates, cell.hidden_size, *p.shape[1:]) for p in (cell.weight_ih, cell.weight_hh, cell.bias))
    if isinstance(cell, ElmanCell):
        a = W[0] @ x + U[0] @ h + b[0]
        h = torch.tanh(a) if cell.nonlinearity == "tanh" else torch.clamp(a, min=0)
        return h, [h]
    if isinstance(cell, GRUCell):
        r = 1 / (1 + torch.exp(-(W[0] @ x + b[0] + U[0] @ h)))
        z = 1 / (1 + torch.exp(-(W[1] @ x + b[1] + U[1] @ h)))
        n = torch.tanh(W[2] @ x + b[2] + r * (U[2] @ h + cell.bias_hn))
        h = (1 - z) * n + z * h
        return h, [h]
    i, f, o = (1 / (1 + torch.exp(-(W[k] @ x + U[k] @ h + b[k]))) for k in (0, 1, 3))
    c = f * state[1] + i * torch.tanh(W[2] @ x + U[2] @ h + b[2])
    h = o * torch.tanh(c)
    return h, [h, c]


def run_by_hand(
    cells: Sequence[Cell],
    inputs: Tensor,
    states: Sequence[Sequence[Tensor]],
    lengths: Sequence[int],
    resets: Sequence[Sequence[bool]] | None = None,
) -> tuple[Tensor, list[list[Tensor]]]:
    """A stack of cells, sequence by sequence and step by step; ``inputs`` (batch, time, features), states per cell."""
    batch, time = inputs.shape[:2]
    outputs, finals = [], []
    for n in range(batch):
        state = [[tensor[n] for tensor in part] for part in states]
        steps = []
        for t in range(time):
            if t >= lengths[n]:
                steps.append(inputs.new_zeros(cells[-1].hidden_size))
                continue
            x = inputs[n, t]
            for k, cell in enumerate(cells):
                before = [torch.zeros_like(s) for s in state[k]] if resets is not None and resets[n][t] else state[k]
                x, state[k] = equations(cell, x, before)
            steps.append(x)
        outputs.append(torch.stack(steps))
        finals.append(state)
    after = [
        [torch.stack([finals[n][k][j] for n in range(batch)]) for j in range(len(states[k]))] for k in range(len(cells))
    ]
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
    if isinstance(state, Tensor):
        return torch.randn_like(state) * scale
    return tuple(random_state(part, scale) for part in state)


def weighted_sum(outputs: Tensor, state: State, seed: int = 5) -> Tensor:
    """A scalar in which every output and every number of the state has a weight of its own, so no gradient hides."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64, device=outputs.device)
    for tensor in [outputs, *state_tensors(state)]:
        weights = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device)
        total = total + (tensor.double() * weights).sum()
    return total


def gradients_of(total: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Gradients, zero where ``total`` does not depend on a tensor."""
    found = torch.autograd.grad(total, list(tensors), allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, tensors, strict=True)]


def rows(state: State, at: slice | list[int]) -> State:
    """The states of some sequences."""
    return state[at] if isinstance(state, Tensor) else tuple(rows(part, at) for part in state)
