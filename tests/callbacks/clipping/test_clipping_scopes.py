"""Clipping by parameter group, by parameter and by output unit, against loops written by hand."""

import copy
import itertools
import math
import sys
from pathlib import Path

import pytest
import torch
from lightnings import MisconfigurationException
from small_trainings import GradientIsBatch, Regression, Remember, fit_module, norms_as_batches, regression_batches
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from transfers import OnTheDevice
from two_ranks import run_two_ranks

from rnn_blocks.callbacks import (
    AdaptiveGradientClipping,
    Auto,
    EmaRatio,
    Fixed,
    GradientNormMonitor,
    LogNormal,
    Percentile,
    SkipOutliers,
    Unitwise,
    ZScore,
)
from rnn_blocks.callbacks.clipping.units import multiply_each_
from rnn_blocks.callbacks.measuring.norms import scale_

SCOPES = ("global", "group", "parameter", "unit")


def two_groups(parameters: list[nn.Parameter]) -> torch.optim.SGD:
    return torch.optim.SGD(
        [{"params": parameters[:1], "lr": 0.1}, {"params": parameters[1:], "lr": 0.01}], momentum=0.5
    )


def units_by_hand(optimizer: torch.optim.Optimizer, scope: str) -> list[list[Tensor]]:
    """Gradients (or rows of them) that are clipped as one."""
    groups = [[p.grad for p in group["params"] if p.grad is not None] for group in optimizer.param_groups]
    gradients = list(itertools.chain(*groups))
    if scope == "global":
        return [gradients]
    if scope == "group":
        return [group for group in groups if group]
    if scope == "parameter":
        return [[gradient] for gradient in gradients]
    return [[row] for gradient in gradients for row in (gradient if gradient.ndim > 1 else [gradient])]


def norm_of(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def train_by_hand(module: Regression, batches: list, scope: str, threshold: float) -> tuple[float, list[float]]:
    """Share of the units that were clipped, and the total norm after each clipping."""
    optimizer, clipped, after = module.configure_optimizers(), [], []
    for batch in batches:
        optimizer.zero_grad()
        module.loss(batch).backward()
        for unit in units_by_hand(optimizer, scope):
            norm = norm_of(unit)
            clipped.append(norm > threshold)
            for tensor in unit:
                tensor.mul_(min(1.0, threshold / norm) if norm else 1.0)
        after.append(norm_of([p.grad for p in module.parameters() if p.grad is not None]))
        optimizer.step()
    return sum(clipped) / len(clipped), after


@pytest.mark.parametrize("clipping", [AdaptiveGradientClipping, OnTheDevice])
@pytest.mark.parametrize("scope", SCOPES)
def test_every_scope_trains_the_same_parameters_as_a_hand_written_loop(scope, clipping):
    batches, logger = regression_batches(20), Remember()
    module, expected = Regression(two_groups), Regression(two_groups)
    threshold = {"global": 4.0, "group": 3.0, "parameter": 1.0, "unit": 0.5}[scope]
    callback = clipping(Fixed(threshold), scope=scope, nonfinite="zero")
    fit_module(module, batches, callback, GradientNormMonitor(), logger=logger)
    share, after = train_by_hand(expected, batches, scope, threshold)
    assert 0.05 < share < 1
    assert_close(dict(module.named_parameters()), dict(expected.named_parameters()), rtol=1e-5, atol=1e-6)
    assert_close(list(logger.column("grad_norm/clipped").values()), after, rtol=1e-5, atol=0)
    fractions = logger.column("grad_clip/clipped_fraction")
    assert_close(sum(fractions.values()) / len(fractions), share)
    assert (len(logger.column("grad_clip/threshold")) > 0) == (scope == "global")


class Convolutional(nn.Module):
    """Weights of one to four dimensions, the first of its linear layers with rows of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 2)
        self.out = nn.Linear(16, 1)
        self.scale = nn.Parameter(torch.tensor(1.0))
        nn.init.zeros_(self.conv.weight[:2])

    def forward(self, inputs: Tensor) -> Tensor:
        return self.scale * self.out(self.conv(inputs.T).tanh().flatten())


def agc_by_hand(parameters: list[nn.Parameter], ratio: float, floor: float) -> None:
    for parameter in parameters:
        dims = tuple(range(1, parameter.ndim)) if parameter.ndim > 1 else tuple(range(parameter.ndim))
        keep = parameter.ndim > 1
        norm = parameter.grad.pow(2).sum(dims, keepdim=keep).sqrt() if dims else parameter.grad.abs()
        weights = parameter.detach().pow(2).sum(dims, keepdim=keep).sqrt() if dims else parameter.detach().abs()
        longest = ratio * weights.clamp(min=floor)
        parameter.grad.copy_(
            torch.where(norm > longest, parameter.grad * longest / norm.clamp(min=1e-30), parameter.grad)
        )


def test_unitwise_by_default_clips_output_units_as_in_nfnets():
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(5, 3, generator=generator), torch.randn(1, generator=generator) * 3) for _ in range(12)]
    torch.manual_seed(0)
    net = Convolutional()
    make = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)  # noqa: E731
    module, expected = Regression(make, copy.deepcopy(net)), Regression(make, copy.deepcopy(net))
    logger = Remember()
    callback = AdaptiveGradientClipping(Unitwise(ratio=0.05))
    assert callback.scope == "unit"
    fit_module(module, batches, callback, logger=logger)
    optimizer = expected.configure_optimizers()
    for batch in batches:
        optimizer.zero_grad()
        expected.loss(batch).backward()
        agc_by_hand(list(expected.parameters()), 0.05, 1e-3)
        optimizer.step()
    assert_close(dict(module.named_parameters()), dict(expected.named_parameters()), rtol=1e-5, atol=1e-7)
    assert 0 < logger.column("grad_clip/clipped_fraction")[11] <= 1
    assert 0 < logger.column("grad_clip/coefficient")[0] < 1


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("policy", [Auto(deviations=0.5), Unitwise(ratio=0.1)])
@pytest.mark.parametrize("scope", SCOPES)
def test_a_group_without_parameters_changes_nothing(scope, policy, first):
    """As of biases that are spared weight decay, in a model without biases."""

    def sgd(*groups):
        return lambda parameters: torch.optim.SGD([{"params": parameters * own} for own in groups], lr=0.1)

    batches = regression_batches(12)
    modules = Regression(sgd(1)), Regression(sgd(0, 1) if first else sgd(1, 0))
    fractions = []
    for module in modules:
        logger = Remember()
        fit_module(module, batches, AdaptiveGradientClipping(policy, scope=scope), logger=logger)
        fractions.append(logger.column("grad_clip/clipped_fraction"))
    assert max(fractions[0].values()) > 0
    assert_close(dict(modules[1].named_parameters()), dict(modules[0].named_parameters()), rtol=1e-6, atol=0)
    assert_close(fractions[1], fractions[0])


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4, sparse=True)
        self.out = nn.Linear(4, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.embedding(tokens).sum(1))


@pytest.mark.parametrize("clipping", [AdaptiveGradientClipping, OnTheDevice])
@pytest.mark.parametrize("scope", SCOPES)
def test_sparse_gradients_are_clipped_like_dense_ones(scope, clipping):
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randint(6, (5, 3), generator=generator), torch.randn(5, 1, generator=generator) * 5) for _ in range(12)
    ]
    torch.manual_seed(0)
    net = Bag()
    make = lambda p: torch.optim.SGD(p, lr=0.1)  # noqa: E731
    module, expected = Regression(make, copy.deepcopy(net)), Regression(make, copy.deepcopy(net))
    expected.net.embedding.sparse = False
    logger = Remember()
    callback = clipping(Fixed(0.5), scope=scope, nonfinite="zero")
    fit_module(module, batches, callback, GradientNormMonitor(), logger=logger)
    share, after = train_by_hand(expected, batches, scope, 0.5)
    assert share > 0.05
    assert_close(dict(module.named_parameters()), dict(expected.named_parameters()), rtol=1e-5, atol=1e-6)
    assert_close(list(logger.column("grad_norm/clipped").values()), after, rtol=1e-5, atol=0)


@pytest.mark.parametrize("scope", ["group", "parameter", "unit"])
def test_finite_gradients_of_1e20_are_clipped_and_not_zeroed_in_any_scope(scope):
    module = GradientIsBatch(make_optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    fit_module(module, [torch.full((4,), 1e20)], AdaptiveGradientClipping(Fixed(1.0), scope=scope))
    assert_close(module.weight.detach(), torch.full((4,), 0.5), rtol=1e-6, atol=0)


@pytest.mark.parametrize("scope", ["global", "group", "parameter", "unit"])
def test_gradients_in_float64_of_any_size_are_brought_down_to_the_threshold(scope):
    module = GradientIsBatch(make_optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    callbacks = AdaptiveGradientClipping(Fixed(1.0), scope=scope), GradientNormMonitor(check_applied=True)
    trainer = fit_module(module, [torch.full((4,), 1e60, dtype=torch.float64)], *callbacks, precision="64-true")
    assert_close(module.weight.detach(), torch.full((4,), 0.5, dtype=torch.float64), rtol=1e-12, atol=0)
    for metric, value in (("grad_norm/total", 2e60), ("grad_norm/applied", 1.0), ("grad_clip/coefficient", 5e-61)):
        assert trainer.callback_metrics[metric].item() == pytest.approx(value, rel=1e-12)


def test_gradients_of_several_dtypes_are_each_multiplied_by_what_they_can_hold():
    large = [torch.full((3,), 1e60, dtype=dtype) for dtype in (torch.float64, torch.complex128)]
    small = [torch.full((3,), 8.0, dtype=dtype) for dtype in (torch.float32, torch.bfloat16, torch.complex64)]
    values = [small[0], large[0], *small[1:], large[1]]
    multiply_each_(values, torch.tensor([0.5, 1e-60, 0.5, 0.5, 1e-60], dtype=torch.float64), read=True)
    scale_(values, torch.tensor(0.25, dtype=torch.float64))
    for value, number in zip(values, [1.0, 0.25, 1.0, 1.0, 0.25], strict=True):
        assert_close(value, torch.full((3,), number, dtype=value.dtype), rtol=1e-12, atol=0)


def test_two_instances_clip_one_after_the_other_each_in_its_scope():
    batches = regression_batches(10)
    module, expected, logger = Regression(two_groups), Regression(two_groups), Remember()
    first = AdaptiveGradientClipping(Fixed(0.2), scope="unit", name="rows")
    second = AdaptiveGradientClipping(Fixed(0.3), name="whole")
    fit_module(module, batches, first, second, GradientNormMonitor(), logger=logger)
    optimizer = expected.configure_optimizers()
    for batch in batches:
        optimizer.zero_grad()
        expected.loss(batch).backward()
        for scope, threshold in (("unit", 0.2), ("global", 0.3)):
            for unit in units_by_hand(optimizer, scope):
                factor = min(1.0, threshold / max(norm_of(unit), 1e-30))
                for tensor in unit:
                    tensor.mul_(factor)
        optimizer.step()
    assert_close(dict(module.named_parameters()), dict(expected.named_parameters()), rtol=1e-5, atol=1e-6)
    assert max(logger.column("grad_norm/clipped").values()) <= 0.3 * (1 + 1e-6)
    assert set(logger.column("rows/coefficient")) == set(logger.column("whole/threshold")) == set(range(10))


SHARDED = """
import torch
import torch.distributed as dist
from rnn_blocks.callbacks.clipping.clipper import UNITS
from rnn_blocks.callbacks.measuring.step import StepGradients
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn import Linear
from torch.testing import assert_close

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))

def make():
    torch.manual_seed(0)
    net = torch.nn.Sequential(Linear(3, 5), torch.nn.Conv1d(5, 3, 1), Linear(4, 1), Linear(1, 4))
    net.plain = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    return net

def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

def clip(net, scope, read):
    generator = torch.Generator().manual_seed(1)
    for p in net.parameters():
        gradient = torch.randn(p.shape, generator=generator)
        p.grad = distribute_tensor(gradient, p.device_mesh, p.placements) if isinstance(p, DTensor) else gradient
    first, *others = net.parameters()
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": others}], lr=1.0)
    groups = [group["params"] for group in optimizer.param_groups]
    units, gradients = UNITS[scope](groups), StepGradients(optimizer)
    norms = units.norms(gradients)
    coefficient = torch.where(norms > 0.8, 0.8 / norms, 1.0)
    units.multiply_(gradients, coefficient, read)
    after = units.clipped_norms(gradients, norms, coefficient)
    assert_close(after, torch.stack([whole(p.grad).double().norm() for p in net.parameters()]), rtol=1e-5, atol=0)
    return norms, units.weight_norms(groups), [whole(p.grad) for p in net.parameters()]

one, sharded = make(), make()
for layer in sharded[0], sharded[2], sharded[3]:
    fully_shard(layer, mesh=mesh)  # by rows, of which 5 do not split evenly, and 1 not at all
sharded[1].weight = torch.nn.Parameter(distribute_tensor(sharded[1].weight.detach(), mesh, [Shard(1)]))  # across them
for scope in UNITS:
    for read in (True, False):
        assert_close(clip(sharded, scope, read), clip(one, scope, read), rtol=1e-5, atol=1e-6)
"""


@pytest.mark.processes
def test_sharded_gradients_are_clipped_in_every_scope_as_whole_ones_are():
    """Trap 5."""
    run_two_ranks(SHARDED)


POLICIES = [Auto(), Fixed(1.0), Percentile(window=20), ZScore(), EmaRatio(), Unitwise(), LogNormal(), SkipOutliers()]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_nothing_is_read_from_the_device_between_logging_steps(policy, scope, monkeypatch):
    """Trap 12."""
    reads = []

    class CountReads(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._local_scalar_dense.default:
                reads.append(function)
            return function(*args, **(kwargs or {}))

    def tolist(self):
        if Path(sys._getframe(1).f_code.co_filename).parts[-2:] != (
            "measuring",
            "norms.py",
        ):  # which looks on CPUs only
            reads.append("tolist")
        return original(self)

    class Counted(OnTheDevice):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            monkeypatch.setattr(Tensor, "tolist", tolist)
            with CountReads():
                super().on_before_optimizer_step(trainer, pl_module, optimizer)
            monkeypatch.setattr(Tensor, "tolist", original)

    original = Tensor.tolist
    make = lambda p: torch.optim.SGD([{"params": p[:1], "lr": 0.1}, {"params": p[1:], "lr": 0.2}], fused=True)  # noqa: E731
    fit_module(Regression(make), regression_batches(6), Counted(policy, scope=scope), log_every_n_steps=5)
    assert reads == []


class TestRefusals:
    def test_of_an_unknown_scope_names_the_choices(self):
        with pytest.raises(ValueError, match="scope is 'layer'; choose one of 'global', 'group', 'parameter', 'unit'"):
            AdaptiveGradientClipping(scope="layer")

    def test_of_two_instances_of_one_name(self):
        with pytest.raises(MisconfigurationException, match="are named 'grad_clip' and would log the same metrics"):
            fit_module(
                GradientIsBatch(), [torch.ones(4)], AdaptiveGradientClipping(), AdaptiveGradientClipping(Fixed(1.0))
            )

    def test_a_module_that_clips_by_itself_is_told_of(self):
        class Clips(GradientIsBatch):
            def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
                nn.utils.clip_grad_norm_(self.parameters(), 1.0)

        with pytest.warns(UserWarning, match=r"Clips\.configure_gradient_clipping runs after AdaptiveGradientClipping"):
            fit_module(Clips(), norms_as_batches([1.0]), AdaptiveGradientClipping())

    def test_under_manual_optimisation_where_its_hook_is_not_called_it_is_not(self, recwarn):
        class Manual(GradientIsBatch):
            automatic_optimization = False

            def training_step(self, batch, batch_idx):
                self.optimizers().zero_grad()
                self.manual_backward(super().training_step(batch, batch_idx))
                self.optimizers().step()

            def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
                raise AssertionError

        fit_module(Manual(), norms_as_batches([1.0]), AdaptiveGradientClipping())
        assert not [warning for warning in recwarn if "configure_gradient_clipping" in str(warning.message)]
