"""A layer's `run` while it is recorded: stacks call that, and not the layer, so that no hook would see them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

from torch import Tensor, nn

if TYPE_CHECKING:
    from rnn_blocks.engine import State
    from rnn_blocks.layers import Recurrent

Run = Callable[..., "tuple[Tensor, State]"]


class Records(Protocol):
    """What records a layer's calls."""

    def recorded_run(
        self, name: str, layer: "Recurrent", run: Run, inputs: Tensor, state: "State", lengths: Any, resets: Any
    ) -> "tuple[Tensor, State]":
        """The call of `run`, recorded under the layer's name."""


def begin_recording(layer: nn.Module, name: str, recorder: Records) -> None:
    """Have a recorder record all calls of `run`, after those that do so already."""
    patch = _patch_of(layer)
    if patch is None:  # some have a `run` that somebody has put on them
        patch = vars(layer)["run"] = partial(_recorded_run, layer, [], vars(layer).get("run"))
    patch.args[1].append((name, recorder))


def end_recording(layer: nn.Module, recorder: Records) -> None:
    """Have it record them no more; behind the last one the layer is as it was."""
    patch = _patch_of(layer)
    if patch is None:
        return
    recorders, own = patch.args[1:]
    recorders[:] = [(name, other) for name, other in recorders if other is not recorder]
    if not recorders:
        _put(layer, own)


@contextmanager
def unrecorded(layer: nn.Module) -> Iterator[None]:
    """Within it nobody records the layer."""
    patch = _patch_of(layer)
    if patch is None:
        yield
        return
    _put(layer, patch.args[2])
    try:
        yield
    finally:
        vars(layer)["run"] = patch


def _patch_of(layer: nn.Module) -> "partial[Any] | None":
    run = vars(layer).get("run")
    return run if isinstance(run, partial) and run.func is _recorded_run else None


def _put(layer: nn.Module, own: Run | None) -> None:
    if own is None:
        del vars(layer)["run"]
    else:
        vars(layer)["run"] = own


def _recorded_run(
    layer: nn.Module,
    recorders: list[tuple[str, Records]],
    own: Run | None,
    inputs: Tensor,
    state: "State",
    lengths: Any,
    resets: Any,
) -> "tuple[Tensor, State]":
    """In the place of a layer's `run`, for all that record it."""
    recurrent = cast("Recurrent", layer)
    run: Run = own or partial(type(recurrent).run, recurrent)
    for name, recorder in recorders:
        run = partial(recorder.recorded_run, name, recurrent, run)
    return run(inputs, state, lengths, resets)
