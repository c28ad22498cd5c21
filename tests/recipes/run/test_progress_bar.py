"""The bar of a recipe says how far its epoch has come, also where a training goes on within one."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel

from rnn_blocks.recipes.run.progress_bar import RecipeProgressBar

RESUMED = "ignore:You.re resuming from a checkpoint that ended before the epoch ended"


def fit(folder: Path, max_steps: int, accumulate: int, ckpt_path: str | None = None) -> tuple[int, list[int]]:
    """Where the bar begins, and what it says at last: batches, and batches in all."""
    bar, begun = RecipeProgressBar(), []

    class Begins(pl.Callback):
        def on_train_batch_start(self, *args: object) -> None:
            begun.append(bar.train_progress_bar.n)

    trainer = pl.Trainer(
        default_root_dir=folder,
        max_steps=max_steps,
        max_epochs=-1,
        limit_val_batches=0,
        accumulate_grad_batches=accumulate,
        logger=False,
        accelerator="cpu",
        enable_checkpointing=False,
        callbacks=[bar, Begins()],
    )
    trainer.fit(BoringModel(), ckpt_path=ckpt_path)
    trainer.save_checkpoint(folder / "last.ckpt")
    return begun[0], [bar.train_progress_bar.n, bar.train_progress_bar.total]


@pytest.mark.filterwarnings(RESUMED)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_bar_goes_on_where_the_training_does(accumulate: int, tmp_path: Path) -> None:
    assert fit(tmp_path, 5, accumulate) == (0, [5 * accumulate, 5 * accumulate])
    went_on = fit(tmp_path, 8, accumulate, str(tmp_path / "last.ckpt"))
    assert went_on == (5 * accumulate, [8 * accumulate, 8 * accumulate])


@pytest.mark.filterwarnings(RESUMED)
def test_the_bar_of_a_second_epoch_begins_at_nothing(tmp_path: Path) -> None:
    batches = len(BoringModel().train_dataloader())
    fit(tmp_path, batches - 4, 1)
    _, said = fit(tmp_path, batches + 9, 1, str(tmp_path / "last.ckpt"))
    assert said == [9, 9]
