"""When the recorded steps of a cell give way to compiled ones: at a number of steps that no clock has a say in.

A training begins on recorded steps at once. Programs that come back often are compiled beside it, from their
:data:`START`-th step on, and take over at their :data:`SWITCH`-th: where compiling has not ended by then, the training
waits for it. Compiled steps round differently in the last bits, so the sequence at which they begin must be the same
whenever a training is run again. It goes with the weights, so that a resumed training is the undisturbed one.
"""

import hashlib
import os
import re
import threading
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from rnn_blocks.engine.compile import CompilerError, StepSource, compile_step
from rnn_blocks.engine.compile_process import CompileProcess
from rnn_blocks.engine.program import Program
from rnn_blocks.engine.split import Compiler, Put

START = 20_000  # steps of time that a program has run when it is compiled
SWITCH = 60_000  # and when it makes way for what was compiled
MOST_COMPILED = 4  # of one cell: each takes seconds
MOST_COUNTED = 512
LARGEST = 32_768  # numbers in an output: torch's own operators share more than that between threads

FEWEST = 10  # operators of a step and its derivative: with less, as in Elman's, AVX2 gains nothing

SETTING = "RNN_BLOCKS_COMPILE"
"""The variable of the environment that says, with ``0``, that nothing is to be compiled unasked."""

Key = tuple[Any, ...]
Record = Callable[[Compiler | None], Program]

_lock = threading.RLock()
_process = CompileProcess()
_told = False


class Identity:
    """An object itself in a key: equal to none that comes to lie where it lay. It says nothing in another process.

    >>> one, other = {1}, {1}
    >>> Identity(one) == Identity(one), Identity(one) == Identity(other)
    (True, False)
    """

    __slots__ = ("_number", "_object")

    def __init__(self, value: object) -> None:
        self._number = id(value)
        try:
            self._object: Callable[[], object] = weakref.ref(value)
        except TypeError:  # of no class of its own, so that it cannot hold the cell that the key is kept for
            self._object = lambda: value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Identity) or self._number != other._number:
            return False
        mine = self._object()
        return mine is not None and mine is other._object()

    def __hash__(self) -> int:
        return self._number


@dataclass
class _Asked:
    """What is being compiled, and what makes a program of it; ``layout``: the strides of the weights it is for."""

    source: StepSource
    put: Put
    layout: Key


@dataclass
class _Uses:
    """How many steps a cell's programs have run, and what was made of those that ran many; ``None``: nothing.

    ``made`` is what was made before the counts were set to others: at hand when it is asked for again.
    """

    steps: dict[Key, int] = field(default_factory=dict)
    faster: dict[Key, _Asked | tuple[Program, Key] | None] = field(default_factory=dict)
    resumed: dict[str, int] = field(default_factory=dict)
    made: dict[Key, tuple[Program, Key]] = field(default_factory=dict)


_uses: WeakKeyDictionary[nn.Module, _Uses] = WeakKeyDictionary()


def faster(owner: nn.Module, key: Key, time: int, constants: list[Tensor], record: Record) -> Program | None:
    """The compiled program for a sequence of ``time`` steps that a recorded one is for, if it is to run this one.

    Args:
        owner: the cell that what is compiled is kept for.
        key: what the recorded program is kept under.
        time: steps in the sequence.
        constants: weights, and whatever else is the same at all steps.
        record: records the step once more and hands what can be compiled to what it is given.
    """
    uses = _uses.setdefault(owner, _Uses())
    before = uses.steps.pop(key, None)
    if before is None:
        before = uses.resumed.pop(_signature(key), 0) if uses.resumed else 0
        while len(uses.steps) >= MOST_COUNTED:
            uses.steps.pop(next(iter(uses.steps)))
    uses.steps[key] = before + time  # the last used stands last
    if before < START or not _allowed():
        return None
    with _lock:
        if key not in uses.faster:
            uses.faster[key] = _ask(uses, key, constants, record)
        if before < SWITCH:
            return None
        found = uses.faster[key]
        if isinstance(found, _Asked):
            found = uses.faster[key] = _compiled(found)
    if found is None or found[1] != _layout(constants):
        return None
    return found[0]


def _allowed() -> bool:
    """Whether results may depend, in their last bits, on how many steps have been run."""
    return os.environ.get(SETTING) != "0" and os.name == "posix" and not torch.are_deterministic_algorithms_enabled()


def _ask(uses: _Uses, key: Key, constants: list[Tensor], record: Record) -> _Asked | tuple[Program, Key] | None:
    taken = sum(found is not None for found in uses.faster.values())
    if taken + sum(steps >= START for steps in uses.resumed.values()) >= MOST_COMPILED:
        return None
    if torch.cuda.is_available():  # torch's compiler would begin to use the GPU, after which no process can be forked
        return None
    if key in uses.made and uses.made[key][1] == _layout(constants):
        return uses.made[key]
    asked: list[_Asked] = []

    def hold(source: StepSource, put: Put) -> Program:
        asked.append(_Asked(source, put, _layout(constants)))
        return put(source.forward.function(), None)  # not looked at

    record(hold)
    if not asked or not _pays(asked[0].source):
        return None
    try:
        _process.ask(asked[0].source)
    except (CompilerError, OSError) as error:  # as a full disk
        _tell(error)
        return None
    return asked[0]


def _compiled(asked: _Asked) -> tuple[Program, Key] | None:
    try:
        _process.wait(asked.source)
        with torch.random.fork_rng(devices=[]):
            return asked.put(*compile_step(asked.source, one_thread=True)), asked.layout
    except (CompilerError, OSError) as error:  # as a full disk
        _tell(error)
        return None


def _pays(source: StepSource) -> bool:
    """Whether compiled steps are known to be faster."""
    out = source.arguments[source.steady[1]]
    sources = [source.forward.source, "" if source.backward is None else source.backward.source]
    operators = sum(line.count(" = ") for line in sources)
    many = operators >= FEWEST or torch.backends.cpu.get_cpu_capability() == "AVX512"
    return many and out.device.type == "cpu" and torch.Size(out.shape).numel() <= LARGEST


def _tell(error: Exception) -> None:
    """Say once that nothing is compiled."""
    global _told
    if not _told:
        _told = True
        warnings.warn(f"{error}; training goes on with recorded steps, as engine='fused' does", stacklevel=2)


def _layout(constants: list[Tensor]) -> Key:
    return tuple(tensor.stride() for tensor in constants)


def counted(owner: nn.Module) -> dict[str, int]:
    """How many steps a cell's programs have run, by a name that holds in another process: see :func:`count_from`."""
    uses = _uses.get(owner)
    if uses is None:
        return {}
    found = dict(uses.resumed)
    for key, steps in uses.steps.items():
        refused = key in uses.faster and uses.faster[key] is None
        name = _signature(key)
        found[name] = max(found.get(name, 0), min(steps, START - 1) if refused else steps)
    return found


def count_from(owner: nn.Module, steps: dict[str, int]) -> None:
    """Go on with the counts of another process, or of this one at an earlier time."""
    before = _uses.get(owner, _Uses())
    made = before.made | {key: found for key, found in before.faster.items() if isinstance(found, tuple)}
    _uses[owner] = _Uses(resumed=dict(steps), made=made)


def _signature(key: Key) -> str:
    return hashlib.sha256(repr(_lasting(key)).encode()).hexdigest()[:16]


def _lasting(part: Any) -> Any:
    if isinstance(part, tuple):
        return tuple(_lasting(inner) for inner in part if not isinstance(inner, Identity))
    if isinstance(part, type):
        return part.__qualname__
    return re.sub("0x[0-9a-f]+", "", repr(part))
