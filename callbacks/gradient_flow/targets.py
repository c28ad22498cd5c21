"""Which layers of a LightningModule are measured."""

from collections.abc import Collection, Sequence

from torch import nn

from rnn_blocks.callbacks.gradient_flow.compiled import plain_name
from rnn_blocks.callbacks.gradient_flow.recorder import recurrences
from rnn_blocks.callbacks.trainer import LightningModule, MisconfigurationException


def chosen_targets(
    pl_module: LightningModule, layers: Sequence[str] | None, states: Collection[str]
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The modules to measure by name, those of `states` first, and, of those that cannot be, the reason.

    Args:
        pl_module: where they are looked for.
        layers: only recurrences below modules of these names; None: all.
        states: names of modules that hand out their states.

    Raises:
        ValueError: a name is of no module.
    """
    found, refused = recurrences(pl_module)
    modules = {plain_name(name): module for name, module in pl_module.named_modules()}
    for name in [*(layers or []), *states]:
        if plain_name(name) not in modules:
            raise ValueError(
                f"GradientFlowMonitor: {name!r} is no module of this {type(pl_module).__name__}; with a recurrence "
                f"of their own are {', '.join(map(repr, found)) or 'none'}"
            )
    within = [f"{plain_name(name)}." for name in layers or []]
    wanted = {
        name: module
        for name, module in found.items()
        if layers is None or any(f"{name}.".startswith(prefix) for prefix in within)
    }
    wanted = {name: modules[plain_name(name)] for name in states} | wanted
    return wanted, {name: reason for name, reason in refused.items() if name not in wanted}


def refuse_nothing_to_measure(wanted: Collection[str], pl_module: LightningModule) -> None:
    """Raise `MisconfigurationException` if there is nothing to measure."""
    if not wanted:
        raise MisconfigurationException(
            f"GradientFlowMonitor finds no recurrent layer to measure in this {type(pl_module).__name__}. Remove "
            "it, or name a module and a function that hands out its states: states={'decoder': function}."
        )
