"""Recurrent nets in trainings of a few batches, and the gradient-flow monitor that measures each of their steps."""

import torch
from lightnings import Callback, LightningModule
from torch import nn

from rnn_blocks.callbacks import GradientFlowMonitor


class LastStep(LightningModule):
    """The last output's sum against a target, of any recurrent net that gives ``(outputs, state)``."""

    def __init__(self, net, factor=1.0):
        super().__init__()
        self.net = net
        self.factor = factor
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                if "weight_hh" in name:
                    parameter.mul_(factor)

    def training_step(self, batch, batch_idx):
        return (self.net(batch)[0][:, -1].float().sum(-1) - 1).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def torch_lstm(**options):
    torch.manual_seed(0)
    return nn.LSTM(3, 5, batch_first=True, **options)


def batches(count, steps=6):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, steps, 3, generator=generator) for _ in range(count)]


def monitor_of(**options):
    return GradientFlowMonitor(**({"every_n_steps": 1, "figures": False} | options))


class KeepTrueNorms(Callback):
    """``‖∂L/∂h_t‖`` of an `nn.LSTM` by a loop of cells over each batch, before the update, last step first."""

    def __init__(self):
        self.norms = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        net, state, hidden = pl_module.net, (torch.zeros(4, 5), torch.zeros(4, 5)), []
        for x in batch.unbind(1):
            state = torch.lstm_cell(x, state, *net._flat_weights)
            hidden.append(state[0])
        loss = (state[0].sum(-1) - 1).square().mean()
        self.norms.append([float(g.norm()) for g in torch.autograd.grad(loss, hidden[::-1])])
