"""How gradient norms are spread, and how that changes while a training goes on."""

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import Self

from rnn_blocks.callbacks.figures import BLUE, ORANGE, new_figure_with_margin, write_out_logs
from rnn_blocks.callbacks.measuring.norm_buffer import NormBuffer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOWEST, HIGHEST, BINS_PER_DECADE = -9, 9, 20
"""Bins are twentieths of a decade of the norm; what lies beyond the outermost counts for those."""

BINS = (HIGHEST - LOWEST) * BINS_PER_DECADE
MOST_INTERVALS = 100
MOST_WAITING = 65_536


class NormHistogram:
    """Histograms of log₁₀ of one optimizer's gradient norm: of each interval of its steps, and of all of them.

    Norms wait on the device and are read an interval at a time. What was read is kept as counts on the host, at most
    `MOST_INTERVALS` rows of them: when there are more, neighbours are added up. So memory and checkpoints stay small
    however long the training is.

    Attributes:
        waiting: norms that have not been read; past `MOST_WAITING` the oldest are lost.
        steps: how many steps have been recorded.
        ends: the last step of each interval that was read, from 1.
        counts: how many norms fell into each bin, ``(intervals, BINS)``, int32, on the host.
        nonfinite: how many norms were NaN or infinite; they are in no bin, and neither are norms of 0.

    >>> histogram = NormHistogram()
    >>> for norm in (1.0, 1.1, 50.0, math.inf):
    ...     histogram.record(torch.tensor(norm))
    >>> logs = histogram.add(histogram.take().tolist())
    >>> [round(log, 2) for log in logs], histogram.ends, int(histogram.counts.sum()), histogram.nonfinite
    ([0.0, 0.04, 1.7], [4], 3, 1)
    """

    def __init__(self) -> None:
        self.waiting = NormBuffer(MOST_WAITING)
        self.steps = 0
        self.ends: list[int] = []
        self.counts = torch.zeros(0, BINS, dtype=torch.int32)
        self.nonfinite = 0

    def record(self, norm: Tensor) -> None:
        """Note the norm ``()`` of a step, on the device."""
        self.waiting.append(norm)
        self.steps += 1

    def take(self) -> Tensor:
        """The norms that have not been read, ``(steps,)``, still on the device; they wait no longer."""
        norms = self.waiting.norms()
        self.waiting.clear()
        return norms

    def add(self, norms: list[float]) -> list[float]:
        """Count an interval's norms, which `take` gave.

        Returns:
            log₁₀ of those that are finite and above 0.
        """
        logs = [math.log10(norm) for norm in norms if 0 < norm < math.inf]
        self.nonfinite += sum(not math.isfinite(norm) for norm in norms)
        bins = ((torch.tensor(logs, dtype=torch.float64) - LOWEST) * BINS_PER_DECADE).floor().long()
        row = torch.bincount(bins.clamp(0, BINS - 1), minlength=BINS).int()
        self.ends.append(self.steps)
        self.counts = torch.cat([self.counts, row[None]])
        if len(self.ends) > MOST_INTERVALS:
            newest = self.counts[-1:] if len(self.ends) % 2 else self.counts[:0]
            pairs = self.counts[: len(self.ends) // 2 * 2]
            self.counts = torch.cat([pairs.view(-1, 2, BINS).sum(1, dtype=torch.int32), newest])
            self.ends = self.ends[1::2] + self.ends[len(pairs) :]
        return logs

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, lists and dicts; a copy."""
        return {
            "waiting": self.waiting.state_dict(),
            "steps": self.steps,
            "ends": list(self.ends),
            "counts": self.counts.clone(),
            "nonfinite": self.nonfinite,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Self:
        """The histogram that the state was taken of."""
        histogram = cls()
        histogram.waiting = NormBuffer.from_state_dict(state["waiting"], MOST_WAITING)
        histogram.steps, histogram.nonfinite = state["steps"], state["nonfinite"]
        histogram.ends, histogram.counts = list(state["ends"]), state["counts"].cpu().clone()
        return histogram

    def draw(self, title: str) -> "Figure | None":
        """Share of norms by size, against the step, with the median; beside it the sum over the training.

        What was seen once stands out from what was never seen, which is white.

        Returns:
            A figure; None while nothing has been counted.
        """
        from matplotlib import colormaps
        from matplotlib.colors import ListedColormap

        used = self.counts.sum(0).nonzero().flatten().tolist()
        if not used:
            return None
        low, high = max(used[0] - 2, 0), min(used[-1] + 3, BINS)
        counts = self.counts[:, low:high].double()
        edges = [10 ** (LOWEST + edge / BINS_PER_DECADE) for edge in range(low, high + 1)]
        shares = (100 * counts / counts.sum(1, keepdim=True)).where(counts > 0, math.nan)
        blues = ListedColormap(colormaps["Blues"](torch.linspace(0.2, 1, 256, dtype=torch.float64).numpy()))
        figure, axes, margin = new_figure_with_margin(title, "optimizer step", "gradient norm, before clipping")
        axes.set_axisbelow(True)
        mesh = axes.pcolormesh([0, *self.ends], edges, shares.T.numpy(), cmap=blues, vmin=0, rasterized=True)
        bar = figure.colorbar(mesh, ax=[axes, margin], fraction=0.03, pad=0.01)
        bar.set_label("% of an interval's steps")
        bar.outline.set_visible(False)
        middles = [(start + end) / 2 for start, end in pairwise([0, *self.ends])]
        marker = "." if len(middles) < 40 else None
        medians = [10**log for log in _medians(counts, LOWEST + low / BINS_PER_DECADE)]
        axes.plot(middles, medians, color=ORANGE, linewidth=1.5, marker=marker, label="median")
        axes.set_yscale("log")
        write_out_logs(axes)
        axes.legend(frameon=False, loc="upper right")
        margin.stairs(counts.sum(0).numpy(), edges, orientation="horizontal", fill=True, color=BLUE, alpha=0.6)
        margin.set_xlabel("steps")
        if self.nonfinite:
            margin.set_title(f"{self.nonfinite} not finite", loc="right", fontsize="small")
        return figure


def _medians(counts: Tensor, lowest: float) -> list[float]:
    """Median log of each row of counts, whose first bin begins at `lowest`; NaN of a row without norms."""
    totals, reached = counts.sum(1), counts.cumsum(1)
    index = (reached < totals[:, None] / 2).sum(1, keepdim=True).clamp(max=counts.shape[1] - 1)
    inside = counts.gather(1, index)[:, 0]
    share = 1 - (reached.gather(1, index)[:, 0] - totals / 2) / inside  # as if a bin's norms were spread evenly
    medians: list[float] = (lowest + (index[:, 0] + share) / BINS_PER_DECADE).where(totals > 0, math.nan).tolist()
    return medians
