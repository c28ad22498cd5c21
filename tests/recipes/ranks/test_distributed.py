"""Two processes train one model, in one folder, as one run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import (
    assert_same,
    column,
    finish,
    load,
    metrics,
    only_run,
    recipe,
    start,
    tiny,
    tiny_translation,
    trained,
)

from rnn_blocks.recipes.run.folder import RunFolder

pytestmark = pytest.mark.processes

DDP = {"trainer.strategy": "ddp", "trainer.devices": 2, "data.batch_size": 4}
# SGD, for Adam's division makes a large difference of a small one; one validation, after which best.ckpt is written.
SETTINGS = {
    "model.optimizer": "torch.optim.SGD",
    "model.optimizer.init_args.lr": 0.5,
    "model.lr_scheduler": "torch.optim.lr_scheduler.ExponentialLR",
    "model.lr_scheduler.init_args.gamma": 0.97,
    "trainer.val_check_interval": 14,
}


@pytest.fixture(scope="module")
def two_ranks(text: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of two processes, tracked by W&B offline."""
    output_dir = tmp_path_factory.mktemp("ddp")
    finish(start("fit", *tiny(text, output_dir, **SETTINGS, **DDP, logger="wandb"), WANDB_MODE="offline"))
    return only_run(output_dir)


def test_two_ranks_train_the_parameters_of_one_process_with_the_doubled_batch(
    two_ranks: RunFolder, text: Path, tmp_path: Path
) -> None:
    assert recipe("fit", *tiny(text, tmp_path, **SETTINGS)) == 0
    one, two = load(only_run(tmp_path)), load(two_ranks)
    assert one["global_step"] == two["global_step"] == 20
    torch.testing.assert_close(two["state_dict"], one["state_dict"], rtol=0, atol=1e-5)
    torch.testing.assert_close(two["carried_state"], one["carried_state"], rtol=0, atol=1e-4)
    started = one["state_dict"]["layer.layers.0.cell.weight_ih"]
    assert started.std() > 0.01
    for name in ("train/loss", "grad_norm/total"):
        assert column(two_ranks, name) == pytest.approx(column(only_run(tmp_path), name), rel=1e-3), name


def test_two_ranks_make_one_folder_and_one_wandb_run(two_ranks: RunFolder) -> None:
    assert only_run(two_ranks.path.parents[1]) == two_ranks
    assert len(list(two_ranks.path.glob("wandb/offline-run-*"))) == 1
    steps = [row["step"] for row in metrics(two_ranks)]
    assert len(steps) == len(set(steps)) == 3


def test_two_ranks_resume_bit_for_bit(two_ranks: RunFolder, tmp_path: Path) -> None:
    """From the checkpoint of the validation at step 14, as if the run had been killed there."""
    folder = RunFolder(tmp_path / "language-model" / "run")
    folder.checkpoints.mkdir(parents=True)
    shutil.copy(two_ranks.checkpoint("best"), folder.checkpoint("last"))
    config = two_ranks.config.read_text()
    assert "logger: wandb\n" in config
    folder.config.write_text(config)
    assert load(folder)["global_step"] == 14
    finish(start("fit", "--ckpt_path", "last", "--output_dir", str(tmp_path), "--logger", "csv"))
    assert_same(trained(load(folder)), trained(load(two_ranks)))


def test_two_ranks_of_an_external_launcher_make_one_folder(text: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    short = {"trainer.max_steps": 4, "trainer.val_check_interval": 2, "samples.prompts": "[]", "average_checkpoints": 2}
    settings = tiny(text, tmp_path, **(SETTINGS | DDP | short))
    ended = subprocess.run(
        [*launcher, "-m", "rnn_blocks.recipes", "language-model", "fit", *settings],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert load(only_run(tmp_path))["global_step"] == 4
    assert "of the averaged weights" in ended.stdout
    assert only_run(tmp_path).checkpoint("averaged").is_file()
    assert {path.name for path in (tmp_path / "language-model").iterdir()} == {only_run(tmp_path).path.name}


def test_two_ranks_that_draw_different_numbers_resume_bit_for_bit(pairs: Path, tmp_path: Path) -> None:
    """Batches of translations are of different shapes, and so draw dropout of different lengths."""
    two = {"trainer.strategy": "ddp", "trainer.devices": 2, "model.dropout": 0.2, "trainer.val_check_interval": 9}
    settings = tiny_translation(pairs, tmp_path / "whole", **two, **{"trainer.limit_val_batches": 1})
    finish(start("fit", *settings, of="translation"))
    whole = only_run(tmp_path / "whole", "translation")
    states = load(whole, "best")["callbacks"]["RandomState"]
    assert not torch.equal(states["torch"], states["other_ranks"][0]["torch"])
    folder = RunFolder(tmp_path / "translation" / "run")
    folder.checkpoints.mkdir(parents=True)
    shutil.copy(whole.checkpoint("best"), folder.checkpoint("last"))
    shutil.copy(whole.config, folder.config)
    assert 0 < load(folder)["global_step"] < 20
    finish(start("fit", "--ckpt_path", "last", "--output_dir", str(tmp_path), of="translation"))
    assert_same(trained(load(folder)), trained(load(whole)))
