"""A comparison's table: to read, as Markdown and as CSV."""

import csv
import io
import math
from collections.abc import Sequence

from rnn_blocks.recipes.long_range.comparison.settings import Result

COLUMNS = (
    "cell",
    "clipping",
    "T",
    "seed",
    "hidden",
    "parameters",
    "outcome",
    "steps",
    "loss",
    "loss/guess",
    "accuracy",
    "seconds",
)


def outcome(result: Result) -> str:
    """In a word.

    >>> from rnn_blocks.recipes.long_range.comparison.settings import Settings
    >>> outcome(Result(Settings("copy", 10, "gru"), 8, 400, 0.7, loss=0.5))
    'unsolved'
    """
    return "solved" if result.solved else "diverged" if result.diverged else "unsolved"


def rows(results: Sequence[Result]) -> list[list[str]]:
    """The table's rows, as text."""
    return [
        [
            result.settings.cell,
            result.settings.clipping,
            str(result.settings.length),
            str(result.settings.seed),
            str(result.hidden_size),
            str(result.parameters),
            outcome(result),
            str(result.steps),
            _number(result.loss),
            _number(result.relative_loss),
            "" if result.accuracy is None else f"{result.accuracy:.3f}",
            f"{result.seconds:.0f}",
        ]
        for result in results
    ]


def text_table(results: Sequence[Result]) -> str:
    """Aligned columns; those that say the same of every training are left out.

    >>> from rnn_blocks.recipes.long_range.comparison.settings import Settings
    >>> result = Result(Settings("copy", 10, "gru"), 8, 400, 0.7, steps=20, solved=True, loss=7e-4, accuracy=1.0)
    >>> print(text_table([result]))
    cell   T  hidden  parameters  outcome  steps    loss  loss/guess  accuracy  seconds
    gru   10       8         400   solved     20  0.0007       0.001     1.000        0
    """
    table = [list(COLUMNS), *rows(results)]
    told = [
        index
        for index, name in enumerate(COLUMNS)
        if (name not in ("clipping", "seed") or len({row[index] for row in table[1:]}) > 1)
        and any(row[index] for row in table[1:])
    ]
    widths = {index: max(len(row[index]) for row in table) for index in told}
    lines = [
        "  ".join(row[i].ljust(widths[i]) if COLUMNS[i] == "cell" else row[i].rjust(widths[i]) for i in told)
        for row in table
    ]
    return "\n".join(line.rstrip() for line in lines)


def markdown_table(results: Sequence[Result]) -> str:
    """A Markdown table.

    >>> markdown_table([]).splitlines()[0][:19]
    '| cell | clipping |'
    """
    lines = [list(COLUMNS), ["---"] * len(COLUMNS), *rows(results)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def csv_table(results: Sequence[Result]) -> str:
    """Comma-separated values, with all digits.

    >>> csv_table([]).startswith("cell,clipping,T,seed")
    True
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for result, row in zip(results, rows(results), strict=True):
        exact = {"loss": result.loss, "loss/guess": result.relative_loss, "accuracy": result.accuracy}
        values = [exact.get(name, row[index]) for index, name in enumerate(COLUMNS)]
        writer.writerow(["" if value is None else value for value in values])
    return stream.getvalue()


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"
