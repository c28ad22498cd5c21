"""Translation trained under Lightning against descent by hand, and what is logged of it."""

import math
from functools import partial

import pytest
import torch
import zoo
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import ReduceLROnPlateau
from pairs import EXACT, coverage_by_hand, descend, draw_batch, draw_pairs, make_model, pair_batch, sums_by_hand, words
from sacrebleu import BLEU, CHRF
from streams import Watch, as_loader, fit, make_trainer, sgd
from torch.testing import assert_close

from rnn_blocks import GRU, LSTM, Seq2Seq

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]
OPTIONS = {
    "fed": {"label_smoothing": 0.1},
    "at once, projected": {"input_feeding": False, "attention": "general", "bridge": "last-state"},
    "covering": {"coverage": True, "coverage_loss": 0.7, "label_smoothing": 0.2},
    "fixed vector": {"attention": None, "input_feeding": False, "bridge": "projected", "decoder": LSTM(3 + 12, 5)},
    "three-way": {"tie_weights": "three-way", "sizes": (11, 11), "decoder": GRU(4 + 4, 5), "attentional_size": 4},
}
UNEQUAL = ([3, 5, 1], [2], [7, 1, 1, 4], [1, 1])


def same_parameters(model, expected, **tolerance):
    names = dict(expected.named_parameters())
    for name, parameter in model.named_parameters():
        assert_close(parameter, names[name], **(tolerance or EXACT), msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", zoo.rest_is_slow(OPTIONS, ["covering", "three-way"]))
def test_an_optimizer_step_is_on_all_its_tokens_alike(name, accumulate):
    options = OPTIONS[name]
    model, by_hand = make_model(**options), make_model(**options)
    batches = [draw_batch(sizes, seed) for seed, sizes in enumerate(UNEQUAL)]
    fit(model, batches, accumulate_grad_batches=accumulate)
    for start in range(0, 4, accumulate):
        window = batches[start : start + accumulate]
        descend(by_hand, window, smoothing=options.get("label_smoothing", 0), coverage=options.get("coverage_loss", 0))
    same_parameters(model, by_hand)


def test_an_epoch_that_ends_within_a_window_ends_it_with_what_is_there():
    model, by_hand = make_model(), make_model()
    batches = [draw_batch(sizes, seed) for seed, sizes in enumerate(UNEQUAL)][:3]
    fit(model, batches, accumulate_grad_batches=2, max_epochs=2)
    for _ in range(2):
        descend(by_hand, batches[:2])
        descend(by_hand, batches[2:])
    same_parameters(model, by_hand)


def test_micro_batches_are_the_whole_batch():
    sources, targets = draw_pairs([3, 5, 1, 2, 7])
    whole, parts = make_model(), make_model()
    fit(whole, [pair_batch(sources, targets)])
    pieces = [pair_batch(sources[a:b], targets[a:b]) for a, b in ((0, 1), (1, 4), (4, 5))]
    fit(parts, pieces, accumulate_grad_batches=3)
    same_parameters(parts, whole)


# What is logged


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_logs_the_plain_loss_of_all_tokens_since_the_last_log(accumulate):
    model, watch = make_model(label_smoothing=0.2, dropout=0.0, optimizer=sgd(0.0)), Watch()
    batches = [draw_batch(sizes, seed) for seed, sizes in enumerate(UNEQUAL)]
    fit(model, batches, None, watch, accumulate_grad_batches=accumulate)
    with torch.no_grad():
        parts = [sums_by_hand(model, batch) for batch in batches]
    for last in range(accumulate, 5, accumulate):
        window = parts[last - accumulate : last]
        mean = float(sum(nats for nats, _ in window)) / sum(tokens for _, tokens in window)
        assert watch.logged[last - 1]["train/loss"] == pytest.approx(mean, rel=1e-5)
        assert watch.logged[last - 1]["train/perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)
        assert watch.logged[last - 1]["throughput/tokens_per_second"] > 0


def test_coverage_loss_is_logged_as_it_was_without_its_weight():
    model, watch = make_model(coverage=True, coverage_loss=0.5, optimizer=sgd(0.0)), Watch()
    batch = draw_batch([3, 5, 1])
    fit(model, [batch], None, watch)
    expected = coverage_by_hand(model, batch).item() / sums_by_hand(model, batch)[1]
    assert watch.logged[0]["train/coverage_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("stage", ["val", "test"])
def test_a_pass_logs_loss_and_scores_of_what_the_search_wrote(stage):
    model = make_model(
        label_smoothing=0.3, dropout=0.5, detokenize=words, lowercase=True, val_beam_size=1, test_beam_size=3
    )
    references = [["w5 w6 W7 w8 w9 w10"] * 3, ["w4"], ["w8 w8 W8 w8 w8"] * 4, ["w9 w9 w9"] * 2]
    batches = [draw_batch(sizes, n, references=references[n]) for n, sizes in enumerate(UNEQUAL)]
    model.eval()
    beam = {"val": 1, "test": 3}[stage]
    written = [
        words([best.tokens for best, *_ in model.translate(batch.source, batch.source_lengths, beam_size=beam)])
        for batch in batches
    ]
    # some references as the model writes, so that there is something to count
    references[2][:2], references[0][0] = written[2][:2], written[0][0]
    run = {"val": make_trainer().validate, "test": make_trainer().test}[stage]
    (metrics,) = run(model, as_loader(batches), verbose=False)
    with torch.no_grad():
        parts = [sums_by_hand(model.eval(), batch) for batch in batches]
    mean = float(sum(nats for nats, _ in parts)) / sum(tokens for _, tokens in parts)
    ours, theirs = ([text for texts in batch for text in texts] for batch in (written, references))
    exact = sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours)
    expected = {
        "loss": mean,
        "perplexity": math.exp(mean),
        "bleu": BLEU(smooth_method="none", lowercase=True).corpus_score(ours, [theirs]).score,
        "chrf": CHRF(lowercase=True).corpus_score(ours, [theirs]).score,
        "exact_match": 100 * exact,
    }
    assert 0 < expected["chrf"] < 100
    assert metrics == pytest.approx({f"{stage}/{name}": value for name, value in expected.items()}, rel=1e-4)


def test_without_references_or_a_way_to_text_nothing_is_searched_for():
    batch = draw_batch([3, 2])
    (metrics,) = make_trainer().validate(make_model(detokenize=words), as_loader([batch]), verbose=False)
    assert set(metrics) == {"val/loss", "val/perplexity"}
    batch = batch._replace(references=["a", "b"])
    (metrics,) = make_trainer().validate(make_model(), as_loader([batch]), verbose=False)
    assert set(metrics) == {"val/loss", "val/perplexity"}


def test_each_pass_has_scores_of_its_own():
    model, batches = make_model(detokenize=words), [draw_batch([3, 2], references=["w5", "w6"])]
    trainer = make_trainer()
    first, second = (trainer.validate(model, as_loader(batches), verbose=False)[0] for _ in range(2))
    assert first == second


def test_runs_say_how_scores_are_computed(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    model, trainer = make_model(label_smoothing=0.25), make_trainer()
    trainer.loggers = [CSVLogger(tmp_path)]
    trainer.fit(model, as_loader([draw_batch([2])]))
    hparams = trainer.logger.experiment.hparams
    assert hparams["bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:none|torchmetrics:")
    assert hparams["chrf_signature"] == "nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no"
    assert (hparams["label_smoothing"], hparams["attention"], hparams["bridge"]) == (0.25, "additive", "last-state")


# Schedules, checkpoints


def scored(model, values):
    """A model whose validations are as told, whatever it wrote."""
    remaining = iter(values)

    class Told(torch.nn.Module):
        updated, lowercase, signature, chrf_signature, bleu_says_something = True, False, "", "", True

        def update(self, translations, references):
            pass

        def compute(self):
            return {"bleu": torch.tensor(next(remaining))}

        def reset(self):
            pass

    told = Told()
    model._stage_scores = lambda stage: told
    return model


def test_the_learning_rate_falls_and_training_stops_when_bleu_stays(tmp_path):
    schedule = partial(ReduceLROnPlateau, monitor="val/bleu", mode="max", factor=0.1, patience=0)
    model = scored(make_model(lr_scheduler=schedule, detokenize=words), [1.0, 3.0, 2.0, 2.5, 9.0])
    keep = ModelCheckpoint(tmp_path, monitor="val/bleu", mode="max", filename="best-{epoch}")
    stop, watch = EarlyStopping("val/bleu", mode="max", patience=2), Watch()
    train, val = [draw_batch([3, 2])], [draw_batch([2], references=["w5"])]
    trainer = fit(model, train, val, keep, stop, watch, max_epochs=5, enable_checkpointing=True)
    assert trainer.current_epoch == 4
    assert watch.rates == pytest.approx([0.5, 0.5, 0.5, 0.05])
    assert keep.best_model_score == 3.0
    assert keep.best_model_path.endswith("best-epoch=1.ckpt")


@pytest.mark.parametrize(
    "options",
    [
        {"attention": "general", "bridge": "mean", "decoder": LSTM(3 + 5 + 12, 5)},
        {"attention": None, "input_feeding": False, "tie_weights": "two-way", "decoder": GRU(5, 5)},
    ],
)
def test_a_checkpoint_brings_the_model_back(tmp_path, options):
    model = make_model(**options, label_smoothing=0.25).float()
    trainer = fit(model, [draw_batch([3, 2])])
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    decoder = type(options["decoder"])(options["decoder"].input_size, 5)
    layers = {"encoder": GRU(4, 6, bidirectional=True), "decoder": decoder}
    again = Seq2Seq.load_from_checkpoint(tmp_path / "model.ckpt", **layers)
    assert again.label_smoothing == 0.25
    batch = draw_batch([4, 1], seed=5)
    arguments = (batch.source, batch.source_lengths, batch.target_inputs)
    assert_close(again.eval()(*arguments), model.eval()(*arguments))
    assert (again.decoder.output.weight is again.decoder.embedding.weight) == ("tie_weights" in options)


def test_resuming_ends_where_the_training_in_one_go_does(tmp_path):
    adam = partial(torch.optim.Adam, lr=0.01)
    whole, half = (make_model(optimizer=adam, dropout=0.0, coverage=True) for _ in range(2))
    batches = [draw_batch(sizes, seed) for seed, sizes in enumerate(UNEQUAL)]
    fit(whole, batches, max_epochs=3, accumulate_grad_batches=2)
    fit(half, batches, max_epochs=1, accumulate_grad_batches=2).save_checkpoint(tmp_path / "half.ckpt")
    resumed = make_model(seed=7, optimizer=adam, dropout=0.0, coverage=True)
    fit(resumed, batches, max_epochs=3, accumulate_grad_batches=2, ckpt_path=tmp_path / "half.ckpt")
    same_parameters(resumed, whole, rtol=0, atol=0)


# Precision and learning


@pytest.mark.parametrize("options", [{"coverage": True, "coverage_loss": 0.5}, {"input_feeding": False}], ids=str)
def test_half_precision_trains_and_validates(options):
    model, watch = make_model(**options, detokenize=words, label_smoothing=0.1).float(), Watch()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    batch = draw_batch([3, 5, 1], references=["w5 w6 w5 w6"] * 3)
    fit(model, [batch] * 2, [batch], watch, precision="bf16-mixed", accumulate_grad_batches=2)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert not any(map(torch.equal, before, model.parameters()))
    assert {"val/bleu", "val/loss"} <= set(watch.validations[-1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_training_on_a_gpu_ends_where_it_does_on_a_cpu():
    model, on_cpu = (make_model(detokenize=words, label_smoothing=0.1, coverage=True) for _ in range(2))
    batch = draw_batch([3, 5, 1], references=["w5 w6 w5 w6"] * 3)
    fit(on_cpu, [batch], [batch])
    fit(model, [batch], [batch], accelerator="gpu")
    same_parameters(model.cpu(), on_cpu, rtol=1e-6, atol=1e-6)


def reversals(count, seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 5, (count,), generator=generator).tolist()
    sources = [torch.randint(4, 9, (length,), generator=generator).tolist() for length in lengths]
    return pair_batch(sources, [ids[::-1] for ids in sources], references=words([ids[::-1] for ids in sources]))


@pytest.mark.parametrize(
    "options",
    [{}, pytest.param({"input_feeding": False}, marks=pytest.mark.slow)],
    ids=["fed", "at once"],
)
def test_a_model_learns_to_reverse_what_it_reads(options):
    torch.manual_seed(0)
    fed = 32 * options.get("input_feeding", True)
    model = Seq2Seq(
        GRU(16, 16, bidirectional=True),
        GRU(16 + fed, 32),
        9,
        9,
        **options,
        detokenize=words,
        optimizer=partial(torch.optim.Adam, lr=0.01),
    )
    watch = Watch()
    stop = EarlyStopping("val/exact_match", mode="max", stopping_threshold=99.999, patience=1000)
    train = [reversals(64, seed) for seed in range(10)]
    fit(model, train, [reversals(64, 1000)], watch, stop, max_epochs=40)
    assert watch.validations[-1]["val/exact_match"] == 100
