"""What every package is asked of a training with the callbacks, by whichever Lightning it has."""

import importlib.metadata
import json
import math
import statistics
import sys
import tempfile
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from logged import Metrics
from probe import ProbeHooks, distance, same
from torch import Tensor

from rnn_blocks.callbacks import AdaptiveGradientClipping, Auto, Fixed, GradientNormMonitor

SEED = 11
TOLERANCE = 1e-6  # relative: metrics are float32, whose own rounding is 6e-8
MARK = "FINDING "


@dataclass(frozen=True)
class Finding:
    """What came of one check.

    Attributes:
        check: its name.
        ok: whether it is as it should be.
        figure: what was measured.
        note: of a failure, what happened.
    """

    check: str
    ok: bool
    figure: str = ""
    note: str = ""


@dataclass(frozen=True)
class Training:
    """A training that is over.

    Attributes:
        trainer: Lightning's, of the package's namespace.
        weights: all parameters and buffers after the last step, by name.
        logged: the metrics in the files of the package's logger.
    """

    trainer: Any
    weights: dict[str, Tensor]
    logged: Metrics

    def callback(self, kind: type) -> Any:
        """The trainer's one callback of a class: packages may copy the callbacks that they are given."""
        (found,) = (callback for callback in self.trainer.callbacks if isinstance(callback, kind))
        return found


def state_of(module: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of a module's parameters and buffers."""
    state = module.state_dict()
    return {name: value.detach().clone() for name, value in state.items() if isinstance(value, Tensor)}


def trainer_options(folder: Path, callbacks: Sequence[Any], epochs: int, clip: float | None) -> dict[str, Any]:
    """Arguments of any Lightning's Trainer: quiet, on the CPU, with each step in the log."""
    return {
        "max_epochs": epochs,
        "callbacks": list(callbacks),
        "gradient_clip_val": clip,
        "default_root_dir": str(folder),
        "log_every_n_steps": 1,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }


class Package(ABC):
    """One package, trained as its users train it.

    Attributes:
        distribution: its name on the package index.
        model: what is trained, for the table.
        logger: the package's logger, for the table.
        lightning: its Lightning, `lightning.pytorch` or `pytorch_lightning`.
        probe: `ProbeHooks` as a callback of that Lightning.
        epochs: how long the trainings are; an even number, as a resumed one is broken off in the middle.
    """

    distribution: str
    model: str
    logger: str
    lightning: ModuleType
    probe: type[ProbeHooks]
    epochs: int = 4

    @abstractmethod
    def fit(
        self,
        folder: Path,
        callbacks: Sequence[Any],
        *,
        epochs: int,
        clip: float | None = None,
        exact: bool = False,
        resume: bool = False,
    ) -> Training:
        """Train a new model, from this moment's seed on.

        Args:
            folder: for the logger's files and for a checkpoint at the end.
            callbacks: to add to the package's own, as its users would.
            epochs: how many in all.
            clip: the trainer's `gradient_clip_val`.
            exact: whether to feed the same batches in the same order in each epoch, as far as the package can.
            resume: whether to go on from the checkpoint that an exact fit left in the folder.
        """

    def more_checks(self, train: Callable[..., Training]) -> dict[str, Callable[[], Finding]]:
        """What is asked of this package alone; `train` is `Checks.train`."""
        return {}


class Checks:
    """All checks of a package, each with trainings of its own in a folder of its own."""

    def __init__(self, package: Package, folder: Path) -> None:
        self.package = package
        self.folder = folder
        self._plain: Training | None = None
        self._monitored: Training | None = None

    def train(self, name: str, callbacks: Sequence[Any], *, epochs: int | None = None, **options: Any) -> Training:
        """A training with the seed that all have."""
        self.package.lightning.seed_everything(SEED, workers=True, verbose=False)
        epochs = self.package.epochs if epochs is None else epochs
        return self.package.fit(self.folder / name, callbacks, epochs=epochs, **options)

    def plain(self) -> Training:
        """The training without the callbacks."""
        if self._plain is None:
            self._plain = self.train("plain", [])
        return self._plain

    def monitored(self) -> Training:
        """The training with the monitor alone."""
        if self._monitored is None:
            self._monitored = self.train("monitored", [GradientNormMonitor()])
        return self._monitored

    def threshold(self) -> float:
        """One that clips most steps, and not all."""
        norms = list(self.monitored().logged["grad_norm/total"].values())
        return float(f"{statistics.quantiles(norms, n=4)[0]:.6g}")

    def all_of_them(self) -> dict[str, Callable[[], Finding]]:
        """Those of every package, then those of this one, by name."""
        return {
            "monitor": self.monitor_changes_nothing,
            "auto": self.norms_under_auto,
            "fixed": self.norms_under_fixed,
            "gradient_clip_val": self.fixed_is_gradient_clip_val,
            "logger": self.metrics_are_in_the_files,
            "resume": self.resume,
        } | self.package.more_checks(self.train)

    def monitor_changes_nothing(self) -> Finding:
        plain, monitored = self.plain(), self.monitored()
        steps = monitored.trainer.global_step
        assert steps == plain.trainer.global_step > 0, (steps, plain.trainer.global_step)
        tensors = plain.weights
        equal = same(tensors, monitored.weights)
        figure = f"bit-equal, {len(tensors)} tensors, {steps} steps"
        return Finding("monitor", equal, figure if equal else f"distance {distance(tensors, monitored.weights):.2g}")

    def norms(self, name: str, clipping: AdaptiveGradientClipping) -> Finding:
        """Norms before and after clipping, out of the logger's files, against the probe's."""
        training = self.train(name, [GradientNormMonitor(), clipping, self.package.probe()])
        probe = training.callback(ProbeHooks)
        pairs = {"grad_norm/total": probe.before, "grad_norm/clipped": probe.after}
        worst = {}
        for metric, true in pairs.items():
            logged = list(training.logged[metric].values())
            assert len(logged) == len(true) == training.trainer.global_step, (metric, len(logged), len(true))
            worst[metric] = max(abs(ours - theirs) / theirs for ours, theirs in zip(logged, true, strict=True))
        clipped = sum(after < before * (1 - 1e-4) for before, after in zip(probe.before, probe.after, strict=True))
        steps = len(probe.before)
        problems = [f"{metric} is off by {error:.2g}" for metric, error in worst.items() if not error <= TOLERANCE]
        if isinstance(clipping.policy, Fixed):
            limit = clipping.policy.threshold
            if not 0 < clipped < steps:
                problems.append(f"{clipped} of {steps} steps were clipped: the threshold shows nothing")
            if not max(probe.after) <= limit * (1 + TOLERANCE):
                problems.append(f"a step of norm {max(probe.after)} went by the threshold {limit}")
            if same(training.weights, self.plain().weights):
                problems.append("the clipped training ended in the weights of the plain one")
        figure = f"{worst['grad_norm/total']:.0e}, {worst['grad_norm/clipped']:.0e}; {clipped} of {steps} clipped"
        return Finding(name, not problems, figure, "; ".join(problems))

    def norms_under_auto(self) -> Finding:
        return self.norms("auto", AdaptiveGradientClipping())

    def norms_under_fixed(self) -> Finding:
        return self.norms("fixed", AdaptiveGradientClipping(Fixed(self.threshold())))

    def fixed_is_gradient_clip_val(self) -> Finding:
        """`Fixed(c)` trains as the package's own ``gradient_clip_val=c`` does."""
        threshold = self.threshold()
        ours = self.train("ours", [AdaptiveGradientClipping(Fixed(threshold))]).weights
        theirs = self.train("theirs", [], clip=threshold).weights
        apart, of_plain = distance(theirs, ours), distance(theirs, self.plain().weights)
        # torch divides by norm + 1e-6 and we by the norm, which thousands of roundings later is still far from no clip.
        ok = apart <= max(1e-4 * of_plain, 1e-6)
        return Finding("gradient_clip_val", ok, f"{apart:.0e}; {of_plain:.0e}")

    def metrics_are_in_the_files(self) -> Finding:
        training = self.train("logged", [GradientNormMonitor(), AdaptiveGradientClipping(Fixed(self.threshold()))])
        steps = training.trainer.global_step
        wanted = ["grad_norm/total", "grad_norm/clipped"]
        wanted += [f"grad_clip/{name}" for name in ("threshold", "coefficient", "clipped_fraction", "skipped_steps")]
        counts = {name: len(training.logged.get(name, {})) for name in wanted}
        finite = all(math.isfinite(value) for name in wanted for value in training.logged.get(name, {}).values())
        modules = sum(name.startswith("grad_norm/") for name in training.logged) - 2
        others = [name for name in training.logged if not name.startswith(("grad_norm/", "grad_clip/"))]
        problems = [f"{name}: {count} of {steps} steps" for name, count in counts.items() if count != steps]
        if not finite:
            problems.append("not all are finite")
        if modules < 1:
            problems.append("no module has a norm")
        if not others:
            problems.append("the package's own metrics are gone")
        figure = f"{len(wanted) + modules} at {steps} steps, beside its {len(others)}"
        return Finding("logger", not problems, figure, "; ".join(problems))

    def resume(self) -> Finding:
        """Resumed by the package's own way, a training ends as the undisturbed one, as far as it does without us."""
        apart = {}
        problems = []
        exact = True
        for name, ours in (("without", False), ("with", True)):
            whole, half, resumed = self._broken_off(name, ours)
            apart[name] = distance(whole.weights, resumed.weights)
            if whole.trainer.global_step != resumed.trainer.global_step:
                problems.append(f"{name} us: {resumed.trainer.global_step} steps for {whole.trainer.global_step}")
            if not ours:
                exact = same(whole.weights, resumed.weights)
                continue
            if exact and not same(whole.weights, resumed.weights):
                problems.append("not the weights of an undisturbed training, though it is without us")
            left = half.callback(AdaptiveGradientClipping).state_dict()
            restored = resumed.callback(ProbeHooks).restored.get("AdaptiveGradientClipping")
            if not left["optimizers"] or not same(left, restored):
                problems.append("the clipping's history did not come back")
            ends = [training.callback(AdaptiveGradientClipping).state_dict() for training in (whole, resumed)]
            if exact and not same(*ends):
                problems.append("not the history of an undisturbed training, though the weights are")
        if not exact and apart["with"] > 3 * apart["without"]:
            problems.append("farther from an undisturbed training than without us")
        figure = "bit-equal" if exact else "history back; weights as far off as without us"
        figure += "" if exact else f" ({apart['with']:.1e} against {apart['without']:.1e})"
        return Finding("resume", not problems, figure if not problems else str(apart), "; ".join(problems))

    def _broken_off(self, name: str, ours: bool) -> tuple[Training, Training, Training]:
        def callbacks(**options: Any) -> list[Any]:
            mine = [GradientNormMonitor(), AdaptiveGradientClipping(Auto(window=8))] if ours else []
            return [*mine, self.package.probe(seeded=True, **options)]

        epochs = self.package.epochs
        whole = self.train(f"{name}-whole", callbacks(), exact=True)
        half = self.train(f"{name}-half", callbacks(stop_after=epochs // 2), exact=True)
        if not 0 < half.trainer.global_step < whole.trainer.global_step:
            raise AssertionError(f"stopped at step {half.trainer.global_step} of {whole.trainer.global_step}")
        self.package.lightning.seed_everything(SEED + 1, workers=True, verbose=False)
        resumed = self.package.fit(self.folder / f"{name}-half", callbacks(), epochs=epochs, exact=True, resume=True)
        return whole, half, resumed


def about(package: Package) -> dict[str, str]:
    """Versions, and what was trained."""
    version = importlib.metadata.version
    name = package.lightning.__name__
    return {
        "package": package.distribution,
        "version": version(package.distribution),
        "lightning": f"{name} {package.lightning.__version__}",
        "torch": torch.__version__,
        "model": package.model,
        "logger": package.logger,
    }


def tell(kind: str, content: dict[str, Any]) -> None:
    """Hand a line on to the runner."""
    sys.stdout.write(MARK + json.dumps({"kind": kind} | content) + "\n")
    sys.stdout.flush()


def attempt(name: str, check: Callable[[], Finding]) -> Finding:
    """A check's finding, or that it broke off."""
    try:
        return check()
    except Exception as error:
        traceback.print_exc()
        said = (str(error).splitlines() or [""])[0]
        return Finding(name, ok=False, note=f"{type(error).__name__}: {said}")


def main(package: Package) -> None:
    """Run all checks; exit with 1 if one failed."""
    torch.set_num_threads(1)
    tell("about", about(package))
    findings = []
    with tempfile.TemporaryDirectory(prefix="ecosystem-") as folder:
        for name, check in Checks(package, Path(folder)).all_of_them().items():
            findings.append(attempt(name, check))
            tell("finding", asdict(findings[-1]))
    sys.exit(not all(finding.ok for finding in findings))
