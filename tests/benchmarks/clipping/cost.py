"""What gradient monitoring and adaptive clipping cost, against torch's own clipping and against a training step.

    python tests/benchmarks/clipping/cost.py

CPU time of one thread, the contenders interleaved, medians. "Logging" is a step on which norms are logged, "between"
one on which they are not; a training logs every 50 steps unless told otherwise. Few steps of `auto` are clipped, and no
others are multiplied, which torch does with all; "every step clipped" is the dearest case. The bound on updates, an
option for Adam and its kin, comes on top.
"""

import statistics
import time
from collections.abc import Callable

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from rnn_blocks.callbacks import AdaptiveGradientClipping, Auto, GradientNormMonitor
from rnn_blocks.callbacks.clipping.update_bound import EVERY, UpdateBound
from rnn_blocks.callbacks.measuring.scale_invariance import FIRST_LOOKS

LOG_EVERY = 50
BOUND = "bound on updates (Adam), a step"


class SmallTensors(LightningModule):
    """Tensors of 64 numbers, in ten modules."""

    def __init__(self, count: int = 500) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.ParameterList(torch.randn(64) for _ in range(count // 10)) for _ in range(10))

    def loss(self) -> Tensor:
        return sum((weight.square().sum() for weight in self.parameters()), torch.zeros(()))


class LargeLanguageModel(LightningModule):
    """An LSTM language model of 20 million parameters: 10,000 words, 2×650, batch 20, 35 steps."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10_000, 650)
        self.lstm = nn.LSTM(650, 650, num_layers=2)
        self.output = nn.Linear(650, 10_000)
        self.tokens = torch.randint(10_000, (36, 20))

    def loss(self) -> Tensor:
        logits = self.output(self.lstm(self.embedding(self.tokens[:-1]))[0])
        return nn.functional.cross_entropy(logits.flatten(0, 1), self.tokens[1:].flatten())


def callbacks_step(
    module: LightningModule, optimizer: torch.optim.Optimizer, policy: Auto, accelerator: str = "cpu"
) -> Callable[[bool], None]:
    """Both callbacks' hooks in one step, as a Trainer calls them, loggers aside."""
    callbacks = [GradientNormMonitor(), AdaptiveGradientClipping(policy)]
    trainer = Trainer(
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        accelerator=accelerator,
        devices=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.strategy.connect(module)
    trainer.strategy.optimizers = [optimizer]
    trainer.state.fn = "fit"
    loss = torch.ones((), device=next(module.parameters()).device)
    for callback in callbacks:
        callback.on_train_start(trainer, module)

    def step(logging: bool) -> None:
        trainer.log_every_n_steps = 1 if logging else 0
        callbacks[1].on_before_backward(trainer, module, loss)
        for callback in callbacks:
            callback.on_before_optimizer_step(trainer, module, optimizer)
        for callback in callbacks:
            callback.on_train_batch_end(trainer, module, None, None, 0)

    return step


def medians(contenders: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each contender, taken in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            begin = time.process_time()
            run()
            seconds[name].append(time.process_time() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure(module: LightningModule, repeats: int) -> dict[str, float]:
    """Median CPU seconds of a training step, of torch's clipping, and of the callbacks."""
    parameters = list(module.parameters())
    optimizer = torch.optim.SGD(parameters, lr=1e-6)

    def train() -> None:
        optimizer.zero_grad()
        module.loss().backward()
        optimizer.step()

    bound = UpdateBound(torch.optim.Adam(parameters, lr=1e-6), longest=0.01)

    def bounded_steps() -> None:  # what comes before and after the steps of an adaptive optimizer, from measuring on
        for _ in range(EVERY):
            bound._before_step()
            bound._after_step()

    train()
    step = callbacks_step(module, optimizer, Auto())
    # No gradient promises as little; torch's, which came before, has left it a norm of 1.
    clipping_step = callbacks_step(module, torch.optim.SGD(parameters, lr=1.0), Auto(largest_decrease=1e-9))
    for _ in range(FIRST_LOOKS):  # these steps and every hundredth look for scale-invariant weights
        step(False)
        clipping_step(False)
    return medians(
        {
            "training step": train,
            "clip_grad_norm_(foreach=True)": lambda: nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True),
            "monitor + clipping, between": lambda: step(False),
            "monitor + clipping, logging": lambda: step(True),
            "every step clipped, between": lambda: clipping_step(False),
            BOUND: bounded_steps,
        },
        repeats,
    )


def main() -> None:
    """Print one table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    models = {"10 small tensors": (SmallTensors(10), 400), "500 small tensors": (SmallTensors(), 200)}
    models["20M-parameter LSTM LM"] = (LargeLanguageModel(), 15)
    print(" " * 34 + "".join(f"{name:>30}" for name in models))
    print(" " * 34 + f"{'ms':>12}{'÷ torch':>9}{'% step':>9}" * len(models))
    columns = [measure(model, repeats) for model, repeats in models.values()]
    for column in columns:
        between, logging = column["monitor + clipping, between"], column["monitor + clipping, logging"]
        column[BOUND] /= EVERY
        column[f"monitor + clipping, 1 in {LOG_EVERY}"] = (between * (LOG_EVERY - 1) + logging) / LOG_EVERY
    for name in columns[0]:
        row = f"{name:34}"
        for column in columns:
            share = column[name] / column["training step"]
            ratio = column[name] / column["clip_grad_norm_(foreach=True)"]
            row += f"{column[name] * 1e3:12.3f}{ratio:9.2f}{share:9.2%}"
        print(row)


if __name__ == "__main__":
    main()
