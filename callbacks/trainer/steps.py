"""Steps of an optimizer that Lightning tells no callback of."""

from collections.abc import Callable, Collection
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.optim import Optimizer

from rnn_blocks.callbacks.measuring.before_update import before_update
from rnn_blocks.callbacks.measuring.optimizers import innermost
from rnn_blocks.callbacks.trainer.namespaces import LightningModule, Trainer


class UnseenSteps:
    """Warns once, at the first step that an optimizer makes and Lightning's hook before it does not come.

    So it is where a module or a package under manual optimisation steps torch's optimizer itself, and not what
    `self.optimizers()` gives, or in an `optimizer_step` of its own. What hangs on the hook is then not done.

    Args:
        trainer: whose optimizers to watch.
        pl_module: that it trains.
        owner: the callback's name, for the warning.
        undone: what it does not do in such a step, such as ``"nothing is clipped"``.
        optimizers: indices of those to watch; None: all.
    """

    def __init__(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        owner: str,
        undone: str,
        optimizers: Collection[int] | None = None,
    ) -> None:
        self._module, self._owner, self._undone = type(pl_module).__name__, owner, undone
        self._seen: set[int] = set()
        self._told = False
        self._handles = [
            before_update(optimizer, self._about_to_step(index, optimizer))
            for index, optimizer in enumerate(trainer.optimizers)
            if (optimizers is None or index in optimizers)
            and innermost(optimizer) is optimizer  # a wrapper may step what it wraps as often as it likes
        ]

    def note(self, index: int) -> None:
        """Lightning's hook before a step of this optimizer has come."""
        self._seen.add(index)

    def detach(self) -> None:
        """Leave the optimizers as they were."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _about_to_step(self, index: int, optimizer: Optimizer) -> Callable[[], Any]:
        def about_to_step() -> None:
            if index in self._seen or self._told:
                self._seen.discard(index)
                return
            self._told = True
            rank_zero_warn(
                f"{self._owner}: {self._module} makes a step of optimizer {index} ({type(optimizer).__name__}) that "
                f"Lightning tells no callback of, so that {self._undone} in such steps. Under manual optimisation "
                "step what `self.optimizers()` gives, and not torch's optimizer, or clip there with a GradientClipper."
            )

        return about_to_step
