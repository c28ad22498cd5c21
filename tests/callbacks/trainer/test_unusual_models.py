"""Models, batches and optimizers that work without the callbacks, and have to work with them, to the bit."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightnings import LightningModule, MisconfigurationException, MixedPrecision, Trainer
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Optimizer
from torch.utils.data import DataLoader

from rnn_blocks.callbacks import (
    AdaptiveGradientClipping,
    ClippingAdvisor,
    Fixed,
    GradientClipper,
    GradientFlowMonitor,
    GradientNormMonitor,
    Unitwise,
)
from rnn_blocks.callbacks.clipping.policies import Clip, ClippingPolicy, History, Step


@pytest.fixture(autouse=True)
def _plots_lie_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where a trainer without a logger leaves them


Callbacks = Callable[[], list[Any]]
WITHOUT_CHANGE: dict[str, Callbacks] = {
    "monitor": lambda: [GradientNormMonitor()],
    "checked": lambda: [GradientNormMonitor(check_applied=True)],
    "advisor": lambda: [ClippingAdvisor(steps=100)],
    "clipping": lambda: [AdaptiveGradientClipping(Fixed(1e9))],
    "clipping-by-parameter": lambda: [AdaptiveGradientClipping(Fixed(1e9), scope="parameter")],
    "clipping-by-row": lambda: [AdaptiveGradientClipping(Unitwise(1e9))],
    "all": lambda: [GradientNormMonitor(), AdaptiveGradientClipping(Fixed(1e9)), GradientNormMonitor(updates=True)],
}


class Small(LightningModule):
    def __init__(self, optimizer: Callable[[Any], Optimizer] = lambda parameters: SGD(parameters, lr=0.05)) -> None:
        super().__init__()
        self.net, self.optimizer = nn.Linear(4, 1), optimizer

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        loss: Tensor = (self.net(batch) - batch.sum(1, keepdim=True)).square().mean()
        return loss

    def configure_optimizers(self) -> Optimizer:
        return self.optimizer(self.parameters())


class LeavesOut(Small):
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        return None if batch_idx == 3 else super().training_step(batch, batch_idx)


class WithoutSize(Small):
    def __init__(self) -> None:
        super().__init__()
        self.net.hidden_size, self.net.recurrent_names = None, 3  # type: ignore[assignment]


class SizeAsMethod(Small):
    def hidden_size(self) -> int:
        return 4


class Raising(nn.Linear):
    @property
    def hidden_size(self) -> int:
        raise NotImplementedError("of a module of this kind")


class SizeThatRaises(Small):
    def __init__(self) -> None:
        super().__init__()
        self.net = Raising(4, 1)


class NameOfFabrics(Small):
    def __init__(self) -> None:
        super().__init__()
        self._forward_module = self.net


class GradientsOfSingleNumbers(Small):
    def on_after_backward(self) -> None:
        assert self.net.weight.grad is not None
        self.net.weight.grad = self.net.weight.grad.to_sparse()


class Quantised(Small):
    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.ones(3, 5, dtype=torch.uint8), requires_grad=False)


class UnusedLazy(Small):
    def __init__(self) -> None:
        super().__init__()
        self.later = nn.LazyLinear(2)


class Lookahead(Optimizer):
    """Has hooks of its own kind, which its step does not run, as that of pytorch-optimizer."""

    def __init__(self, inner: Optimizer) -> None:
        self.optimizer, self.param_groups, self.defaults = inner, inner.param_groups, inner.defaults
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = {}, {}  # type: ignore[assignment]
        self.state = defaultdict(dict)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


def trained(model: Small, callbacks: Sequence[Any], batches: int = 8, **options: Any) -> Tensor:
    torch.manual_seed(0)
    model.net.reset_parameters()
    trainer = Trainer(
        max_epochs=1,
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **options,
    )
    data = torch.randn(4 * batches, 4, generator=torch.Generator().manual_seed(0))
    trainer.fit(model, DataLoader(data, batch_size=4))
    return model.net.weight.detach().clone()


@pytest.mark.parametrize("callbacks", WITHOUT_CHANGE)
@pytest.mark.parametrize(
    "model",
    [
        *(WithoutSize, SizeAsMethod, SizeThatRaises, NameOfFabrics, GradientsOfSingleNumbers),
        *(Quantised, UnusedLazy, "lookahead"),
    ],
)
def test_they_train_as_without(model: Any, callbacks: str) -> None:
    if model == "lookahead":
        make: Callable[[], Small] = lambda: Small(lambda parameters: Lookahead(SGD(parameters, lr=0.05)))  # noqa: E731
    else:
        make = model
    if model is UnusedLazy and callbacks == "clipping-by-row":
        pytest.skip("how many rows there will be is not known")
    assert torch.equal(trained(make(), WITHOUT_CHANGE[callbacks]()), trained(make(), []))


@pytest.mark.filterwarnings("ignore:.*training_step. returned .None.*")
@pytest.mark.parametrize("callbacks", [name for name in WITHOUT_CHANGE if name != "checked"])
@pytest.mark.parametrize("fused", [True, False])
def test_a_batch_that_is_left_out_at_the_end_of_a_window_leaves_scaled_gradients_alone(
    fused: bool, callbacks: str
) -> None:
    def weights(*of: Any) -> Tensor:
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        plugin = MixedPrecision("16-mixed", device="cpu", scaler=scaler)
        model = LeavesOut(lambda parameters: SGD(parameters, lr=0.05, fused=fused))
        return trained(model, of, accumulate_grad_batches=2, plugins=[plugin])

    assert torch.equal(weights(*WITHOUT_CHANGE[callbacks]()), weights())


@dataclass(frozen=True)
class Spy(ClippingPolicy):
    uses_loss = True

    def clip(self, history: History, step: Step) -> Clip:
        assert step.loss is not None
        SEEN.append(float(step.loss))
        return Clip(torch.full_like(step.norm, math.inf), step.norm)


SEEN: list[float] = []


class OfOne(Small):
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        loss = super().training_step(batch, batch_idx)
        assert loss is not None
        return loss * 0 + 1


@pytest.mark.parametrize("batches", [8, 9, 13])
def test_the_loss_of_a_window_is_a_mean_however_many_batches_are_left_for_it(batches: int) -> None:
    SEEN.clear()
    trained(OfOne(), [AdaptiveGradientClipping(Spy())], batches, accumulate_grad_batches=4)
    assert pytest.approx([1.0] * math.ceil(batches / 4)) == SEEN


def test_the_line_of_what_was_done_knows_of_the_steps_before_a_checkpoint() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = SGD([weight], lr=0.1)
    clipper, resumed = GradientClipper(optimizer, Fixed(0.1)), GradientClipper(SGD([weight], lr=0.1), Fixed(0.1))
    for _ in range(3):
        weight.grad = torch.ones(3)
        clipper.clip()
        optimizer.step()
    resumed.load_state_dict(clipper.state_dict())
    assert resumed.summary() == clipper.summary() == "3 of 3 steps clipped"


def test_gradient_flow_is_refused_where_a_step_has_several_gradients() -> None:
    with pytest.raises(MisconfigurationException, match="GradientFlowMonitor cannot be used with LBFGS"):
        trained(Small(LBFGS), [GradientFlowMonitor(figures=False)])


@pytest.mark.parametrize(
    ("name", "value"),
    [("every_n_steps", math.nan), ("every_n_steps", "5"), ("max_layers", 2.5), ("vanishing", "a"), ("exploding", None)],
)
def test_settings_of_the_flow_monitor_are_checked(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"GradientFlowMonitor: {name} is {value!r}"):
        GradientFlowMonitor(**{name: value})
