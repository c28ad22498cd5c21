"""Nets that are copied in a step that is measured, as for a target network."""

import copy
import pickle

import pytest
import torch
from flow_trainings import LastStep, batches, monitor_of, torch_lstm
from small_trainings import fit_module
from torch.testing import assert_close

from rnn_blocks import LayerNormLSTM, LayerNormLSTMCell, Recurrent


class CopiesItself(LastStep):
    """As with a target network: the net is copied, and pickled, after it has run in a step that is measured."""

    def __init__(self, net):
        super().__init__(net)
        self.copies = []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        copies = copy.deepcopy(self.net), pickle.loads(pickle.dumps(self.net))
        for one in copies:
            one(batch)[0].sum().backward()
        self.copies += copies
        return loss


@pytest.mark.parametrize("kind", ["torch", "recurrent", "stack"])
def test_a_net_that_is_copied_in_a_step_is_measured_alone_and_its_copies_go_on_as_it_does(kind):
    make = {
        "torch": torch_lstm,
        "recurrent": lambda: Recurrent(LayerNormLSTMCell(3, 5)),
        "stack": lambda: LayerNormLSTM(3, 5, num_layers=2),
    }[kind]
    found = {}
    for module in (LastStep, CopiesItself):
        torch.manual_seed(0)
        model, monitor = module(make()), monitor_of()
        fit_module(model, batches(3), monitor)
        found[module] = {name: torch.stack(list(curve.norms)) for name, curve in monitor.history.items()}
    assert len(found[LastStep]) == (2 if kind == "stack" else 1)
    assert_close(found[CopiesItself], found[LastStep], rtol=0, atol=0)
    assert len(model.copies) == 6
    inputs = batches(1)[0]
    assert_close(model.copies[-1](inputs)[0], model.copies[-2](inputs)[0], rtol=0, atol=0)
    for one in model.copies[-2:]:
        fit_module(LastStep(one), batches(2), monitor := monitor_of())
        assert all(curve.steps == [0, 1] for curve in monitor.history.values())
        assert len(monitor.history) == len(found[LastStep])
