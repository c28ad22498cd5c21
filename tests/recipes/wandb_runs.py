"""Offline Weights & Biases runs, read back by W&B's own reader."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import wandb

from rnn_blocks.recipes.run.folder import RunFolder


def nobody(nowhere: Path) -> dict[str, str | None]:
    """The environment of somebody who has no account: no key, no login."""
    known = {"NETRC": str(nowhere / "netrc"), "WANDB_CONFIG_DIR": str(nowhere)}
    return known | dict.fromkeys(("WANDB_API_KEY", "WANDB_MODE"))


@contextmanager
def own_environment(nowhere: Path) -> Iterator[pytest.MonkeyPatch]:
    """This process as nobody's: no key, no settings, no proxy; and W&B reads it anew."""
    wandb.teardown()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_") or name.lower().endswith("_proxy")]:
            patch.delenv(name)
        nowhere.mkdir(exist_ok=True)
        patch.setenv("WANDB_CONFIG_DIR", str(nowhere))
        patch.setenv("NETRC", str(nowhere / "netrc"))
        patch.setenv("WANDB_SILENT", "true")
        yield patch
    wandb.teardown()


@cache
def records(run_file: Path) -> list[dict[str, Any]]:
    """What a run holds."""
    read = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", run_file],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return [json.loads(line) for line in read.stdout.splitlines()]


def of_kind(run: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in run if record["type"] == kind]


def history(run: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The values logged under each name, in order."""
    logged: dict[str, list[Any]] = {}
    for row in of_kind(run, "history"):
        for name, value in row["item"].items():
            logged.setdefault(name, []).append(value)
    return logged


def run_files(folder: RunFolder) -> list[Path]:
    return sorted(folder.path.glob("wandb/offline-run-*/run-*.wandb"))
