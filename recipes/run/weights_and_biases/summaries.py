"""What a run's table shows of its metrics: of those that are better low or high, the best and not the last."""

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

Best: TypeAlias = Literal["min", "max"]

LOW_IS_GOOD = ("loss", "perplexity", "bits_per_byte", "relative_loss")
HIGH_IS_GOOD = ("accuracy", "bleu", "chrf", "exact_match")
OF_TRAINING = ("loss", "perplexity", "bits_per_byte")
"""Of the training. The rest that is logged there has no better: norms, thresholds, throughput, parts of the loss."""


def directions(monitors: Mapping[str, Best]) -> dict[str, Best]:
    """Which metrics are better low, and which high.

    Args:
        monitors: what a recipe can choose its best checkpoint by.

    >>> found = directions({"val/speed": "max"})
    >>> found["val/loss"], found["train/loss"], found["val/bleu"], found["val/speed"], "grad_norm/total" in found
    ('min', 'min', 'max', 'max', False)
    """
    found: dict[str, Best] = {f"train/{name}": "min" for name in OF_TRAINING}
    found |= {f"val/{name}": "min" for name in LOW_IS_GOOD}
    found |= {f"val/{name}": "max" for name in HIGH_IS_GOOD}
    return found | dict(monitors)


class BestValues:
    """The best value of each metric that has a direction, over all of a run's parts.

    W&B takes the best of one process alone, and NaN for good where one value was NaN.

    Args:
        modes: which are better low, and which high.

    >>> best = BestValues({"val/loss": "min"})
    >>> best.add({"val/loss": 2.0, "epoch": 1}); best.add({"val/loss": float("nan")}); best.add({"val/loss": 3.0})
    >>> best.summary()
    {'val/loss': {'min': 2.0}}
    """

    def __init__(self, modes: Mapping[str, Best]) -> None:
        self.modes = modes
        self._best: dict[str, float] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """Take a row's values in."""
        for name in self.modes.keys() & row.keys():
            value = math.nan if row[name] == "" else float(row[name])  # as a field of a file is where there is none
            if math.isfinite(value):
                better = min if self.modes[name] == "min" else max
                self._best[name] = better(value, self._best.get(name, value))

    def summary(self) -> dict[str, dict[str, float]]:
        """As W&B keeps it."""
        return {name: {self.modes[name]: value} for name, value in self._best.items()}
