"""What the tests of the recipe share: a text, and one run that is trained once and only looked at."""

from pathlib import Path

import lightning.pytorch  # noqa: F401 - here, since its log writes for good to what stderr is at its import
import pytest
from tiny_runs import only_run, recipe, tiny, tiny_translation, write_pairs, write_text

from rnn_blocks.recipes.run.folder import RunFolder


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "code.txt")


@pytest.fixture(scope="session")
def finished_run(text: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of 20 steps, with one validation each 10. Not to be written to: copy it."""
    output_dir = tmp_path_factory.mktemp("finished")
    assert recipe("fit", *tiny(text, output_dir, **{"model.dropout": 0.1})) == 0
    return only_run(output_dir)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="session")
def finished_translation(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of 20 steps, with one validation each 10 and their average. Not to be written to: copy it."""
    output_dir = tmp_path_factory.mktemp("translated")
    assert recipe("fit", *tiny_translation(pairs, output_dir, average_checkpoints=2), of="translation") == 0
    return only_run(output_dir, "translation")
