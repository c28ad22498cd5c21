"""Every public module that is neither a cell nor a layer: how one is made, and how it is run over a batch."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rnn_blocks import (
    GRU,
    LSTM,
    Attention,
    Bidirectional,
    Bridge,
    ClozeBatch,
    ClozeModel,
    Decoder,
    EmbeddingDropout,
    Encoded,
    Encoder,
    LanguageModel,
    LastStateBridge,
    MeanBridge,
    ParallelBatch,
    ProjectedBridge,
    Seq2Seq,
    TorchLayout,
    make_attention,
)
from rnn_blocks.engine import State, map_state
from rnn_blocks.modules.output_layer import word_loss

VOCAB, MASK = 9, 8
Lengths = Tensor | Sequence[int] | None


class Whole(NamedTuple):
    """A kind of module: ``call(module, batch, lengths)`` runs one over a batch of sequences.

    Attributes:
        make: makes one, in float32.
        call: gives all that is made of the batch, one sentence knowing nothing of another.
        features: of the sequences ``(batch, time, features)``; 0 where they are ids ``(batch, time)``.
        has_lengths: whether it takes any.
        vmaps: whether ``torch.func.vmap`` can run it: not where it picks rows by what is in them.
    """

    make: Callable[[], nn.Module]
    call: Callable[[nn.Module, Tensor, Lengths], State]
    features: int = 0
    has_lengths: bool = True
    vmaps: bool = True


def wave(like: Tensor, *shape: int) -> Tensor:
    """Numbers of this shape that are the same for each sequence of a batch, and at each call."""
    numbers = torch.arange(torch.Size(shape).numel(), dtype=torch.float64, device=like.device).add(1).sin()
    return numbers.view(1, *shape).expand(len(like), *shape)


def tokens(like: Tensor, time: int) -> Tensor:
    return (torch.arange(time, device=like.device) * 3 % (VOCAB - 3) + 1).expand(len(like), time)


def attend(attention: Attention, values: Tensor, lengths: Lengths) -> State:
    coverage = wave(values, 2, values.shape[1]).abs() if attention.coverage else None
    return attention(wave(values, 2, attention.query_size), attention.on(values, lengths), coverage)


def encode(encoder: Encoder, ids: Tensor, lengths: Lengths) -> State:
    outputs, _, state = encoder(ids, lengths)
    return outputs, state


def read_by() -> Bidirectional:
    return Bidirectional(GRU(3, 2))


def bridged(bridge: Bridge, outputs: Tensor, lengths: Lengths) -> State:
    counts = torch.full((len(outputs),), outputs.shape[1]) if lengths is None else torch.as_tensor(lengths)
    width = outputs.shape[-1] // 2
    halves = ((wave(outputs, width),), (wave(outputs, width) / 2,))
    state, context = bridge(Encoded(outputs, counts, halves))
    return state if context is None else (state, context)


def make_decoder(attention: str | None, *, context: int = 0, feeding: bool = True, **options) -> Decoder:
    reads = None if attention is None else make_attention(attention, 4, 4, coverage=options.pop("coverage", False))
    layer = GRU(3 + context + 4 * feeding, 4, num_layers=2)
    return Decoder(layer, VOCAB, attention=reads, context_size=context, input_feeding=feeding, **options)


def decode(decoder: Decoder, outputs: Tensor, lengths: Lengths, *, need_weights: bool = False) -> State:
    context = wave(outputs, decoder.cell.context_size) if decoder.cell.context_size else None
    memory = decoder.on(outputs, lengths, context)
    start = map_state(lambda zeros: zeros + wave(outputs, 4), decoder.layer.initial_state(len(outputs), outputs))
    state = decoder.start(start, memory)
    features, weights, after = decoder(tokens(outputs, 3), state, memory, need_weights=need_weights)
    assert not need_weights or weights is not None
    return decoder.output(features), () if weights is None else weights, after


class Translation(Seq2Seq):
    """The loss of a training step."""

    def run(self, ids: Tensor, lengths: Lengths) -> State:
        outputs = torch.cat([tokens(ids, 3), torch.full_like(ids[:, :1], -100)], 1)
        batch = ParallelBatch(ids, lengths, tokens(ids, 4), outputs)
        state, memory = self.encode(batch.source, batch.source_lengths)
        loss, extra, _ = self._loss(batch, batch.target_inputs, state, memory)
        return loss, extra


class Cloze(ClozeModel):
    """The loss of a training step."""

    def run(self, ids: Tensor, lengths: Lengths) -> Tensor:
        targets = torch.full_like(ids, -100)
        targets[0, :2] = tokens(ids, 2)[0]
        features, wanted = self._blanks(ClozeBatch(ids, targets, lengths))
        return word_loss(self.output, features, wanted)


def model_text(model: LanguageModel, ids: Tensor, _: Lengths) -> State:
    hidden, state = model.hidden(ids)
    return model.next_token_loss(hidden.flatten(0, 1), ids.t().flatten()), state


def run(module: Translation | Cloze, ids: Tensor, lengths: Lengths) -> State:
    return module.run(ids, lengths)


def call(module: nn.Module, ids: Tensor, *others: Lengths) -> State:
    return module(ids, *others)


WHOLES = {
    **{
        f"{name} attention{' with coverage' if coverage else ''}": Whole(
            partial(make_attention, name, 4, 4, coverage=coverage), attend, features=4
        )
        for name in ("dot", "general", "concat", "additive", "multi-head")
        for coverage in (False, True)
    },
    "encoder": Whole(lambda: Encoder(LSTM(3, 4), VOCAB), encode),
    "encoder both ways": Whole(lambda: Encoder(GRU(3, 2, bidirectional=True), VOCAB), encode),
    "encoder from the end": Whole(lambda: Encoder(GRU(3, 4, batch_first=False), VOCAB, reverse=True), encode),
    "last-state bridge": Whole(lambda: LastStateBridge(read_by(), LSTM(3, 5)), bridged, features=4),
    "mean bridge": Whole(lambda: MeanBridge(read_by(), GRU(3, 5)), bridged, features=4),
    "projected bridge": Whole(lambda: ProjectedBridge(read_by(), GRU(3, 5)), bridged, features=4),
    "decoder": Whole(lambda: make_decoder("additive"), decode, features=4),
    "decoder by the loop": Whole(lambda: make_decoder("general", engine="loop"), decode, features=4),
    "decoder with weights": Whole(lambda: make_decoder("additive"), partial(decode, need_weights=True), features=4),
    "decoder with coverage": Whole(lambda: make_decoder("dot", coverage=True), decode, features=4),
    "decoder at once": Whole(lambda: make_decoder("multi-head", feeding=False), decode, features=4),
    "decoder of a vector": Whole(lambda: make_decoder(None, context=2, feeding=False), decode, 4, False),
    "Seq2Seq": Whole(
        lambda: Translation(LSTM(3, 4, bidirectional=True), GRU(3 + 6, 6), VOCAB, VOCAB, label_smoothing=0.1), run
    ),
    "Seq2Seq of a vector": Whole(
        lambda: Translation(*(GRU(3, 4), LSTM(7, 4), VOCAB, VOCAB), attention=None, bridge="mean", input_feeding=False),
        run,
    ),
    "LanguageModel": Whole(lambda: LanguageModel(LSTM(3, 4, num_layers=2), VOCAB), model_text, has_lengths=False),
    "LanguageModel with an adaptive softmax": Whole(
        lambda: LanguageModel(GRU(3, 4), VOCAB, cutoffs=[3, 6], div_value=2.0),
        *(model_text, 0, False, False),
    ),
    "LanguageModel's logits": Whole(lambda: LanguageModel(GRU(3, 4), VOCAB), call, has_lengths=False),
    "ClozeModel": Whole(lambda: Cloze(Bidirectional(LSTM(3, 4)), VOCAB, MASK, tie_weights=True), run, vmaps=False),
    "ClozeModel's logits": Whole(lambda: ClozeModel(Bidirectional(GRU(3, 4)), VOCAB, MASK), call),
    "EmbeddingDropout": Whole(
        lambda: EmbeddingDropout(nn.Embedding(VOCAB, 3), 0.2).eval(),
        lambda module, ids, _: module(ids),
        has_lengths=False,
    ),
    "TorchLayout": Whole(
        lambda: TorchLayout(LSTM(3, 4, bidirectional=True)),
        lambda module, inputs, lengths: module(inputs, lengths=lengths),
        features=3,
    ),
}
FAST = [  # one of each kind
    *(name for name in WHOLES if "attention" in name or "bridge" in name),
    *("encoder", "decoder with coverage", "decoder at once", "Seq2Seq", "LanguageModel", "ClozeModel"),
    *("LanguageModel with an adaptive softmax", "EmbeddingDropout", "TorchLayout"),
]
