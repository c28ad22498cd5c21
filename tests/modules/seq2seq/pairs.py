"""Small batches of sentence pairs, and models to read them."""

import copy
from collections.abc import Sequence

import torch
from streams import sgd
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from rnn_blocks import GRU, LSTM, ParallelBatch, Seq2Seq

SOURCE_VOCAB, TARGET_VOCAB, BOS, EOS = 9, 11, 1, 2
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def pair_batch(sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], **fields) -> ParallelBatch:
    """A batch of ids without ``<bos>`` and ``<eos>``."""
    sources = [torch.tensor([*ids, EOS]) for ids in sources]
    inputs = [torch.tensor([BOS, *ids]) for ids in targets]
    outputs = [torch.tensor([*ids, EOS]) for ids in targets]
    return ParallelBatch(
        padded(sources, 0),
        torch.tensor([len(ids) for ids in sources]),
        padded(inputs, 0),
        padded(outputs, -100),
        **fields,
    )


def padded(rows: list[Tensor], value: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.stack([pad(row, (0, longest - len(row)), value=value) for row in rows])


def draw_pairs(sizes: Sequence[int], seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    """As many pairs as numbers, with targets of those lengths."""
    generator = torch.Generator().manual_seed(seed)

    def ids(length: int, vocab: int) -> list[int]:
        return torch.randint(4, vocab, (length,), generator=generator).tolist()

    lengths = torch.randint(0, 6, (len(sizes),), generator=generator).tolist()
    return [ids(length, SOURCE_VOCAB) for length in lengths], [ids(size, TARGET_VOCAB) for size in sizes]


def draw_batch(sizes: Sequence[int], seed: int = 0, **fields) -> ParallelBatch:
    return pair_batch(*draw_pairs(sizes, seed), **fields)


def make_model(seed: int = 0, **options) -> Seq2Seq:
    """In float64, with plain descent."""
    torch.manual_seed(seed)
    encoder = options.pop("encoder", None) or GRU(4, 6, bidirectional=True)
    decoder = copy.deepcopy(options.pop("decoder", None)) or LSTM(3 + 5 * options.get("input_feeding", True), 5)
    sizes = options.pop("sizes", (SOURCE_VOCAB, TARGET_VOCAB))
    model = Seq2Seq(encoder, decoder, *sizes, **{"optimizer": sgd(), "init_range": 0.5} | options)
    model.decoder.recurrent.engine = "loop"  # nothing is recorded: there are many shapes of few steps
    return model.double()


def sums_by_hand(model: Seq2Seq, batch: ParallelBatch, label_smoothing: float = 0.0) -> tuple[Tensor, int]:
    """Summed cross-entropy by torch's own, with the tokens that it is of."""
    logits = model(batch.source, batch.source_lengths, batch.target_inputs)
    nats = cross_entropy(
        logits.flatten(0, 1), batch.target_outputs.flatten(), reduction="sum", label_smoothing=label_smoothing
    )
    return nats, int((batch.target_outputs != -100).sum())


def coverage_by_hand(model: Seq2Seq, batch: ParallelBatch) -> Tensor:
    """``Σ_j min(a_j, coverage_j)``, summed over the target tokens."""
    state, memory = model.encode(batch.source, batch.source_lengths)
    _, weights, _ = model.decoder(batch.target_inputs, state, memory, need_weights=True)
    total = torch.zeros((), dtype=torch.float64)
    for row, targets in zip(weights, batch.target_outputs, strict=True):
        covered = torch.zeros_like(row[0])
        for step, target in zip(row, targets, strict=True):
            if target != -100:
                total = total + torch.minimum(step, covered).sum()
            covered = covered + step
    return total


def descend(model: Seq2Seq, batches: Sequence[ParallelBatch], lr: float = 0.5, *, smoothing=0.0, coverage=0.0) -> None:
    """One step on all batches' tokens."""
    parts = [sums_by_hand(model, batch, smoothing) for batch in batches]
    total = sum(nats for nats, _ in parts)
    if coverage:
        total = total + coverage * sum(coverage_by_hand(model, batch) for batch in batches)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(total / sum(tokens for _, tokens in parts), parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= lr * gradient


def words(ids: list[list[int]]) -> list[str]:
    """A text of each."""
    return [" ".join(f"w{number}" for number in sentence) for sentence in ids]
