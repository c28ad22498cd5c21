"""Which points Optuna chooses for a sweep, and how they are trained, ended, and gone on with."""

import csv
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.trial import FixedTrial, TrialState
from pretend_sweep import PretendRunner, run, spec_of, written
from tiny_runs import TINY, load

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.run.folder import RunFolder
from rnn_blocks.recipes.tools.sweep import command as tool
from rnn_blocks.recipes.tools.sweep import runner as runner_module
from rnn_blocks.recipes.tools.sweep.parameters import distribution, read_parameter, suggest
from rnn_blocks.recipes.tools.sweep.report import _shown, draw, ranked, short_names, table, write_csv
from rnn_blocks.recipes.tools.sweep.runner import DONE, read_outcome, saved_outcome
from rnn_blocks.recipes.tools.sweep.search import AT_RANDOM, Outcome, Point, Search
from rnn_blocks.recipes.tools.sweep.spec import SweepSpec, read_sweep, shipped_sweeps

SPREAD = {"a": {"min": 0.0, "max": 1.0}, "b": {"min": 1, "max": 9}, "c": {"values": ["x", "y"]}}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "EVERY", 0.0)


def storage_in(folder: Path) -> RDBStorage:
    return RDBStorage(f"sqlite:///{folder / 'optuna.db'}")


def chosen(search: Search, most: int = 100, loss: Any = None) -> list[dict[str, Any]]:
    """The values of the points that a search visits, told their loss where there is one."""
    values: list[dict[str, Any]] = []
    while len(values) < most and (trial := search.ask()) is not None:
        values.append(search.point(trial).values)
        if loss is not None:
            search.tell(trial, Outcome("done", loss(values[-1])))
    return values


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"value": 3}, CategoricalDistribution([3])),
        ({"value": None}, CategoricalDistribution(["null"])),
        ({"values": [1, 0.5, "x", True, [1, 2]]}, CategoricalDistribution([1, 0.5, "x", "true", "[1, 2]"])),
        ({"distribution": "categorical", "values": ["a"]}, CategoricalDistribution(["a"])),
        ({"min": 2, "max": 4}, IntDistribution(2, 4)),
        ({"distribution": "int_uniform", "min": -3, "max": 3}, IntDistribution(-3, 3)),
        ({"min": 0, "max": 0.5}, FloatDistribution(0, 0.5)),
        ({"distribution": "uniform", "min": 1, "max": 4}, FloatDistribution(1, 4)),
        ({"distribution": "log_uniform_values", "min": 0.001, "max": 0.1}, FloatDistribution(0.001, 0.1, log=True)),
        ({"distribution": "inv_log_uniform_values", "min": 0.1, "max": 9}, FloatDistribution(0.1, 9, log=True)),
        ({"distribution": "log_uniform", "min": -3, "max": 0}, FloatDistribution(math.exp(-3), 1, log=True)),
        ({"distribution": "inv_log_uniform", "min": 0, "max": 3}, FloatDistribution(math.exp(-3), 1, log=True)),
        ({"distribution": "q_uniform", "min": 0.0, "max": 0.4, "q": 0.05}, FloatDistribution(0.0, 0.4, step=0.05)),
        ({"distribution": "q_uniform", "min": 0.1, "max": 0.9, "q": 0.2}, FloatDistribution(0.2, 0.8, step=0.2)),
        ({"distribution": "q_uniform", "min": 2.5, "max": 7}, FloatDistribution(3, 7, step=1)),
        ({"distribution": "q_log_uniform_values", "min": 30, "max": 256, "q": 8}, FloatDistribution(32, 256, log=True)),
        ({"distribution": "q_log_uniform", "min": 0, "max": 3}, FloatDistribution(1, 20, log=True)),
    ],
)
def test_a_distribution_of_weights_and_biases_is_optunas(given: dict, expected: object) -> None:
    assert distribution(read_parameter("mine.yaml: a", given)) == expected


@given(st.data())
def test_values_stay_in_their_bounds_and_on_their_steps(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["uniform", "q_uniform", "log_uniform_values", "q_log_uniform_values"]))
    low = data.draw(st.floats(0.001, 10))
    high = low + data.draw(st.floats(1.1, 100))
    q = data.draw(st.sampled_from([1, 0.5, 0.05]))
    given = {"distribution": kind, "min": low, "max": high} | ({"q": q} if kind.startswith("q_") else {})
    parameter = read_parameter("mine.yaml: a", given)
    kept, share = distribution(parameter), data.draw(st.floats(0, 1))
    width = kept.high - kept.low
    inside = kept.low + (share * width if kept.step is None else round(share * width / kept.step) * kept.step)
    value = suggest(FixedTrial({"a": inside}), "a", parameter)
    assert low * (1 - 1e-5) <= value <= high * (1 + 1e-5)
    assert len(str(value)) <= 12
    if kind.startswith("q_"):
        assert abs(value / q - round(value / q)) < 1e-9
        assert isinstance(value, int) == isinstance(q, int)


def test_a_whole_number_stays_one_and_other_values_are_those_of_the_file() -> None:
    parameter = read_parameter("", {"values": [1, True, None, [1, 2], 0.30000000000000004]})
    drawn = [suggest(FixedTrial({"a": choice}), "a", parameter) for choice in distribution(parameter).choices]
    assert drawn == [1, True, None, [1, 2], 0.30000000000000004]
    assert isinstance(suggest(FixedTrial({"a": 2}), "a", read_parameter("", {"min": 1, "max": 3})), int)


def test_a_grid_has_every_combination_once_and_a_count_takes_some_of_them(tmp_path: Path) -> None:
    spec = read_sweep(written(tmp_path), options=("--trainer.max_steps=3",))
    search = Search(spec)
    trials = [search.ask() for _ in range(6)]
    points = [search.point(trial) for trial in trials]
    pairs = {(p.values["model.dropout"], p.values["model.optimizer.init_args.lr"]) for p in points}
    assert pairs == {(d, lr) for d in (0.0, 0.1, 0.2) for lr in (0.01, 0.1)}
    assert search.ask() is None
    expected = ("--model.dropout=0.0", "--model.optimizer.init_args.lr=0.1", "--logger=csv", "--trainer.max_steps=3")
    assert expected in [point.args for point in points]
    assert len({point.folder_name for point in points}) == 6
    assert all("/" not in point.folder_name for point in points)
    some = chosen(Search(spec, count=2))
    assert some == [point.values for point in points[:2]]


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_search_of_more_runs_begins_with_those_of_fewer_and_another_seed_draws_others(
    method: str, tmp_path: Path
) -> None:
    spec = spec_of(tmp_path, parameters=SPREAD, method=method, run_cap=4)
    few, many = chosen(Search(spec)), chosen(Search(spec, count=9))
    assert (len(few), few) == (4, many[:4])
    assert len({point["a"] for point in many}) == 9
    assert chosen(Search(spec, seed=2))[0] != few[0]
    with pytest.raises(InputError, match=f"a {method} search needs --count"):
        Search(spec_of(tmp_path, parameters=SPREAD, method=method))


@pytest.mark.processes
def test_tpe_is_reproducible_with_a_seed_whether_it_was_broken_off_or_not_and_learns(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, parameters=SPREAD, method="bayes")

    def loss(values: dict[str, Any]) -> float:
        return (values["a"] - 0.3) ** 2 + (values["c"] == "x")

    whole = chosen(Search(spec, count=30), loss=loss)
    assert chosen(Search(spec, count=30), loss=loss) == whole
    storage = storage_in(tmp_path)
    parts = [chosen(Search(spec, count=count, storage=storage), loss=loss) for count in (7, 19, 30)]
    storage.engine.dispose()
    assert [len(part) for part in parts] == [7, 12, 11]
    assert [*parts[0], *parts[1], *parts[2]] == whole
    late = whole[-10:]
    assert sum(map(loss, late)) < sum(map(loss, whole[:AT_RANDOM])) / 3


def test_another_file_option_or_seed_is_another_study_and_more_points_are_not(tmp_path: Path) -> None:
    base = Search(spec_of(tmp_path)).study.study_name
    assert Search(spec_of(tmp_path, run_cap=2)).study.study_name == base
    assert Search(spec_of(tmp_path), count=3).study.study_name == base
    others = [
        Search(spec_of(tmp_path), seed=2),
        Search(read_sweep(written(tmp_path), options=("--a=1",))),
        Search(spec_of(tmp_path, metric={"name": "val/loss", "goal": "maximize"})),
        Search(spec_of(tmp_path, early_terminate={"type": "hyperband", "min_iter": 1})),
        Search(spec_of(tmp_path, method="random"), count=3),
    ]
    assert len({base, *(other.study.study_name for other in others)}) == 6


@pytest.mark.processes
@pytest.mark.parametrize("name", shipped_sweeps())
def test_a_shipped_sweep_is_run_by_optunas_sampler_broken_off_and_resumed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in ("PTB_TRAIN", "PTB_VALID", "PTB_TEST"):
        monkeypatch.setenv(text, f"{text.lower()}.txt")
    spec = read_sweep(shipped_sweeps()[name])
    samplers = {"grid": optuna.samplers.GridSampler, "bayes": optuna.samplers.TPESampler}
    storage = storage_in(tmp_path)
    search = Search(spec, count=12, storage=storage)
    assert isinstance(search._sampler(0), samplers[spec.method])
    first = PretendRunner(spec, tmp_path, search, processes=2, interrupted_at=5)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    assert {training.returncode for training in first.trainings} == {0, 143}
    second = PretendRunner(spec, tmp_path, Search(spec, count=12, storage=storage), processes=2)
    second.run()
    outcomes = search.outcomes()
    storage.engine.dispose()
    told = [point for point, _ in (*first.ended, *second.ended)]
    assert len(told) == len(set(told)) == len(outcomes) == search.size
    assert {outcome.status for outcome in outcomes.values()} == {"done"}
    resumed = [args for args in second.commands if "--ckpt_path" in args]
    assert 1 <= len(resumed) == len(first.trainings) - len(first.ended)


def test_a_point_that_failed_is_tried_again_by_the_next_call_from_its_last_checkpoint(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    storage = storage_in(tmp_path)
    failing = PretendRunner(spec, tmp_path, Search(spec, count=2, storage=storage), code=-9)
    failing.run()
    assert [(o.status, o.reason) for _, o in failing.ended] == [("failed", "exit code -9: Killed")] * 2
    search = Search(spec, count=2, storage=storage)
    good = PretendRunner(spec, tmp_path, search)
    good.run()
    assert [outcome.best for outcome in search.outcomes().values()] == [2.5, 2.5]
    assert good.ended[0][0] == failing.ended[0][0]
    last = tmp_path / good.ended[0][0].folder_name / "language-model" / "2026-01-01" / "checkpoints" / "last.ckpt"
    assert good.commands[0][good.commands[0].index("--ckpt_path") + 1] == str(last)
    assert not any(arg.startswith("--model.dropout") for arg in good.commands[0]), "the run's configuration says it"
    for _ in range(2):  # whatever is done is not done again, nor is what failed once tried twice
        runner = PretendRunner(spec, tmp_path, Search(spec, count=2, storage=storage))
        runner.run()
        assert not runner.commands
    whole = PretendRunner(spec, tmp_path, Search(spec, storage=storage))
    whole.run()
    assert len(whole.commands) == 4, "the rest of the grid"
    states = [trial.state for trial in search.study.get_trials()]
    storage.engine.dispose()
    assert (states.count(TrialState.FAIL), states.count(TrialState.COMPLETE)) == (2, 6)


def test_points_that_are_done_stay_done_where_the_file_has_more_values_and_by_the_metric_of_now(tmp_path: Path) -> None:
    few = spec_of(tmp_path, parameters={"model.dropout": {"values": [0.0, 0.1]}})
    PretendRunner(few, tmp_path, Search(few)).run()
    more = spec_of(tmp_path, parameters={"model.dropout": {"values": [0.0, 0.1, 0.2]}})
    runner = PretendRunner(more, tmp_path, Search(more))
    runner.run()
    assert (len(runner.ended), len(runner.commands)) == (3, 1)
    done = tmp_path / runner.ended[0][0].folder_name
    assert saved_outcome(done, more).best == 2.5
    (done / DONE).write_text(json.dumps({"status": "done", "best": 7.0, "run": "elsewhere/2026-01-01", "seconds": 3}))
    assert saved_outcome(done, more) == Outcome("done", 2.5, 1, 2.5, 3, str(done / "language-model" / "2026-01-01")), (
        "what an older sweep marked as done is read from its run"
    )
    other = spec_of(tmp_path, metric={"name": "val/bleu", "goal": "maximize"})
    assert saved_outcome(done, other) is None, "a loss is no BLEU"


def test_a_hopeless_point_is_ended_and_a_good_one_is_not(tmp_path: Path) -> None:
    values = [0.0, 0.1, 0.2, 0.3]
    hyperband = {"type": "hyperband", "min_iter": 2, "eta": 2}
    spec = spec_of(tmp_path, parameters={"model.dropout": {"values": values}}, early_terminate=hyperband)
    storage = storage_in(tmp_path)

    def losses(name: str) -> list[float]:
        dropout = float(name.split("-")[0].removeprefix("dropout="))
        return [3.0 + dropout * (1 + number) for number in range(12)]

    seed = next(n for n in range(99) if chosen(Search(spec, seed=n), 1) == [{"model.dropout": 0.0}])
    search = Search(spec, seed=seed, storage=storage)
    runner = PretendRunner(spec, tmp_path, search, losses)
    runner.run()
    outcomes = {point.values["model.dropout"]: outcome for point, outcome in search.outcomes().items()}
    trials = search.study.get_trials()
    ended = [value for value, outcome in outcomes.items() if outcome.status == "pruned"]
    assert sorted(ended) == [0.1, 0.2, 0.3], "all but the best, which came first"
    for trial, training in zip(trials, runner.trainings, strict=True):
        if trial.state is TrialState.PRUNED:
            assert training.returncode == 143
            assert training.validations < 12
            assert len(trial.intermediate_values) in (2, 4, 8), "judged at min_iter, min_iter * eta, …"
    again = PretendRunner(spec, tmp_path, Search(spec, seed=seed, storage=storage), losses)
    again.run()
    assert not again.commands, "what was ended stays so"
    free = spec_of(tmp_path, parameters={"model.dropout": {"values": values}})
    unjudged = PretendRunner(free, tmp_path, Search(free), losses)
    unjudged.run()
    storage.engine.dispose()
    assert len(unjudged.commands) == len(ended), "unless nobody ends it: then it goes on"
    assert all("--ckpt_path" in command for command in unjudged.commands)


def test_no_run_is_ended_from_max_iter_on_and_one_that_diverges_is_ended_at_its_first_judgement(tmp_path: Path) -> None:
    values = {"model.dropout": {"values": [0.0, 0.1, 0.2]}}
    spec = spec_of(tmp_path, parameters=values, early_terminate={"type": "hyperband", "max_iter": 4, "s": 1, "eta": 4})
    assert spec.early_terminate == (1, 4, 4)
    search = Search(spec)
    trials = [search.ask() for _ in range(3)]
    for trial in trials:
        search.point(trial)
    assert not search.hopeless(trials[0], [2.0, 2.0, 2.0, 2.0])
    assert not search.hopeless(trials[1], [1.0, 9.0, 9.0, 9.0])  # the best when it is judged, the worst at max_iter
    assert search.hopeless(trials[2], [math.nan])


def test_a_run_that_diverged_is_done_and_no_best_point(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    search = Search(spec, count=1)
    PretendRunner(spec, tmp_path, search, lambda name: [math.nan]).run()
    [outcome] = search.outcomes().values()
    assert (outcome.status, outcome.best) == ("done", None)
    assert "NaN" in table(search.outcomes(), spec)
    assert search.study.get_trials()[0].state is TrialState.PRUNED


def test_a_run_that_never_logged_the_metric_has_failed_and_what_it_logged_is_told(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, metric={"name": "val/bleu", "goal": "maximize"})
    (tmp_path / "metrics.csv").write_text("step,train/loss,val/loss\n1,3.5,2.5\n")
    outcome = read_outcome(RunFolder(tmp_path), spec, 1.0)
    assert (outcome.status, outcome.best) == ("failed", None)
    assert outcome.reason == "the run did not log val/bleu; it logged train/loss, val/loss"


def test_a_point_is_trained_once_at_a_time_and_chosen_twice_it_counts_once(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, parameters={"model.dropout": {"values": [0.0, 0.1]}}, method="random")
    search = Search(spec, count=9)
    runner = PretendRunner(spec, tmp_path, search, processes=4)
    runner.run()
    assert len(runner.commands) == 2
    assert len(search.outcomes()) == 2
    states = [trial.state for trial in search.study.get_trials()]
    assert len(states) == 9
    assert set(states) <= {TrialState.COMPLETE, TrialState.FAIL}
    assert not search.unfinished()


def test_a_done_mark_that_is_damaged_counts_as_none(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    (tmp_path / DONE).write_text('{"status": ')
    assert saved_outcome(tmp_path, spec) is None
    (tmp_path / DONE).write_text(json.dumps({"other": 1}))
    assert saved_outcome(tmp_path, spec) is None


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


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """`rnn-blocks sweep` with trainings that are only pretended; what PretendRunner takes."""
    settings: dict[str, Any] = {}

    def pretend(spec: SweepSpec, folder: Path, search: Search, processes: int) -> PretendRunner:
        return PretendRunner(spec, folder, search, processes=processes, **settings)

    monkeypatch.setattr(tool, "SweepRunner", pretend)
    monkeypatch.setattr(tool, "_check", lambda spec, point: None)
    return settings


def test_a_sweep_ends_with_a_table_pictures_and_the_dashboards_command(
    pretended: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretended["losses"] = lambda name: [3.0, 2.0 + len(name) / 99]
    args = [str(written(tmp_path)), "--output_dir", str(tmp_path)]
    assert run(*args, "--count", "2") == 0
    folder = tmp_path / "sweeps" / "mine"
    said = capsys.readouterr().out
    assert f"Dashboard  optuna-dashboard sqlite:///{folder / 'optuna.db'}" in said
    assert f"Table      {folder / 'sweep.csv'}" in said
    assert f"Plot       {folder / 'sweep.png'}" in said
    assert run(*args, "--dry_run") == 0
    said = capsys.readouterr().out
    assert said.count("rnn-blocks language-model fit --model.dropout=") == 6
    assert said.count("(done)") == 2
    assert f"6 points, in {folder}" in said
    pretended["interrupted_at"] = 1
    with pytest.raises(KeyboardInterrupt):
        tool.sweep(*args[:1], output_dir=str(tmp_path))
    assert f"Interrupted; the same command goes on from here: {folder}" in capsys.readouterr().err
    pretended.update(interrupted_at=None, code=1)
    assert run(*args) == 1
    said = capsys.readouterr()
    assert "2/6" in said.err, "the bar begins with those that are done"
    assert "error: exit code 1: Killed" in said.err
    assert "4 of 6 points failed; the same command tries them again" in said.err
    pretended["code"] = 0
    assert run(*args) == 0
    with (folder / "sweep.csv").open() as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["done"] * 6


@pytest.mark.processes
def test_a_bayes_search_shows_beforehand_what_it_draws_at_random(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spread = {"model.dropout": {"min": 0.0, "max": 0.5}}
    path = written(tmp_path, parameters=spread, method="bayes", run_cap=30)
    assert run(str(path), "--output_dir", str(tmp_path), "--dry_run") == 0
    said = capsys.readouterr().out
    assert said.count("rnn-blocks language-model fit --model.dropout=") == AT_RANDOM
    assert f"… and {30 - AT_RANDOM} chosen by what these come to" in said
    assert "30 points" in said
    assert not (tmp_path / "sweeps").exists()


def test_what_lies_in_the_place_of_optunas_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "sweeps" / "mine"
    folder.mkdir(parents=True)
    (folder / "optuna.db").write_text("no database" * 100)
    assert run(str(written(tmp_path)), "--output_dir", str(tmp_path)) == 2
    assert f"{folder / 'optuna.db'}: Optuna cannot read this" in capsys.readouterr().err


STUB = """#!{python} -S
import pathlib, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--output_dir") + 1])
with (out / "starts.txt").open("a") as file:
    file.write("resumed " if "--ckpt_path" in sys.argv else "new ")
(out / "busy").touch(exist_ok=False)
run = out / "language-model" / "2026-01-01"
(run / "checkpoints").mkdir(parents=True, exist_ok=True)
(run / "checkpoints" / "last.ckpt").touch()
time.sleep(1.5)
(run / "metrics.csv").write_text("step,val/loss\\n1,2.5\\n")
(out / "busy").unlink()
"""
SWEEPING = """
import sys
from rnn_blocks.recipes.__main__ import main
sys.executable = sys.argv[1]
sys.exit(main(["sweep", *sys.argv[2:]]))
"""


@pytest.mark.processes
def test_a_sweep_that_is_killed_is_gone_on_with_by_two_processes_and_no_point_is_trained_twice_at_once(
    tmp_path: Path,
) -> None:
    stub = tmp_path / "stub"
    stub.write_text(STUB.format(python=sys.executable))
    stub.chmod(0o755)
    values = {"model.dropout": {"values": [number / 20 for number in range(10)]}}
    path = written(tmp_path, parameters=values)
    folder = tmp_path / "sweeps" / "mine"

    def start() -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", SWEEPING, str(stub), str(path), "--output_dir", str(tmp_path)]
        return subprocess.Popen(
            [*command, "--processes", "2"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    killed = start()
    while len(list(folder.glob("*/starts.txt"))) < 3:
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    both = [start(), start()]
    for process in both:
        said, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        assert said.count("2.5") >= 10, "each waits for the other's points"
    starts = [path.read_text().split() for path in folder.glob("*/starts.txt")]
    assert len(starts) == 10
    assert all(one == ["new"] or one == ["new", "resumed"] for one in starts)
    assert sum(len(one) - 1 for one in starts) <= 2, "only what was broken off is begun again"
    assert not list(folder.glob("*/busy"))


@pytest.mark.processes
def test_a_sweep_trains_its_points_and_tells_which_failed_and_why(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = TINY | {"data.source": text, "trainer.max_steps": 4, "trainer.val_check_interval": 2}
    path = written(tmp_path, parameters={"model.dropout": {"values": [0.0, 1.5]}})
    args = [str(path), "--output_dir", str(tmp_path), "--processes", "2"]
    args += ["--options", *(f"{name}={value}" for name, value in few.items())]
    assert run(*args) == 1
    said = capsys.readouterr()
    folder = tmp_path / "sweeps" / "mine"
    with (folder / "sweep.csv").open() as file:
        done, failed = csv.DictReader(file)
    assert (done["model.dropout"], done["status"], failed["model.dropout"], failed["status"]) == (
        *("0.0", "done", "1.5", "failed"),
    )
    assert "dropout must be at least 0 and below 1, got 1.5" in failed["reason"]
    assert "dropout must be at least 0 and below 1, got 1.5" in said.err
    assert "1 of 2 points failed" in said.err
    assert "log.txt" in said.err
    assert 1 < float(done["val/loss"]) < 10
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert Path(done["run"]).is_dir()
    marked = [(path / DONE).is_file() for path in sorted(folder.glob("dropout*"))]
    assert marked == [True, False]


@pytest.mark.processes
def test_early_terminate_ends_a_real_training_in_good_order(text: Path, tmp_path: Path) -> None:
    few = TINY | {"data.source": text, "trainer.max_steps": 150}
    rates = {"model.lr_scheduler.init_args.max_lr": {"values": [0.03, 1e-7]}}
    hyperband = {"type": "hyperband", "min_iter": 1, "eta": 2}
    path = written(tmp_path, parameters=rates, early_terminate=hyperband)
    options = tuple(f"--{name}={value}" for name, value in few.items())
    spec = read_sweep(path, options=options)
    seed = next(n for n in range(99) if chosen(Search(spec, seed=n), 1)[0] == {next(iter(rates)): 0.03})
    tool.sweep(str(path), output_dir=str(tmp_path), seed=seed, options=[option[2:] for option in options])
    with (tmp_path / "sweeps" / "mine" / "sweep.csv").open() as file:
        good, bad = csv.DictReader(file)
    assert (good["status"], bad["status"]) == ("done", "pruned")
    assert float(bad["val/loss"]) > float(good["val/loss"])
    ended = RunFolder(Path(bad["run"]))
    assert 0 < load(ended)["global_step"] < 150, "its last checkpoint is there"
    assert "ended by SIGTERM; go on with: " in (Path(bad["run"]).parents[1] / "log.txt").read_text()
