"""The gradient-flow monitor on two ranks: the first one measures, and the training is the one without it."""

import pytest
from two_ranks import run_two_ranks

pytestmark = pytest.mark.processes

DDP = """
import torch, warnings
from flow_trainings import LastStep, batches, torch_lstm
from rnn_blocks.callbacks import GradientFlowMonitor
from small_trainings import make_trainer
from torch.testing import assert_close
from torch.utils.data import DataLoader

torch.set_num_threads(1)
warnings.simplefilter("ignore")

def train(*callbacks):
    module = LastStep(torch_lstm(num_layers=2, dropout=0.3))
    torch.manual_seed(1)
    trainer = make_trainer(*callbacks, strategy="ddp", devices=2)
    trainer.fit(module, DataLoader(torch.cat(batches(8)), batch_size=4))
    return trainer, dict(module.named_parameters())

monitor = GradientFlowMonitor(every_n_steps=2, figures=False)
trainer, measured = train(monitor)
_, plain = train()
assert_close(measured, plain, rtol=0, atol=0)
assert {name: history.steps for name, history in monitor.history.items()} == (
    {"net.l0": [0, 2], "net.l1": [0, 2]} if trainer.global_rank == 0 else {}
)
"""


def test_under_ddp_the_first_rank_measures_and_the_training_is_the_one_without():
    run_two_ranks(DDP)


FSDP2 = """
import torch, warnings
from flow_trainings import LastStep, batches
from lightnings import ModelParallelStrategy
from rnn_blocks import LSTM
from rnn_blocks.callbacks import GradientFlowMonitor
from rnn_blocks.callbacks.gradient_flow.recorder import FlowRecorder, recurrences
from small_trainings import make_trainer
from torch.distributed.fsdp import fully_shard
from torch.testing import assert_close
from torch.utils.data import DataLoader

torch.set_num_threads(1)
warnings.simplefilter("ignore")

def module(kind=LastStep):
    torch.manual_seed(0)
    return kind(LSTM(3, 5, num_layers=2))

class Sharded(LastStep):
    seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)
        return super().training_step(batch, batch_idx)

    def configure_model(self):
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

def train(*callbacks):
    trained = module(Sharded)
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    trainer = make_trainer(*callbacks, strategy=strategy, devices=2)
    trainer.fit(trained, DataLoader(torch.cat(batches(8)), batch_size=4))
    return trainer, {name: parameter.full_tensor() for name, parameter in trained.named_parameters()}

monitor = GradientFlowMonitor(every_n_steps=2, figures=False)
trainer, measured = train(monitor)
_, plain = train()
assert_close(measured, plain, rtol=0, atol=0)
if trainer.global_rank == 0:
    alone = module()
    recorder = FlowRecorder(recurrences(alone)[0], {}, "all")
    recorder.attach()
    alone.training_step(Sharded.seen[0], 0).backward()
    recorder.collect(1.0)
    for name, (norms, _) in recorder.read().items():
        assert_close(monitor.history[name].norms[0].tolist(), norms, rtol=1e-4, atol=0)
    assert {name: history.steps for name, history in monitor.history.items()} == {
        "net.layers.0": [0, 2], "net.layers.1": [0, 2]
    }
else:
    assert monitor.history == {}
"""


def test_under_fsdp2_the_first_rank_measures_with_the_weights_of_all():
    run_two_ranks(FSDP2)
