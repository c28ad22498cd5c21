"""Ends with an error where a release's tag is not the package's version: ``tag_is_version.py v0.1.0``."""

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main(tag: str) -> None:
    """Compare the tag with pyproject.toml, and look for the version's own section in CHANGELOG.md."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    if tag != f"v{version}":
        sys.exit(f"the tag is {tag}, the version in pyproject.toml {version}: tag v{version}, or set the version")
    if f"\n## [{version}]" not in (ROOT / "CHANGELOG.md").read_text():
        sys.exit(f"CHANGELOG.md has no section [{version}]: what is under [Unreleased] belongs to it")


if __name__ == "__main__":
    main(sys.argv[1])
