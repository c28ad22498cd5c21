"""What is exported of a model: graphs of tensors in and tensors out, with sizes left open."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rnn_blocks.engine import State, map_state
from rnn_blocks.engine.state import like_state, state_tensors
from rnn_blocks.layers import Layer
from rnn_blocks.modules import ClozeModel, LanguageModel, Seq2Seq
from rnn_blocks.modules.output_layer import word_logits
from rnn_blocks.recipes import InputError

Sizes = Mapping[str, int]
Axes = tuple[int | str, ...]
# Two lots of sizes, all different: a tensor's open axes are those that differ between them.
TRACED: Sizes = {"batch": 2, "time": 3, "source": 4, "beam": 5}
OTHERS: Sizes = {"batch": 7, "time": 11, "source": 13, "beam": 6}
SMALLEST: Sizes = {"batch": 1, "time": 1, "source": 1, "beam": 1}


@dataclass(frozen=True)
class Port:
    """A tensor that goes in or comes out.

    >>> Port("ids", torch.int64, ("batch", "time")).axes
    ('batch', 'time')
    """

    name: str
    dtype: torch.dtype
    axes: Axes
    """A number, or the name of a size that is open."""


@dataclass(frozen=True)
class Graph:
    """A function of tensors that is exported as one.

    Attributes:
        name: of its file.
        about: what it does, for whoever runs it.
        module: takes the inputs one by one and gives a tuple of the outputs.
        inputs: in order.
        outputs: in order.
        states: which output is which input of the next step.
        draw: random inputs of given sizes.
        needed: whether the export fails where this graph's does.
    """

    name: str
    about: str
    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    states: dict[str, str]
    draw: Callable[[Sizes], tuple[Tensor, ...]]
    needed: bool = True


def graphs_of(model: nn.Module) -> list[Graph]:
    """The graphs of a model, which is put into evaluation mode.

    Raises:
        InputError: for a model of another kind.

    >>> import rnn_blocks
    >>> model = rnn_blocks.LanguageModel(rnn_blocks.LSTM(4, 4), vocab_size=9)
    >>> sequence, step = graphs_of(model)
    >>> [(port.name, port.axes) for port in step.inputs]
    [('ids', ('batch',)), ('state_0', ('batch', 4)), ('state_1', ('batch', 4))]
    """
    model.eval()
    if isinstance(model, LanguageModel):
        return _of_language_model(model)
    if isinstance(model, Seq2Seq):
        return _of_translation(model)
    if isinstance(model, ClozeModel):
        return [_of_cloze(model)]
    raise InputError(f"a {type(model).__name__} has no graphs to export; LanguageModel, Seq2Seq and ClozeModel have")


def first_state(model: nn.Module) -> list[Tensor]:
    """The tensors of the state before a language model's first token, of one sequence.

    >>> import rnn_blocks
    >>> [tensor.shape for tensor in first_state(rnn_blocks.LanguageModel(rnn_blocks.GRU(4, 6), vocab_size=9))]
    [torch.Size([1, 6])]
    """
    if not isinstance(model, LanguageModel):
        return []
    with torch.no_grad():
        return state_tensors(model.layer.initial_state(1, model.embedding.weight))


class _Sequence(nn.Module):
    """A language model over chunks of sequences."""

    def __init__(self, model: LanguageModel, state: State) -> None:
        super().__init__()
        self.model = model
        self.nest = state

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        ids, *state = inputs
        logits, after = self.model(ids, like_state(self.nest, state))
        return (logits, *state_tensors(after))


class _Step(_Sequence):
    """A language model over one token of each sequence."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        ids, *state = inputs
        hidden, after = self.model.layer.step(self.model.embedding(ids), like_state(self.nest, state))
        return (word_logits(self.model.output, hidden), *state_tensors(after))


def _of_language_model(model: LanguageModel) -> list[Graph]:
    vocab_size, weight = model.embedding.num_embeddings, model.embedding.weight
    start = model.layer.initial_state(1, weight)

    def chunk(sizes: Sizes) -> tuple[Tensor, ...]:
        ids = torch.randint(vocab_size, (sizes["batch"], 3), device=weight.device)
        _, state = model(ids)  # one that the layer reaches: not any numbers are a state
        return torch.randint_like(ids[:, :1].expand(-1, sizes["time"]), vocab_size), *state_tensors(state)

    def token(sizes: Sizes) -> tuple[Tensor, ...]:
        ids, *state = chunk(sizes)
        return ids[:, 0], *state

    names = [f"state_{k}" for k in range(len(state_tensors(start)))]
    return [
        _graph(
            "sequence",
            "Logits of the token after each of a sequence, or of a chunk of one, whose state goes in and comes out.",
            _Sequence(model, start),
            chunk,
            ["ids", *names],
            ["logits"],
            names,
            needed=False,
        ),
        _graph(
            "step",
            "Logits of the token after one: call it token by token, with the state that came out going in again.",
            _Step(model, start),
            token,
            ["ids", *names],
            ["logits"],
            names,
        ),
    ]


class _Encode(nn.Module):
    """The encoder, the bridge, and what attention projects."""

    def __init__(self, model: Seq2Seq) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        source, lengths = inputs
        state, memory = self.model.encode(source, lengths)
        return *state_tensors(state), *state_tensors(memory)


class _Decode(nn.Module):
    """A step of the decoder."""

    def __init__(self, model: Seq2Seq, state: State, memory: State) -> None:
        super().__init__()
        self.model = model
        self.nests = state, memory
        self.states = len(state_tensors(state))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        tokens, *given = inputs
        state = like_state(self.nests[0], given[: self.states])
        memory = like_state(self.nests[1], given[self.states :])
        logits, after, weights = self.model.decoder.step(tokens, state, memory)
        return logits, *state_tensors(after), *([] if weights is None else [weights])


def _of_translation(model: Seq2Seq) -> list[Graph]:
    vocabulary = model.encoder.embedding
    device = vocabulary.weight.device

    def sentences(sizes: Sizes) -> tuple[Tensor, ...]:
        shape = sizes["batch"], sizes["source"]
        lengths = torch.randint(1, shape[1] + 1, shape[:1], device=device)
        lengths[0] = shape[1]
        return torch.randint(vocabulary.num_embeddings, shape, device=device), lengths

    def hypotheses(sizes: Sizes) -> tuple[Tensor, ...]:
        state, memory = model.encode(*sentences(sizes))
        shape = sizes["batch"], sizes["beam"]
        state = map_state(lambda tensor: tensor.unsqueeze(1).repeat_interleave(shape[1], 1), state)
        first, second = torch.randint(model.decoder.embedding.num_embeddings, (2, *shape), device=device)
        after = model.decoder.step(first, state, memory).state  # no two hypotheses are the same any more
        return second, *state_tensors(after), *state_tensors(memory)

    with torch.no_grad():
        state, memory = model.encode(*sentences(TRACED))
    states = [f"state_{k}" for k in range(len(state_tensors(state)))]
    memories = [f"memory_{k}" for k in range(len(state_tensors(memory)))]
    attention = [] if model.decoder.attention is None else ["attention"]
    return [
        _graph(
            "encoder",
            "Reads sources, and gives the decoder's first state and the memory that all of its steps read. Each state "
            "needs a second axis, the hypotheses of a sentence, before it goes into a step: state[:, None].",
            _Encode(model),
            sentences,
            ["source", "lengths"],
            [*states, *memories],
            [],
        ),
        _graph(
            "step",
            "Logits of the token after one, of every hypothesis of every sentence: from bos on, until eos; pad and bos "
            "are never to be written. The state that came out goes in again; the memory stays.",
            _Decode(model, state, memory),
            hypotheses,
            ["tokens", *states, *memories],
            ["logits"],
            states,
            attention,
        ),
    ]


class _Fill(nn.Module):
    """A cloze model at every place."""

    def __init__(self, model: ClozeModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        ids, lengths = inputs
        model = self.model
        layer: Layer = model.layer
        embedded = model.embedding(ids)  # (batch, time, features)
        if layer.batch_first:
            hidden, _ = layer(embedded, lengths=lengths)
        else:
            hidden = layer(embedded.transpose(0, 1), lengths=lengths)[0].transpose(0, 1)
        return (model.output(model.projection(hidden)),)


def _of_cloze(model: ClozeModel) -> Graph:
    vocabulary = model.embedding

    def sentences(sizes: Sizes) -> tuple[Tensor, ...]:
        shape = sizes["batch"], sizes["time"]
        lengths = torch.randint(1, shape[1] + 1, shape[:1], device=vocabulary.weight.device)
        lengths[0] = shape[1]
        return torch.randint(vocabulary.num_embeddings, shape, device=lengths.device), lengths

    about = "Logits at every place; only those at the mask's are of use: a place that is not blank sees its own token."
    return _graph("sequence", about, _Fill(model), sentences, ["ids", "lengths"], ["logits"], [])


@torch.no_grad()
def _graph(
    name: str,
    about: str,
    module: nn.Module,
    draw: Callable[[Sizes], tuple[Tensor, ...]],
    inputs: Sequence[str],
    outputs: Sequence[str],
    states: Sequence[str],
    further: Sequence[str] = (),
    *,
    needed: bool = True,
) -> Graph:
    module.eval()
    outputs = [*outputs, *(f"next_{state}" for state in states), *further]

    def run(sizes: Sizes) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        with torch.no_grad():
            given = draw(sizes)
            return given, module(*given)

    both: list[Any] = [run(TRACED), run(OTHERS)]
    return Graph(
        name,
        about,
        module,
        _ports(inputs, both[0][0], both[1][0]),
        _ports(outputs, both[0][1], both[1][1]),
        {state: f"next_{state}" for state in states},
        torch.no_grad()(draw),
        needed,
    )


def _ports(names: Sequence[str], ones: Sequence[Tensor], others: Sequence[Tensor]) -> tuple[Port, ...]:
    ports = []
    for name, one, other in zip(names, ones, others, strict=True):
        axes: list[int | str] = []
        for a, b in zip(one.shape, other.shape, strict=True):
            axes.append(a if a == b else next(size for size in TRACED if (TRACED[size], OTHERS[size]) == (a, b)))
        ports.append(Port(name, one.dtype, tuple(axes)))
    return tuple(ports)
