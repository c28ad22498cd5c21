"""`rnn-blocks language-model test` with a cache and dynamic evaluation."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from jsonargparse import Namespace
from tiny_runs import options, recipe

from rnn_blocks import DynamicEvaluation, NeuralCache, evaluate_adaptively, mean_squared_gradients
from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.language_model import adaptation
from rnn_blocks.recipes.language_model.adaptation import Adaptation, adaptation_of
from rnn_blocks.recipes.language_model.data import TextDataModule
from rnn_blocks.recipes.language_model.lanes import Lanes
from rnn_blocks.recipes.language_model.recipe import LanguageModelCLI, load_language_model
from rnn_blocks.recipes.run.folder import RunFolder

LIMITS = ["--trainer.limit_test_batches", "6", "--trainer.limit_val_batches", "6", "--data.eval_batch_size", "2"]


def command(run: RunFolder, *args: str) -> list[str]:
    return ["--ckpt_path", str(run.path), *LIMITS, *args]


def perplexities(printed: str) -> dict[str, float]:
    """By what a line says after its numbers."""
    found = re.findall(r"^\w+: perplexity ([\d.]+), bits per byte [\d.]+ (?:with )?(.*)$", printed, re.MULTILINE)
    return {what.split(" (")[0] if "gzip" not in what else "plain": float(value) for value, what in found}


@pytest.mark.parametrize(("limits", "of"), [(LIMITS, "the whole test split"), ([], "the same text")])
def test_gzip_is_told_of_the_text_that_it_packed(limits: list[str], of: str, finished_run: RunFolder, capsys) -> None:
    assert recipe("test", "--ckpt_path", str(finished_run.path), *limits) == 0
    assert f"(gzip -9 of {of}: " in capsys.readouterr().out


def test_what_is_printed_and_logged_is_measured_as_by_hand(finished_run: RunFolder, text: Path, capsys) -> None:
    cache, dynamic = NeuralCache(30, 2.0, 0.2), DynamicEvaluation("rms", lr=0.003, steps=4)
    args = ["--cache.window", "30", "--cache.theta", "2", "--cache.weight", "0.2"]
    args += ["--dynamic.lr", "0.003", "--dynamic.steps", "4", "--dynamic.train_batches", "3"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as the command line does
        cli = LanguageModelCLI(["test", *command(finished_run, *args)])
    before = {name: tensor.clone() for name, tensor in cli.model.state_dict().items()}
    printed = capsys.readouterr().out

    model, _ = load_language_model(finished_run.checkpoint("best"))
    torch.testing.assert_close(before, dict(model.state_dict()), rtol=0, atol=0)
    data = TextDataModule(str(text), vocab_size=300, batch_size=8, bptt=16, eval_batch_size=2)
    train = [batch for _, batch in zip(range(3), Lanes(data.splits["train"], 100, 4), strict=False)]
    batches = [batch for _, batch in zip(range(6), data.test_dataloader(), strict=False)]
    squares = mean_squared_gradients(model, train)
    cached = evaluate_adaptively(model, batches, cache=cache)
    moved = evaluate_adaptively(model, batches, cache=cache, dynamic=dynamic, mean_squares=squares)
    expected = {
        "test": cached["model"],
        "test/cache": cached["cache"],
        "test/dynamic": moved["model"],
        "test/dynamic_cache": moved["cache"],
    }
    for prefix, loss in expected.items():
        for name, value in loss.compute().items():
            torch.testing.assert_close(
                cli.trainer.callback_metrics[f"{prefix}/{name}"], value.float(), rtol=1e-4, atol=0
            )
    lines = [line for line in printed.splitlines() if line.startswith("test: ")]
    ways = [Adaptation(cache, None), Adaptation(None, dynamic), Adaptation(cache, dynamic)]
    assert [line.split(" with ")[1] for line in lines[1:]] == [way.describe() for way in ways]
    for line, loss in zip(lines, expected.values(), strict=True):
        assert float(line.split()[2].rstrip(",")) == pytest.approx(loss.compute()["perplexity"].item(), abs=0.006)


def test_validate_adapts_too_and_a_plain_test_does_not(finished_run: RunFolder, capsys) -> None:
    assert recipe("validate", *command(finished_run, "--dynamic.method", "sgd")) == 0
    assert list(perplexities(capsys.readouterr().out)) == ["plain", "dynamic evaluation"]
    assert recipe("test", *command(finished_run)) == 0
    assert list(perplexities(capsys.readouterr().out)) == ["plain"]


def test_what_is_tuned_is_chosen_on_validation_text_and_what_is_given_stays(finished_run: RunFolder, capsys) -> None:
    args = ["--cache.theta", "0.25", "--dynamic.method", "sgd", "--dynamic.decay", "0.01", "--tune"]
    assert recipe("validate", *command(finished_run, *args)) == 0
    printed = capsys.readouterr().out
    assert "theta 0.25," in printed
    assert "decay 0.01," in printed
    rate = float(re.findall(r"sgd, lr ([\d.]+)", printed)[0])
    assert rate != 0.1
    found = perplexities(printed)
    assert found["dynamic evaluation"] < found["plain"]


def test_where_weights_learn_less_text_is_chosen_on(finished_run: RunFolder, monkeypatch) -> None:
    read = []

    def note(batches, chosen):
        read.append(sum(batch.targets.numel() for batch in batches))
        return chosen

    monkeypatch.setattr(adaptation, "TUNED_ON", 100)
    monkeypatch.setattr(adaptation, "TUNED_ON_WITH_DYNAMIC", 32)
    monkeypatch.setattr(adaptation, "tune_dynamic_evaluation", lambda model, text, start, **_: note(text(), start))
    monkeypatch.setattr(adaptation, "tune_cache", lambda model, batches, *, cache, **_: note(batches, cache))
    assert recipe("validate", *command(finished_run, "--cache.window", "30", "--tune")) == 0
    assert recipe("validate", *command(finished_run, "--cache.window", "30", "--dynamic.method", "sgd", "--tune")) == 0
    assert read == [128, 32, 32]  # whole batches of two lanes of 16


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--cache.window", "0"], "--cache.window must be at least 1 step, got 0"),
        (["--cache.theta", "1", "--trainer.devices", "2"], "read the text in one process, not in 2"),
    ],
)
def test_a_value_that_cannot_be_used_is_told_before_the_test(finished_run: RunFolder, capsys, args, message) -> None:
    assert recipe("test", *command(finished_run, *args)) == 2
    told = capsys.readouterr()
    assert message in told.err
    assert "perplexity" not in told.out


def test_a_training_knows_nothing_of_it(text: Path, tmp_path: Path, capsys) -> None:
    assert recipe("fit", *options(**{"data.source": text, "output_dir": tmp_path, "cache.window": 5})) == 2
    assert "cache.window" in capsys.readouterr().err


def made(cache: dict, dynamic: dict, tune: bool = False) -> Adaptation | None:
    no_cache = dict.fromkeys(("window", "theta", "weight"))
    no_dynamic = dict.fromkeys(("method", "lr", "decay", "epsilon", "steps", "train_batches"))
    return adaptation_of(
        Namespace(cache=Namespace(no_cache | cache), dynamic=Namespace(no_dynamic | dynamic), tune=tune)
    )


def test_any_option_turns_its_way_on_with_the_published_values_for_the_others() -> None:
    assert made({}, {}) is None
    assert made({"theta": 0.5}, {}) == Adaptation(NeuralCache(theta=0.5), None)
    assert made({}, {"train_batches": 7}) == Adaptation(None, DynamicEvaluation("rms"), 7)
    assert made({"window": 9}, {"lr": 0.1}, tune=True) == Adaptation(
        NeuralCache(9),
        DynamicEvaluation(lr=0.1),
        tuned=frozenset({"cache.theta", "cache.weight", "dynamic.decay"}),
    )


@pytest.mark.parametrize(
    ("cache", "dynamic", "tune", "message"),
    [
        ({"weight": 1.0}, {}, False, "--cache.weight must be at least 0 and below 1, got 1.0"),
        ({}, {"lr": -1.0}, False, "--dynamic.lr must be at least 0, got -1.0"),
        ({}, {"train_batches": 0}, False, "--dynamic.train_batches must be at least 1, got 0"),
        ({}, {}, True, "--tune: nothing to tune; turn on the cache"),
    ],
)
def test_a_number_out_of_its_range_is_told_with_its_option(cache, dynamic, tune, message) -> None:
    with pytest.raises(InputError, match=message):
        made(cache, dynamic, tune)
