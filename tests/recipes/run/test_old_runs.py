"""Run folders and exported models of version 0.1.0, as it wrote them before its files found their rooms.

Each run in ``old_runs`` is of ten steps, with all the callbacks that keep something in a checkpoint in that of the
language model. Beside it lie the metrics that the same version wrote when it went on to fifteen. The rule by which it
clipped is another one now, so that what it remembers of that is left aside, and the clipping begins afresh.
"""

import math
import shutil
from pathlib import Path

import pytest
import torch
from tiny_runs import load, metrics, options, recipe, write_pairs, write_text

import rnn_blocks
from rnn_blocks.recipes import Filler, RunFolder, Translator, load_any, load_language_model
from rnn_blocks.recipes.run.checkpoints import read_checkpoint

OLD = Path(__file__).parent / "old_runs"
RECIPES = ("language-model", "translation", "cloze", "long-range")
MODELS = {
    "language-model": rnn_blocks.LanguageModel,
    "translation": rnn_blocks.Seq2Seq,
    "cloze": rnn_blocks.ClozeModel,
}


def data_of(name: str, folder: Path) -> list[str]:
    """The data that the run was trained on, made again."""
    if name == "translation":
        write_pairs(folder)
        return options(**{f"data.{split}": folder / split for split in ("train", "val", "test")})
    return [] if name == "long-range" else options(**{"data.source": write_text(folder / "code.txt", 300)})


def by_step(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """One row a step, as runs write them since."""
    steps: dict[str, dict[str, str]] = {}
    for row in rows:
        steps.setdefault(row["step"], {}).update(row)
    return list(steps.values())


def old_run(name: str, output_dir: Path) -> RunFolder:
    """A copy that may be written to."""
    return RunFolder(Path(shutil.copytree(OLD / name, output_dir / name / "2026-11-28_05-00-00")))


@pytest.mark.processes
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("name", RECIPES)
def test_a_run_of_before_goes_on_as_it_would_have_then(name: str, tmp_path: Path) -> None:
    run = old_run(name, tmp_path)
    goes_on = options(output_dir=tmp_path, ckpt_path="last", **{"trainer.max_steps": 15})
    assert recipe("fit", *goes_on, *data_of(name, tmp_path), of=name) == 0
    shutil.copy(OLD / name / "metrics-of-15-steps.csv", tmp_path / "metrics.csv")
    since = ("grad_clip/", "val/unknown")  # what is logged otherwise than then
    found, wanted = (
        [{key: value for key, value in row.items() if not key.startswith(since)} for row in by_step(metrics(folder))]
        for folder in (run, RunFolder(tmp_path))
    )
    assert [row.keys() for row in found] == [row.keys() for row in wanted]
    assert max(int(row["step"]) for row in found) >= 14
    for row, other in zip(found, wanted, strict=True):  # another CPU rounds otherwise
        for key in row:
            assert math.isclose(float(row[key]), float(other[key]), rel_tol=1e-3, abs_tol=1e-4), (row["step"], key)


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_of_before_is_tested(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = old_run(name, tmp_path)
    assert recipe("test", *options(ckpt_path=run.path), *data_of(name, tmp_path), of=name) == 0
    assert "\ntest: " in capsys.readouterr().out


def test_the_callbacks_find_their_state_in_a_checkpoint_of_before() -> None:
    kept = load(RunFolder(OLD / "language-model"))["callbacks"]
    names = {key.partition("{")[0] for key in kept}
    ours = {"GradientNormMonitor", "GradientFlowMonitor", "NonMonotonicAveraging"}
    assert ours <= names
    from rnn_blocks import callbacks

    settings = {"GradientNormMonitor": {"histogram_every_n_steps": 5}, "GradientFlowMonitor": {"every_n_steps": 4}}
    for name in ours:
        callback = getattr(callbacks, name)(**settings.get(name, {}))
        state = kept[callback.state_key]
        assert state
        callback.load_state_dict(state)
        assert callback.state_dict().keys() == state.keys()


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_before_is_loaded_from_its_checkpoint_and_from_its_folder(name: str) -> None:
    checkpoint = RunFolder(OLD / name).checkpoint("last")
    model, _ = load_any(checkpoint)
    assert type(model) is MODELS[name]
    exported = MODELS[name].from_pretrained(OLD / "exported" / name)
    weights = read_checkpoint(checkpoint)["state_dict"]
    for key, value in exported.state_dict().items():
        assert torch.equal(value, weights[key]), key
        assert torch.equal(value, model.state_dict()[key]), key


def test_text_goes_in_and_comes_out_of_a_model_of_before() -> None:
    model, tokenizer = load_language_model(RunFolder(OLD / "language-model").checkpoint("last"))
    assert model.generate(tokenizer.encode("def ").ids, 3).shape[1] > 3
    translator = Translator.load(RunFolder(OLD / "translation").checkpoint("last"), "cpu")
    assert len(translator.encode(["one two"])[0]) == 3
    filler = Filler.load(RunFolder(OLD / "cloze").checkpoint("last"))
    assert len(filler.fill(filler.read("def ___ self"), 2)) == 1
