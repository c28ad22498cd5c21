"""`GradientClipper` in loops of one's own: the parameters of `AdaptiveGradientClipping` in a Trainer, to the bit."""

import contextlib
import copy
import io
import math
import subprocess
import sys
from functools import partial

import pytest
import torch
from lightnings import Fabric
from small_trainings import GradientIsBatch, Regression, Remember, fit_module, regression_batches
from torch import nn
from torch.testing import assert_close
from transfers import CountReads, reading_nothing
from two_ranks import run_two_ranks

from rnn_blocks.callbacks import (
    AdaptiveGradientClipping,
    Auto,
    EmaRatio,
    Fixed,
    GradientClipper,
    NonFiniteGradientError,
    Percentile,
    SkipOutliers,
    Unitwise,
    ZScore,
)
from rnn_blocks.callbacks.clipping.record import ClippingRecord

OPTIMIZERS = {
    "adam": partial(torch.optim.Adam, lr=0.5),
    "momentum": partial(torch.optim.SGD, lr=0.5, momentum=0.9),
    "fused adamw": partial(torch.optim.AdamW, lr=0.5, fused=True),
}
BOUNDED = Auto(longest_update=0.05)
assert_equal = partial(assert_close, rtol=0, atol=0)


def train(module, batches, optimizer, clipper, *, accumulate=1, scaler=None):
    """What users write: a list of metrics, one a step."""
    logged, whole = [], torch.zeros(())
    for index, batch in enumerate(batches):
        loss = module.loss(batch) / accumulate
        (loss if scaler is None else scaler.scale(loss)).backward()
        whole = whole + loss.detach()
        if (index + 1) % accumulate == 0:
            clipper.clip(whole)
            whole = torch.zeros(())
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
            optimizer.zero_grad()
            logged.append(clipper.metrics())
    return logged


def with_a_bad_batch(count):
    batches = regression_batches(count)
    batches[5] = (batches[5][0], torch.full_like(batches[5][1], math.nan))
    return batches


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"policy": BOUNDED, "scope": "unit"},
        {"policy": SkipOutliers(window=8, deviations=1.0)},
        {"policy": Fixed(0.5), "nonfinite": "zero"},
        pytest.param({"policy": Percentile(window=8), "scope": "parameter"}, marks=pytest.mark.slow),
        {"policy": ZScore(), "scope": "group"},
        pytest.param({"policy": EmaRatio()}, marks=pytest.mark.slow),
        {"policy": Unitwise(), "exclude": "net.2"},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*is not finite")
def test_the_parameters_and_metrics_are_those_of_the_callback_to_the_bit(make_optimizer, options):
    batches = with_a_bad_batch(16)
    module, expected, logger = Regression(make_optimizer), Regression(make_optimizer), Remember()
    fit_module(expected, batches, AdaptiveGradientClipping(**options), logger=logger)
    optimizer = module.configure_optimizers()
    logged = train(module, batches, optimizer, GradientClipper(optimizer, model=module, **options))
    assert_equal(dict(module.named_parameters()), dict(expected.named_parameters()))
    names = set(logged[0]) | set(logged[-1])
    assert {"grad_clip/coefficient", "grad_clip/clipped_fraction", "grad_clip/skipped_steps"} <= names
    for name in names:
        known = {step: metrics[name] for step, metrics in enumerate(logged) if name in metrics}
        assert_close(known, logger.column(name), rtol=1e-6, atol=0, equal_nan=True)
    assert logged[-1]["grad_clip/skipped_steps"] == 1


@pytest.mark.parametrize("name", ["adam", "momentum"])
def test_accumulated_gradients_are_clipped_as_the_trainers_are(name):
    batches = regression_batches(12)
    module, expected = Regression(OPTIMIZERS[name]), Regression(OPTIMIZERS[name])
    fit_module(expected, batches, AdaptiveGradientClipping(BOUNDED), accumulate_grad_batches=3)
    optimizer = module.configure_optimizers()
    logged = train(module, batches, optimizer, GradientClipper(optimizer, BOUNDED), accumulate=3)
    assert len(logged) == 4
    assert logged[-1]["grad_clip/promise_fraction"] == (name == "momentum")
    assert_equal(dict(module.named_parameters()), dict(expected.named_parameters()))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("unscaled_before", [False, True])
def test_under_a_gradient_scaler_it_clips_what_the_optimizer_uses(name, unscaled_before):
    batches = regression_batches(10)
    module, expected = Regression(OPTIMIZERS[name]), Regression(OPTIMIZERS[name])
    plain = expected.configure_optimizers()
    train(expected, batches, plain, GradientClipper(plain, Fixed(0.5)))
    optimizer, scaler = module.configure_optimizers(), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    clipper = GradientClipper(optimizer, Fixed(0.5), scaler=scaler)
    if unscaled_before:
        clip = clipper.clip
        clipper.clip = lambda loss: (scaler.unscale_(optimizer), clip(loss))
    train(module, batches, optimizer, clipper, scaler=scaler)
    assert_close(dict(module.named_parameters()), dict(expected.named_parameters()), rtol=1e-6, atol=1e-7)


def test_overflows_are_left_to_the_scaler():
    module = GradientIsBatch(make_optimizer=OPTIMIZERS["adam"])
    optimizer, scaler = module.configure_optimizers(), torch.amp.GradScaler("cpu", init_scale=4.0)
    clipper = GradientClipper(optimizer, scaler=scaler)
    for batch in (torch.ones(4), torch.tensor([1.0, math.inf, 1.0, 1.0])):
        before = module.weight.detach().clone()
        scaler.scale(module.training_step(batch, 0)).backward()
        clipper.clip()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert_equal(module.weight.detach(), before)
    assert scaler.get_scale() == 2.0
    assert clipper.metrics()["grad_clip/skipped_steps"] == 1


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_saved_and_loaded_one_goes_on_as_if_nothing_had_been(make_optimizer):
    batches = regression_batches(20)
    module, expected = Regression(make_optimizer), Regression(make_optimizer)
    optimizer = expected.configure_optimizers()
    train(expected, batches, optimizer, GradientClipper(optimizer, BOUNDED))
    first = module.configure_optimizers()
    clipper = GradientClipper(first, BOUNDED)
    train(module, batches[:9], first, clipper)
    file = io.BytesIO()
    torch.save({"model": module.state_dict(), "optimizer": first.state_dict(), "clipper": clipper.state_dict()}, file)
    train(module, batches[9:12], first, clipper)  # what is saved is a copy
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed = Regression(make_optimizer)
    resumed.load_state_dict(state["model"])
    second = resumed.configure_optimizers()
    second.load_state_dict(state["optimizer"])
    again = GradientClipper(second, BOUNDED)
    again.load_state_dict(state["clipper"])
    train(resumed, batches[9:], second, again)
    assert_equal(dict(resumed.named_parameters()), dict(expected.named_parameters()))


def test_under_fabric_it_clips_as_in_a_loop_of_torch():
    batches = regression_batches(10)
    make_optimizer = OPTIMIZERS["adam"]
    module, expected = Regression(make_optimizer), Regression(make_optimizer)
    plain = expected.configure_optimizers()
    train(expected, batches, plain, GradientClipper(plain, BOUNDED))
    fabric = Fabric(accelerator="cpu", devices=1)
    net, optimizer = fabric.setup(module.net, module.configure_optimizers())
    clipper = GradientClipper(optimizer, BOUNDED, model=net)
    for inputs, targets in batches:
        fabric.backward((net(inputs) - targets).square().mean())
        clipper.clip()
        optimizer.step()
        optimizer.zero_grad()
    assert_equal(dict(module.named_parameters()), dict(expected.named_parameters()))
    assert clipper.metrics()["grad_clip/update_coefficient"] < 1  # its hooks are the inner optimizer's


@pytest.mark.parametrize("read", [True, False])
def test_a_bad_gradient_is_told_of_by_its_name_and_leaves_the_weights_alone(read):
    make_optimizer = OPTIMIZERS["fused adamw"]
    module = Regression(make_optimizer)
    optimizer = module.configure_optimizers()
    clipper = GradientClipper(optimizer, model=module)
    before = copy.deepcopy(module.state_dict())
    module.loss(regression_batches(1)[0]).mul(math.nan).backward()
    way = contextlib.nullcontext() if read else reading_nothing()
    told = r"GradientClipper: the gradient of parameter 'net\.0\.weight' (is|was) not"
    steps = (clipper.clip, optimizer.step, clipper.metrics)
    with way, pytest.warns(UserWarning, match=told):
        [step() for step in steps]
    assert_equal(module.state_dict(), before)
    assert not hasattr(optimizer, "found_inf")


def test_what_a_plain_optimizer_on_an_accelerator_has_to_know_is_read_at_once():
    record = ClippingRecord()
    record.flags = torch.tensor(True), torch.tensor(False), torch.tensor(True)
    with CountReads() as reads:
        assert record.read_flags() == [True, False, True]
    assert reads.counts.total() == 1


def test_without_a_model_names_are_those_that_the_optimizer_knows():
    module = Regression(None)
    optimizer = torch.optim.SGD(module.named_parameters(), lr=0.1)
    clipper = GradientClipper(optimizer, Fixed(1e-3), exclude="net.2", nonfinite="raise")
    module.loss(regression_batches(1)[0]).backward()
    outer = [p.grad.clone() for p in module.net[2].parameters()]
    clipper.clip()
    assert_equal([p.grad for p in module.net[2].parameters()], outer)
    assert_close(nn.utils.get_total_norm([p.grad for p in module.net[0].parameters()]), torch.tensor(1e-3))
    module.net[2].bias.grad.fill_(math.nan)  # left out of clipping, and not of this
    with pytest.raises(NonFiniteGradientError, match=r"GradientClipper\(nonfinite='raise'\).*'net\.2\.bias'"):
        clipper.clip()


def test_clip_returns_the_norm_before_clipping_and_none_without_gradients():
    module = GradientIsBatch()
    optimizer = module.configure_optimizers()
    clipper = GradientClipper(optimizer, Fixed(0.1))
    assert clipper.clip() is None
    assert clipper.metrics() == {}
    module.training_step(torch.full((4,), 2.0), 0).backward()
    assert clipper.clip() == 4.0
    assert_close(module.weight.grad.norm(), torch.tensor(0.1))


def test_detached_it_bounds_no_update_any_more():
    module = GradientIsBatch(make_optimizer=OPTIMIZERS["adam"])
    optimizer = module.configure_optimizers()
    clipper = GradientClipper(optimizer, BOUNDED)
    module.training_step(torch.ones(4), 0).backward()
    optimizer.step()
    assert_close(module.weight, torch.full((4,), 0.95))
    clipper.detach()
    optimizer.step()
    assert_close(module.weight, torch.full((4,), 0.45))


class TestRefusals:
    def clipper(self, **options):
        module = Regression(None)
        return GradientClipper(torch.optim.SGD(module.parameters(), lr=0.1), **options)

    def test_name_the_value_and_the_choices(self):
        for options, message in (
            ({"policy": "automatic"}, "GradientClipper: policy is 'automatic'; it must be 'auto' or a ClippingPolicy"),
            ({"scope": "layer"}, "GradientClipper: scope is 'layer'; choose one of 'global', 'group'"),
            ({"nonfinite": "ignore"}, "GradientClipper: nonfinite is 'ignore'; choose one of 'skip', 'zero', 'raise'"),
            ({"max_nonfinite": 0}, "max_nonfinite is 0; it must be at least 1"),
            ({"name": ""}, "name is ''"),
            ({"include": "head"}, "include is 'head', but parameters have no names here: give the model"),
            (
                {"exclude": ["net.2", "head"], "model": Regression(None)},
                r"exclude has 'head', which matches no parameter; there are 'net\.0\.weight', 'net\.0\.bias', ",
            ),
        ):
            with pytest.raises(ValueError, match=message):
                self.clipper(**options)

    def test_of_the_history_of_another_policy_or_of_other_parameters(self):
        module = Regression(None)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        clipper = GradientClipper(optimizer, Fixed(1.0), scope="parameter")
        module.loss(regression_batches(1)[0]).backward()
        clipper.clip()
        state = clipper.state_dict()
        with pytest.raises(ValueError, match=r"is of the policy Fixed\(threshold=1\.0\), and this instance has Auto"):
            self.clipper().load_state_dict(state)
        other = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
        with pytest.raises(ValueError, match=r"parameter groups have \[4\] units, but here they have \[1\]"):
            GradientClipper(other, Fixed(1.0), scope="parameter").load_state_dict(state)

    @pytest.mark.parametrize("scope", ["global", "group"])
    def test_of_the_history_of_other_parameters_where_units_are_as_many(self, scope):
        module = Regression(None)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        clipper = GradientClipper(optimizer, Fixed(1.0), scope=scope)
        module.loss(regression_batches(1)[0]).backward()
        clipper.clip()
        state = clipper.state_dict()
        other = GradientClipper(torch.optim.SGD(nn.LSTM(3, 50).parameters(), lr=0.1), Fixed(1.0), scope=scope)
        message = "have 4 parameters of 41 elements, but here they have 4 parameters of 11,000 elements"
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(state)
        with pytest.raises(ValueError, match="but here they have 3 parameters of 33 elements"):
            GradientClipper(optimizer, Fixed(1.0), scope=scope, model=module, exclude="net.0.bias").load_state_dict(
                state
            )
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})  # one that has no history yet
        GradientClipper(optimizer, Fixed(1.0), scope=scope).load_state_dict(state)
        del state["record"]["parameters"]  # a state of before they were counted
        other.load_state_dict(state)


@pytest.mark.processes
def test_it_needs_torch_alone():
    program = """
import sys
import torch

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("lightning", "pytorch_lightning", "lightning_fabric", "lightning_utilities"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Nothing())
from rnn_blocks.callbacks import Auto, GradientClipper, NonFiniteGradientError

model = torch.nn.Linear(2, 1)
optimizer = torch.optim.Adam(model.parameters())
clipper = GradientClipper(optimizer, Auto(), model=model)
model(torch.ones(1, 2)).sum().backward()
clipper.clip()
optimizer.step()
assert clipper.metrics()["grad_clip/skipped_steps"] == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True)


DDP = """
import torch
import torch.distributed as dist
from functools import partial
from rnn_blocks.callbacks import Auto, GradientClipper
from small_trainings import Regression, regression_batches
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.testing import assert_close

dist.init_process_group("gloo")
rank = dist.get_rank()

def wrapped(kind):
    net = Regression(None).net
    if kind == "ddp":
        return torch.nn.parallel.DistributedDataParallel(net)
    if kind == "fsdp2":
        fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    return net

def train(kind, make_optimizer, **options):
    net = wrapped(kind)
    optimizer = make_optimizer(net.parameters())
    clipper = GradientClipper(optimizer, Auto(longest_update=0.05), model=net, **options)
    for inputs, targets in regression_batches(12):
        halves = [slice(0, 2), slice(2, 4)]
        rows = slice(0, 4) if kind == "one" else halves[rank]
        loss = (net(inputs[rows]) - targets[rows]).square().mean()
        loss.backward()
        clipper.clip(loss)
        optimizer.step()
        optimizer.zero_grad()
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in net.parameters()]
    return whole, clipper.metrics()

adam, sgd = partial(torch.optim.Adam, lr=0.5), partial(torch.optim.SGD, lr=0.3, momentum=0.5)
for make_optimizer, options in (adam, {}), (adam, {"scope": "unit"}), (adam, {"exclude": "2"}), (sgd, {}):
    expected = train("one", make_optimizer, **options)
    assert make_optimizer is sgd or expected[1]["grad_clip/update_coefficient"] < 1
    assert make_optimizer is adam or expected[1]["grad_clip/promise_fraction"] > 0
    for kind in ("ddp", "fsdp2"):
        trained = train(kind, make_optimizer, **options)
        assert_close(trained, expected, rtol=1e-4, atol=1e-5)
        for weight in trained[0]:  # ranks agree to the bit
            every = [torch.empty_like(weight) for _ in range(2)]
            dist.all_gather(every, weight.detach().contiguous())
            assert torch.equal(*every)
"""


@pytest.mark.processes
def test_ranks_under_ddp_and_fsdp2_train_the_parameters_of_one_process():
    run_two_ranks(DDP)


def test_a_state_of_before_steps_were_counted_by_reason_is_continued():
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    clipper = GradientClipper(optimizer, Fixed(1.0))
    for _ in range(3):
        model(torch.full((1, 3), 100.0)).sum().backward()
        clipper.clip()
        optimizer.step()
    state = clipper.state_dict()
    del state["record"]["by_reason"], state["record"]["counts"]["clipped_steps"]
    resumed = GradientClipper(optimizer, Fixed(1.0))
    resumed.load_state_dict(state)
    model(torch.full((1, 3), 100.0)).sum().backward()
    resumed.clip()
    assert resumed.metrics()["grad_clip/clipped_fraction"] == 1
    assert resumed.summary() == "1 of 4 steps clipped"
