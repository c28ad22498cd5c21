"""What Lightning, its bar, the loggers and both callbacks add to a training step.

The model of `ptb-small` (10,000 words, 2 x 200 LSTM, 20 lanes x 20 steps, SGD) trains on the same batches in a bare
loop and in a `Trainer` as the recipe makes it: progress bar, Weights & Biases (offline) and CSV, `GradientNormMonitor`
and `AdaptiveGradientClipping`, logging every 50 steps (the recipe's) and every 10. The variants take turns, one thread;
CPU time of the process is counted (the Weights & Biases service is a process of its own), from the 10th step on.

    python tests/benchmarks/trainer_overhead.py [--steps 100] [--rounds 5]
"""

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch
from machine import described

import rnn_blocks
from rnn_blocks.callbacks import AdaptiveGradientClipping, GradientNormMonitor
from rnn_blocks.recipes.run.folder import new_run_folder
from rnn_blocks.recipes.run.host.process import quiet, tune_host
from rnn_blocks.recipes.run.progress_bar import RecipeProgressBar
from rnn_blocks.recipes.run.tracking import make_loggers

WORDS, WIDTH, LANES, BPTT, WARM_UP = 10_000, 200, 20, 20, 10


class Batches:
    def __init__(self, steps: int) -> None:
        self.stream = torch.multinomial(1 / torch.arange(1.0, WORDS + 1), LANES * (steps * BPTT + 1), replacement=True)
        self.stream = self.stream.view(LANES, -1)
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self):
        for at in range(0, self.steps * BPTT, BPTT):
            chunk = self.stream[:, at : at + BPTT + 1]
            yield rnn_blocks.TextBatch(chunk[:, :-1], chunk[:, 1:], num_bytes=2000.0, fresh=at == 0)


class Clock(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == WARM_UP:
            self.began = time.process_time()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.ended = time.process_time()


def make_model() -> rnn_blocks.LanguageModel:
    layer = rnn_blocks.LSTM(WIDTH, WIDTH, num_layers=2)
    sgd = partial(torch.optim.SGD, lr=0.1)  # trains without clipping too
    return rnn_blocks.LanguageModel(layer, WORDS, init_range=0.1, sum_over_time=True, optimizer=sgd)


def bare(model, batches: Batches, clip: bool) -> float:
    optimizer = model.configure_optimizers()
    for number, batch in enumerate(batches):
        if number == WARM_UP:
            began = time.process_time()
        optimizer.zero_grad()
        loss = model._loss(batch, "train") * BPTT
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    return time.process_time() - began


def trained(model, batches: Batches, every: int, folder: Path) -> float:
    clock = Clock()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=make_loggers("wandb", new_run_folder(folder), project="overhead", recipe="language-model"),
        callbacks=[GradientNormMonitor(), AdaptiveGradientClipping(), RecipeProgressBar(refresh_rate=10), clock],
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=every,
    )
    trainer.fit(model, batches)
    trainer.loggers[0].experiment.finish()
    return clock.ended - clock.began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    os.environ["WANDB_MODE"] = "offline"
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    quiet()
    tune_host()
    torch.set_num_threads(1)
    batches = Batches(options.steps)
    with tempfile.TemporaryDirectory() as folder:
        variants = {
            "bare loop": lambda model: bare(model, batches, clip=False),
            "bare loop, clip_grad_norm_": lambda model: bare(model, batches, clip=True),
            "Trainer with all, logs every 50": lambda model: trained(model, batches, 50, Path(folder)),
            "Trainer with all, logs every 10": lambda model: trained(model, batches, 10, Path(folder)),
        }
        times: dict[str, list[float]] = {name: [] for name in variants}
        models = {name: make_model() for name in variants}
        for _ in range(options.rounds):
            for name, run in variants.items():
                times[name].append(run(models[name]) / (options.steps - WARM_UP))
    sys.stderr.write("\n")
    base, clipped = (statistics.median(times[name]) for name in list(variants)[:2])
    print(described())
    print(f"{WORDS:,} words, 2 x {WIDTH}, {LANES} lanes x {BPTT} steps, CPU time, one thread")
    print(f"{'':34}{'ms a step':>11}{'over bare':>11}{'over bare with clipping':>25}")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:34}{median * 1e3:11.2f}{median / base - 1:11.1%}{median / clipped - 1:25.1%}")


if __name__ == "__main__":
    main()
