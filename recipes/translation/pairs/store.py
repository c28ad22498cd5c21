"""A parallel corpus's token ids and lines on disk: made once, found again by content and settings."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import Tokenizer

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.data.corpora.corpus import Split, utf8_length
from rnn_blocks.recipes.data.corpora.plain import is_blank
from rnn_blocks.recipes.data.progress import count_progress
from rnn_blocks.recipes.data.seen import Seeing, Seen, normal_form
from rnn_blocks.recipes.data.store import cache_home, find_or_make
from rnn_blocks.recipes.translation.corpora.corpus import Pair, ParallelCorpus
from rnn_blocks.recipes.translation.pairs.ragged import RaggedFile, RaggedWriter
from rnn_blocks.recipes.translation.pairs.settings import ParallelTokenizerSettings
from rnn_blocks.recipes.translation.pairs.tokenizer import normalise

# Part of every key: raise it when the same text and settings would give other files.
_FORMAT = 2
_PAIRS_AT_ONCE = 512
# What a vocabulary learns hardly changes beyond this, while the memory and the time to learn it grow.
_LEARNING_BYTES = 64 << 20
_SIDES = ("source", "target")


@dataclass(frozen=True)
class PairFile:
    """The pairs of one split on disk.

    Attributes:
        source: the token ids of the source lines, without ``<eos>``.
        target: those of their translations.
        source_text: the lines in UTF-8, with whitespace and case as the tokenizer gives them back.
        target_text: those of the translations.
        empty: how many pairs were left out because a side is empty: ``source``, ``target``.
    """

    source: RaggedFile
    target: RaggedFile
    source_text: RaggedFile
    target_text: RaggedFile
    empty: dict[str, int]

    @property
    def whole(self) -> bool:
        """Whether all files are there in their full length."""
        return all(file.whole for file in (self.source, self.target, self.source_text, self.target_text))


@dataclass(frozen=True)
class PreparedPairs:
    """A tokenized parallel corpus.

    Attributes:
        fingerprint: hash of the corpus's text.
        source_json: the source side's tokenizer, as ``tokenizers.Tokenizer.from_str`` reads it.
        target_json: the target side's; the same where they share one.
        splits: the pairs of each split.
        seen: what the source lines of the train split hold; None where that was not read.
    """

    fingerprint: str
    source_json: str
    target_json: str
    splits: dict[Split, PairFile]
    seen: Seen | None


def prepare_pairs(corpus: ParallelCorpus, settings: ParallelTokenizerSettings, cache_dir: Path) -> PreparedPairs:
    """Tokenizes a parallel corpus, or finds what was made of the same text with the same settings before.

    Pairs with an empty side are left out of the train split, and counted. Several processes may call it at once.

    Args:
        corpus: where the pairs come from.
        settings: which tokenizers.
        cache_dir: the folder below which the files lie.

    Raises:
        InputError: the text cannot be read, a line of val or test is empty, or the cache folder cannot be written.
    """
    return _prepare(corpus, corpus.splits, settings.key(), lambda: _learn(corpus, settings), cache_dir)


def prepare_split(
    corpus: ParallelCorpus, split: Split, sides: tuple[Tokenizer, Tokenizer], cache_dir: Path
) -> PreparedPairs:
    """As ``prepare_pairs``, of one split alone, with tokenizers that there are already.

    Args:
        corpus: where the pairs come from.
        split: the split.
        sides: of the source and of the target.
        cache_dir: the folder below which the files lie.
    """
    key = [split, *(tokenizer.to_str() for tokenizer in sides)]
    return _prepare(corpus, (split,), key, lambda: sides, cache_dir)


def _prepare(
    corpus: ParallelCorpus,
    splits: Sequence[Split],
    key: Sequence[str | int | bool | None],
    learn: Callable[[], tuple[Tokenizer, Tokenizer]],
    cache_dir: Path,
) -> PreparedPairs:
    home = cache_home(cache_dir, "parallel")
    fingerprint = corpus.fingerprint()
    parts = [_FORMAT, tokenizers.__version__, fingerprint, key]
    folder = home / hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]
    return find_or_make(
        folder, load=lambda: _load(folder, fingerprint), make=lambda partial: _make(corpus, splits, learn, partial)
    )


def _make(
    corpus: ParallelCorpus, splits: Sequence[Split], learn: Callable[[], tuple[Tokenizer, Tokenizer]], folder: Path
) -> None:
    for split in splits:
        if split != "train":
            _refuse_empty_lines(corpus, split)
    source, target = learn()
    (folder / "source.json").write_text(source.to_str(), encoding="utf-8")
    (folder / "target.json").write_text(target.to_str(), encoding="utf-8")
    counts = {}
    for split in splits:
        pairs = count_progress(corpus.pairs(split), f"tokenizing {split}", corpus.num_pairs(split), "pairs")
        seeing = Seeing()
        counts[split] = _write(folder, corpus, split, pairs, source, target, seeing)
        if split == "train":
            seen = seeing.seen(source.get_vocab_size()).state()
            (folder / "seen.json").write_text(json.dumps(seen), encoding="utf-8")
    (folder / "counts.json").write_text(json.dumps(counts, indent=1), encoding="utf-8")


def _refuse_empty_lines(corpus: ParallelCorpus, split: Split) -> None:
    for index, pair in enumerate(corpus.pairs(split)):
        for side, line in zip(_SIDES, pair, strict=True):
            if is_blank(line):
                raise _empty_line(corpus, split, index, side)


def _empty_line(corpus: ParallelCorpus, split: Split, index: int, side: str) -> InputError:
    return InputError(
        f"{corpus.place(split, index, side)}: the {side} is empty; every line of {split} is scored: fill it in, or"
        " take the pair out of both sides"
    )


def _learn(corpus: ParallelCorpus, settings: ParallelTokenizerSettings) -> tuple[Tokenizer, Tokenizer]:
    def lines(sides: Iterable[int], whose: str) -> Iterator[str]:
        left = _LEARNING_BYTES
        total = corpus.num_pairs("train")
        for pair in count_progress(corpus.pairs("train"), f"learning the vocabulary of {whose}", total, "pairs"):
            for side in sides:
                yield pair[side]
                left -= utf8_length(pair[side])
            if left <= 0:
                return

    if settings.joint:
        both = settings.build(lambda: lines((0, 1), "both sides"))
        return both, both
    return settings.build(lambda: lines((0,), "the source")), settings.build(lambda: lines((1,), "the target"))


def _write(
    folder: Path,
    corpus: ParallelCorpus,
    split: Split,
    pairs: Iterable[Pair],
    source: Tokenizer,
    target: Tokenizer,
    seeing: Seeing,
) -> dict[str, dict[str, int]]:
    empty = Counter(dict.fromkeys(_SIDES, 0))
    stream, index = iter(pairs), -1
    with ExitStack() as stack:
        ids = [stack.enter_context(RaggedWriter(folder / f"{split}.{side}.ids", "int32")) for side in _SIDES]
        texts = [stack.enter_context(RaggedWriter(folder / f"{split}.{side}.text", "uint8")) for side in _SIDES]
        while batch := list(islice(stream, _PAIRS_AT_ONCE)):
            lines = [
                [normalise(tokenizer, pair[side]) for pair in batch] for side, tokenizer in enumerate((source, target))
            ]
            encoded = [
                tokenizer.encode_batch_fast(side, add_special_tokens=False)
                for side, tokenizer in zip(lines, (source, target), strict=True)
            ]
            seeing.add(
                (normal_form(source, line) for line in lines[0]),
                [token for encoding in encoded[0] for token in encoding.ids],
            )
            for row, pair in enumerate(zip(*encoded, strict=True)):
                index += 1
                missing = [side for side, encoding in zip(_SIDES, pair, strict=True) if not len(encoding)]
                if missing and split != "train":
                    raise _empty_line(corpus, split, index, missing[0])
                if missing:
                    empty[missing[0]] += 1
                    continue
                for side, encoding in enumerate(pair):
                    ids[side].append(np.array(encoding.ids, dtype=np.int32))
                    texts[side].append(lines[side][row].encode())
    return {
        "rows": {"pairs": ids[0].file().num_rows},
        "empty": dict(empty),
        **{f"{side}.ids": {"values": ids[i].file().num_values} for i, side in enumerate(_SIDES)},
        **{f"{side}.text": {"values": texts[i].file().num_values} for i, side in enumerate(_SIDES)},
    }


def _load(folder: Path, fingerprint: str) -> PreparedPairs | None:
    try:
        counts = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
        source_json, target_json = ((folder / f"{side}.json").read_text(encoding="utf-8") for side in _SIDES)
        seen = Seen.from_state(json.loads((folder / "seen.json").read_bytes())) if "train" in counts else None
    except FileNotFoundError:
        return None
    splits = {}
    for split, count in counts.items():
        rows = count["rows"]["pairs"]
        ids = [RaggedFile(folder / f"{split}.{s}.ids", "int32", rows, count[f"{s}.ids"]["values"]) for s in _SIDES]
        text = [RaggedFile(folder / f"{split}.{s}.text", "uint8", rows, count[f"{s}.text"]["values"]) for s in _SIDES]
        splits[split] = PairFile(ids[0], ids[1], text[0], text[1], count["empty"])
    if not all(file.whole for file in splits.values()):
        return None
    return PreparedPairs(fingerprint, source_json, target_json, splits, seen)
