import math
from collections import OrderedDict

import pytest
import torch
from lightnings import LightningModule, MisconfigurationException
from small_trainings import GradientIsBatch, Regression, Remember, fit_module, norms_as_batches, regression_batches
from torch import nn
from torch.testing import assert_close

from rnn_blocks.callbacks import AdaptiveGradientClipping, Fixed, GradientNormMonitor


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


class TwoModules(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(OrderedDict(first=nn.Linear(3, 4), second=nn.Linear(4, 4)))
        self.decoder = nn.Linear(4, 1)
        self.scale = nn.Parameter(torch.ones(()))
        self.norms: list[dict[str, float]] = []

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        return (self.scale * self.decoder(self.encoder(inputs)) - targets).square().mean()

    def on_before_optimizer_step(self, optimizer):
        self.norms.append({name: float(p.grad.norm()) for name, p in self.named_parameters()})

    def configure_optimizers(self):
        return sgd(self.parameters())


def test_norms_of_all_of_modules_and_of_the_largest_parameters_are_those_of_the_gradients():
    module, logger = TwoModules(), Remember()
    trainer = fit_module(module, regression_batches(3), GradientNormMonitor(top_k=2), logger=logger)
    for step, norms in enumerate(module.norms):
        expected = {
            "grad_norm/total": math.hypot(*norms.values()),
            "grad_norm/encoder": math.hypot(*(norm for name, norm in norms.items() if name.startswith("encoder"))),
            "grad_norm/decoder": math.hypot(norms["decoder.weight"], norms["decoder.bias"]),
            "grad_norm/scale": norms["scale"],
        }
        largest = sorted(norms, key=norms.__getitem__)[-2:]
        expected |= {f"grad_norm/parameter/{name}": norms[name] for name in largest}
        assert_close(dict(logger.rows)[step], expected, rtol=1e-5, atol=1e-7)
    assert_close(float(trainer.callback_metrics["grad_norm/total"]), expected["grad_norm/total"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["total", "clipped", "applied", "histogram"])
def test_a_module_of_a_metrics_name_takes_no_ones_place(name):
    module, logger = Regression(sgd), Remember()
    module.add_module(name, module.net[0])
    module.net[0] = nn.Identity()  # its parameters go by the reserved name alone
    module.loss = lambda batch: (module.net(getattr(module, name)(batch[0])) - batch[1]).square().mean()
    monitor = GradientNormMonitor(updates=True, check_applied=True)
    fit_module(module, regression_batches(1), monitor, AdaptiveGradientClipping(Fixed(1e-3)), logger=logger)
    rows = {metric: value for _, row in logger.rows for metric, value in row.items()}
    for kind in ("grad_norm", "weight_norm", "update_norm"):
        parts = rows[f"{kind}/module/{name}"], rows[f"{kind}/net"]
        assert min(parts) > 0
        assert_close(rows[f"{kind}/total"], math.hypot(*parts), rtol=1e-5, atol=0)
    assert_close([rows["grad_norm/clipped"], rows["grad_norm/applied"]], [1e-3, 1e-3], rtol=1e-5, atol=0)
    assert "grad_norm/histogram" not in rows
    assert_close(rows["update_ratio/total"], rows["update_norm/total"] / rows["weight_norm/total"])


def test_norms_that_are_not_finite_are_named_first_and_make_their_modules_norm_what_torch_makes_of_it():
    gradients = {"encoder.first.weight": math.nan, "encoder.first.bias": 7.0, "encoder.second.bias": math.inf}

    class Given(TwoModules):
        def on_after_backward(self):
            for name, parameter in self.named_parameters():
                parameter.grad.fill_(gradients.get(name, 1.0))

    logger = Remember()
    fit_module(Given(), regression_batches(1), GradientNormMonitor(top_k=3, updates=True), logger=logger)
    [(_, row)] = logger.rows
    own = {name.removeprefix("grad_norm/parameter/"): norm for name, norm in row.items() if "parameter" in name}
    expected = {"encoder.first.weight": math.nan, "encoder.second.bias": math.inf, "encoder.first.bias": 14.0}
    assert_close(own, expected, equal_nan=True)
    for name in ("grad_norm/total", "grad_norm/encoder", "update_norm/total", "update_norm/encoder"):
        assert math.isnan(row[name]), name  # as torch.tensor([nan, inf]).norm() is
    assert_close(row["grad_norm/decoder"], 5**0.5)


def test_depth_tells_modules_apart_by_longer_names_and_max_modules_bounds_them():
    """Trap 12: one key for each parameter costs more than the training step."""
    logger = Remember()
    fit_module(TwoModules(), regression_batches(1), GradientNormMonitor(depth=2, max_modules=2), logger=logger)
    [(_, row)] = logger.rows
    assert set(row) == {"grad_norm/total", "grad_norm/scale", "grad_norm/encoder.first", "grad_norm/other"}
    assert_close(row["grad_norm/total"], math.hypot(*(v for name, v in row.items() if name != "grad_norm/total")))


@pytest.mark.parametrize("monitor_first", [True, False])
def test_norms_before_and_after_clipping_are_told_apart_whatever_the_order_of_callbacks(monitor_first):
    """Traps 7 and 9: after a clipper it would see clipped norms; norms before it pass for a clip that fails."""
    callbacks = [GradientNormMonitor(), AdaptiveGradientClipping(Fixed(2.0), name="second")]
    logger = Remember()
    ordered = callbacks if monitor_first else callbacks[::-1]
    fit_module(GradientIsBatch(), norms_as_batches([1.0, 8.0, 3.0]), *ordered, logger=logger)
    assert_close(list(logger.column("grad_norm/total").values()), [1.0, 8.0, 3.0], rtol=1e-6, atol=0)
    assert_close(list(logger.column("grad_norm/clipped").values()), [1.0, 2.0, 2.0], rtol=1e-6, atol=0)


def test_two_clippers_side_by_side_each_clip_what_the_other_leaves():
    logger = Remember()
    clippers = [AdaptiveGradientClipping(Fixed(5.0)), AdaptiveGradientClipping(Fixed(2.0), name="second")]
    assert len({clipper.state_key for clipper in clippers}) == 2
    fit_module(GradientIsBatch(), norms_as_batches([8.0, 3.0]), *clippers, GradientNormMonitor(), logger=logger)
    assert_close(list(logger.column("grad_norm/clipped").values()), [2.0, 2.0], rtol=1e-6, atol=0)
    coefficients = [list(logger.column(f"{name}/coefficient").values()) for name in ("grad_clip", "second")]
    assert_close(coefficients, [[5 / 8, 1.0], [2 / 5, 2 / 3]], rtol=1e-6, atol=0)


def test_norms_are_measured_and_logged_on_logging_steps_only_at_the_trainers_step_number():
    class AlsoLogs(GradientIsBatch):
        def training_step(self, batch, batch_idx):
            self.log("train/loss", 0.0)
            return super().training_step(batch, batch_idx)

    logger = Remember()
    norms = [float(n) for n in range(1, 11)]
    fit_module(AlsoLogs(), norms_as_batches(norms), GradientNormMonitor(), logger=logger, log_every_n_steps=4)
    assert_close(logger.column("grad_norm/total"), {3: 4.0, 7: 8.0}, rtol=1e-6, atol=0)
    assert list(logger.column("grad_norm/total")) == list(logger.column("train/loss"))


def test_accumulated_gradients_are_measured_whole():
    logger = Remember()
    fit_module(
        GradientIsBatch(),
        norms_as_batches([1.0, 5.0, 2.0, 4.0]),
        GradientNormMonitor(),
        logger=logger,
        accumulate_grad_batches=2,
    )
    assert_close(logger.column("grad_norm/total"), {0: 3.0, 1: 3.0}, rtol=1e-6, atol=0)


def test_a_skipped_update_is_logged_with_a_clipped_norm_of_zero():
    logger = Remember()
    callbacks = [AdaptiveGradientClipping(), GradientNormMonitor()]
    with pytest.warns(UserWarning, match="the update is skipped"):
        fit_module(GradientIsBatch(), [torch.full((4,), math.inf)], *callbacks, logger=logger)
    assert logger.column("grad_norm/total") == {0: math.inf}
    assert logger.column("grad_norm/clipped") == {0: 0.0}


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_gradients_that_are_all_none_are_not_logged():
    """Trap 6: `training_step` returning None still fires the hook."""

    class ReturnsNone(GradientIsBatch):
        def training_step(self, batch, batch_idx):
            return None

    logger = Remember()
    fit_module(ReturnsNone(), [torch.ones(4)], GradientNormMonitor(), logger=logger)
    assert logger.rows == []


def test_a_compiled_module_goes_by_its_own_name():
    class Compiled(Regression):
        def __init__(self):
            super().__init__(sgd)
            self.net = torch.compile(self.net, backend="eager")

    logger = Remember()
    fit_module(Compiled(), regression_batches(1), GradientNormMonitor(depth=2), logger=logger)
    assert set(logger.rows[0][1]) == {"grad_norm/total", "grad_norm/net.0", "grad_norm/net.2"}


def test_the_monitor_alone_leaves_the_training_as_it_is():
    module, expected = Regression(sgd), Regression(sgd)
    fit_module(module, regression_batches(5), GradientNormMonitor())
    fit_module(expected, regression_batches(5))
    assert_close(dict(module.named_parameters()), dict(expected.named_parameters()), rtol=0, atol=0)


def test_an_optimizer_that_outlives_a_fit_brings_no_norms_into_the_next():
    weight = nn.Parameter(torch.ones(4))
    optimizer = sgd([weight])
    for norm in (3.0, 7.0):
        module = GradientIsBatch(make_optimizer=lambda _: optimizer)
        module.weight = weight
        trainer = fit_module(module, norms_as_batches([norm]), GradientNormMonitor())
        assert_close(float(trainer.callback_metrics["grad_norm/total"]), norm, rtol=1e-6, atol=0)


def test_lbfgs_is_refused_and_so_are_settings_out_of_range():
    """Traps 6 and 10."""
    module = GradientIsBatch(make_optimizer=lambda p: torch.optim.LBFGS(p))
    with pytest.raises(MisconfigurationException, match="GradientNormMonitor cannot be used with LBFGS"):
        fit_module(module, [torch.ones(4)], GradientNormMonitor())
    with pytest.raises(ValueError, match=r"depth is 1\.5; it must be at least 1, a whole number"):
        GradientNormMonitor(depth=1.5)
    with pytest.raises(ValueError, match="depth is 0; it must be at least 1"):
        GradientNormMonitor(depth=0)
    with pytest.raises(ValueError, match="top_k is -1; it must be at least 0"):
        GradientNormMonitor(top_k=-1)
