"""What the norms of an unclipped training say about a fixed threshold: numbers in, numbers, a table and a plot out."""

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from rnn_blocks.callbacks.figures import BLUE, GREEN, GREY, ORANGE, RED, new_figure_with_margin, write_out_logs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"

PERCENTILES = (50, 90, 95, 99)
NEIGHBOURS = 51
SPIKE = 5.0
LEAST_DEVIATION = 0.1


class ClippingAdvice:
    """A recommended threshold, the other candidates, and what each would have clipped.

    Spikes are steps whose log-norm stands above the median of the 51 steps around it by more than five robust standard
    deviations (1.4826 times the median absolute deviation, and at least 0.1, so that 65 % more is never a spike).

    Args:
        norms: of one optimizer's gradients, by step; non-finite ones may be among them.

    Attributes:
        norms: the same, ``(steps,)``, float64.
        threshold: the recommended one: the average of the finite norms without spikes, to two digits; NaN if there is
            none above 0.
        percentiles: of the finite norms, spikes included, by percent.
        spikes: the steps that are spikes, from 0.
        nonfinite: the steps whose norm was not finite, from 0.

    >>> advice = ClippingAdvice([1.0, 1.2, 0.8, 1.0] * 10 + [500.0, math.inf])
    >>> advice.threshold, advice.spikes, advice.nonfinite, advice.clipped_by(advice.threshold)
    (1.0, [40], [41], 11)
    """

    def __init__(self, norms: list[float]) -> None:
        self.norms: Floats = np.array(norms, dtype=np.float64)
        finite = np.isfinite(self.norms)
        self.nonfinite: list[int] = np.flatnonzero(~finite).tolist()
        steps = np.flatnonzero(finite)
        spikes = _stand_out(self.norms[steps])
        self.spikes: list[int] = steps[spikes].tolist()
        usual = self.norms[steps[~spikes]]
        self.average = float(usual.mean()) if usual.any() else math.nan
        self.threshold = float(f"{self.average:.2g}")
        values = np.percentile(self.norms[steps], PERCENTILES).tolist() if len(steps) else [math.nan] * len(PERCENTILES)
        self.percentiles: dict[int, float] = dict(zip(PERCENTILES, values, strict=True))

    def __repr__(self) -> str:
        return f"ClippingAdvice(threshold={self.threshold:g}, steps={len(self.norms)})"

    def clipped_by(self, threshold: float) -> int:
        """How many of the finite norms are above a threshold."""
        return int(np.count_nonzero(np.isfinite(self.norms) & (self.norms > threshold)))

    def candidates(self) -> list[tuple[str, float]]:
        """Names and values of the thresholds to choose from, from the lowest to the highest."""
        found = [(f"{percent}th percentile", value) for percent, value in self.percentiles.items()]
        found += [
            ("half the average", self.average / 2),
            ("average norm, recommended", self.threshold),
            ("ten times the average", self.average * 10),
        ]
        return sorted(found, key=lambda candidate: candidate[1])

    def metrics(self) -> dict[str, float]:
        """The advice as numbers by name."""
        percentiles = {f"percentile_{percent}": value for percent, value in self.percentiles.items()}
        counts = {"spikes": float(len(self.spikes)), "nonfinite_steps": float(len(self.nonfinite))}
        known = {"threshold": self.threshold} | percentiles if not math.isnan(self.threshold) else {}
        return known | counts

    def drift(self) -> float:
        """Median of the last quarter of the finite norms over that of the first; 1 where there are too few."""
        finite = self.norms[np.isfinite(self.norms)]
        quarter = len(finite) // 4
        if quarter < 5:
            return 1.0
        first, last = np.median(finite[:quarter]), np.median(finite[-quarter:])
        return float(last / first) if first > 0 else 1.0

    def table(self, name: str = "") -> str:
        """The advice as text, in lines of at most 80 characters.

        Args:
            name: of the optimizer, where there are several.
        """
        steps = len(self.norms)
        lines = [f"ClippingAdvisor: gradient norms of {steps} steps{' of ' + name if name else ''}"]
        if math.isnan(self.threshold):
            return "\n".join([*lines, "  None of them was finite and above 0: there is nothing to recommend."])
        lines.append(f"  {'candidate':<28}{'threshold':>12}{'would have clipped':>28}")
        for label, value in self.candidates():
            clipped = self.clipped_by(value)
            share = f"{clipped} of {steps} ({clipped / steps:.1%})"
            lines.append(f"  {label:<28}{value:>12.4g}{share:>28}")
        if self.spikes:
            largest = max(self.spikes, key=lambda step: float(self.norms[step]))
            lines.append(f"  spikes: {len(self.spikes)}, the largest {self.norms[largest]:.4g} at step {largest + 1}")
        else:
            lines.append("  spikes: none")
        lines.append(f"  not finite: {len(self.nonfinite) or 'none'}")
        drift = self.drift()
        if not 1 / 3 < drift < 3:
            lines.append(f"  The norms {'rose' if drift > 1 else 'fell'} to {drift:.2g} times what they were at first:")
            lines.append("  no constant fits both ends. AdaptiveGradientClipping() follows them.")
        lines.append(f"  To use it: AdaptiveGradientClipping(Fixed({self.threshold:g}))")
        lines.append("  From half to ten times the average may be worth trying (Pascanu et al. 2013).")
        return "\n".join(lines)

    def draw(self, name: str = "") -> "Figure":
        """The norms by step with the candidates drawn in; beside them how the norms are spread.

        Args:
            name: of the optimizer, where there are several.
        """
        title = "Gradient norm without clipping" + (f", {name}" if name else "")
        figure, axes, margin = new_figure_with_margin(title, "optimizer step", "gradient norm")
        steps = np.arange(1, len(self.norms) + 1)
        shown = np.where(np.isfinite(self.norms) & (self.norms > 0), self.norms, np.nan)
        axes.plot(steps, shown, color=BLUE, linewidth=0.8, alpha=0.8)
        axes.set_yscale("log")
        axes.set_xlim(0, len(steps) + 1)
        if self.spikes:
            spikes = np.array(self.spikes)
            label = f"spikes ({len(spikes)})"
            axes.scatter(spikes + 1, self.norms[spikes], color=RED, s=18, zorder=3, label=label)
        if self.nonfinite:
            label = f"not finite ({len(self.nonfinite)})"
            places = np.array(self.nonfinite) + 1
            bottom = axes.get_xaxis_transform()
            axes.scatter(places, np.full(len(places), 0.02), color=RED, marker="x", s=24, transform=bottom, label=label)
        usual = shown[np.isfinite(shown)]
        if len(usual):
            _draw_candidates(axes, margin, self)
            twentieths = np.log10(usual) * 20  # of a decade: a bin
            edges = (10 ** (np.arange(np.floor(twentieths.min()), twentieths.max() + 2) / 20)).tolist()
            margin.hist(usual, bins=edges, orientation="horizontal", color=BLUE, alpha=0.6)
            margin.set_xlabel("steps")
            write_out_logs(axes)
        if axes.get_legend_handles_labels()[0]:
            figure.legend(frameon=False, loc="outside lower left", fontsize="small", ncols=5)
        return figure


def _stand_out(norms: Floats) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    """Which norms stand far above those around them."""
    if len(norms) < 5:
        return np.zeros(len(norms), dtype=bool)
    logs = np.log(np.maximum(norms, np.finfo(np.float64).tiny))
    reach = min(NEIGHBOURS, len(logs) - (len(logs) + 1) % 2) // 2
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(logs, reach, mode="reflect"), 2 * reach + 1)
    above = logs - np.median(windows, axis=1)
    deviation = 1.4826 * np.median(np.abs(above - np.median(above)))
    return np.asarray(above > SPIKE * max(deviation, LEAST_DEVIATION))


def _draw_candidates(axes: "Axes", margin: "Axes", advice: ClippingAdvice) -> None:
    finite = advice.norms[np.isfinite(advice.norms) & (advice.norms > 0)]
    low, high = finite.min() / 1.5, max(finite.max(), 10 * advice.average) * 1.5
    axes.set_ylim(low, high)
    band = f"half to ten times the average, {advice.average:.3g}"
    axes.axhspan(advice.average / 2, advice.average * 10, color=GREEN, alpha=0.1, linewidth=0, label=band)
    axes.axhline(advice.threshold, color=ORANGE, linewidth=2, label=f"recommended: {advice.threshold:g}")
    margin.axhline(advice.threshold, color=ORANGE, linewidth=2)
    known = {percent: math.log(value) for percent, value in advice.percentiles.items() if value > 0}
    places, below = [], -math.inf
    for log in known.values():
        below = max(log, below + math.log(high / low) / 24)  # a line of text is that high
        places.append(below)
    shift = float(np.mean(list(known.values())) - np.mean(places))  # so that labels pushed apart stay about their lines
    for (percent, log), place in zip(known.items(), places, strict=True):
        label = "percentiles" if percent == PERCENTILES[0] else None
        for both, legend in ((axes, label), (margin, None)):
            both.axhline(math.exp(log), color=GREY, linewidth=0.8, linestyle="--", zorder=1, label=legend)
        text = f"{percent} %: {math.exp(log):.3g}"
        across = margin.get_yaxis_transform()
        margin.text(1.06, math.exp(place + shift), text, color=GREY, fontsize="small", va="center", transform=across)
