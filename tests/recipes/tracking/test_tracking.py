"""What a run leaves to look at: Weights & Biases, TensorBoard, metrics.csv and the plots."""

import io
import json
import os
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure
from matplotlib.image import imread
from tiny_runs import column, load, metrics, only_run, options, recipe, tiny
from wandb_runs import history, of_kind, own_environment, records, run_files

from rnn_blocks.modules import LanguageModel
from rnn_blocks.recipes.run.folder import RunFolder
from rnn_blocks.recipes.run.metrics_csv import MetricsCSV
from rnn_blocks.recipes.run.plots import _draw_clipped_shares, draw_run
from rnn_blocks.recipes.run.tracking import tracked_run_id

METRIC_NAMES = {
    *(f"{split}/{name}" for split in ("train", "val") for name in ("loss", "perplexity", "bits_per_byte")),
    *("grad_norm/total", "grad_clip/threshold", "grad_clip/coefficient", "grad_clip/clipped_fraction"),
    *("grad_clip/skipped_steps", "throughput/tokens_per_second"),
}


@pytest.fixture(scope="module")
def tracked(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, str]:
    """A run in W&B by somebody who has no account: no key, no login, nobody at the keyboard; and then resumed."""
    output_dir, shown = tmp_path_factory.mktemp("tracked"), io.StringIO()
    settings = {"logger": "wandb", "samples.prompts": '["def ", "return "]'}
    with own_environment(tmp_path_factory.mktemp("nowhere")), redirect_stdout(shown):
        assert recipe("fit", *tiny(text, output_dir, **settings)) == 0
    with own_environment(tmp_path_factory.mktemp("nowhere")):
        assert recipe("fit", *options(ckpt_path="last", output_dir=output_dir), "--trainer.max_steps", "24") == 0
    return only_run(output_dir), shown.getvalue()


def test_without_a_login_a_run_is_tracked_offline_without_a_question_and_can_be_uploaded(
    tracked: tuple[RunFolder, str],
) -> None:
    folder, shown = tracked
    assert len(run_files(folder)) == 2
    assert f"wandb sync {run_files(folder)[0].parent}" in shown


def test_a_resumed_training_goes_on_with_its_wandb_run(tracked: tuple[RunFolder, str]) -> None:
    folder, _ = tracked
    before, after = (records(path) for path in run_files(folder))
    first, second = of_kind(before, "run")[0], of_kind(after, "run")[0]
    assert first["run_id"] == second["run_id"] == tracked_run_id(load(folder))
    assert first["project"] == "rnn-blocks"
    assert first["tags"] == ["language-model"]
    steps = [history(run)["trainer/global_step"] for run in (before, after)]
    assert max(steps[0]) <= 20 <= max(steps[1])
    assert [row["step"] for row in metrics(folder)] == sorted({row["step"] for row in metrics(folder)}, key=int)


def test_the_whole_resolved_configuration_is_in_the_wandb_run(tracked: tuple[RunFolder, str]) -> None:
    folder, _ = tracked
    held: dict[str, Any] = {}
    for update in of_kind(records(run_files(folder)[0]), "config"):
        held |= update["update"]
    config = yaml.safe_load((folder.path / "config.before-1.yaml").read_text())
    assert config.keys() >= {"seed_everything", "model", "data", "trainer", "samples", "logger"}
    for name in config:
        assert held.get(name) == config[name], name


def test_every_metric_of_the_documented_names_reaches_wandb_and_the_csv_file(tracked: tuple[RunFolder, str]) -> None:
    folder, _ = tracked
    logged = history(records(run_files(folder)[0]))
    assert set(logged) >= METRIC_NAMES
    header = folder.metrics.read_text().splitlines()[0].split(",")
    assert set(header) >= METRIC_NAMES
    for name in METRIC_NAMES - {"throughput/tokens_per_second"}:
        in_file = [value for step, value in column(folder, name).items() if step < 20]
        assert logged[name] == pytest.approx(in_file, rel=1e-5), name
    assert all(value > 0 for value in logged["throughput/tokens_per_second"])
    assert logged["train/perplexity"] == pytest.approx(np.exp(logged["train/loss"]), rel=1e-5)


def test_samples_are_a_table_of_each_validation_and_a_text_file(tracked: tuple[RunFolder, str]) -> None:
    folder, _ = tracked
    tables = sorted(run_files(folder)[0].parent.glob("files/media/table/val/samples_*.json"))
    contents = [json.loads(path.read_text()) for path in tables]
    assert len(contents) == 2
    assert {tuple(content["columns"]) for content in contents} == {("step", "prompt", "sample")}
    rows = sorted(tuple(row[:2]) for content in contents for row in content["data"])
    assert rows == [("10", "def "), ("10", "return "), ("20", "def "), ("20", "return ")]
    written = folder.samples.read_text()
    for content in contents:
        for step, prompt, sample in content["data"]:
            assert f"=== step {step} ===\n{prompt}|{sample}\n" in written


def test_the_plots_are_images_of_the_wandb_run(tracked: tuple[RunFolder, str]) -> None:
    folder, _ = tracked
    images = list(run_files(folder)[0].parent.glob("files/media/images/plots_*.png"))
    assert len(images) == 2
    assert all(imread(path).std() > 0.01 for path in images)
    (captions,) = history(records(run_files(folder)[0]))["plots.captions"]
    assert sorted(captions) == ["gradient_norm", "loss"]


def test_where_wandb_is_disabled_nothing_of_it_is_written(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert recipe("fit", *tiny(text, tmp_path, **{"logger": "wandb", "trainer.max_steps": 2})) == 0
    assert not list(only_run(tmp_path).path.rglob("*.wandb"))


def test_csv_alone_makes_no_wandb_folder_and_tensorboard_writes_its_events(
    text: Path, tmp_path: Path, finished_run: RunFolder
) -> None:
    assert not (finished_run.path / "wandb").exists()
    assert column(finished_run, "train/loss").keys() == {7, 15}
    assert recipe("fit", *tiny(text, tmp_path, logger="tensorboard")) == 0
    folder = only_run(tmp_path)
    assert [path.stat().st_size > 500 for path in folder.path.glob("tensorboard/events.out.tfevents.*")] == [True]
    assert not (folder.path / "wandb").exists()
    assert column(folder, "train/loss").keys() == {7, 15}


def test_a_finished_run_has_its_plots_and_its_names_in_the_report(finished_run: RunFolder) -> None:
    for name in ("loss", "gradient_norm"):
        image = imread(finished_run.plots / f"{name}.png")
        assert image.shape[0] > 400
        assert image.shape[1] > 800
        colours = np.unique(image[..., :3].reshape(-1, 3), axis=0)
        assert len(colours) > 50, "more than a blank page"


def test_plots_are_drawn_where_a_training_breaks_off(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = LanguageModel.training_step

    def fail(self: LanguageModel, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step == 17:
            raise ZeroDivisionError("of the test")
        return sound(self, batch, batch_idx)

    monkeypatch.setattr(LanguageModel, "training_step", fail)
    with pytest.raises(ZeroDivisionError, match="of the test"):
        recipe("fit", *tiny(text, tmp_path))
    folder = only_run(tmp_path)
    assert sorted(os.listdir(folder.plots)) == ["gradient_norm.png", "loss.png"]
    assert column(folder, "train/loss").keys() == {7, 15}
    assert load(folder)["global_step"] == 13


def _drawn(tmp_path: Path, rows: list[dict[str, float]]) -> list[np.ndarray]:
    folder = RunFolder(tmp_path)
    logger = MetricsCSV(folder.metrics)
    for step, row in enumerate(rows):
        logger.log_metrics(row, step=step)
    logger.save()
    return [imread(path)[..., :3] for path in draw_run(folder)]


def _pixels(image: np.ndarray, colour: str) -> int:
    wanted = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return int((np.abs(image - wanted).max(-1) < 0.02).sum())


def test_steps_that_were_clipped_are_marked_in_the_plot_of_the_gradient_norm(tmp_path: Path) -> None:
    """Red is the colour of the marks, orange that of the threshold."""
    rows = [{"grad_norm/total": 1 + i % 7, "grad_clip/threshold": 5.0, "grad_clip/coefficient": 1.0} for i in range(80)]
    (tmp_path / "none").mkdir()
    (plain,) = _drawn(tmp_path / "none", rows)
    for row in rows:
        row["grad_clip/coefficient"] = min(1.0, 5 / row["grad_norm/total"])
    (tmp_path / "some").mkdir()
    (marked,) = _drawn(tmp_path / "some", rows)
    assert _pixels(plain, "#c23b3b") == 0
    assert _pixels(marked, "#c23b3b") > 100
    assert _pixels(plain, "#e07b39") > 100


@pytest.mark.parametrize(("reason", "colour"), [("outlier", "#dfd6e9"), ("promise", "#d2e3d6")])  # a quarter on white
def test_the_plot_of_the_gradient_norm_tells_why_steps_were_clipped(tmp_path: Path, reason: str, colour: str) -> None:
    rows = [{"grad_norm/total": 1 + i % 7, "grad_clip/clipped_fraction": 0.5} for i in range(80)]
    for row in rows:
        row |= {"grad_clip/outlier_fraction": 0.0, "grad_clip/promise_fraction": 0.0}
    (tmp_path / "none").mkdir()
    (untold,) = _drawn(tmp_path / "none", rows)
    for row in rows:
        row[f"grad_clip/{reason}_fraction"] = 0.5
    (tmp_path / "some").mkdir()
    (told,) = _drawn(tmp_path / "some", rows)
    assert _pixels(untold, colour) == 0
    assert _pixels(told, colour) > 10_000


def test_a_share_of_clipped_steps_stands_where_the_steps_are_that_it_is_of() -> None:
    rows = [{"step": str(step), "grad_clip/clipped_fraction": str(share)} for step, share in ((9, 0.2), (19, 0.8))]
    axes = Figure().add_subplot()
    _draw_clipped_shares(axes, rows)
    [bars] = axes.figure.axes[1].collections
    for step, share in ((2, 20), (8, 20), (11, 80), (18, 80)):
        [bar] = bars.get_paths()
        assert bar.contains_point((step, share - 1))
        assert not bar.contains_point((step, share + 1))


def test_losses_that_are_not_finite_or_huge_are_drawn_without_a_warning(tmp_path: Path) -> None:
    rows = [{"train/loss": value, "val/loss": value} for value in (3.0, 1e30, float("inf"), float("nan"))]
    (image,) = _drawn(tmp_path, rows)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50
