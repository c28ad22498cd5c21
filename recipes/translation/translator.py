"""A trained model and its tokenizers: text in, text out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from rnn_blocks.modules import Seq2Seq
from rnn_blocks.modules.generation import check_sampling
from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.data.seen import Seen
from rnn_blocks.recipes.run.load import load_model
from rnn_blocks.recipes.translation.pairs.codec import TextCodec
from rnn_blocks.seq2seq import Hypothesis


class SearchArguments(TypedDict, total=False):
    """What is taken on a command line of :class:`SearchOptions`."""

    beam_size: int
    n_best: int
    length_penalty: float | None
    coverage_penalty: float | None
    max_length: int | None
    sample: bool
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int | None


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How translations are looked for.

    Attributes:
        beam_size: Hypotheses kept of each sentence; 1 is greedy search.
        n_best: Translations of each line.
        length_penalty: 0 ranks by log-probability, 1 nearly by its mean over the tokens; by default the model's own.
        coverage_penalty: Weight of the source that was not attended to; by default the model's own.
        max_length: Tokens of a translation at most; by default the model's multiple of the source's.
        sample: Draw translations at random instead of searching for the best.
        temperature: Of the draw, divides the logits; 0 takes the most probable token.
        top_k: Draw only from the k most probable tokens.
        top_p: Draw only from the most probable tokens that together reach this probability.
        seed: Makes the draw repeatable.
        attention: Whether translations come with their attention.

    Raises:
        InputError: for a number out of its range.

    >>> SearchOptions(beam_size=0)
    Traceback (most recent call last):
    ...
    rnn_blocks.recipes.InputError: --beam_size must be at least 1, got 0
    """

    beam_size: int = 5
    n_best: int = 1
    length_penalty: float | None = None
    coverage_penalty: float | None = None
    max_length: int | None = None
    sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    attention: bool = False

    def __post_init__(self) -> None:
        for name, number in (("beam_size", self.beam_size), ("n_best", self.n_best), ("max_length", self.max_length)):
            if number is not None and number < 1:
                raise InputError(f"--{name} must be at least 1, got {number}")
        if self.n_best > self.beam_size and not self.sample:
            raise InputError(f"--n_best must be at most --beam_size ({self.beam_size}), got {self.n_best}")
        for name, penalty in (("length_penalty", self.length_penalty), ("coverage_penalty", self.coverage_penalty)):
            if penalty is not None and not 0 <= penalty < float("inf"):
                raise InputError(f"--{name} must be a finite number, 0 or above, got {penalty}")
        drawn = {"temperature": self.temperature != 1, "top_k": self.top_k, "top_p": self.top_p, "seed": self.seed}
        given = [name for name, value in drawn.items() if value not in (None, False)]
        if given and not self.sample:
            raise InputError(f"--{given[0]} is for draws at random, which --sample asks for")
        try:
            check_sampling(self.temperature, self.top_k, self.top_p, self.seed)
        except ValueError as error:
            raise InputError(f"--{error}") from error


class Translation(NamedTuple):
    """A translation as text, and what the search says of it.

    >>> Translation("ein Mann", Hypothesis([4, 5], -0.5, -0.6, True, None)).text
    'ein Mann'
    """

    text: str
    hypothesis: Hypothesis

    @property
    def score(self) -> float:
        """The log-probability in nats, with the penalties of the search, which translations are ranked by."""
        return self.hypothesis.score


class Translator:
    """Translates text.

    Args:
        model: in evaluation mode.
        codec: its tokenizers.
        seen: what the source lines that it was trained on held; None where that is not known.

    >>> from rnn_blocks import GRU
    >>> from rnn_blocks.recipes.translation.pairs.tokenizer import char_tokenizer
    >>> codec = TextCodec(char_tokenizer(["abc"]).to_str())
    >>> translator = Translator(Seq2Seq(GRU(8, 8), GRU(16, 8), 7, 7), codec)
    >>> [len(found) for found in translator(["cab", "", "a"], SearchOptions(beam_size=2, n_best=2))]
    [2, 0, 2]
    """

    def __init__(self, model: Seq2Seq, codec: TextCodec, seen: Seen | None = None) -> None:
        self.model = model.eval()
        self.codec = codec
        self.seen = seen

    @classmethod
    def load(cls, path: Path, device: str = "auto") -> "Translator":
        """From a checkpoint of the recipe, which holds the tokenizers as well.

        Args:
            path: the checkpoint.
            device: torch's name of one, or ``"auto"`` for the GPU where there is one.

        Raises:
            InputError: where it is not such a checkpoint, or there is no such device.

        >>> Translator.load(Path("no.ckpt"))
        Traceback (most recent call last):
        ...
        rnn_blocks.recipes.InputError: no.ckpt: no such checkpoint
        """
        chosen = _device(device)
        model, state = load_model(path, Seq2Seq, "translation")
        return cls(model.to(chosen), TextCodec.from_state(state), Seen.from_state(state.get("seen")))

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """Token ids of lines, ``<eos>`` at the end, which alone is left of an empty line."""
        return self.codec.encode_source(lines)

    def missing(self, lines: Sequence[str]) -> list[str]:
        """Characters and pieces of lines that training never saw, each once; none where that is not known."""
        if self.seen is None:
            return []
        tokenizer = self.codec.source_tokenizer
        return list(dict.fromkeys(part for line in lines for part in self.seen.missing(tokenizer, line)))

    def __call__(
        self, lines: Sequence[str], options: SearchOptions, *, batch_tokens: int = 2000
    ) -> list[list[Translation]]:
        """Translate lines, those of like lengths side by side.

        Args:
            lines: any number.
            options: how to search.
            batch_tokens: source tokens that are read side by side at most, padding counted.

        Returns:
            For each line its translations, best first; none of an empty line.
        """
        ids = self.encode(lines)
        found: list[list[Translation]] = [[] for _ in lines]
        filled = [place for place, tokens in enumerate(ids) if len(tokens) > 1]
        order = sorted(filled, key=lambda place: len(ids[place]), reverse=True)  # what needs most memory comes first
        seed = options.seed
        while order:
            size = max(1, batch_tokens // len(ids[order[0]]))
            places, order = order[:size], order[size:]
            for place, hypotheses in zip(places, self._search([ids[p] for p in places], options, seed), strict=True):
                texts = self.codec.detokenize([hypothesis.tokens for hypothesis in hypotheses])
                found[place] = list(map(Translation, texts, hypotheses))
            seed = None if seed is None else seed + len(places)
        return found

    def target_tokens(self, hypothesis: Hypothesis) -> list[str]:
        """Labels of the rows of its attention: ``<eos>`` has one where it is finished."""
        return [*self.codec.target_tokens(hypothesis.tokens), *["<eos>"] * hypothesis.finished]

    def _search(self, ids: list[list[int]], options: SearchOptions, seed: int | None) -> list[list[Hypothesis]]:
        rows = [torch.tensor(tokens) for tokens in ids]
        source: Tensor = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (batch, source)
        lengths = torch.tensor([len(row) for row in rows])
        if options.sample:
            return self.model.sample(
                source,
                lengths,
                num_samples=options.n_best,
                max_length=options.max_length,
                temperature=options.temperature,
                top_k=options.top_k,
                top_p=options.top_p,
                seed=seed,
                return_attention=options.attention,
            )
        return self.model.translate(
            source,
            lengths,
            beam_size=options.beam_size,
            n_best=options.n_best,
            max_length=options.max_length,
            length_penalty=options.length_penalty,
            coverage_penalty=options.coverage_penalty,
            return_attention=options.attention,
        )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return device
