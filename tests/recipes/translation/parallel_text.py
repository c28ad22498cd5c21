"""Small parallel texts that the tests of the translation data share."""

import gzip
from pathlib import Path
from typing import Any

from rnn_blocks.recipes.translation.pairs.data import ParallelDataModule

EN = ["a man", "two dogs run", "a woman, sitting.", "the man sees a woman and two dogs", "dogs"]
DE = ["ein Mann", "zwei Hunde laufen", "eine Frau, sitzend.", "der Mann sieht eine Frau und zwei Hunde", "Hunde"]


def write(path: Path, lines: list[str]) -> Path:
    data = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_pairs(stem: Path, source: list[str], target: list[str]) -> str:
    write(stem.with_name(f"{stem.name}.en"), source)
    write(stem.with_name(f"{stem.name}.de"), target)
    return str(stem)


def small_data(folder: Path, copies: int = 8, **options: Any) -> ParallelDataModule:
    """Train, val and test of a few pairs, words as tokens."""
    stem = write_pairs(folder / "train", EN * copies, DE * copies)
    held = write_pairs(folder / "held", EN, DE)
    settings = {"tokenizer": "word", "cache_dir": str(folder / "cache"), "batch_tokens": 40, "max_length": 20}
    return ParallelDataModule(**({"train": stem, "val": held, "test": held} | settings | options))
