"""The precision that a training computes in, where that is left to the machine it is on."""

from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from lightning.fabric.connector import _PRECISION_INPUT  # type: ignore[attr-defined]
from lightning.pytorch.accelerators import (
    CPUAccelerator,
    CUDAAccelerator,
    MPSAccelerator,
    XLAAccelerator,
)
from lightning.pytorch.callbacks import Callback

Precision: TypeAlias = Literal["auto"] | _PRECISION_INPUT | None

MIXED, SINGLE = "bf16-mixed", "32-true"
_BFLOAT16 = ("bf16", "bf16-mixed", "bf16-true")


class Choice(NamedTuple):
    """A precision, and a line for the user where there is something to say of it."""

    precision: Any
    told: str | None


class Units(NamedTuple):
    """Whether a device multiplies bfloat16 numbers faster than float32 ones, and how it is called in a message."""

    there: bool
    device: str


def choose(asked: Precision, accelerator: Any = "auto", begun: str | None = None) -> Choice:
    """The precision to train in.

    ``"auto"`` is bfloat16 under autocast where the device has units for it, else float32; a training that goes on stays
    with what it began with.

    Args:
        asked: what the user asked for.
        accelerator: the Trainer's.
        begun: the precision of the part of the training before, if there was one.

    >>> choose("64-true")
    Choice(precision='64-true', told=None)
    >>> choose("auto", "cpu", begun="bf16-mixed").precision
    'bf16-mixed'
    """
    if asked != "auto":
        slow = asked in _BFLOAT16 and not (units := bfloat16_units(accelerator)).there
        return Choice(asked, f"precision: {asked}, no faster than 32-true on {units.device}" if slow else None)
    units = bfloat16_units(accelerator)
    best = MIXED if units.there else SINGLE
    if begun is not None and begun != best:
        return Choice(
            begun, f"precision: {begun}, which this training began with; {best} is the fastest on {units.device}"
        )
    return Choice(best, f"precision: {best}, the fastest on {units.device}")


def bfloat16_units(accelerator: Any = "auto") -> Units:
    """What the device that a Trainer would take has for bfloat16.

    On x86 these are AMX or AVX512_BF16, on Nvidia's GPUs the tensor cores from Ampere on. Of other devices nobody here
    knows.

    >>> bfloat16_units("tpu")
    Units(there=False, device='this device, of which no bfloat16 units are known')
    """
    kind = _kind(accelerator)
    if kind == "cpu":
        names = {"_is_amx_tile_supported": "AMX", "_is_avx512_bf16_supported": "AVX512_BF16"}
        found = [name for check, name in names.items() if getattr(torch.cpu, check, bool)()]  # torch's own, and private
        units = f"bfloat16 units ({found[0]})" if found else "no bfloat16 units"
        return Units(bool(found), f"this CPU, which has {units}")
    if kind == "cuda":
        there = torch.cuda.is_bf16_supported(including_emulation=False)
        return Units(there, f"this GPU, which has {'' if there else 'no '}bfloat16 units")
    return Units(False, "this device, of which no bfloat16 units are known")


def _kind(accelerator: Any) -> str:
    """``"cpu"``, ``"cuda"`` or ``"other"``: in the order in which Lightning looks for devices."""
    if isinstance(accelerator, CPUAccelerator) or accelerator == "cpu":
        return "cpu"
    if isinstance(accelerator, CUDAAccelerator) or accelerator == "cuda":
        return "cuda"
    if accelerator not in ("auto", "gpu"):
        return "other"
    if accelerator == "auto" and XLAAccelerator.is_available():
        return "other"
    if MPSAccelerator.is_available():
        return "other"
    return "cuda" if CUDAAccelerator.is_available() else "cpu"


class BegunPrecision(Callback):
    """Keeps in the checkpoints what precision a training began with.

    Args:
        precision: that.

    >>> BegunPrecision("32-true").state_dict()
    {'precision': '32-true'}
    """

    def __init__(self, precision: str) -> None:
        self._precision = precision

    def state_dict(self) -> dict[str, Any]:
        """The precision."""
        return {"precision": self._precision}


def begun_precision(checkpoint: dict[str, Any]) -> str | None:
    """The precision of the training that wrote a checkpoint; None where it was written before that was kept.

    >>> begun_precision({"callbacks": {"BegunPrecision": {"precision": "bf16-mixed"}}})
    'bf16-mixed'
    """
    state = checkpoint.get("callbacks", {}).get(BegunPrecision.__qualname__, {})
    return state.get("precision")  # type: ignore[no-any-return]
