"""Comparisons of cells: trainings that stop when they are solved and go on where they stopped, tables, pictures."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import assert_same, load, only_run, options, recipe, trained

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.long_range.comparison import schedule
from rnn_blocks.recipes.long_range.comparison.figure import comparison_figure, tile
from rnn_blocks.recipes.long_range.comparison.settings import Result, Settings, clipping_callbacks, thinned
from rnn_blocks.recipes.long_range.comparison.training import Stopped, train
from rnn_blocks.recipes.run.folder import runs

TINY = Settings("adding", 6, "gru", parameters=120, batch_size=8, max_steps=9, eval_every=4, eval_sequences=20)
GRID = {"cells": "elman,gru", "lengths": "4,8", "max-steps": 4, "eval-every": 2, "eval-sequences": 10}
GRID |= {"parameters": 120, "batch-size": 4, "accelerator": "cpu"}
TINY_FIT = {
    "task": "copy",
    "length": 6,
    "cell": "gru",
    "parameters": 400,
    "data.batch_size": 4,
    "data.eval_sequences": 6,
    "data.eval_batch_size": 3,
    "trainer.val_check_interval": 5,
    "trainer.log_every_n_steps": 2,
    "trainer.enable_progress_bar": "false",
    "trainer.accelerator": "cpu",
    "checkpoint_every_n_steps": 3,
    "logger": "csv",
}


def made(tmp_path: Path, name: str = "compare-adding") -> list[Path]:
    return sorted((tmp_path / "long-range" / name / "trainings").glob("*.json"))


def compare(tmp_path: Path, **settings) -> int:
    return recipe("compare", *options(**(GRID | {"output_dir": tmp_path} | settings)), of="long-range")


def test_a_training_evaluates_at_its_intervals_and_at_its_end(tmp_path):
    result = train(TINY, tmp_path, accelerator="cpu")
    assert [step for step, _ in result.curve] == [4, 8, 9]
    assert result.loss == result.curve[-1][1]
    assert (result.steps, result.solved, result.diverged) == (9, False, False)
    assert len(result.flow_at_start) == len(result.flow_at_end) == 6
    assert Result.read(tmp_path / f"{TINY.key()}.json") == result
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_a_training_that_is_stopped_goes_on_to_the_same_result(tmp_path):
    whole = train(TINY, tmp_path / "whole", accelerator="cpu")
    for steps in (3, 2):  # stopped after steps 3 and 6; an evaluation lies between
        asked = iter([False] * (steps - 1) + [True] * 10)
        with pytest.raises(Stopped):
            train(TINY, tmp_path / "parts", stop=lambda asked=asked: next(asked), accelerator="cpu")
        assert (tmp_path / "parts" / f"{TINY.key()}.ckpt").is_file()
    parts = train(TINY, tmp_path / "parts", accelerator="cpu")
    assert replace(parts, seconds=whole.seconds) == whole
    assert [path.suffix for path in (tmp_path / "parts").iterdir()] == [".json"]


def test_a_training_that_evaluates_after_every_step_can_be_stopped_and_gone_on_with(tmp_path):
    often = replace(TINY, eval_every=1)
    whole = train(often, tmp_path / "whole", accelerator="cpu")
    assert [step for step, _ in whole.curve] == list(range(1, often.max_steps + 1))
    for _ in range(3):
        with pytest.raises(Stopped):
            train(often, tmp_path / "parts", stop=lambda: True, accelerator="cpu")
        assert (tmp_path / "parts" / f"{often.key()}.ckpt").is_file()
    parts = train(often, tmp_path / "parts", accelerator="cpu")
    assert replace(parts, seconds=whole.seconds) == whole


def test_a_training_ends_once_it_is_solved(tmp_path):
    result = train(replace(TINY, solved_below=100.0), tmp_path, accelerator="cpu")
    assert (result.solved, result.steps) == (True, 4)


@pytest.mark.filterwarnings("ignore:AdaptiveGradientClipping. the gradient of")
@pytest.mark.parametrize("clipping", ["none", "auto"])
def test_a_training_that_diverges_is_a_result(clipping, tmp_path):
    settings = replace(TINY, cell="irnn", lr=1e30, clipping=clipping, max_steps=60, eval_every=60)
    result = train(settings, tmp_path, accelerator="cpu")
    assert result.diverged
    assert math.isnan(result.loss)
    assert not result.solved
    again = Result.read(tmp_path / f"{settings.key()}.json")
    assert again is not None
    assert again.diverged
    assert tile([again]) == (math.inf, "diverged", False)
    comparison_figure([again])


def test_other_settings_are_another_training():
    others = {"length": 7, "cell": "elman", "clipping": "none", "seed": 2, "parameters": 130, "lr": 0.1}
    others |= {"batch_size": 9, "max_steps": 10, "eval_every": 5, "eval_sequences": 21, "solved_below": 0.1}
    keys = {TINY.key(), replace(TINY, task="copy").key(), *(replace(TINY, **{k: v}).key() for k, v in others.items())}
    assert len(keys) == len(others) + 2


def test_a_damaged_result_is_told_with_its_file(tmp_path):
    path = tmp_path / "result.json"
    path.write_text('{"settings": {}}')
    with pytest.raises(InputError, match=r"result\.json: not a result of this version"):
        Result.read(path)


def test_clipping_is_automatic_fixed_or_none():
    assert clipping_callbacks("none") == []
    assert type(clipping_callbacks("auto")[0].policy).__name__ == "Auto"
    assert clipping_callbacks("2.5")[0].policy.threshold == 2.5
    for wrong in ("always", "0", "-1", "nan", "inf"):
        with pytest.raises(InputError, match=f"clipping '{wrong}': valid are auto, none or a threshold above 0"):
            clipping_callbacks(wrong)


def test_a_long_curve_is_thinned_to_evenly_spread_points():
    assert thinned([float(i) for i in range(1001)], most=11) == [100.0 * i for i in range(11)]
    assert thinned([1.0, 2.0], most=11) == [1.0, 2.0]


def test_a_comparison_makes_a_table_and_a_picture_and_is_gone_on_with(tmp_path, capsys, monkeypatch):
    assert compare(tmp_path) == 0
    printed = capsys.readouterr().out
    folder = tmp_path / "long-range" / "compare-adding"
    with (folder / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["cell"], row["T"]) for row in table] == [("elman", "4"), ("elman", "8"), ("gru", "4"), ("gru", "8")]
    for row, path in zip(sorted(table, key=lambda r: (r["cell"], r["T"])), made(tmp_path), strict=True):
        result = json.loads(path.read_text())
        assert float(row["loss"]) == result["loss"] == result["curve"][-1][1]
        assert float(row["loss/guess"]) == pytest.approx(6 * result["loss"])
    assert (folder / "table.md").read_text().count("\n") == 2 + len(table)
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert all(word in printed for word in ("elman", "gru", "loss/guess", str(folder / "comparison.png")))

    trained_again = []
    monkeypatch.setattr(schedule, "train", lambda settings, *_, **__: trained_again.append(settings.length))
    before = {path: path.stat().st_mtime_ns for path in made(tmp_path)}
    assert compare(tmp_path) == 0
    assert {path: path.stat().st_mtime_ns for path in made(tmp_path)} == before
    assert trained_again == []


@pytest.mark.processes
def test_processes_come_to_the_same_results_as_one(tmp_path):
    grid = [replace(TINY, cell=cell, length=length, max_steps=4) for cell in ("elman", "gru") for length in (4, 8)]
    together, failures = schedule.train_all(grid, tmp_path / "two", processes=2, accelerator="cpu")
    assert failures == []
    assert [result.settings for result in together] == grid
    alone = train(grid[1], tmp_path / "one", accelerator="cpu")
    assert replace(alone, seconds=0.0) == replace(together[1], seconds=0.0)


def test_a_training_that_fails_is_told_with_its_cell_and_length_and_the_others_are_made(tmp_path, capsys, monkeypatch):
    def failing(settings, *args, **kwargs):
        if (settings.cell, settings.length) == ("elman", 8):
            raise MemoryError("no room")
        return train(settings, *args, **kwargs)

    monkeypatch.setattr(schedule, "train", failing)
    assert compare(tmp_path) == 1
    streams = capsys.readouterr()
    assert "error: elman at length 8, clipping auto, seed 1: MemoryError: no room" in streams.err
    assert len(made(tmp_path)) == 3
    assert "gru" in streams.out
    monkeypatch.undo()
    assert compare(tmp_path) == 0
    assert len(made(tmp_path)) == 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cells": "gru,lsmt"}, "cell 'lsmt': did you mean 'lstm'? Valid are elman, "),
        ({"cells": "gru,,lstm"}, "cells 'gru,,lstm': give names joined by commas"),
        ({"lengths": "10,1"}, "length 1: the adding task needs at least 2"),
        ({"lengths": "0", "task": "copy"}, "length 0: the copy task needs at least 1"),
        ({"lengths": "10,ten"}, "lengths '10,ten': give whole numbers joined by commas"),
        ({"task": "kopy"}, "task 'kopy': did you mean 'copy'?"),
        ({"clipping": "auto,often"}, "clipping 'often': valid are auto, none or a threshold"),
        ({"processes": 0}, "processes 0: give 1 or more"),
        ({"seeds": 0}, "seeds 0: give 1 or more"),
        ({"max-steps": 0}, "max_steps 0: give 1 or more"),
        ({"lr": -0.1}, "lr -0.1: give more than 0"),
        ({"cells": "dilated", "parameters": 5}, "parameters 5: the smallest dilated for length 4 has"),
    ],
)
def test_bad_input_of_a_comparison_is_told_before_anything_is_written(wrong, message, tmp_path, capsys):
    assert compare(tmp_path, **wrong) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_picture_has_a_row_for_each_cell_and_clipping_and_a_tile_for_each_length():
    results = [
        Result(replace(TINY, cell=cell, clipping=clip, length=length), 8, 120, 1 / 6, loss=loss, solved=loss < 0.01)
        for cell, clip, loss in (("gru", "none", 0.1), ("gru", "auto", 0.001), ("elman", "none", math.nan))
        for length in (4, 8, 16)
    ]
    for result in results:
        result.diverged = math.isnan(result.loss)
        result.steps = 1250
        result.flow_at_start = [0.0, 0.5, 1.0]
        result.flow_at_end = [] if result.diverged else [math.inf, 0.5, 1.0]
    figure = comparison_figure(results)
    figure.canvas.draw()
    tiles = figure.axes[0]
    assert [text.get_text() for text in tiles.get_yticklabels()] == [
        "gru, not clipped",
        "gru, clipped: auto",
        "elman, not clipped",
    ]
    assert [text.get_text() for text in tiles.get_xticklabels()] == ["4", "8", "16"]
    assert [text.get_text() for text in tiles.texts] == ["0.60"] * 3 + ["✓ 1.25k"] * 3 + ["diverged"] * 3
    assert tiles.get_title(loc="left") == "✓ steps to solve it, else the loss"
    unsolved = comparison_figure([result for result in results if not result.solved])
    assert unsolved.axes[0].get_title(loc="left") == "the loss, nothing is solved"


def test_a_tile_of_several_seeds_says_how_many_are_solved():
    seeds = [
        Result(replace(TINY, seed=seed), 8, 120, 1 / 6, loss=loss, steps=steps, solved=loss < 0.01)
        for seed, loss, steps in ((1, 0.001, 400), (2, 0.1, 900), (3, 0.002, 600))
    ]
    assert tile(seeds)[1:] == ("500\n2 of 3", True)
    assert tile(seeds[:2])[2] is False


@pytest.mark.processes
def test_a_fit_is_a_run_like_any_other_and_resumes_exactly(tmp_path, capsys):
    whole = {"output_dir": tmp_path / "whole", "trainer.max_steps": 11}
    assert recipe("fit", *options(**(TINY_FIT | whole)), of="long-range") == 0
    printed = capsys.readouterr().out
    assert "of a guess's" in printed
    assert "of the symbols recalled" in printed
    parts = {"output_dir": tmp_path / "parts"}
    assert recipe("fit", *options(**(TINY_FIT | parts | {"trainer.max_steps": 7})), of="long-range") == 0
    again = options(**(parts | {"ckpt_path": "last", "trainer.max_steps": 11}))
    assert recipe("fit", *again, of="long-range") == 0
    one, other = (load(only_run(tmp_path / name, "long-range")) for name in ("whole", "parts"))
    assert_same(trained(one)["state_dict"], trained(other)["state_dict"])
    assert_same(one["optimizer_states"], other["optimizer_states"])
    with only_run(tmp_path / "whole", "long-range").metrics.open() as file:
        logged = {name for row in csv.DictReader(file) for name, value in row.items() if value}
    assert {"train/loss", "val/loss", "val/relative_loss", "val/accuracy", "grad_norm/total"} <= logged
    assert recipe("test", *options(output_dir=tmp_path / "whole"), of="long-range") == 0
    assert "test: loss" in capsys.readouterr().out
    other_length = options(**(parts | {"ckpt_path": "last", "length": 5}))
    assert recipe("fit", *other_length, of="long-range") == 2
    assert "length 6, and this run has 5" in capsys.readouterr().err


def test_a_fit_ends_below_the_loss_that_is_asked_for(tmp_path):
    settings = TINY_FIT | {"output_dir": tmp_path, "trainer.max_steps": 40, "stop_below": 100.0}
    assert recipe("fit", *options(**settings), of="long-range") == 0
    assert load(only_run(tmp_path, "long-range"))["global_step"] == 5


def test_bad_input_of_a_fit_is_told(tmp_path, capsys):
    for wrong, message in (
        ({"cell": "lsmt"}, "cell 'lsmt': did you mean 'lstm'?"),
        ({"length": 0}, "length 0: the copy task needs at least 1"),
        ({"stop_below": 0}, "--stop_below 0"),
        ({"data.batch_size": 0}, "batch_size 0: give 1 or more"),
    ):
        settings = TINY_FIT | {"output_dir": tmp_path, "trainer.max_steps": 4} | wrong
        assert recipe("fit", *options(**settings), of="long-range") == 2
        assert message in capsys.readouterr().err
    assert runs(tmp_path / "long-range") == []


def test_the_cells_are_listed(capsys):
    assert recipe("cells", of="long-range") == 0
    assert capsys.readouterr().out.startswith("elman ")


def test_the_same_seed_makes_the_same_training(tmp_path):
    short = replace(TINY, max_steps=2, eval_every=2)
    one, other = (train(short, tmp_path / name, accelerator="cpu") for name in "ab")
    torch.testing.assert_close(one.curve, other.curve, rtol=0, atol=0)
    assert train(replace(short, seed=2), tmp_path, accelerator="cpu").curve != one.curve
