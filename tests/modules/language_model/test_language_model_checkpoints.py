"""What a checkpoint holds, and what comes of it."""

import copy
import io

import pytest
import torch
from lightning.pytorch import Callback
from streams import VOCABULARY, fit, make_stream, make_trainer, sgd, train_by_hand
from torch.testing import assert_close
from torch.utils.data import DataLoader

from rnn_blocks import GRU, LSTM, LanguageModel
from rnn_blocks.engine import state_tensors
from rnn_blocks.modules.language_model.model import CARRIED_STATE

# Lightning's advice on trainings without validation, and on resuming in mid-epoch.
pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
]


class SaveAfter(Callback):
    def __init__(self, steps, path):
        self.steps, self.path = steps, path

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.steps:
            trainer.save_checkpoint(self.path)


class Remaining(DataLoader):
    """A loader that goes on behind the batches already read."""

    def __init__(self, batches, skip=0):
        super().__init__(list(batches), batch_size=None)
        self.skip = skip

    def __iter__(self):
        return iter(self.dataset[self.skip :])


def make_model(seed=0):
    torch.manual_seed(seed)
    return LanguageModel(LSTM(6, 6, num_layers=2), VOCABULARY, optimizer=sgd(), dropout=0.0)


def test_a_checkpoint_holds_the_state_carried_and_loads_as_weights_only(tmp_path):
    model = make_model()
    path = tmp_path / "half.ckpt"
    fit(model, make_stream(3, [4, 4]), None, SaveAfter(2, path))
    checkpoint = torch.load(path, weights_only=True)
    found, expected = (state_tensors(state) for state in (checkpoint[CARRIED_STATE], model._carried["train"]))
    assert [tuple(tensor.shape) for tensor in found] == [(3, 6)] * 4
    assert all(map(torch.equal, found, expected))


def test_resuming_carries_on_from_the_state(tmp_path):
    whole, path = make_model(), tmp_path / "half.ckpt"
    batches = make_stream(3, [4, 4, 4, 4])
    by_hand = copy.deepcopy(whole)
    fit(whole, batches, None, SaveAfter(2, path))
    train_by_hand(by_hand, batches)
    resumed = make_model(seed=1)
    make_trainer().fit(resumed, Remaining(batches, skip=2), ckpt_path=path)
    for name, parameter in resumed.named_parameters():
        assert torch.equal(parameter, dict(whole.named_parameters())[name]), name
        assert_close(parameter, dict(by_hand.named_parameters())[name], rtol=1e-6, atol=1e-6)


def test_resuming_with_another_batch_size_says_so(tmp_path):
    path = tmp_path / "half.ckpt"
    fit(make_model(), make_stream(3, [4, 4, 4]), None, SaveAfter(2, path))
    message = "the state to carry on from is of 3 lanes, but this run has 5 in each of 1 processes: resume with"
    with pytest.raises(ValueError, match=message):
        make_trainer().fit(make_model(), Remaining(make_stream(5, [4, 4, 4]), skip=2), ckpt_path=path)


@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_takes_its_own_lanes_of_the_state(rank):
    model = make_model()
    state = model.layer.initial_state(4, torch.zeros(()))
    model._carried["train"] = tuple(tuple(tensor + torch.arange(4.0)[:, None] for tensor in part) for part in state)
    model._trainer = type("Trainer", (), {"world_size": 2, "global_rank": rank})()
    (batch,) = make_stream(2, [3])
    for tensor in state_tensors(model._carried_into("train", batch)):
        assert tensor[:, 0].tolist() == [2.0 * rank, 2.0 * rank + 1]


def test_a_fresh_batch_needs_no_state_of_its_size():
    model = make_model()
    fit(model, make_stream(3, [4]) + make_stream(5, [4]))
    assert len(state_tensors(model._carried["train"])[0]) == 5


def test_a_checkpoint_of_a_model_made_in_python_loads_with_its_layer(tmp_path):
    path = tmp_path / "end.ckpt"
    model = LanguageModel(GRU(6, 6), VOCABULARY, tie_weights=True, dropout=0.3, sum_over_time=True, optimizer=sgd())
    fit(model, make_stream(3, [4, 4]), None, SaveAfter(2, path))
    loaded = LanguageModel.load_from_checkpoint(path, layer=GRU(6, 6))
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    assert loaded.output.weight is loaded.embedding.weight
    assert (loaded.dropout, loaded.sum_over_time) == (0.3, True)
    assert torch.equal(loaded.generate([1, 2], 9, seed=4), model.generate([1, 2], 9, seed=4))


def test_a_checkpoint_does_not_load_without_the_layer_it_needs(tmp_path):
    path = tmp_path / "end.ckpt"
    fit(make_model(), make_stream(3, [4, 4]), None, SaveAfter(2, path))
    with pytest.raises(TypeError, match="layer"):
        LanguageModel.load_from_checkpoint(path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        LanguageModel.load_from_checkpoint(path, layer=LSTM(6, 7, num_layers=2))


def test_the_sums_of_the_metrics_are_no_part_of_the_weights():
    model = make_model()
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other = make_model(seed=1)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other.generate([1], 5, seed=0), model.generate([1], 5, seed=0))
