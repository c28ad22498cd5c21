"""What a part of the GPU check tells: one row a finding, as a line of JSON that `check.py` reads as it comes."""

import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

MARK = "ROW "


@dataclass(frozen=True)
class Row:
    """A finding.

    Attributes:
        part: of the check.
        name: what was looked at.
        ok: whether it is as it should be; None for a number that nothing is asked of.
        value: the number, if there is one.
        unit: of the number, such as ``"÷ cuDNN"``.
        note: what one must know to read it; of a failure, what happened.
    """

    part: str
    name: str
    ok: bool | None = None
    value: float | None = None
    unit: str = ""
    note: str = ""


def tell(row: Row) -> None:
    """Hand a row on at once."""
    sys.stdout.write(MARK + json.dumps(asdict(row)) + "\n")
    sys.stdout.flush()


def read_row(line: str) -> Row | None:
    """The row in a line of a part's output, if it holds one."""
    return Row(**json.loads(line.removeprefix(MARK))) if line.startswith(MARK) else None


@contextmanager
def told_if_it_fails(part: str, name: str) -> Iterator[None]:
    """Make a row of whatever goes wrong, and go on."""
    try:
        yield
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        said = (str(error).splitlines() or [""])[0][:300]
        tell(Row(part, name, ok=False, note=f"{type(error).__name__}: {said} ({where.filename}:{where.lineno})"))


class Deadline:
    """The time that a part has: what does not fit is left out, and told of.

    Args:
        seconds: from now on.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._left_out: list[str] = []

    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def each(self, part: str, work: dict[str, Callable[[], None]]) -> None:
        """Do one after the other as long as there is time; a failure is a row."""
        for name, do in work.items():
            if self.left() <= 0:
                self._left_out.append(name)
                continue
            with told_if_it_fails(part, name):
                do()
        if self._left_out:
            names = ", ".join(self._left_out)
            tell(Row(part, "left out", note=f"no time was left for {len(self._left_out)}: {names}"))
            self._left_out = []
