"""An environment that holds one package as its users have it, and what the installation of ours changes in it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("rnn_blocks", "callbacks", "recipes", "pyproject.toml", "README.md", "LICENSE")
OURS = "rnn-blocks"


@dataclass(frozen=True)
class Changes:
    """How one list of installed packages differs from an earlier one.

    Attributes:
        added: those that were not there, with their versions.
        changed: those that have another version, as ``"1.0 → 2.0"``.
        removed: those that are gone.
    """

    added: dict[str, str]
    changed: dict[str, str]
    removed: list[str]

    @property
    def harmless(self) -> bool:
        """Whether all that was there is as it was, and ours has come."""
        return not self.changed and not self.removed and OURS in self.added


def compare(before: dict[str, str], after: dict[str, str]) -> Changes:
    """What an installation did."""
    return Changes(
        added={name: version for name, version in after.items() if name not in before},
        changed={
            name: f"{version} → {after[name]}"
            for name, version in before.items()
            if after.get(name, version) != version
        },
        removed=sorted(before.keys() - after.keys()),
    )


def pinned(name: str) -> str:
    """The line of this project's ``constraints.txt`` that pins a package."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return next(line for line in lines if line.partition("==")[0] == name)


def build_wheel(folder: Path) -> Path:
    """This checkout's wheel, built from a copy of it: a build leaves files among the sources."""
    copy = folder / "source"
    shutil.rmtree(folder, ignore_errors=True)
    copy.mkdir(parents=True)
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    _run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, copy])
    (wheel,) = folder.glob("*.whl")
    return wheel


class Environment:
    """A virtual environment with a package in it; made once, then used again.

    Args:
        folder: for the environment and the list of what was in it before ours.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "env" / "bin" / "python"
        self._before = folder / "before.json"

    def make(self, requirements: Iterable[str], *, fresh: bool) -> None:
        """Install a package with whatever it depends on; torch alone is pinned, to the version of this project.

        Nothing is done if that is how the environment was made before.
        """
        requirements = list(requirements)
        if self._before.exists() and not fresh and json.loads(self._before.read_text())["made_by"] == requirements:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        (self.folder / "constraints.txt").write_text(pinned("torch") + "\n")
        _run([sys.executable, "-m", "venv", self.folder / "env"])
        self._pip("install", "--quiet", *requirements)
        found = {"made_by": requirements, "installed": self.installed(), "conflicts": self.conflicts()}
        self._before.write_text(json.dumps(found, indent=1))

    def install_ours(self, wheel: Path) -> Changes:
        """Install this project with what it depends on, and say what that changed.

        Raises:
            RuntimeError: requirements that were met before no longer are.
        """
        self._pip("install", "--quiet", str(wheel))
        self._pip("install", "--quiet", "--force-reinstall", "--no-deps", str(wheel))
        before = json.loads(self._before.read_text())
        if new := set(self.conflicts()) - set(before["conflicts"]):
            raise RuntimeError(f"requirements that are not met any more: {sorted(new)}")
        return compare(before["installed"], self.installed())

    def installed(self) -> dict[str, str]:
        """All packages and their versions."""
        listed = json.loads(self._pip("list", "--format", "json"))
        return {entry["name"].lower().replace("_", "-"): entry["version"] for entry in listed}

    def conflicts(self) -> list[str]:
        """What `pip check` complains of."""
        done = subprocess.run([str(self.python), "-m", "pip", "check"], capture_output=True, text=True)
        return done.stdout.splitlines() if done.returncode else []

    def _pip(self, command: str, *arguments: str) -> str:
        constraints = ["-c", str(self.folder / "constraints.txt")] if command == "install" else []
        return _run([self.python, "-m", "pip", command, *constraints, *arguments])


def _run(command: Sequence[str | Path]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout
