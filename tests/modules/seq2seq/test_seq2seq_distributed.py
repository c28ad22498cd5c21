"""Two processes train and score a translation model as one does."""

import pytest
from two_ranks import run_two_ranks

pytestmark = pytest.mark.processes

PROGRAM = """
import math, warnings
import torch
from pairs import descend, draw_batch, make_model, sums_by_hand, words
from rnn_blocks import TranslationScores
from streams import Watch, make_trainer
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset

torch.set_num_threads(1)
warnings.simplefilter("ignore")
sizes = [[3, 5, 1], [2], [7, 1, 1, 4], [1, 1], [6], [2, 2]]
train = [draw_batch(size, seed) for seed, size in enumerate(sizes)]
val = [draw_batch(size, 10 + seed, references=["w5 w6 w5 w6"] * len(size)) for seed, size in enumerate(sizes[:4])]

class Mine(Dataset):  # every second batch, each rank its own
    def __init__(self, batches):
        self.batches = batches
    def __len__(self):
        return len(self.batches) // 2
    def __getitem__(self, index):
        return self.batches[2 * index + trainer.global_rank]

def make():
    model = make_model(label_smoothing=0.1, coverage=True, coverage_loss=0.5, detokenize=words)
    with torch.no_grad():
        model.decoder.output.bias[2] = -4  # it does not end at once
    return model

def fit(val_batches, **options):
    global trainer
    model, watch = make(), Watch()
    trainer = make_trainer(watch, strategy="ddp", devices=2, use_distributed_sampler=False, **options)
    loaders = (DataLoader(Mine(batches), batch_size=None) for batches in (train, val_batches))
    trainer.fit(model, *loaders)
    return model, watch

model, watch = fit(val, accumulate_grad_batches=2)
by_hand = make()
for window in (train[:4], train[4:]):  # two batches of each rank, then the one left of each
    descend(by_hand, window, smoothing=0.1, coverage=0.5)
assert_close(list(model.parameters()), list(by_hand.parameters()), rtol=1e-9, atol=1e-9)

by_hand.eval()
scores, nats, tokens = TranslationScores(), 0.0, 0
with torch.no_grad():
    for batch in val:
        found = by_hand.translate(batch.source, batch.source_lengths, beam_size=1)
        scores.update(words([best.tokens for best, *_ in found]), batch.references)
        more, count = sums_by_hand(by_hand, batch)
        nats, tokens = nats + more.item(), tokens + count
expected = {f"val/{name}": value.item() for name, value in scores.compute().items()} | {"val/loss": nats / tokens}
assert expected["val/chrf"] > 0
for name, value in expected.items():
    assert math.isclose(watch.validations[-1][name], value, rel_tol=1e-5, abs_tol=1e-6), (name, value)

# Scores of which one rank has none
model, watch = fit([val[0], val[1]._replace(references=None)])
assert "val/bleu" in watch.validations[-1]
"""


def test_two_ranks_train_and_score_as_one_process():
    run_two_ranks(PROGRAM)
