"""The Penn Treebank's files, and results that are written whole."""

import json
import os
from pathlib import Path
from typing import Any

import torch


def penn_treebank(folder: Path) -> dict[str, str]:
    """Its texts by split, plain or gzip."""
    paths = {}
    for split, name in (("train", "train"), ("val", "valid"), ("test", "test")):
        found = sorted(folder.glob(f"ptb.{name}.txt*"))
        if not found:
            raise SystemExit(f"{folder}: there is no ptb.{name}.txt or ptb.{name}.txt.gz")
        paths[split] = str(found[0])
    return paths


def write(path: Path, content: Any) -> None:
    """At once, or not at all."""
    partial = path.with_suffix(".partial")
    if path.suffix == ".json":
        partial.write_text(json.dumps(content, indent=1))
    else:
        torch.save(content, partial)
    os.replace(partial, path)
