"""A progress bar for work on text that takes more than a moment."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm  # type: ignore[import-untyped]

from rnn_blocks.recipes.data.corpora.corpus import utf8_length

SHOWN_AFTER_SECONDS = 2.0
LOG_EVERY_SECONDS = 10.0


Item = TypeVar("Item")


def with_progress(text: Iterable[str], description: str, total_bytes: int | None) -> Iterator[str]:
    """Yields the blocks of a text and shows on stderr, once two seconds have gone by, how far they are."""
    with progress_bar(description, total_bytes, "B") as bar:
        for block in text:
            yield block
            bar.update(utf8_length(block))


def count_progress(items: Iterable[Item], description: str, total: int | None, unit: str) -> Iterator[Item]:
    """Yields items and shows on stderr, once two seconds have gone by, how many they were."""
    with progress_bar(description, total, f" {unit}") as bar:
        for item in items:
            yield item
            bar.update()


def progress_bar(description: str, total: int | None, unit: str, *, hidden: bool = False) -> "tqdm[Any]":
    """A bar on stderr, seen once two seconds have gone by."""
    # A log file gets a line now and then; a terminal's line is drawn over.
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        unit_scale=True,
        disable=hidden,
        delay=SHOWN_AFTER_SECONDS,
        mininterval=0.1 if sys.stderr.isatty() else LOG_EVERY_SECONDS,
        maxinterval=LOG_EVERY_SECONDS,
        file=sys.stderr,
    )
