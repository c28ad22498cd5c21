"""Two processes on one machine: gates, weights and updates of sharded parameters are those of whole ones."""

import pytest
from two_ranks import run_two_ranks

pytestmark = pytest.mark.processes

FSDP2 = """
import os, tempfile, warnings
import torch
from lightnings import ModelParallelStrategy
from rnn_blocks.callbacks import ClippingAdvisor, GradientNormMonitor
from small_trainings import Regression, Remember, fit_module
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.testing import assert_close

warnings.simplefilter("ignore")
os.chdir(tempfile.mkdtemp())
inputs = torch.randn(4, 2, 5, 3, generator=torch.Generator().manual_seed(0))
batches = list(zip(inputs, inputs.sum(-1, keepdim=True).sin()))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.head = nn.GRUCell(3, 5), nn.Linear(5, 1)
    def forward(self, inputs):
        h, outputs = inputs.new_zeros(len(inputs), 5), []
        for x in inputs.unbind(1):
            h = self.cell(x, h)
            outputs.append(self.head(h))
        return torch.stack(outputs, 1)

class Sharded(Regression):
    def configure_model(self):
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

logger = Remember()
monitor = GradientNormMonitor(gates=True, updates=True, histogram_every_n_steps=3)
advisor = ClippingAdvisor(steps=3)
module = Sharded(lambda p: torch.optim.Adam(p, lr=0.01), Net())
fit_module(
    module, batches, monitor, advisor, logger=logger, devices=2, use_distributed_sampler=False,
    strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
)
net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
for k, (inputs, targets) in enumerate(batches):
    optimizer.zero_grad()
    (net(inputs) - targets).square().mean().backward()
    before = [p.detach().clone() for p in net.parameters()]
    optimizer.step()
    expected = {
        "weight_norm/total": torch.cat([p.flatten() for p in before]).norm(),
        "update_norm/total": torch.cat([(p - q).flatten() for p, q in zip(net.parameters(), before)]).norm(),
        "grad_norm/recurrent/net.cell": net.cell.weight_hh.grad.norm(),
    }
    for i, gate in enumerate("rzn"):
        own = [p.grad[5 * i : 5 * i + 5].flatten() for p in net.cell.parameters()]
        expected[f"grad_norm/gate/net.cell/{gate}"] = torch.cat(own).norm()
    logged = {name: logger.column(name)[k] for name in expected}
    assert_close(logged, {n: float(v) for n, v in expected.items()}, rtol=1e-4, atol=0)
assert len(advisor.recommendation.norms) == 3
assert int(monitor._histograms[0].counts.sum()) == 4
"""


def test_under_fsdp2_gates_weights_and_updates_are_those_of_one_process():
    """Trap 5: a rank sees its shard alone."""
    run_two_ranks(FSDP2)
