"""What the tests of the recipe share: a text, and one run that is trained once and only looked at."""

from pathlib import Path

import pytest
from tiny_runs import only_run, recipe, tiny, write_text

from rnn_blocks.recipes.run_folder import RunFolder


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "code.txt")


@pytest.fixture(scope="session")
def finished_run(text: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of 20 steps, with one validation each 10. Not to be written to: copy it."""
    output_dir = tmp_path_factory.mktemp("finished")
    assert recipe("fit", *tiny(text, output_dir, **{"model.dropout": 0.1})) == 0
    return only_run(output_dir)
