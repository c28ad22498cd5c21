"""Lightning's Trainer, as the recipes' command lines make it."""

from typing import Any

import lightning.pytorch as pl

from rnn_blocks.recipes.run.host.precision import Precision, choose


class RecipeTrainer(pl.Trainer):
    """A Trainer whose precision may be ``"auto"``: see :func:`~rnn_blocks.recipes.run.host.precision.choose`.

    Args:
        args: the Trainer's.
        precision: the Trainer's, or ``"auto"``: ``bf16-mixed`` where the device has bfloat16 units, else ``32-true``.
        kwargs: the Trainer's.

    >>> trainer = RecipeTrainer(precision="auto", accelerator="cpu", logger=False, enable_checkpointing=False)
    >>> trainer.precision in ("bf16-mixed", "32-true")
    True
    """

    def __init__(self, *args: Any, precision: Precision = None, **kwargs: Any) -> None:
        chosen = choose(precision, kwargs.get("accelerator", "auto")).precision
        super().__init__(*args, precision=chosen, **kwargs)
