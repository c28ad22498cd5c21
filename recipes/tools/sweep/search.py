"""The points that Optuna chooses for a sweep, and what became of them: kept in one file that processes share."""

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import optuna
from optuna.pruners import NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GridSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import BaseTrial, Trial, TrialState

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.tools.sweep.parameters import distribution, spelled, suggest
from rnn_blocks.recipes.tools.sweep.spec import SweepSpec

AT_RANDOM = 10  # points that bayes chooses so before it goes by what they came to
AGAIN, OUTCOME = "tried again", "outcome"  # a trial's attributes


@dataclass(frozen=True)
class Point:
    """One run of a sweep: its parameters, and the arguments of ``fit`` that do not belong to the machine."""

    values: dict[str, Any] = field(compare=False)
    args: tuple[str, ...]

    @property
    def folder_name(self) -> str:
        """The same for the same command line, whatever else is in the sweep."""
        told = ",".join(f"{name.rsplit('.', 1)[-1]}={value}" for name, value in self.values.items())
        told = re.sub(r"[^\w.,=+-]", "_", told)[:80]
        return f"{told}-{hashlib.sha256(json.dumps(self.args).encode()).hexdigest()[:6]}"


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    status: Literal["done", "pruned", "failed"]
    best: float | None = None  # the metric, where it was ever finite
    step: int | None = None  # where that was
    last: float | None = None  # the metric at the end
    seconds: float = 0.0  # since the run was started or resumed the last time
    run: str = ""  # its folder
    reason: str = ""  # why it failed


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

    >>> from rnn_blocks.recipes.tools.sweep.spec import read_sweep, shipped_sweeps
    >>> len(Search(read_sweep(shipped_sweeps()["translation-default"])).points())
    9
    """

    def __init__(
        self, spec: SweepSpec, *, count: int | None = None, seed: int = 1, storage: BaseStorage | None = None
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        count = count or spec.run_cap
        if spec.method == "grid":
            whole = math.prod(len(parameter["values"]) for parameter in spec.parameters.values())
            count = min(count or whole, whole)
        if count is None:
            raise InputError(f"{spec.name}: a {spec.method} search needs --count (or run_cap in the file)")
        self.size = count
        self._spec, self._seed = spec, seed % 2**32
        settings = hashlib.sha256(repr((replace(spec, run_cap=None), seed)).encode()).hexdigest()
        self._place: Any = {"study_name": f"{spec.name}-{settings[:6]}", "storage": storage or InMemoryStorage()}
        judged = spec.early_terminate
        self._place["pruner"] = SuccessiveHalvingPruner(*judged[:2]) if judged else NopPruner()
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
        values = {name: suggest(trial, name, given) for name, given in self._spec.parameters.items()}
        args = [f"--{name}={spelled(value)}" for name, value in values.items()]
        return Point(values, (*self._spec.before, *args, *self._spec.after))

    def points(self) -> list[Point]:
        """The points that are chosen before anything is known of any."""
        most = AT_RANDOM if self._spec.method == "bayes" else self.size
        return [self.point(trial) for _ in range(most) if (trial := self.ask()) is not None]

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

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """A trial has ended."""
        text = json.dumps(asdict(outcome))
        trial.set_user_attr(OUTCOME, json.loads(text, parse_constant=str))  # NaN is no JSON
        state = TrialState.FAIL if outcome.status == "failed" else TrialState.PRUNED
        if outcome.status == "done" and outcome.best is not None:  # Optuna takes no run that diverged for complete
            state = TrialState.COMPLETE
        self.study.tell(trial, outcome.best if state is TrialState.COMPLETE else None, state)

    def outcomes(self) -> dict[Point, Outcome]:
        """What the points that have ended came to."""
        ended = [trial for trial in self.study.get_trials() if OUTCOME in trial.user_attrs]
        return {self.point(trial): Outcome(**trial.user_attrs[OUTCOME]) for trial in ended}

    def _sampler(self, number: int) -> BaseSampler:
        if self._spec.method == "grid":
            kinds = {name: distribution(given) for name, given in self._spec.parameters.items()}
            return GridSampler({name: getattr(kind, "choices", ()) for name, kind in kinds.items()}, self._seed)
        seed = (self._seed * 1_000_003 + number) % 2**32
        if self._spec.method == "random":
            return RandomSampler(seed)
        return TPESampler(seed=seed, n_startup_trials=AT_RANDOM)
