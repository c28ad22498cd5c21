"""A CPU as if it were an accelerator: counting what is read from it, and clipping that reads nothing between logs."""

from collections import Counter
from contextlib import contextmanager
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from rnn_blocks.callbacks import AdaptiveGradientClipping, GradientClipper
from rnn_blocks.callbacks.measuring import numbers

READS = {"tolist", "item", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "__array__"}


class CountReads(TorchFunctionMode):
    """Counts calls that would wait for an accelerator, by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in READS:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


class CountScalars(TorchDispatchMode):
    """Counts `aten::_local_scalar_dense`, what a tensor's number is fetched by."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@contextmanager
def reading_nothing():
    """Clippers take the way that on an accelerator reads nothing."""
    with (
        mock.patch.object(numbers, "is_one_on_a_cpu", return_value=False),
        mock.patch.object(numbers, "is_on_a_cpu", return_value=False),
        mock.patch.object(GradientClipper, "_reads_flags", return_value=False),
    ):
        yield


class OnTheDevice(AdaptiveGradientClipping):
    """Takes on a CPU the way that on an accelerator reads nothing between logging steps."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        with reading_nothing():
            super().on_before_optimizer_step(trainer, pl_module, optimizer)
