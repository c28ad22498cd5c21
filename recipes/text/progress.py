"""A progress bar for work on text that takes more than a moment."""

import sys
from collections.abc import Iterable, Iterator

from tqdm import tqdm  # type: ignore[import-untyped]

from rnn_blocks.recipes.text.corpus import utf8_length

SHOWN_AFTER_SECONDS = 2.0
LOG_EVERY_SECONDS = 10.0


def with_progress(text: Iterable[str], description: str, total_bytes: int | None) -> Iterator[str]:
    """Yields the blocks of a text and shows on stderr, once two seconds have gone by, how far they are."""
    # A log file gets a line now and then; a terminal's line is drawn over.
    interval = 0.1 if sys.stderr.isatty() else LOG_EVERY_SECONDS
    with tqdm(
        total=total_bytes,
        desc=description,
        unit="B",
        unit_scale=True,
        delay=SHOWN_AFTER_SECONDS,
        mininterval=interval,
        maxinterval=LOG_EVERY_SECONDS,
        file=sys.stderr,
    ) as bar:
        for block in text:
            yield block
            bar.update(utf8_length(block))
