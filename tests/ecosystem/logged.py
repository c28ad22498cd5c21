"""Metrics as they lie in a logger's files."""

import csv
import struct
from pathlib import Path

Metrics = dict[str, dict[int, float]]
"""Of each metric, its value at each step."""


def only(folder: Path, pattern: str) -> Path:
    """The one file below a folder with such a name.

    Raises:
        FileNotFoundError: there is none, or more than one.
    """
    found = sorted(folder.rglob(pattern))
    if len(found) != 1:
        raise FileNotFoundError(f"{len(found)} files {pattern} below {folder}: {[str(path) for path in found]}")
    return found[0]


def read_csv(path: Path) -> Metrics:
    """What a `CSVLogger` wrote into ``metrics.csv``."""
    metrics: Metrics = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            for name, text in row.items():
                if text and name not in ("step", "epoch"):
                    metrics.setdefault(name, {})[int(row["step"])] = float(text)
    return metrics


def read_tensorboard(path: Path) -> Metrics:
    """The scalars in an event file, as `tensorboardX` writes it for a `TensorBoardLogger`.

    A record is its length in eight bytes, their checksum in four, the event itself, and its checksum in four.
    """
    from tensorboardX.proto.event_pb2 import Event

    metrics: Metrics = {}
    content = path.read_bytes()
    start = 0
    while start < len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        event = Event.FromString(content[start + 12 : start + 12 + length])
        start += 16 + length
        for value in event.summary.value:
            if value.HasField("simple_value"):
                metrics.setdefault(value.tag, {})[event.step] = value.simple_value
    return metrics
