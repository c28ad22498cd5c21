"""One training of a comparison: until it is solved, or for as long as it may take; and again from where it stopped."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from rnn_blocks.callbacks import NonFiniteGradientError
from rnn_blocks.recipes.long_range.comparison.flow import gradient_flow
from rnn_blocks.recipes.long_range.comparison.settings import Result, Settings, clipping_callbacks, thinned
from rnn_blocks.recipes.long_range.data import EVALUATION_SEED, LongRangeData
from rnn_blocks.recipes.long_range.model import LongRangeModel
from rnn_blocks.recipes.run.checkpoints import AtomicCheckpointIO, RandomState
from rnn_blocks.recipes.run.ending.callback import OwnSignals
from rnn_blocks.recipes.run.finite import StopOnNonFinite

Report = Callable[[int, float], None]
"""Is told the step and the loss of each evaluation."""
SAVE_EVERY_SECONDS = 30.0
FLOW_SEQUENCES = 20


class Stopped(Exception):  # noqa: N818 (nothing is wrong)
    """A training was asked to stop, and has written what it goes on from."""


class StopWhenSolved(Callback):
    """Ends a training once the loss of a validation is below a threshold.

    Args:
        threshold: of ``val/loss``.

    >>> StopWhenSolved(1e-3).solved_at is None
    True
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.solved_at: int | None = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the loss."""
        if not trainer.sanity_checking and float(trainer.callback_metrics["val/loss"]) < self.threshold:
            self.solved_at = trainer.global_step
            trainer.should_stop = True


class _Watch(Callback):
    """Keeps the curve, saves now and then, and stops where that is asked for."""

    def __init__(self, checkpoint: Path, eval_every: int, report: Report, stop: Callable[[], bool]) -> None:
        self.curve: list[tuple[int, float]] = []
        self.accuracy: float | None = None
        self.flow_at_start: list[float] = []
        self.seconds = 0.0
        self._checkpoint, self._eval_every = checkpoint, eval_every
        self._report, self._stop = report, stop
        self._since = self._saved = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        return {
            "curve": self.curve,
            "accuracy": self.accuracy,
            "flow_at_start": self.flow_at_start,
            "seconds": self.seconds + time.perf_counter() - self._since,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.curve = [(step, loss) for step, loss in state_dict["curve"]]
        self.accuracy, self.flow_at_start = state_dict["accuracy"], state_dict["flow_at_start"]
        self.seconds = state_dict["seconds"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Where an evaluation is due, after that: whoever goes on from the checkpoint would leave it out.
        if trainer.global_step % self._eval_every:
            self._save_or_stop(trainer)

    def _save_or_stop(self, trainer: pl.Trainer) -> None:
        if trainer.global_step == trainer.max_steps or trainer.should_stop:  # it has come to its end
            return
        stop = self._stop()
        if stop or time.perf_counter() - self._saved > SAVE_EVERY_SECONDS:
            trainer.save_checkpoint(self._checkpoint)
            self._saved = time.perf_counter()
        if stop:
            raise Stopped

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = trainer.callback_metrics
        loss = float(metrics["val/loss"])
        self.accuracy = float(metrics["val/accuracy"]) if "val/accuracy" in metrics else None
        self.curve.append((trainer.global_step, loss))
        self._report(trainer.global_step, loss)
        if trainer.state.fn == TrainerFn.FITTING:
            self._save_or_stop(trainer)


def train(
    settings: Settings,
    folder: Path,
    *,
    report: Report = lambda step, loss: None,
    stop: Callable[[], bool] = lambda: False,
    accelerator: str = "auto",
) -> Result:
    """Make a training, or read what came of it where it was made before.

    The result is ``folder/<key>.json``. While a training runs, ``folder/<key>.ckpt`` is what it goes on from, to the
    bit, when it is stopped.

    Args:
        settings: the training's.
        folder: for the files.
        report: is told the step and the loss of each evaluation.
        stop: is asked after each step whether to stop.
        accelerator: Lightning's.

    Raises:
        Stopped: where ``stop`` said so.
        InputError: for settings that cannot be.

    >>> import tempfile
    >>> settings = Settings("adding", 5, "elman", parameters=50, max_steps=4, eval_every=2, eval_sequences=10)
    >>> result = train(settings, Path(tempfile.mkdtemp()), accelerator="cpu")
    >>> result.steps, [step for step, loss in result.curve], len(result.flow_at_end)
    (4, [2, 4], 5)
    """
    path, checkpoint = folder / f"{settings.key()}.json", folder / f"{settings.key()}.ckpt"
    done = Result.read(path)
    if done is not None:
        return done
    folder.mkdir(parents=True, exist_ok=True)
    pl.seed_everything(settings.seed, verbose=False)
    model = LongRangeModel(
        settings.task, settings.length, settings.cell, parameters=settings.parameters, lr=settings.lr
    )
    data = LongRangeData(
        settings.task,
        settings.length,
        batch_size=settings.batch_size,
        seed=settings.seed,
        eval_sequences=settings.eval_sequences,
        eval_batch_size=min(settings.eval_sequences, 100),
    )
    solved, watch = StopWhenSolved(settings.solved_below), _Watch(checkpoint, settings.eval_every, report, stop)
    batch = model.task.batch(FLOW_SEQUENCES, split="val", seed=EVALUATION_SEED, index=0)
    watch.flow_at_start = thinned(gradient_flow(model, batch))
    trainer = pl.Trainer(
        accelerator=accelerator,
        devices=1,
        max_steps=settings.max_steps,
        max_epochs=-1,
        val_check_interval=min(settings.eval_every, settings.max_steps),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        plugins=[AtomicCheckpointIO()],
        callbacks=[
            *(OwnSignals(), *clipping_callbacks(settings.clipping), StopOnNonFinite()),
            *(RandomState(), solved, watch),
        ],
    )
    diverged = False
    try:
        trainer.fit(model, data, ckpt_path=str(checkpoint) if checkpoint.is_file() else None)
        if not watch.curve or watch.curve[-1][0] != trainer.global_step:  # the last steps are not a whole interval
            trainer.validate(model, data, verbose=False)
    except (FloatingPointError, NonFiniteGradientError):
        diverged = True
    result = Result(
        settings,
        model.hidden_size,
        sum(parameter.numel() for parameter in model.parameters()),
        model.task.guess,
        steps=trainer.global_step,
        solved=solved.solved_at is not None,
        diverged=diverged,
        loss=math.nan if diverged or not watch.curve else watch.curve[-1][1],
        accuracy=watch.accuracy,
        seconds=round(watch.state_dict()["seconds"], 1),
        curve=watch.curve,
        flow_at_start=watch.flow_at_start,
        flow_at_end=[] if diverged else thinned(gradient_flow(model, batch)),
    )
    result.write(path)
    checkpoint.unlink(missing_ok=True)
    return result
