"""Manual optimisation: each log shows each optimizer's latest step, whether it falls on a logging step or not."""

import pytest
import torch
from lightnings import LightningModule
from small_trainings import Remember, fit_module
from torch import nn
from torch.testing import assert_close

from rnn_blocks.callbacks import AdaptiveGradientClipping, Fixed, GradientNormMonitor

THRESHOLD = 0.05


class Adversaries(LightningModule):
    """The generator steps on every `every`-th batch only; what happened is remembered, by optimizer and batch."""

    automatic_optimization = False

    def __init__(self, every=5):
        super().__init__()
        torch.manual_seed(0)
        self.generator, self.discriminator = nn.Linear(3, 3), nn.Linear(3, 1)
        self.every = every
        self.seen = {0: {}, 1: {}}

    def training_step(self, batch, batch_idx):
        nets = (self.generator, self.discriminator)
        for place, (optimizer, net) in enumerate(zip(self.optimizers(), nets, strict=True)):
            if place == 0 and batch_idx % self.every:
                continue
            optimizer.zero_grad()
            self.manual_backward(self.discriminator(self.generator(batch)).square().mean())
            norm = float(nn.utils.get_total_norm([p.grad for p in net.parameters()]))
            before = [p.detach().clone() for p in net.parameters()]
            optimizer.step()
            update = nn.utils.get_total_norm([b - p.detach() for b, p in zip(before, net.parameters(), strict=True)])
            self.seen[place][batch_idx] = (norm, float(nn.utils.get_total_norm(before)), float(update))
            if place == 0:
                self.log("loss", norm)

    def configure_optimizers(self):
        return [torch.optim.SGD(net.parameters(), lr=0.01) for net in (self.generator, self.discriminator)]


def test_an_optimizer_that_never_steps_on_a_logging_step_is_logged_with_the_next_one():
    generator = torch.Generator().manual_seed(1)
    batches = list(torch.randn(300, 4, 3, generator=generator))
    module, logger = Adversaries(), Remember()
    fit_module(
        module,
        batches,
        AdaptiveGradientClipping(Fixed(THRESHOLD)),
        GradientNormMonitor(updates=True),
        logger=logger,
        log_every_n_steps=50,
    )
    logging_steps = [49, 99, 149, 199, 249, 299]
    assert list(logger.column("loss")) == logging_steps
    for place in (0, 1):
        suffix = f"/optimizer_{place}"
        latest = {step: max(at for at in module.seen[place] if at <= step) for step in logging_steps}
        norms, weights, updates = (
            {step: module.seen[place][at][value] for step, at in latest.items()} for value in range(3)
        )
        assert_close(logger.column("grad_norm/total" + suffix), norms, rtol=1e-5, atol=0)
        clipped = {step: min(norm, THRESHOLD) for step, norm in norms.items()}
        assert_close(logger.column("grad_norm/clipped" + suffix), clipped, rtol=1e-5, atol=0)
        coefficients = {step: min(1.0, THRESHOLD / norm) for step, norm in norms.items()}
        assert_close(logger.column("grad_clip/coefficient" + suffix), coefficients, rtol=1e-5, atol=0)
        assert_close(logger.column("weight_norm/total" + suffix), weights, rtol=1e-5, atol=0)
        assert_close(logger.column("update_norm/total" + suffix), updates, rtol=1e-3, atol=0)
        shares = []
        for start, end in zip([-1, *logging_steps[:-1]], logging_steps, strict=True):
            own = [norm for at, (norm, *_) in module.seen[place].items() if start < at <= end]
            shares.append(sum(norm > THRESHOLD for norm in own) / len(own))
        assert_close(list(logger.column("grad_clip/clipped_fraction" + suffix).values()), shares, rtol=1e-6, atol=0)


class Accumulates(LightningModule):
    automatic_optimization = False

    def __init__(self, over):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.over = over
        self.steps = {}

    def training_step(self, batch, batch_idx):
        self.manual_backward((self.weight * batch).sum() / self.over)
        if (batch_idx + 1) % self.over == 0:
            self.steps[batch_idx] = float(self.weight.grad.norm())
            self.optimizers().step()
            self.optimizers().zero_grad()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


@pytest.mark.parametrize("over", [4, 7, 8, 16])
@pytest.mark.parametrize("every", [1, 10])
def test_accumulation_by_hand(over, every):
    batches = list(torch.randn(60, 4, generator=torch.Generator().manual_seed(1)))
    module, logger = Accumulates(over), Remember()
    fit_module(
        module, batches, AdaptiveGradientClipping(), GradientNormMonitor(), logger=logger, log_every_n_steps=every
    )
    expected, last = {}, -1
    for step in range(every - 1, 60, every):
        fresh = [at for at in module.steps if last < at <= step]
        if fresh:  # a log without a step since the last one has nothing to show
            expected[step] = module.steps[fresh[-1]]
        last = step
    assert expected
    assert_close(logger.column("grad_norm/total"), expected, rtol=1e-5, atol=0)
    assert set(logger.column("grad_clip/coefficient")) == set(expected)


def test_under_automatic_optimisation_only_the_steps_of_logging_batches_are_measured():
    class Plain(LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def training_step(self, batch, batch_idx):
            return (self.weight * batch).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    taken = []

    class Counts(GradientNormMonitor):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            taken.extend([batch_idx] * len(self._due))
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    fit_module(Plain(), [torch.ones(4)] * 24, Counts(), log_every_n_steps=3, accumulate_grad_batches=2)
    assert taken == [5, 11, 17, 23]
