"""A run of all callbacks in Weights & Biases, offline, read back by its own reader."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

pytestmark = pytest.mark.processes

PROGRAM = """
import json, pathlib, warnings
import torch
from lightnings import LightningModule, WandbLogger
from rnn_blocks.callbacks import AdaptiveGradientClipping, ClippingAdvisor, GradientFlowMonitor, GradientNormMonitor
from small_trainings import Remember, fit_module, regression_batches
from torch import nn

warnings.simplefilter("ignore")
torch.set_num_threads(1)

class Tagger(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 1)
    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        return (self.head(self.lstm(inputs[None])[0])[0] - targets).square().mean()
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.5)

logger, remember = WandbLogger(save_dir=FOLDER, offline=True, project="callbacks"), Remember()
clipping, advisor = AdaptiveGradientClipping(), ClippingAdvisor(steps=8)
monitor = GradientNormMonitor(gates=True, updates=True, histogram_every_n_steps=4)
flow = GradientFlowMonitor(every_n_steps=4)
callbacks = monitor, clipping, advisor, flow
fit_module(Tagger(), regression_batches(12), *callbacks, logger=[logger, remember], log_every_n_steps=2)
logger.experiment.finish()
pathlib.Path(FOLDER, "kept.json").write_text(json.dumps(remember.rows))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an offline run by somebody who has no account."""
    folder = tmp_path_factory.mktemp("wandb")
    environment = {k: v for k, v in os.environ.items() if k not in ("WANDB_API_KEY", "WANDB_MODE")}
    environment |= {"NETRC": str(folder / "netrc"), "WANDB_CONFIG_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("FOLDER", repr(str(folder)))],
        cwd=Path(__file__).parents[1],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    [path] = folder.glob("wandb/offline-run-*")
    return path


@pytest.fixture(scope="module")
def rows(run: Path) -> list[dict[str, object]]:
    """What was logged, by step."""
    [file] = run.glob("run-*.wandb")
    read = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", file],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    records = [json.loads(line) for line in read.stdout.splitlines()]
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def test_every_metric_is_in_the_run_at_the_steps_it_was_logged_at(run: Path, rows: list[dict[str, object]]) -> None:
    kept = json.loads((run.parent.parent / "kept.json").read_text())
    expected = {(name, step): value for step, row in kept for name, value in row.items()}
    names = {name for name, _ in expected}
    logged = {(name, row["trainer/global_step"]): row[name] for row in rows for name in names & row.keys()}
    assert logged == pytest.approx(expected, rel=1e-5)
    assert names >= {
        "clipping_advice/threshold",
        "grad_clip/threshold",
        "grad_clip/outlier_fraction",
        "grad_norm/clipped",
        "grad_norm/gate/lstm/f",
        "grad_norm/recurrent/lstm",
        "gradient_flow/lstm/decay_rate",
        "update_ratio/total",
    }
    assert sorted(step for name, step in expected if name == "grad_norm/total") == [1, 3, 5, 7, 9, 11]


def test_histograms_hold_the_norm_of_every_step(rows: list[dict[str, object]]) -> None:
    counts = [sum(row["grad_norm/histogram.values"]) for row in rows if "grad_norm/histogram.values" in row]
    assert sum(counts) == 12


def test_figures_are_images_of_the_run(run: Path) -> None:
    images = run / "files/media/images"
    for pattern in ("gradient_norm_histogram_*.png", "clipping_advice_*.png", "gradient_flow/lstm_*.png"):
        files = list(images.glob(pattern))
        assert files, pattern
        assert all(imread(file).std() > 0.01 for file in files)
