"""The Lightning that the tests of this folder train with: `lightning.pytorch`, or what RNN_BLOCKS_TESTS_TAKE names.

`from lightnings import Trainer` takes any of Lightning's public classes from it, here and in the programs that tests
start, which inherit the choice. The callbacks are never told.
"""

import os
from importlib import import_module
from typing import Any

PACKAGES = ("lightning.pytorch", "pytorch_lightning")
CHOSEN = os.environ.get("RNN_BLOCKS_TESTS_TAKE", PACKAGES[0])
PARTS = (
    "",
    ".callbacks",
    ".loggers",
    ".plugins",
    ".strategies",
    ".utilities.exceptions",
    ".demos.boring_classes",
    ".cli",
)

if CHOSEN not in PACKAGES:
    raise ValueError(f"RNN_BLOCKS_TESTS_TAKE is {CHOSEN!r}; choose one of {PACKAGES}")


def class_of(package: str, name: str) -> Any:
    """A public class of one of the two packages; AttributeError where its release has none of that name."""
    for part in PARTS:
        module = import_module(package + part)
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"{package} {import_module(package).__version__} has no {name}")


def __getattr__(name: str) -> Any:
    if name.startswith("_"):  # what importing asks a module for
        raise AttributeError(name)
    return class_of(CHOSEN, name)
