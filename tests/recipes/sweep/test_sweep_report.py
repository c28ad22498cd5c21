"""A sweep's table and pictures."""

import csv
from pathlib import Path

import pytest
from pretend_sweep import SPREAD, chosen, spec_of

from rnn_blocks.recipes.tools.sweep.report import _shown, draw, ranked, short_names, table, write_csv
from rnn_blocks.recipes.tools.sweep.search import Outcome, Point, Search
from rnn_blocks.recipes.tools.sweep.spec import SweepSpec


def outcomes_of(spec: SweepSpec) -> dict[Point, Outcome]:
    values = [3.0, 2.0, None, 2.5, 1.5, 4.0]
    return {
        point: Outcome("failed", reason="it broke")
        if best is None
        else Outcome("done", best, 9, best + 0.1, 60.0, "run")
        for point, best in zip(Search(spec).points(), values, strict=True)
    }


@pytest.mark.parametrize(("goal", "first"), [("minimize", 1.5), ("maximize", 4.0)])
def test_the_table_is_sorted_by_the_metric_and_failures_come_last(goal: str, first: float, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, metric={"name": "val/loss", "goal": goal})
    outcomes = outcomes_of(spec)
    assert [outcome.best for _, outcome in ranked(outcomes, goal)][::5] == [first, None]
    lines = table(outcomes, spec).splitlines()
    assert lines[0].split() == ["dropout", "lr", "val/loss", "at", "step", "at", "the", "end", "minutes"]
    assert lines[1].split()[2] == f"{first:g}"
    assert lines[-1].split()[-1] == "failed"
    write_csv(tmp_path / "sweep.csv", outcomes, spec)
    with (tmp_path / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["done"] * 5 + ["failed"]
    assert rows[-1]["reason"] == "it broke"


def test_names_are_short_where_they_stay_apart_and_what_does_not_vary_is_left_out() -> None:
    values = {"a.lr": 1, "b.lr": 2, "c.size": 3, "d.constant": 4}
    outcomes = {Point(values, ("1",)): Outcome("done")}
    outcomes[Point({name: 9 * value for name, value in values.items()} | {"d.constant": 4}, ("2",))] = Outcome("done")
    assert short_names(outcomes) == {"a.lr": "a.lr", "b.lr": "b.lr", "c.size": "size"}


@pytest.mark.processes
@pytest.mark.parametrize("goal", ["minimize", "maximize"])
def test_optunas_pictures_are_drawn_where_they_can_be_made(goal: str, tmp_path: Path) -> None:
    cells = {"layer": {"values": ["LSTM", "GRU", None]}, "a.lr": {"values": [0.01, 0.1]}, "b.lr": {"values": [1]}}
    metric = {"name": "val/loss", "goal": goal}
    grid = Search(spec_of(tmp_path, parameters=cells, metric=metric))
    short = {"layer": "layer", "a.lr": "lr"}
    assert draw(tmp_path, grid.study, short, "val/loss") == [], "of nothing"
    chosen(grid, 1, loss=lambda values: 2.0)
    assert [path.name for path in draw(tmp_path, grid.study, short, "val/loss")] == ["sweep.png", "history.png"]
    chosen(grid, loss=lambda values: values["a.lr"])
    drawn = draw(tmp_path, grid.study, short, "val/loss")
    assert [path.stem for path in drawn] == ["sweep", "history", "parallel", "rank"]
    free = Search(spec_of(tmp_path, parameters=SPREAD, method="random", metric=metric), count=12)
    chosen(free, loss=lambda values: 1e9 if values["a"] > 0.8 else values["a"])
    drawn = draw(tmp_path, free.study, {name: name for name in SPREAD}, "val/loss")
    assert [path.stem for path in drawn] == ["sweep", "history", "parallel", "importances"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_a_run_that_diverged_does_not_press_the_others_flat_in_the_pictures(tmp_path: Path) -> None:
    for goal, sign in (("minimize", 1), ("maximize", -1)):
        metric = {"name": "val/loss", "goal": goal}
        search = Search(spec_of(tmp_path, parameters=SPREAD, method="random", metric=metric), count=20)
        chosen(search, loss=lambda values, sign=sign: sign * (1e9 if values["a"] > 0.8 else 1 + values["a"]))
        values = [sign * trial.value for trial in _shown(search.study, {"a": "a"}).trials]
        assert max(values) < 2
        assert values.count(max(values)) > 1
