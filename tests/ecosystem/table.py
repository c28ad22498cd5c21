"""Results as tables of Markdown."""

import os
import platform
import time
from dataclasses import dataclass, field

from environment import Changes

ALL = {
    "monitor": "monitor alone",
    "auto": "norms, `Auto`",
    "fixed": "norms, `Fixed(c)`",
    "gradient_clip_val": "`gradient_clip_val=c`",
    "logger": "logged",
    "resume": "resumed",
}
"""The checks that every package has, with the words for them."""


@dataclass
class Result:
    """All that came of one package.

    Attributes:
        package: its name.
        about: versions and what was trained, as the script tells.
        changes: what installing ours did to the environment.
        findings: by check, as the script tells them.
        layers: what the script about the layers told; None where there is none.
        problem: why a script or an installation broke off; empty if none did.
    """

    package: str
    about: dict[str, str] = field(default_factory=dict)
    changes: Changes | None = None
    findings: dict[str, dict[str, object]] = field(default_factory=dict)
    layers: str | None = None
    problem: str = ""

    @property
    def failures(self) -> list[str]:
        """What is not as it should be, in words."""
        failures = [self.problem] if self.problem else []
        if self.changes is not None and not self.changes.harmless:
            failures.append(f"the installation changed {self.changes.changed}, removed {self.changes.removed}")
        missing = [] if self.problem else [name for name in ALL if name not in self.findings]
        failures += [f"{name}: not checked" for name in missing]
        failed = {name: finding for name, finding in self.findings.items() if not finding["ok"]}
        return failures + [f"{name}: {finding['note'] or finding['figure']}" for name, finding in failed.items()]


def report(results: list[Result]) -> str:
    """The page: what was run on what, a row a package and a column a check, and what else there is to say of each."""
    torch = next((result.about["torch"] for result in results if result.about), "")
    machine = f"CPU, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch}"
    head = ["package", "Lightning", "trained", *ALL.values()]
    lines = [f"{time.strftime('%Y-%m-%d')}, {machine}.", "", _row(head), _row(["---"] * len(head))]
    for result in results:
        about = result.about
        name = f"{result.package} {about.get('version', '')}".strip()
        cells = [_cell(result, check) for check in ALL]
        lines.append(_row([name, about.get("lightning", ""), about.get("model", ""), *cells]))
    lines.append("")
    for result in results:
        lines += [f"- {result.package}: {said}" for said in _remarks(result)]
    return "\n".join(lines) + "\n"


def _cell(result: Result, check: str) -> str:
    finding = result.findings.get(check)
    if finding is None:
        return "not run"
    logger = f"{result.about['logger']}: " if check == "logger" else ""
    return logger + str(finding["figure"]) if finding["ok"] else f"**FAILED** {finding['note'] or finding['figure']}"


def _remarks(result: Result) -> list[str]:
    said = []
    if result.changes is not None:
        others = [f"{name} {version}" for name, version in result.changes.added.items() if name != "rnn-blocks"]
        came = f"with rnn-blocks came {', '.join(others)}" if others else "nothing but rnn-blocks came"
        was = "; all else is as it was" if result.changes.harmless else f"; **CHANGED** {result.changes.changed}"
        said.append(came + was)
    said += [f"{name}: {_cell(result, name)}" for name in result.findings if name not in ALL]
    if result.layers is not None:
        said.append(f"layers: {result.layers}")
    if result.problem:
        said.append(f"**FAILED** {result.problem}")
    return said


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
