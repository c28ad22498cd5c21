"""Which points Optuna chooses for a sweep, and how they are trained, ended, and gone on with."""

import json
import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.trial import FixedTrial, TrialState
from pretend_sweep import SPREAD, PretendRunner, chosen, spec_of, written

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.run.folder import RunFolder
from rnn_blocks.recipes.tools.sweep import runner as runner_module
from rnn_blocks.recipes.tools.sweep.parameters import distribution, read_parameter, suggest
from rnn_blocks.recipes.tools.sweep.report import table
from rnn_blocks.recipes.tools.sweep.runner import DONE, read_outcome, saved_outcome
from rnn_blocks.recipes.tools.sweep.search import AT_RANDOM, Outcome, Search
from rnn_blocks.recipes.tools.sweep.spec import read_sweep, shipped_sweeps


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "EVERY", 0.0)


def storage_in(folder: Path) -> RDBStorage:
    return RDBStorage(f"sqlite:///{folder / 'optuna.db'}")


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
    value = suggest(FixedTrial({"a": min(inside, kept.high)}), "a", parameter)  # a product's last digit may be beyond
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


def test_a_metric_that_the_first_run_did_not_log_ends_the_sweep(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, metric={"name": "val/los", "goal": "minimize"})
    search = Search(spec)
    runner = PretendRunner(spec, tmp_path, search, lambda name: [1.0], metric="val/loss")
    with pytest.raises(
        InputError, match=r"metric: the run did not log val/los; did you mean val/loss\?; the other points"
    ):
        runner.run()
    assert len(runner.commands) == 1


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
