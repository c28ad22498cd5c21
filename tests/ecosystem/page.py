"""The examples of ``docs/ecosystem.md``, run where they are meant for."""

import os
import re
import tempfile
from pathlib import Path
from typing import Any

from checks import Finding

from rnn_blocks.callbacks import AdaptiveGradientClipping, GradientNormMonitor

PAGE = Path(__file__).resolve().parents[2] / "docs" / "ecosystem.md"
BLOCK = re.compile(r"^```(?:\{code-block\} )?(python|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def shown(heading: str) -> str:
    """The first block of code below a heading of the page."""
    _, found, below = PAGE.read_text().partition(f"\n### {heading}\n")
    match = BLOCK.search(below)
    if not found or match is None:
        raise ValueError(f"{PAGE.name} shows no code below a heading {heading!r}")
    return match[2]


class Counting(AdaptiveGradientClipping):
    """Knows whether any instance was ever asked for: packages may copy the one that they are given."""

    steps = 0

    def on_before_optimizer_step(self, *arguments: Any) -> None:
        Counting.steps += 1
        super().on_before_optimizer_step(*arguments)


def run_example(heading: str, **given: Any) -> Finding:
    """Run an example with the names that it takes for granted, in a folder of its own."""
    Counting.steps = 0
    names = given | {"AdaptiveGradientClipping": Counting, "GradientNormMonitor": GradientNormMonitor}
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            exec(compile(shown(heading), f"{PAGE.name}, {heading}", "exec"), names)
        finally:
            os.chdir(before)
    ok = Counting.steps > 0
    figure = f"as docs/ecosystem.md has it, over {Counting.steps} steps"
    return Finding("example", ok, figure, "" if ok else "it never clips")
