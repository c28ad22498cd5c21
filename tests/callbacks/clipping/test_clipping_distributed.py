"""Two processes on one machine: ranks agree on norms, on clipping, and on what is skipped."""

import pytest
from two_ranks import run_two_ranks

pytestmark = pytest.mark.processes


DDP = """
import math, warnings
import torch
import torch.distributed as dist
from auto_by_hand import AutoByHand
from lightnings import DDPStrategy
from rnn_blocks.callbacks import AdaptiveGradientClipping, Fixed, GradientNormMonitor
from small_trainings import Regression, Remember, clip_by_hand, make_trainer, regression_batches
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset, DistributedSampler

torch.set_num_threads(1)
warnings.simplefilter("ignore")
batches = regression_batches(12)
batches[4][0][0, 0] = math.nan  # read by rank 0 alone

def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)

module, logger = Regression(sgd), Remember()
trainer = make_trainer(
    AdaptiveGradientClipping(Fixed(1.0)), GradientNormMonitor(), logger=logger, strategy="ddp", devices=2,
    use_distributed_sampler=False,
)
class Mine(Dataset):
    def __len__(self):
        return 6
    def __getitem__(self, index):
        return batches[2 * index + trainer.global_rank]
trainer.fit(module, DataLoader(Mine(), batch_size=None))

expected = Regression(sgd)
optimizer, norms = expected.configure_optimizers(), []
for index in range(6):
    if index == 2:
        continue
    optimizer.zero_grad()
    (sum(expected.loss(batch) for batch in batches[2 * index : 2 * index + 2]) / 2).backward()
    norms.append(clip_by_hand(list(expected.parameters()), 1.0))
    optimizer.step()
assert sum(norm > 1 for norm in norms) >= 2, norms
assert_close(dict(module.named_parameters()), dict(expected.named_parameters()), rtol=1e-5, atol=1e-6)
assert trainer.callback_metrics["grad_clip/skipped_steps"] == 1
logged = [norm for step, norm in logger.column("grad_norm/total").items() if step != 2]
assert_close(logged, norms, rtol=1e-5, atol=0)

# Auto, by the mean of both ranks' losses, to which each is a stranger.
batches = [(inputs, targets * (1 + index % 2)) for index, (inputs, targets) in enumerate(regression_batches(24))]
Mine.__len__ = lambda self: 12
module, clipping = Regression(sgd), AdaptiveGradientClipping()
trainer = make_trainer(clipping, strategy="ddp", devices=2, use_distributed_sampler=False)
trainer.fit(module, DataLoader(Mine(), batch_size=None))
expected = Regression(sgd)
optimizer = expected.configure_optimizers()
by_hand = AutoByHand(optimizer)
for index in range(12):
    optimizer.zero_grad()
    loss = sum(expected.loss(batch) for batch in batches[2 * index : 2 * index + 2]) / 2
    loss.backward()
    by_hand.step(loss.item())
assert by_hand.promised >= 3, by_hand.promised
assert_close(dict(module.named_parameters()), dict(expected.named_parameters()), rtol=1e-4, atol=1e-5)
state = clipping.state_dict()["optimizers"]["0"]
assert_close(state["history"]["loss"].item(), by_hand.followed, rtol=1e-5, atol=0)
for value in (*module.parameters(), *state["history"].values(), state["by_reason"]):
    every = [torch.empty_like(value) for _ in range(2)]
    dist.all_gather(every, value.detach())
    assert torch.equal(*every)
"""


def test_under_ddp_ranks_train_the_parameters_of_one_process_with_both_batches():
    run_two_ranks(DDP)


SHARDED = """
import torch
import torch.distributed as dist
from rnn_blocks.callbacks.measuring.norms import scale_, tensor_norms
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.testing import assert_close

dist.init_process_group("gloo")
torch.manual_seed(0)
reference = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 4))
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 4))
fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
for net in (reference, model):
    net(torch.arange(6.0).reshape(2, 3)).square().sum().backward()

sharded = [p.grad for p in model.parameters()]
whole = [p.grad for p in reference.parameters()]
assert all(isinstance(gradient, DTensor) for gradient in sharded)
mixed = [torch.full((4,), 1.5), *sharded]
norms = tensor_norms(mixed)
assert_close(norms.tolist(), [3.0] + [float(gradient.norm()) for gradient in whole], rtol=1e-5, atol=0)

scale_(mixed, torch.tensor(0.25, dtype=torch.float64))
assert_close([g.full_tensor() for g in sharded], [0.25 * g for g in whole], rtol=1e-5, atol=1e-6)
assert_close(mixed[0], torch.full((4,), 0.375))
sharded[0].to_local().fill_(1e20)
norm = float(tensor_norms(sharded)[0])
assert abs(norm / (1e20 * 15**0.5) - 1) < 1e-5, norm
"""


def test_norms_of_sharded_gradients_are_those_of_the_whole_also_beside_plain_ones():
    """Trap 5: a rank sees its shard's norm alone, and mixed lists raise."""
    run_two_ranks(SHARDED)


FSDP2 = """
import warnings
import torch
from lightnings import ModelParallelStrategy
from rnn_blocks.callbacks import AdaptiveGradientClipping, Fixed, GradientNormMonitor
from small_trainings import Regression, Remember, clip_by_hand, make_trainer, regression_batches
from torch.distributed.fsdp import fully_shard
from torch.testing import assert_close
from torch.utils.data import DataLoader

warnings.simplefilter("ignore")
batches = regression_batches(8)

def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)

class Sharded(Regression):
    def configure_model(self):
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

module, logger = Sharded(adam), Remember()
trainer = make_trainer(
    AdaptiveGradientClipping(Fixed(1.0)), GradientNormMonitor(), logger=logger, devices=2,
    strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1), use_distributed_sampler=False,
)
trainer.fit(module, DataLoader(batches, batch_size=None))
expected = Regression(adam)
optimizer, norms = expected.configure_optimizers(), []
for batch in batches:
    optimizer.zero_grad()
    expected.loss(batch).backward()
    norms.append(clip_by_hand(list(expected.parameters()), 1.0))
    optimizer.step()
assert_close(list(logger.column("grad_norm/total").values()), norms, rtol=1e-4, atol=0)
trained = {name: p.full_tensor() if hasattr(p, "full_tensor") else p for name, p in module.named_parameters()}
assert_close(trained, dict(expected.named_parameters()), rtol=1e-4, atol=1e-5)
"""


def test_under_fsdp2_parameters_are_those_of_one_process():
    """Trap 5."""
    run_two_ranks(FSDP2)
