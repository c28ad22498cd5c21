"""Tiny streams of tokens, the trainer that reads them, and the loop by hand that it is compared with."""

from collections.abc import Callable, Iterable, Sequence

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from rnn_blocks import LanguageModel, TextBatch, detach_state

VOCABULARY = 11


def make_stream(lanes: int, lengths: Sequence[int], seed: int = 3, bytes_per_token: float = 0.0) -> list[TextBatch]:
    """Contiguous chunks of the lengths given; the first is fresh."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (lanes, sum(lengths) + 1), generator=generator)
    batches, at = [], 0
    for length in lengths:
        inputs, targets = tokens[:, at : at + length], tokens[:, at + 1 : at + length + 1].clone()
        batches.append(TextBatch(inputs, targets, bytes_per_token * targets.numel(), fresh=at == 0))
        at += length
    return batches


def sgd(lr: float = 0.5) -> Callable[[Iterable[Tensor]], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


def as_loader(batches: Sequence) -> DataLoader:
    return DataLoader(list(batches), batch_size=None)


def make_trainer(*callbacks: Callback, **options: object) -> Trainer:
    defaults = {"max_epochs": 1, "log_every_n_steps": 1, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    here = {"accelerator": "cpu", "devices": 1}
    return Trainer(
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **(defaults | here | options),
    )


def fit(model: LanguageModel, train: Sequence, val: Sequence | None = None, *callbacks: Callback, **options) -> Trainer:
    ckpt_path = options.pop("ckpt_path", None)
    trainer = make_trainer(*callbacks, **options)
    trainer.fit(model, as_loader(train), None if val is None else as_loader(val), ckpt_path=ckpt_path)
    return trainer


def plain_loss(model: LanguageModel, batch: TextBatch, state: object) -> tuple[Tensor, object]:
    """The mean cross-entropy by torch's own functions."""
    embedded = nn.functional.embedding(batch.inputs, model.embedding.weight)
    outputs, state = model.layer(embedded, state)
    logits = outputs @ model.output.weight.t() + model.output.bias
    return cross_entropy(logits.flatten(0, 1), batch.targets.flatten()), state


def train_by_hand(model: LanguageModel, batches: Sequence[TextBatch], lr: float = 0.5, *, steps_as_factor=False):
    """Truncated BPTT: carry, detach, descend."""
    state = None
    for batch in batches:
        loss, state = plain_loss(model, batch, None if batch.fresh else state)
        state = detach_state(state)
        if steps_as_factor:
            loss = loss * batch.inputs.shape[1]
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= lr * gradient
    return state


class Watch(Callback):
    """Keeps every value logged in training, the learning rate of each step and the states carried."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []
        self.rates: list[float] = []
        self.validations: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.logged.append({key: float(value) for key, value in trainer.logged_metrics.items()})

    def on_validation_end(self, trainer, pl_module) -> None:
        self.validations.append({key: float(value) for key, value in trainer.callback_metrics.items()})
