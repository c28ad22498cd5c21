"""A run with its models and histograms in Weights & Biases, and resumed, as its run files tell of it."""

import io
import json
import signal
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb
from signals_at import CODES, before
from tiny_runs import metrics, only_run, recipe, tiny
from torch import Tensor
from wandb_runs import of_kind, own_environment, records, run_files

from rnn_blocks.modules import LanguageModel

pytestmark = pytest.mark.processes

# Two batches a step. Rows: of histograms every 4th step, of training every 8th, of validation every 10th.
SETTINGS = {
    "logger": "wandb",
    "log_model": "true",
    "watch": "all",
    "watch_every_n_steps": 4,
    "trainer.accumulate_grad_batches": 2,
    "trainer.limit_train_batches": 20,
    "trainer.val_check_interval": 20,
    "trainer.precision": "bf16-mixed",
}
LOW = 0.125  # a loss lower than any of this model


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with own_environment(tmp_path_factory.mktemp("wandb-config")):
        yield


@pytest.fixture(autouse=True)
def no_run_is_left_open() -> Iterator[None]:
    yield
    wandb.finish()


class Tracked:
    """A training of 20 steps, resumed to 30; in between, its file of metrics is made to tell of a loss that was `LOW`.

    Attributes:
        folder: the run's.
        seen: by row, parameters and whole gradients by name, after the step's last backward pass.
        told: on standard error.
        parts: the records of the run files.
    """

    def __init__(self, text: Path, output_dir: Path) -> None:
        self.seen: dict[int, dict[str, Tensor]] = {}
        told = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stderr(told):
            patch.setattr(LanguageModel, "on_after_backward", lambda model: self._note(model))
            assert recipe("fit", *tiny(text, output_dir, **SETTINGS)) == 0, told.getvalue()
            wandb.finish()
            self.folder = only_run(output_dir)
            lowest = min((row["val/loss"] for row in metrics(self.folder) if "val/loss" in row), key=float)
            self.folder.metrics.write_text(self.folder.metrics.read_text().replace(lowest, str(LOW)))
            resumed = ["--ckpt_path", "last", "--output_dir", str(output_dir), "--trainer.max_steps", "30"]
            assert recipe("fit", *resumed) == 0, told.getvalue()
            wandb.finish()
        self.told = told.getvalue()
        self.parts = [records(path) for path in run_files(self.folder)]

    def _note(self, model: LanguageModel) -> None:
        seen = self.seen[model.trainer.global_step] = {}
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            seen[f"gradients/{name}"] = parameter.grad.clone()
            seen[f"parameters/{name}"] = parameter.detach().clone()

    def rows(self) -> list[dict[str, Any]]:
        return [row["item"] for part in self.parts for row in of_kind(part, "history")]


@pytest.fixture(scope="module")
def tracked(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    return Tracked(text, tmp_path_factory.mktemp("tracked"))


def _summary(part: list[dict[str, Any]]) -> dict[str, Any]:
    held: dict[str, Any] = {}
    for update in of_kind(part, "summary"):
        held |= update["update"]
    return held


def _models(part: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [artifact for artifact in of_kind(part, "artifact") if artifact["type"] == "model"]


def test_the_runs_table_shows_the_best_of_what_has_a_direction_and_the_last_of_the_rest(tracked: Tracked) -> None:
    first = _summary(tracked.parts[0])
    rows = [row["item"] for row in of_kind(tracked.parts[0], "history")]
    for name in ("val/loss", "val/perplexity", "val/bits_per_byte", "train/loss", "train/perplexity"):
        values = [row[name] for row in rows if name in row]
        assert len(values) == 2
        assert first[name] == {"min": min(values)}, name
    assert first["grad_norm/total"] == [row for row in rows if "grad_norm/total" in row][-1]["grad_norm/total"]
    definitions = {metric["name"]: metric for metric in of_kind(tracked.parts[0], "metric") if "name" in metric}
    assert definitions["val/bleu"]["summary"] == {"max": True}
    assert {metric.get("step_metric") for name, metric in definitions.items() if "/global_step" not in name} == {
        "trainer/global_step"
    }


def test_a_resumed_runs_best_is_that_of_all_its_parts(tracked: Tracked) -> None:
    second = _summary(tracked.parts[1])
    values = [row["item"]["val/loss"] for row in of_kind(tracked.parts[1], "history") if "val/loss" in row["item"]]
    assert len(values) == 1
    assert second["val/loss"] == {"min": LOW}
    best = min(row["train/loss"] for row in tracked.rows() if "train/loss" in row)
    assert second["train/loss"] == {"min": pytest.approx(best, rel=1e-12)}


def test_histograms_are_in_the_row_of_their_step_and_one_step_is_one_row(tracked: Tracked) -> None:
    rows = tracked.rows()
    steps = [row["trainer/global_step"] for row in rows]
    assert steps == [3, 7, 9, 11, 15, 19, 23, 27, 29]
    for step, row in zip(steps, rows, strict=True):
        assert any(name.startswith("gradients/") for name in row) == (step % 4 == 3), step
        assert ("train/loss" in row) == (step % 8 == 7), step
        assert ("val/loss" in row) == (step % 10 == 9), step


def test_histograms_are_those_of_whole_unclipped_gradients_and_of_the_weights_before_the_step(tracked: Tracked) -> None:
    """Counted by numpy from copies that the model itself took; two batches a step, in bf16-mixed."""
    watched = [row for row in tracked.rows() if row["trainer/global_step"] % 4 == 3]
    assert len(watched) == 7
    for row in watched:
        seen = tracked.seen[row["trainer/global_step"]]
        assert {name.removesuffix(".bins") for name in row if name.endswith(".bins")} == seen.keys()
        for name, tensor in seen.items():
            edges, values = row[f"{name}.bins"], tensor.double().numpy().ravel()
            assert row[f"{name}.values"] == np.histogram(values, 64)[0].tolist(), name
            assert (edges[0], edges[-1]) == (values.min(), values.max()), name


def test_best_and_last_are_versions_of_one_artifact_with_aliases_and_metadata(tracked: Tracked) -> None:
    run = of_kind(tracked.parts[0], "run")[0]
    best, last = _models(tracked.parts[0])
    assert {best["name"], last["name"]} == {f"model-{run['run_id']}"}
    assert sorted(best["aliases"]) == ["best", "latest", "step-20"]
    assert sorted(last["aliases"]) == ["last", "latest", "step-20"]
    for artifact in (best, last):
        held = json.loads(artifact["metadata"])
        [file] = artifact["manifest"]["contents"]
        checkpoint = torch.load(file["local_path"], weights_only=True)
        assert checkpoint["global_step"] == held["step"] == 20  # the file that is there no longer holds the one of then
        assert checkpoint["epoch"] == held["epoch"]
        assert file["path"] == "model.ckpt"
        rows = [row["item"] for row in of_kind(tracked.parts[0], "history")]
        for name in ("val/loss", "train/loss"):
            assert held["metrics"][name] == [row[name] for row in rows if name in row][-1]
        assert {name: held[name] for name in ("monitor", "mode", "recipe")} == {
            "monitor": "val/loss",
            "mode": "min",
            "recipe": "language-model",
        }


def test_a_resumed_run_logs_new_versions_of_its_artifact(tracked: Tracked) -> None:
    assert {artifact["name"] for part in tracked.parts for artifact in _models(part)} == {
        f"model-{of_kind(tracked.parts[1], 'run')[0]['run_id']}"
    }
    last = next(artifact for artifact in _models(tracked.parts[1]) if "last" in artifact["aliases"])
    assert sorted(last["aliases"]) == ["last", "latest", "step-30"]
    assert torch.load(last["manifest"]["contents"][0]["local_path"], weights_only=True)["global_step"] == 30


def test_offline_one_line_says_that_models_will_be_uploaded_and_by_which_command(tracked: Tracked) -> None:
    lines = [line for line in tracked.told.splitlines() if line.startswith("Weights & Biases")]
    name = f"model-{of_kind(tracked.parts[0], 'run')[0]['run_id']}"
    assert lines == [
        f"Weights & Biases: best and last will be uploaded as {name} by: wandb sync {path.parent}"
        for path in run_files(tracked.folder)
    ]


@pytest.mark.parametrize("number", CODES, ids=["SIGTERM", "SIGINT"])
def test_a_training_that_a_signal_ends_logs_its_models(number: int, text: Path, tmp_path: Path) -> None:
    patch = before(LanguageModel, "training_step", lambda model: model.trainer.global_step == 12, number)
    settings = {"logger": "wandb", "log_model": "true"}
    assert recipe("fit", *tiny(text, tmp_path, **settings)) == CODES[signal.Signals(number)]
    patch.undo()
    wandb.finish()
    [path] = run_files(only_run(tmp_path))
    aliases = [sorted(artifact["aliases"]) for artifact in _models(records(path))]
    assert aliases == [["best", "latest", "step-10"], ["last", "latest", "step-13"]]


def test_where_wandb_is_disabled_no_model_is_logged(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    settings = {"logger": "wandb", "log_model": "true", "watch": "all", "watch_every_n_steps": 1}
    assert recipe("fit", *tiny(text, tmp_path, **settings, **{"trainer.max_steps": 2})) == 0
    assert not list(only_run(tmp_path).path.rglob("models"))
