"""The parameters of a model and of an optimizer: what they are called, and which are chosen."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import cast

from torch import Tensor, nn
from torch.optim import Optimizer

from rnn_blocks.callbacks.measuring.optimizers import groups_of, parameters_of

WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)


def parameter_names(model: nn.Module) -> dict[Tensor, str]:
    """Name of each parameter, as it is without `torch.compile`, DDP or Fabric around the model.

    >>> list(parameter_names(nn.Sequential(nn.Linear(2, 2), nn.Tanh())).values())
    ['0.weight', '0.bias']
    """
    return {parameter: names[0] for parameter, names in all_names(model).items()}


def all_names(model: nn.Module) -> dict[Tensor, list[str]]:
    """The same with every name of a parameter that is shared.

    >>> model = nn.ModuleDict({"words": nn.Embedding(3, 2), "output": nn.Linear(2, 3, bias=False)})
    >>> model["output"].weight = model["words"].weight
    >>> list(all_names(model).values())
    [['words.weight', 'output.weight']]
    """
    while isinstance(model, WRAPPERS) or type(model).__name__ == "_FabricModule":
        model = cast(nn.Module, model.module)
    found: dict[Tensor, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(parameter, []).append(_plain(name))
    return found


class Chosen:
    """The parameters of one optimizer that are clipped: all of them, or those whose names match.

    A pattern is a name, of a parameter or of a module that holds some, in which ``*`` stands for anything
    (`fnmatch`): ``"decoder"``, ``"decoder.output.weight"``, ``"*.bias"``.

    Args:
        optimizer: whose parameters there are; groups may be added to it later.
        model: whose names count; None: those that the optimizer was given (`torch.optim` takes ``named_parameters()``).
        include: patterns of the names to choose; None: all.
        exclude: patterns of the names to leave out of these.

    Raises:
        ValueError: a pattern matches no parameter, all are left out, or there are no names.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> [[tuple(weight.shape) for weight in group] for group in Chosen(optimizer, model, exclude=["1"]).groups()]
    [[(2, 2), (2,)]]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module | None = None,
        *,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
    ) -> None:
        self._optimizer = optimizer
        self._model = model
        self._include = include
        self._exclude = exclude
        self.all = include is None and not exclude
        self._known: dict[Tensor, bool] = {}  # of the optimizer's parameters, whether they are chosen
        if include is not None and not include:
            raise ValueError("include is empty: name what is to be chosen, or leave it at None for all")
        if not self.all:
            known = self._names()
            names = [name for own in known.values() for name in own]
            for argument, patterns in (("include", include or ()), ("exclude", exclude)):
                for pattern in patterns:
                    _refuse_without_match(argument, pattern, names)
            if not any(self._matches(own) for own in known.values()):
                raise ValueError(
                    f"exclude {list(exclude)} leaves nothing of include {'all' if include is None else list(include)}: "
                    f"there are {_some(names)}"
                )
            if not any(parameter in known for parameter in parameters_of(optimizer)):
                raise ValueError(
                    "none of the optimizer's parameters is one of the model: give the model that it trains"
                )

    def names(self) -> dict[Tensor, str]:
        """Of the model's parameters, or of the optimizer's where no model was given; empty where neither tells."""
        return {parameter: names[0] for parameter, names in self._names().items()}

    def _names(self) -> dict[Tensor, list[str]]:
        return dict(_names_in(self._optimizer)) if self._model is None else all_names(self._model)

    def groups(self) -> Sequence[Sequence[Tensor]]:
        """The chosen parameters, by parameter group."""
        groups: Sequence[Sequence[Tensor]] = groups_of(self._optimizer)
        return groups if self.all else [[parameter for parameter in group if parameter in self] for group in groups]

    def __contains__(self, parameter: object) -> bool:
        if self.all:
            return True
        if parameter not in self._known:  # it has been put into a group, or into another one's place
            names = self._names()
            self._known = {own: self._matches(names.get(own, [])) for own in parameters_of(self._optimizer)}
        return self._known.get(cast(Tensor, parameter), False)

    def _matches(self, names: list[str]) -> bool:
        included = self._include is None or _any_matches(names, self._include)
        return included and not _any_matches(names, self._exclude)


def matches(name: str, pattern: str) -> bool:
    """Whether a parameter's name matches a pattern, or lies below what does.

    >>> matches("decoder.output.weight", "decoder"), matches("decoder.weight", "*.bias")
    (True, False)
    """
    pattern = pattern.replace("[", "[[]")  # only * and ? stand for anything else
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _any_matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(matches(name, pattern) for name in names for pattern in patterns)


def _plain(name: str) -> str:
    return name.replace("_orig_mod.", "")


def _names_in(optimizer: Optimizer) -> Iterator[tuple[Tensor, list[str]]]:
    for group in optimizer.param_groups:
        for parameter, name in zip(group["params"], group.get("param_names", ()), strict=False):
            yield parameter, [_plain(name)]


def _refuse_without_match(argument: str, pattern: str, names: list[str]) -> None:
    if not names:
        raise ValueError(
            f"{argument} is {pattern!r}, but parameters have no names here: give the model, or make the optimizer of "
            "`model.named_parameters()`"
        )
    if not any(matches(name, pattern) for name in names):
        raise ValueError(f"{argument} has {pattern!r}, which matches no parameter; there are {_some(names)}")


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:8])) + (", …" if len(names) > 8 else "")
