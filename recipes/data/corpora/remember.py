"""What reading a big file through told, kept until the file changes."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

# Part of every note: raise it when reading the same file would tell something else.
_FORMAT = 2
_FROM_BYTES = 1 << 24
_SETTLED_AFTER_NS = 2_000_000_000


def remembered(path: Path, memory: Path | None, compute: Callable[[], list[str | int]]) -> list[str | int]:
    """Returns ``compute()``, or what it returned before for the same file.

    A file is the same while its path, size, inode and time of change are. Small files are read anew each time, and so
    is one that changed a moment ago, since it may change again within one tick of its clock.

    Args:
        path: the file that ``compute`` reads.
        memory: the folder in which results are kept; None keeps none.
        compute: reads the file; its result must be fit for JSON.
    """
    status = path.stat()
    if memory is None or status.st_size < _FROM_BYTES:
        return compute()
    location = str(path.resolve())
    seen = [_FORMAT, location, status.st_size, status.st_mtime_ns, status.st_ino]
    note = memory / f"{hashlib.sha256(location.encode()).hexdigest()[:20]}.json"
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        if known["seen"] == seen:
            return list(known["result"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # never read before, or by another version

    result = compute()
    if time.time_ns() - status.st_mtime_ns > _SETTLED_AFTER_NS:
        with contextlib.suppress(OSError):  # without the note the file is read again next time, no more
            note.parent.mkdir(parents=True, exist_ok=True)
            partial = note.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps({"seen": seen, "result": result}), encoding="utf-8")
            os.replace(partial, note)
    return result
