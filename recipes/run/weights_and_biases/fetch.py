"""Checkpoints that lie in Weights & Biases, fetched unless they are here."""

import base64
import hashlib
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.run.weights_and_biases.mode import first_line, why_no_server

PREFIX = "artifact:"
_FORM = re.compile(r"(?:(?:[^/:]+/)?[^/:]+/)?[^/:]+:[^/:]+")


def fetch_model(given: str, project: str, parent: Path) -> Path:
    """The checkpoint that an artifact of Weights & Biases holds.

    One that a run on this machine wrote, or that was fetched before, is taken as it lies here.

    Args:
        given: ``artifact:NAME:ALIAS``, ``artifact:PROJECT/NAME:ALIAS`` or ``artifact:ENTITY/PROJECT/NAME:ALIAS``.
        project: where no project is given.
        parent: the folder of the runs, which it is put beside: ``parent/artifacts/NAME-VERSION``.

    Raises:
        InputError: where the server cannot be had, or there is no such artifact.

    >>> fetch_model("artifact:model", "rnn-blocks", Path("runs"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    rnn_blocks.recipes.InputError: --ckpt_path artifact:model: give artifact:NAME:ALIAS, ...
    """
    told = f"--ckpt_path {given}"
    name = given.removeprefix(PREFIX)
    if not _FORM.fullmatch(name):
        raise InputError(
            f"{told}: give artifact:NAME:ALIAS, as in artifact:model-1a2b3c4d:best, or "
            "artifact:ENTITY/PROJECT/NAME:ALIAS"
        )
    if why := why_no_server():
        raise InputError(f"{told}: Weights & Biases is offline: {why}; a checkpoint here is given by its path")
    name = name if "/" in name else f"{project}/{name}"
    try:
        import wandb

        artifact = wandb.Api().artifact(name)
        held = {path: entry for path, entry in artifact.manifest.entries.items() if path.endswith(".ckpt")}
    except Exception as error:  # W&B's, and those of what it asks by
        raise InputError(f"{told}: no artifact {name} is to be had: {first_line(error)}") from error
    if len(held) != 1:
        there = ", ".join(sorted(held)) or "none"
        raise InputError(f"{told}: the artifact is to hold one checkpoint, a file *.ckpt, and holds {there}")
    [(path, entry)] = held.items()
    collection = name.rpartition("/")[2].partition(":")[0]
    place = parent / "artifacts" / f"{collection}-{artifact.version}" / Path(path).name
    for known in [*sorted(parent.rglob("checkpoints/*.ckpt")), place]:
        if _is_same(known, entry):
            return known
    return _download(entry, place, told)


def _is_same(path: Path, entry: Any) -> bool:
    if not path.is_file() or path.stat().st_size != entry.size:
        return False
    digest = hashlib.md5(usedforsecurity=False)  # W&B's
    with path.open("rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            digest.update(block)
    return base64.b64encode(digest.digest()).decode() == str(entry.digest)


def _download(entry: Any, place: Path, told: str) -> Path:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.parent / ".lock"):  # of several ranks
            if not _is_same(place, entry):
                with tempfile.TemporaryDirectory(dir=place.parent) as folder:
                    os.replace(entry.download(folder, skip_cache=True), place)
    except Exception as error:  # W&B's, and the file system's
        raise InputError(f"{told}: could not be fetched to {place}: {first_line(error)}") from error
    return place
