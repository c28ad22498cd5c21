"""All metrics in one CSV file, which a resumed run goes on with."""

import csv
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from rnn_blocks.recipes.run.metrics import read_metrics


class MetricsCSV(Logger):
    """One row a step, one column a metric, appended as the run goes.

    Lightning's own logger deletes the file when it opens it again.

    Args:
        path: the file.
        resume_step: rows of this step or later are dropped from a file that is there: the resumed run makes them again.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "metrics.csv")
    >>> logger = MetricsCSV(path)
    >>> logger.log_metrics({"train/loss": 2.5}, step=0); logger.log_metrics({"grad_norm/total": 1.0}, step=0)
    >>> logger.save()
    >>> print(path.read_text())
    step,train/loss,grad_norm/total
    0,2.5,1.0
    <BLANKLINE>
    """

    def __init__(self, path: Path, *, resume_step: int | None = None) -> None:
        super().__init__()
        self._path = path
        self._columns = ["step"]
        self._row: dict[str, Any] = {}  # of the last step
        self._begins: int | None = None  # where that row begins in the file, if it is there
        self._changed = False
        if path.is_file() and getattr(rank_zero_only, "rank", 0) == 0:
            rows = read_metrics(path)
            self._columns = list(rows[0]) if rows else self._columns
            if resume_step is not None:
                rows = [row for row in rows if int(row["step"]) < resume_step]
                self._write(rows[:-1])
                if rows:  # its step may have been left before the end of it, in its validation
                    self._row = {name: value for name, value in rows[-1].items() if value}
                    self._row["step"] = int(rows[-1]["step"])
                    self._changed = True
                    self.save()

    @property
    def name(self) -> str:
        """The file's."""
        return self._path.name

    @property
    def version(self) -> str:
        """There is one."""
        return ""

    @property
    def log_dir(self) -> str:
        """The file's folder."""
        return str(self._path.parent)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Hyperparameters lie in the run's ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Add to the row of ``step``; the row before it, if any, is written."""
        values = {key: value.item() if isinstance(value, Tensor) else value for key, value in metrics.items()}
        step = step if step is not None else int(self._row.get("step", 0))
        if self._row and self._row["step"] != step:
            self.save()
            self._row, self._begins = {}, None
        self._row.update(values, step=step)
        self._changed = True

    @rank_zero_only
    def save(self) -> None:
        """Write the row that is being made, in the place of what was written of it before."""
        if not self._changed:
            return
        new = [key for key in self._row if key not in self._columns]
        if new or not self._path.exists():
            rows = read_metrics(self._path) if self._path.exists() else []
            self._columns += new
            self._write(rows if self._begins is None else rows[:-1])
            self._begins = None
        with self._path.open("r+", newline="", encoding="utf-8") as file:
            self._begins = file.seek(0, os.SEEK_END) if self._begins is None else file.seek(self._begins)
            csv.DictWriter(file, self._columns, lineterminator="\n").writerow(self._row)
            file.truncate()
        self._changed = False

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left."""
        self.save()

    def _write(self, rows: list[dict[str, str]]) -> None:
        temporary = self._path.with_suffix(".tmp")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, self._path)
