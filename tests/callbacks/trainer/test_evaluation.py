"""What Lightning restores to test a checkpoint, callbacks included, is none of their business."""

import pytest
from lightnings import ModelCheckpoint
from small_trainings import Regression, fit_module, regression_batches
from torch import nn
from torch.optim import Adam
from torch.utils.data import DataLoader

from rnn_blocks.callbacks import (
    AdaptiveGradientClipping,
    ClippingAdvisor,
    GradientFlowMonitor,
    GradientNormMonitor,
)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(3, 4)
        self.out = nn.Linear(4, 1)

    def forward(self, inputs):
        return self.out(self.rnn(inputs)[0])


class WithATest(Regression):
    def test_step(self, batch, batch_idx):
        self.log("test/loss", self.loss(batch))


CALLBACKS = {
    "clipping": (lambda: AdaptiveGradientClipping(), lambda callback: callback.state_dict()),
    "advisor": (lambda: ClippingAdvisor(steps=12), lambda callback: callback.recommendation),
    "flow": (lambda: GradientFlowMonitor(every_n_steps=2), lambda callback: callback.history["net.rnn"].seen),
    "histogram": (lambda: GradientNormMonitor(histogram_every_n_steps=4), lambda callback: callback.state_dict()),
}


@pytest.mark.parametrize("name", CALLBACKS)
def test_what_a_callback_knows_of_the_fit_stays_after_a_test_of_an_earlier_checkpoint(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, known = CALLBACKS[name]
    callback = make()
    saves = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=5, save_top_k=-1)
    net = Recurrent()
    module = WithATest(lambda parameters: Adam(parameters, lr=0.01), net)
    trainer = fit_module(module, regression_batches(16), callback, saves, enable_checkpointing=True)
    before = known(callback)
    assert before is not None
    trainer.test(module, DataLoader(regression_batches(2), batch_size=None), ckpt_path=tmp_path / "step=5.ckpt")
    assert str(known(callback)) == str(before)
