"""What a metrics file says; looking at it needs no trainer."""

import csv
import math
from pathlib import Path


def read_metrics(path: Path) -> list[dict[str, str]]:
    r"""The rows of a metrics file; a last line cut off by a crash is left out.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "metrics.csv"); _ = path.write_text("step,loss\n1,2.5\n")
    >>> read_metrics(path)
    [{'step': '1', 'loss': '2.5'}]
    """
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if None not in row.values() and row["step"]]


def metrics_until(path: Path, step: int) -> dict[str, float]:
    r"""The latest value of each metric of training and validation when so many steps had been made, if it is finite.

    Args:
        path: a metrics file.
        step: how many.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "metrics.csv")
    >>> _ = path.write_text("step,train/loss,val/loss,val/bleu\n8,3.0,,\n9,,2.5,nan\n10,2.0,,\n")
    >>> metrics_until(path, 10)
    {'train/loss': 3.0, 'val/loss': 2.5}
    """
    found: dict[str, float] = {}
    for row in read_metrics(path) if path.is_file() else []:
        if int(row["step"]) < step:  # rows are numbered from 0
            found |= {k: float(v) for k, v in row.items() if v and k.startswith(("train/", "val/"))}
    return {name: value for name, value in found.items() if math.isfinite(value)}
