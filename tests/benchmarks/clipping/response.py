"""How each clipping rule answers norms that spike, shift and drift: a table, and a picture of the thresholds.

    python tests/benchmarks/clipping/response.py [--seeds 5] [--to docs/images/clipping_response.png]

Norms are lognormal, σ = 0.3, and fed through a Trainer by a module whose gradient is its batch (Adam, and steps far too
short for the bounds on a step's length to matter). Means over the seeds.

- *normal clipped*: share of 1,000 ordinary steps that were clipped
- *spike*: what is left of one step of 1,000 times the usual norm, in medians
- *after ×10, ÷10*: share clipped from the 50th step after a lasting change of scale on, over 100 steps
- *drift*: share clipped while the scale rises 100-fold over 1,000 steps
- *after NaN*: share of 200 ordinary steps clipped after one NaN and one infinity
"""

import argparse
import logging
import math
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sweep import RULES
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rnn_blocks.callbacks import AdaptiveGradientClipping, ClippingPolicy, Fixed

POLICIES: dict[str, ClippingPolicy] = {**RULES, "Fixed 2": Fixed(2.0)}


class GradientIsBatch(LightningModule):
    """The gradient of its weight, one row long, is the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 4))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.weight * batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-6)


class NormsLeft(Callback):
    """Keeps the norm of every step's gradient after clipping."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: object) -> None:
        gradient = next(pl_module.parameters()).grad
        self.norms.append(math.nan if gradient is None else float(gradient.double().norm()))


def answer(policy: ClippingPolicy, norms: Tensor) -> Tensor:
    """What a real training's clipping leaves of each norm."""
    left = NormsLeft()
    trainer = Trainer(
        callbacks=[AdaptiveGradientClipping(policy), left],
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    batches = [torch.full((1, 4), float(norm) / 2) for norm in norms]
    trainer.fit(GradientIsBatch(), DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return torch.tensor(left.norms, dtype=torch.float64)


def lognormal(count: int, seed: int) -> Tensor:
    return (0.3 * torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).exp()


def shares_clipped(policy: ClippingPolicy, norms: Tensor) -> Tensor:
    return (answer(policy, norms) < norms * (1 - 1e-4)).double()


class Response(NamedTuple):
    normal: float
    spike: float
    up: float
    down: float
    drift: float
    poisoned: float


def respond(policy: ClippingPolicy, seed: int) -> Response:
    spiked = lognormal(600, seed)
    spiked[500] *= 1000
    up, down = lognormal(650, seed), lognormal(650, seed)
    up[500:] *= 10
    down[500:] /= 10
    drifting = lognormal(1000, seed) * torch.logspace(0, 2, 1000, dtype=torch.float64)
    poisoned = lognormal(700, seed)
    poisoned[498], poisoned[499] = math.nan, math.inf
    return Response(
        normal=float(shares_clipped(policy, lognormal(1000, seed)).mean()),
        spike=float(answer(policy, spiked)[500]),
        up=float(shares_clipped(policy, up)[550:].mean()),
        down=float(shares_clipped(policy, down)[550:].mean()),
        drift=float(shares_clipped(policy, drifting).mean()),
        poisoned=float(shares_clipped(policy, poisoned)[500:].mean()),
    )


def draw(path: Path) -> None:
    """What is left of norms with a spike, a shift upwards and one downwards, by rule."""
    norms = lognormal(1000, 0)
    norms[300] *= 1000
    norms[500:750] *= 10
    figure = Figure(figsize=(9, 1.55 * len(POLICIES)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(POLICIES), sharex=True, sharey=True)
    for axis, (name, policy) in zip(axes, POLICIES.items(), strict=True):
        axis.semilogy(norms, color="#b9c2cc", lw=1.2, label="norm")
        axis.semilogy(answer(policy, norms), color="#0f7b82", lw=0.9, label="after clipping")
        axis.set_ylim(0.1, 3000)
        axis.set_title(name, loc="left", fontsize=9)
    axes[0].legend(loc="upper right", fontsize=8, ncols=2)
    axes[-1].set_xlabel("step")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--to", type=Path, help="where to draw the picture")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    percent: Callable[[float], str] = lambda share: f"{100 * share:.1f} %"  # noqa: E731
    print("| rule | normal clipped | spike, × median | after ×10 | after ÷10 | drift | after NaN |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, policy in POLICIES.items():
        seeds = [respond(policy, seed) for seed in range(options.seeds)]
        r = Response(*(statistics.fmean(values) for values in zip(*seeds, strict=True)))
        shares = " | ".join(percent(share) for share in (r.up, r.down, r.drift, r.poisoned))
        print(f"| {name} | {percent(r.normal)} | {r.spike:.2f} | {shares} |", flush=True)
    if options.to:
        draw(options.to)


if __name__ == "__main__":
    main()
