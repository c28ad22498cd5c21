"""`AdaptiveGradientClipping` with `Auto` on two processes: Adam's updates are bounded, SGD's promises are."""

import pytest
from two_ranks import run_two_ranks

pytestmark = pytest.mark.processes

PROGRAM = """
import warnings
import torch
import torch.distributed as dist
from auto_by_hand import AutoByHand
from lightnings import ModelParallelStrategy
from rnn_blocks.callbacks import AdaptiveGradientClipping, Auto, GradientNormMonitor
from small_trainings import Regression, make_trainer, regression_batches
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset

torch.set_num_threads(1)
warnings.simplefilter("ignore")
batches = regression_batches(48)
for index in (22, 23, 40, 41):
    batches[index] = (batches[index][0], batches[index][1] + 50)

def adam(parameters):
    return torch.optim.Adam(parameters, lr=1.0)

def net():  # the second layer has more elements than are looked at, the third fewer rows than there are ranks
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 70), nn.Tanh(), nn.Linear(70, 70), nn.Tanh(), nn.Linear(70, 1))

class Sharded(Regression):
    def configure_model(self):
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

class Mine(Dataset):
    def __len__(self):
        return 24
    def __getitem__(self, index):
        return batches[2 * index + trainer.global_rank * DISTINCT]

module = MODULE(adam, net())
trainer = make_trainer(
    AdaptiveGradientClipping(Auto(longest_update=0.05)), GradientNormMonitor(updates=True), devices=2,
    strategy=STRATEGY, use_distributed_sampler=False, log_every_n_steps=5,
)
trainer.fit(module, DataLoader(Mine(), batch_size=None))
trained = {name: p.full_tensor() if hasattr(p, "full_tensor") else p.detach() for name, p in module.named_parameters()}
for parameter in trained.values():
    every = [torch.empty_like(parameter) for _ in range(2)]
    dist.all_gather(every, parameter.contiguous())
    assert_close(every[0], every[1], rtol=0, atol=0)
assert trainer.optimizers[0].param_groups[0]["lr"] == 1.0

expected = Regression(adam, net())
optimizer = expected.configure_optimizers()
by_hand = AutoByHand(optimizer, 0.05)
for index in range(24):
    optimizer.zero_grad()
    (sum(expected.loss(batches[2 * index + rank * DISTINCT]) for rank in (0, 1)) / 2).backward()
    by_hand.step()
assert by_hand.bounded == 24, by_hand.bounded
assert by_hand.clipped >= 2, by_hand.clipped
# The length of updates is measured on a sample, and here on all there is.
assert_close(trained, {name: p.detach() for name, p in expected.named_parameters()}, rtol=1e-3, atol=1e-3)
"""


STRATEGIES = {
    "ddp": ("Regression", '"ddp"', 1),
    "fsdp2": ("Sharded", "ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)", 1),
    # What Lightning takes by default: both ranks would split up layers, and those that are not are whole on each.
    "model parallel": ("Sharded", "ModelParallelStrategy()", 0),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_ranks_end_with_the_parameters_of_one_process_with_both_batches(name):
    """Trap 5: a rank sees its shard alone."""
    module, strategy, distinct = STRATEGIES[name]
    run_two_ranks(PROGRAM.replace("MODULE", module).replace("STRATEGY", strategy).replace("DISTINCT", str(distinct)))
