"""The Lightning that the tests of this folder train with: `lightning.pytorch`, or what RNN_BLOCKS_TESTS_TAKE names.

`from lightnings import Trainer` takes any of Lightning's public classes from it, here and in the programs that tests
start, which inherit the choice. The callbacks are never told.
"""

import os
from importlib import import_module
from typing import Any

from packaging.version import Version

PARTS = ("", ".callbacks", ".loggers", ".plugins", ".strategies", ".utilities.exceptions", ".demos.boring_classes")
PACKAGES = {"lightning.pytorch": "lightning.fabric", "pytorch_lightning": "lightning_fabric"}  # each with its Fabric
CHOSEN = os.environ.get("RNN_BLOCKS_TESTS_TAKE", "lightning.pytorch")
if CHOSEN not in PACKAGES:
    raise ValueError(f"RNN_BLOCKS_TESTS_TAKE is {CHOSEN!r}; choose one of {list(PACKAGES)}")


class Lightning:
    """One of the two packages: the classes of all its parts, by their names."""

    def __init__(self, package: str) -> None:
        self.package = package
        self.release = Version(import_module(package).__version__)

    def __getattr__(self, name: str) -> Any:
        for place in (*(self.package + part for part in PARTS), PACKAGES[self.package]):
            module = import_module(place)
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(f"{self.package} {self.release} has no {name}")


chosen = Lightning(CHOSEN)


def __getattr__(name: str) -> Any:
    if name.startswith("_"):  # what `import` asks a module for
        raise AttributeError(name)
    return getattr(chosen, name)
