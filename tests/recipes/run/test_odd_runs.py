"""Runs that were broken off, moved, tried or mixed up: which is meant, and what is left of it."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from jsonargparse import Namespace
from tiny_runs import metrics, options, recipe, tiny_translation, write_pairs

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.command_line.from_checkpoint import GivenCheckpoint
from rnn_blocks.recipes.command_line.run_options import check_kept_options
from rnn_blocks.recipes.command_line.summary import places
from rnn_blocks.recipes.data.store import default_cache_dir
from rnn_blocks.recipes.run.checkpoints import KeptCheckpoints
from rnn_blocks.recipes.run.folder import RunFolder, find_checkpoint, run_of_checkpoint, runs
from rnn_blocks.recipes.run.plots import RunPlots
from rnn_blocks.recipes.tools.export.command import _find, _metrics

TINY_LONG_RANGE = {
    "task": "adding",
    "length": 5,
    "cell": "gru",
    "parameters": 100,
    "data.eval_sequences": 4,
    "data.eval_batch_size": 4,
    "trainer.max_steps": 4,
    "trainer.val_check_interval": 2,
    "trainer.enable_progress_bar": "false",
    "trainer.accelerator": "cpu",
    "logger": "csv",
}


def begin(parent: Path, name: str, *checkpoints: str, at: int) -> RunFolder:
    """A run that was last written to at a time, in seconds."""
    run = RunFolder(parent / name)
    run.checkpoints.mkdir(parents=True)
    run.config.write_text("data: {}\n")
    for checkpoint in checkpoints:
        run.checkpoint(checkpoint).write_bytes(b"")
    for path in (*run.checkpoints.iterdir(), run.checkpoints, run.config):
        os.utime(path, (at, at))
    return run


def copied(run: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of a run among those of a folder of its own."""
    return RunFolder(Path(shutil.copytree(run.path, tmp_path / run.path.parent.name / run.path.name)))


def contents(run: RunFolder) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != ".lock"}


class TestTheNewestRun:
    def test_is_the_one_that_was_written_to_last_and_no_other_takes_its_place(self, tmp_path):
        old = begin(tmp_path, "2026-01-01_00-00-00", "last", "best", at=1000)
        assert find_checkpoint("best", tmp_path) == old.checkpoint("best")
        new = begin(tmp_path, "2026-01-02_00-00-00", "last", at=2000)
        assert find_checkpoint("last", tmp_path) == new.checkpoint("last")
        message = (
            rf"newest run, {new.path}, has no checkpoints/best.ckpt; it has a last one: --ckpt_path {new.path}/.*; "
            rf"another has one: --ckpt_path {old.path}/"
        )
        with pytest.raises(InputError, match=message):
            find_checkpoint("best", tmp_path)
        os.utime(old.checkpoint("last"), (3000, 3000))  # it goes on
        assert find_checkpoint("best", tmp_path) == old.checkpoint("best")

    def test_is_no_folder_in_which_no_training_made_a_step(self, tmp_path):
        old = begin(tmp_path, "2026-01-01_00-00-00", "last", at=1000)
        empty = RunFolder(tmp_path / "2026-01-02_00-00-00")
        empty.checkpoints.mkdir(parents=True)
        empty.config.write_text("data: {}\n")  # it was ended before
        assert find_checkpoint("last", tmp_path) == old.checkpoint("last")
        with pytest.raises(
            InputError, match=rf"{old.path}, has no .*averaged.ckpt; it has a last one: --ckpt_path {old.path}/[^;]*$"
        ):
            find_checkpoint("averaged", tmp_path)

    def test_is_that_of_all_recipes_where_none_is_named(self, tmp_path):
        old = begin(tmp_path / "cloze", "2026-01-01_00-00-00", "last", "best", at=1000)
        new = begin(tmp_path / "translation", "2026-01-02_00-00-00", "last", at=2000)
        assert _find("last", tmp_path) == new.checkpoint("last")
        message = f"best.ckpt; it has a last one: {new.path}/.*; another has one: {old.path}"
        with pytest.raises(InputError, match=message):
            _find("best", tmp_path)
        message = rf"^nowhere: no such file; valid .* \(newest runs: {old.path}, {new.path}\)"
        with pytest.raises(InputError, match=message):
            _find("nowhere", tmp_path)


def test_a_run_that_was_never_validated_says_so_and_folders_of_plots_are_told(tmp_path):
    run = begin(tmp_path, "run", "last", at=1000)
    (run.plots / "attention" / "1").mkdir(parents=True)
    (run.plots / "attention" / "1" / "20.png").touch()
    told = places(run)
    assert "none is best.ckpt: no validation was made" in told
    assert f"Plots      {run.plots / 'attention'}  (1)\n" in told
    run.checkpoint("best").touch()
    assert "no validation" not in places(run)


class TestAConfigurationThatIs:
    @pytest.mark.parametrize("torn", [b"", b"seed_everything: 1\nmodel: {", b"\xff\xfe"])
    def test_torn_is_taken_from_the_checkpoint_and_kept_aside(self, finished_run, tmp_path, torn, capsys):
        run = copied(finished_run, tmp_path)
        run.config.write_bytes(torn)
        where = ["--ckpt_path", "last", "--output_dir", str(tmp_path)]
        assert recipe("fit", *where) == 0
        assert f"{run.config}: cannot be read; the configuration in" in capsys.readouterr().err
        assert "max_steps" in run.config.read_text()
        assert (run.path / "config.before-1.yaml").read_bytes() == torn
        assert metrics(run) == metrics(finished_run)
        assert runs(tmp_path / "language-model") == [run]

    def test_missing_ends_a_resumption_and_begins_no_other_run(self, finished_run, tmp_path, capsys):
        run = copied(finished_run, tmp_path)
        run.config.unlink()
        assert recipe("fit", "--ckpt_path", "last", "--output_dir", str(tmp_path)) == 2
        assert f"{run.path} has no config.yaml, without which no training goes on in it" in capsys.readouterr().err
        assert runs(tmp_path / "language-model") == [run]


def test_a_run_whose_checkpoints_lie_elsewhere_by_a_link_is_found(tmp_path):
    run = begin(tmp_path, "run", "last", at=1000)
    shutil.move(run.checkpoints, tmp_path / "bigger disk")
    run.checkpoints.symlink_to(tmp_path / "bigger disk")
    (tmp_path / "linked.ckpt").symlink_to(run.checkpoint("last"))
    assert run_of_checkpoint(run.checkpoint("last")) == run
    elsewhere = begin(tmp_path, "whole", "last", at=1000)
    (tmp_path / "other.ckpt").symlink_to(elsewhere.checkpoint("last"))
    assert run_of_checkpoint(tmp_path / "other.ckpt").path.samefile(elsewhere.path)


def test_a_trial_leaves_the_run_that_it_tries_as_it_is(finished_run, tmp_path):
    run = copied(finished_run, tmp_path)
    before = contents(run)
    assert recipe("fit", "--ckpt_path", "last", "--output_dir", str(tmp_path), "--trainer.fast_dev_run", "1") == 0
    assert contents(run) == before
    assert find_checkpoint("last", tmp_path / "language-model") == run.checkpoint("last")


def test_another_rate_than_the_checkpoints_is_refused_where_it_is_an_option_of_the_model(tmp_path, capsys):
    settings = options(**TINY_LONG_RANGE | {"model.lr": 0.002, "output_dir": tmp_path})
    assert recipe("fit", *settings, of="long-range") == 0
    args = ["--ckpt_path", "last", "--output_dir", str(tmp_path), "--trainer.max_steps", "6", "--model.lr", "0.5"]
    assert recipe("fit", *args, of="long-range") == 2
    assert "--model.lr 0.5: the checkpoint was trained with 0.002, and its" in capsys.readouterr().err


class TestCheckpointsToBeAveraged:
    @pytest.mark.parametrize(("mode", "stay"), [("min", [1, 2]), ("max", [3, 2])])
    def test_are_the_best_where_fewer_are_asked_for(self, tmp_path, mode, stay):
        run = begin(tmp_path, "run", at=1000)
        run.kept.mkdir()
        paths = {score: str(run.kept / f"step-{score}.ckpt") for score in (1, 2, 3)}
        for path in paths.values():
            Path(path).write_bytes(b"")
        scores = {path: torch.tensor(float(score)) for score, path in paths.items()}
        kept = KeptCheckpoints(run, "val/loss", mode, count=2)
        state = kept.state_dict() | {"best_k_models": scores, "dirpath": str(run.kept)}
        kept.load_state_dict(state)
        assert kept.best_k_models == {paths[score]: score for score in stay}
        assert kept.kth_best_model_path == paths[stay[-1]]
        assert kept.kth_value == stay[-1]
        assert sorted(run.kept.iterdir()) == sorted(Path(paths[score]) for score in stay)


def test_a_picture_that_cannot_be_drawn_does_not_hide_what_ended_the_training(tmp_path, capsys):
    class Full:
        def save(self):
            raise OSError(28, "No space left on device")

    trainer = Namespace(is_global_zero=True, loggers=[Full()])
    RunPlots(RunFolder(tmp_path)).on_exception(trainer, None, RuntimeError("the cause"))
    assert "the run could not be drawn ([Errno 28] No space left on device)" in capsys.readouterr().err


def test_one_callback_need_not_be_a_list(tmp_path):
    pairs = write_pairs(tmp_path)
    settings = {"trainer.callbacks": "lightning.pytorch.callbacks.LearningRateMonitor", "trainer.max_steps": 2}
    assert recipe("fit", *tiny_translation(pairs, tmp_path / "runs", **settings), of="translation") == 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_no_configuration_can_hold_is_refused(tmp_path):
    name = os.fsdecode(b"caf\xe9.txt")
    with pytest.raises(InputError, match=r"--data.source 'caf\\udce9.txt': holds bytes that are no UTF-8"):
        check_kept_options(Namespace(trainer=Namespace(), data=Namespace(source=name)))
    check_kept_options(Namespace(trainer=Namespace(), data=Namespace(source="café.txt", train=None)))


def test_a_models_card_has_the_metrics_of_its_own_step(tmp_path):
    run = begin(tmp_path, "run", at=1000)
    run.metrics.write_text("step,val/loss\n1,2.9\n2,2.7\n3,2.6\n")
    torch.save({"global_step": 3}, run.checkpoint("best"))
    assert _metrics(run.checkpoint("best")) == {"val/loss": 2.7}


def test_a_test_of_nothing_is_told(finished_run, tmp_path, capsys):
    run = copied(finished_run, tmp_path)
    args = ["--ckpt_path", str(run.checkpoint("best")), "--trainer.limit_test_batches", "0"]
    assert recipe("test", *args) == 2
    assert "nothing was measured: no batch of the test split was asked for" in capsys.readouterr().err


def test_a_checkpoint_that_is_written_anew_meanwhile_is_noticed(finished_run, tmp_path):
    run = copied(finished_run, tmp_path)
    given = GivenCheckpoint(run.checkpoint("last"), "language-model", None)
    assert not given.is_outdated()
    shutil.copy(run.checkpoint("best"), tmp_path / "new.ckpt")
    os.replace(tmp_path / "new.ckpt", run.checkpoint("last"))
    assert given.is_outdated()


def test_a_cache_in_the_home_folder_may_be_told_by_a_tilde(monkeypatch):
    monkeypatch.setenv("RNN_BLOCKS_CACHE", "~/texts")
    assert default_cache_dir() == Path.home() / "texts"
