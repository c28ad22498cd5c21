"""Run by `make test-compat`: the callbacks under each release of Lightning that is supported, in either package.

An environment, `.compat/lightning-<release>`, is the development environment with another Lightning before it: nothing
else is installed twice. In each, `tests/nine_lines.py`; in the oldest and the newest, all tests of the callbacks in
which a Trainer trains; in the oldest, that installing this package leaves the Lightning that is there.
"""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RELEASES = ("2.4.0", "2.5.5", "2.6.1", "2.6.6")
PACKAGES = ("pytorch_lightning", "lightning.pytorch")
TRAIN = ("lightnings", "small_trainings", "flow_trainings")
"""What test files import in which a Trainer trains; what the others test is torch's alone."""

HELD = """
from importlib.metadata import version
from importlib.util import find_spec
print(version("lightning"), version("pytorch-lightning"), find_spec("torch").origin)
"""


def environment(release: str) -> Path:
    """The Python with that release of both packages; made if it is not there."""
    if version("lightning") == release:
        return Path(sys.executable)
    folder = ROOT / ".compat" / f"lightning-{release}"
    python = folder / "bin" / "python"
    if not (folder / ".made").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", folder], check=True)
        [site_packages] = folder.glob("lib/python*/site-packages")
        after = sysconfig.get_path("purelib")
        (site_packages / "development.pth").write_text(f"import site; site.addsitedir({after!r})\n")
        wanted = [f"lightning=={release}", f"pytorch-lightning=={release}"]
        subprocess.run([*pip(python), "install", "--quiet", *wanted], check=True)
        (folder / ".made").touch()
    found = subprocess.run([python, "-c", HELD], check=True, capture_output=True, text=True).stdout.split()
    assert found == [release, release, find_spec("torch").origin], f"{folder} holds {found}: remove it"
    return python


def pip(python: Path) -> list[str | Path]:
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]


def check_the_nine_lines(python: Path, package: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, ROOT / "tests" / "nine_lines.py", package, folder], cwd=folder, check=True)


def check_that_lightning_stays(python: Path, release: str) -> None:
    """What pip would install with this package, beside this release: not another one."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        options = ["--quiet", "--dry-run", "--no-build-isolation", "--report", report]
        subprocess.run([*pip(python), "install", *options, ROOT], check=True)
        installed = {item["metadata"]["name"] for item in json.loads(report.read_text())["install"]}
    assert "rnn-blocks" in installed, installed
    assert not {"lightning", "pytorch-lightning", "torch"} & installed, f"beside {release}: {installed}"
    print(f"pip would leave lightning and pytorch-lightning {release}, and install {', '.join(sorted(installed))}")


def check_the_tests(python: Path, package: str, jobs: int) -> None:
    files = (ROOT / "tests" / "callbacks").rglob("test_*.py")
    files = sorted(path for path in files if any(name in path.read_text() for name in TRAIN))
    settings = {"RNN_BLOCKS_TESTS_TAKE": package, "JSONARGPARSE_DEPRECATION_WARNINGS": "off"}
    command = [python, "-m", "pytest", "-n", str(jobs), "--dist", "loadfile", "-m", "not slow", *files]
    subprocess.run(command, cwd=ROOT, env=os.environ | settings, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help=f"a release and a package, of {RELEASES} and {PACKAGES}")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    only = arguments.only.split()
    unknown = set(only) - {*RELEASES, *PACKAGES}
    if unknown:
        parser.error(f"--only {arguments.only!r}: choose of {RELEASES} and {PACKAGES}")
    releases = [release for release in RELEASES if release in only] or list(RELEASES)
    packages = [package for package in PACKAGES if package in only] or list(PACKAGES)
    for release in releases:
        python = environment(release)
        for package in packages:
            check_the_nine_lines(python, package)
    if RELEASES[0] in releases:
        check_that_lightning_stays(environment(RELEASES[0]), RELEASES[0])
    for release in [release for release in releases if release in (RELEASES[0], RELEASES[-1]) or only]:
        for package in packages:
            print(f"\nlightning {release}, trainers of {package}", flush=True)
            check_the_tests(environment(release), package, arguments.jobs)


if __name__ == "__main__":
    main()
