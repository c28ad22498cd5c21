"""Early stopping in a recipe: by metrics that exist, and with a word of why."""

from pathlib import Path

import pytest
from tiny_runs import only_run, recipe, tiny


def _stopping(**arguments: object) -> str:
    given = ", ".join(f"{name}: {value}" for name, value in arguments.items())
    return f"[{{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {{{given}}}}}]"


def _keeping(monitor: str) -> str:
    return f"[{{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {{monitor: {monitor}}}}}]"


@pytest.mark.parametrize(
    "callbacks",
    [_stopping(monitor="val_loss"), _stopping(monitor="val/bleu", mode="max"), _keeping("val/bleu")],
)
def test_a_metric_that_validation_does_not_log_is_refused_before_the_first_step(
    callbacks: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe("fit", *tiny(text, tmp_path, **{"trainer.callbacks": callbacks})) == 2
    error = capsys.readouterr().err
    name = "val_loss" if "val_loss" in callbacks else "val/bleu"
    assert f"monitors {name!r}, which validation does not log; it logs" in error
    assert "val/loss" in error
    assert "Traceback" not in error
    assert not only_run(tmp_path).checkpoint("last").is_file()


@pytest.mark.parametrize("monitor", ["val/loss", "train/loss"])
def test_what_ended_a_training_is_said(
    monitor: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threshold = _stopping(monitor=monitor, stopping_threshold=1000.0, check_on_train_epoch_end="false")
    assert recipe("fit", *tiny(text, tmp_path, **{"trainer.callbacks": threshold})) == 0
    assert f"stopped early: Stopping threshold reached: {monitor} = " in capsys.readouterr().err


def test_a_metric_that_need_not_exist_is_left_alone(text: Path, tmp_path: Path) -> None:
    lenient = _stopping(monitor="val_loss", strict="false", check_on_train_epoch_end="false")
    assert recipe("fit", *tiny(text, tmp_path, **{"trainer.callbacks": lenient})) == 0
    assert only_run(tmp_path).checkpoint("last").is_file()
