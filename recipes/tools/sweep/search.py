"""The points that Optuna chooses for a sweep, and what became of them: kept in one file that processes share."""

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.pruners import NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GridSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import BaseTrial, Trial, TrialState

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.tools.sweep.outcome import Outcome
from rnn_blocks.recipes.tools.sweep.parameters import spelled
from rnn_blocks.recipes.tools.sweep.spec import SweepSpec

AT_RANDOM = 10  # points that bayes chooses so before it goes by what they came to
AGAIN, OUTCOME = "tried again", "outcome"  # a trial's attributes


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Args:
        values: of the parameters, by dotted name.
        args: of the recipe's ``fit``, without those that belong to the machine.

    >>> Point({"model.optimizer.init_args.lr": 0.1}, ("--model.optimizer.init_args.lr=0.1",)).folder_name[:7]
    'lr=0.1-'
    """

    values: dict[str, Any] = field(compare=False)
    args: tuple[str, ...]

    @property
    def folder_name(self) -> str:
        """The same for the same command line, whatever else is in the sweep."""
        told = ",".join(f"{name.rsplit('.', 1)[-1]}={value}" for name, value in self.values.items())
        told = re.sub(r"[^\w.,=+-]", "_", told)[:80]
        return f"{told}-{hashlib.sha256(json.dumps(self.args).encode()).hexdigest()[:6]}"


def point_with(spec: SweepSpec, values: dict[str, Any]) -> Point:
    """The point with these values."""
    given = [f"--{name}={spelled(value)}" for name, value in values.items()]
    return Point(values, (*spec.before, *given, *spec.after))


def points_to_check(spec: SweepSpec, most: int = 12) -> list[Point]:
    """Points with every value once, and both ends of a range: what the parser has to see before a run starts."""
    examples = {name: parameter.examples() for name, parameter in spec.parameters.items()}
    first = {name: values[0] for name, values in examples.items()}
    others = [{**first, name: value} for name, values in examples.items() for value in values[1:]]
    return [point_with(spec, values) for values in [first, *others][:most]]


class Search:
    """Which points a sweep visits, and what they came to: a study of Optuna's.

    Another file, method or seed is another study in the same storage. Each trial is drawn by a seed of its own, so that
    one that was broken off goes on as it would have. Processes that share a storage ask one at a time.

    Args:
        spec: the sweep.
        count: at most so many points; all but a grid need it, here or as ``run_cap``.
        seed: of what is chosen at random.
        storage: Optuna's, by default in memory.

    Raises:
        InputError: where the number of points is not known.

    >>> from rnn_blocks.recipes.tools.sweep.spec import read_sweep, sweep_path
    >>> search = Search(read_sweep(sweep_path("translation-default"), ["translation"]))
    >>> search.size, len(search.point(search.ask()).args)
    (9, 3)
    """

    def __init__(
        self, spec: SweepSpec, *, count: int | None = None, seed: int = 1, storage: BaseStorage | None = None
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        count = count or spec.run_cap
        if spec.method == "grid":
            whole = math.prod(len(parameter.values) for parameter in spec.parameters.values())
            count = min(count or whole, whole)
        if count is None:
            raise InputError(f"{spec.name}: a {spec.method} search needs --count (or run_cap in the file)")
        self.size = count
        self._spec, self._seed = spec, seed % 2**32
        settings = hashlib.sha256(repr((replace(spec, run_cap=None), seed)).encode()).hexdigest()
        self._place: Any = {"study_name": f"{spec.name}-{settings[:6]}", "storage": storage or InMemoryStorage()}
        self._place["pruner"] = NopPruner()
        if spec.early_terminate:
            self._place["pruner"] = SuccessiveHalvingPruner(*spec.early_terminate[:2])
        self.study = optuna.create_study(**self._place, direction=spec.goal, load_if_exists=True)

    def ask(self) -> Trial | None:
        """The next trial; None where all were chosen."""
        trials = self.study.get_trials(deepcopy=False)
        chosen = sum(AGAIN not in trial.user_attrs for trial in trials)
        if chosen >= self.size and not any(trial.state is TrialState.WAITING for trial in trials):
            return None
        # another object than the one that is told: GridSampler raises where it is told of its last point
        return optuna.load_study(**self._place, sampler=self._sampler(chosen)).ask()

    def point(self, trial: BaseTrial) -> Point:
        """The point of a trial, whose parameters are chosen now if they are not yet."""
        return point_with(self._spec, {name: p.suggest(trial, name) for name, p in self._spec.parameters.items()})

    def unfinished(self) -> list[Trial]:
        """The trials that have not ended: whoever began them is at them, or is gone."""
        study = optuna.load_study(**self._place, sampler=self._sampler(0))
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [Trial(study, trial._trial_id) for trial in running]

    def try_failed_again(self) -> None:
        """Put what failed in line, each once."""
        trials = self.study.get_trials(deepcopy=False)
        tried = {trial.user_attrs.get(AGAIN) for trial in trials}
        for trial in trials:
            if trial.state is TrialState.FAIL and OUTCOME in trial.user_attrs and trial.number not in tried:
                self.study.enqueue_trial(trial.params, user_attrs={AGAIN: trial.number})

    def hopeless(self, trial: Trial, values: list[float]) -> bool:
        """Whether the pruner ends a trial, by all values of the metric so far."""
        known = len(self.study.get_trials(deepcopy=False)[trial.number].intermediate_values)
        end = (self._spec.early_terminate or (0, 0, None))[2] or math.inf
        for number, value in enumerate(values[known:], start=known + 1):
            trial.report(value, number)
            if number < end and trial.should_prune():
                return True
        return False

    def tell(self, trial: Trial, outcome: Outcome | None) -> None:
        """A trial has ended; without an outcome it is at the point of another one."""
        state = TrialState.FAIL
        if outcome is not None:
            text = json.dumps(asdict(outcome))
            trial.set_user_attr(OUTCOME, json.loads(text, parse_constant=str))  # NaN is no JSON
            if outcome.status != "failed":  # Optuna takes no run that diverged for complete
                whole = outcome.status == "done" and outcome.best is not None
                state = TrialState.COMPLETE if whole else TrialState.PRUNED
        self.study.tell(trial, outcome.best if outcome and state is TrialState.COMPLETE else None, state)

    def outcomes(self) -> dict[Point, Outcome]:
        """What the points that have ended came to."""
        ended = [trial for trial in self.study.get_trials() if OUTCOME in trial.user_attrs]
        return {self.point(trial): Outcome(**trial.user_attrs[OUTCOME]) for trial in ended}

    def _sampler(self, number: int) -> BaseSampler:
        if self._spec.method == "grid":
            kinds = {name: parameter.distribution for name, parameter in self._spec.parameters.items()}
            grid = {name: kind.choices for name, kind in kinds.items() if isinstance(kind, CategoricalDistribution)}
            return GridSampler(grid, self._seed)
        seed = (self._seed * 1_000_003 + number) % 2**32
        return (
            RandomSampler(seed) if self._spec.method == "random" else TPESampler(seed=seed, n_startup_trials=AT_RANDOM)
        )
