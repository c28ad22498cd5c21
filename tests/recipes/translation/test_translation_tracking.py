"""What a translation run leaves in Weights & Biases."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from tiny_runs import finish, only_run, start, tiny_translation
from wandb_runs import history, nobody, records, run_files

from rnn_blocks.recipes.run.folder import RunFolder

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def tracked(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    output_dir, environment = tmp_path_factory.mktemp("tracked"), nobody(tmp_path_factory.mktemp("nowhere"))
    args = tiny_translation(pairs, output_dir, logger="wandb")
    finish(start("fit", *args, of="translation", **environment))
    return only_run(output_dir, "translation")


def test_each_validations_translations_are_a_table_of_source_reference_hypothesis_and_score(tracked: RunFolder) -> None:
    (run,) = run_files(tracked)
    contents = [json.loads(path.read_text()) for path in run.parent.glob("files/media/table/val/translations_*.json")]
    assert {tuple(content["columns"]) for content in contents} == {
        ("step", "source", "reference", "hypothesis", "chrf")
    }
    rows = [row for content in contents for row in content["data"]]
    assert sorted(row[0] for row in rows) == ["10"] * 3 + ["20"] * 3
    written = tracked.samples.read_text()
    for step, source, reference, hypothesis, chrf in rows:
        assert 0 <= chrf <= 100
        lines = f"source      {source}\nreference   {reference}\nhypothesis  {hypothesis}\nchrF        {chrf}"
        assert f"=== step {step} ===\n{lines}\n" in written


def test_bleu_and_padding_and_pictures_of_the_attention_are_in_the_run(tracked: RunFolder) -> None:
    (run,) = run_files(tracked)
    logged = history(records(run))
    assert set(logged) >= {"val/bleu", "val/chrf", "val/exact_match", "data/padding_fraction"}
    pictures = sorted(run.parent.glob("files/media/images/attention/1_*.png"))
    assert len(pictures) == 2
    for picture in (*pictures, tracked.plots / "attention" / "1.png", tracked.plots / "scores.png"):
        image = imread(picture)
        assert min(image.shape[:2]) > 250
        assert len(np.unique(image[..., :3].reshape(-1, 3), axis=0)) > 20, "more than a blank page"
