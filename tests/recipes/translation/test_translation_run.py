"""`rnn-blocks translation fit|validate|test`: what a run does, keeps and goes on with."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_runs import (
    TINY_TRANSLATION,
    assert_same,
    column,
    finish,
    kill_after_a_checkpoint,
    load,
    metrics,
    only_run,
    options,
    recipe,
    start,
    tiny_translation,
    trained,
    write_pairs,
)

from rnn_blocks.recipes.command_line.shipped_configs import shipped_configs
from rnn_blocks.recipes.run.averaging import average_checkpoints
from rnn_blocks.recipes.run.folder import RunFolder, runs
from rnn_blocks.recipes.run.load import DATA_STATES
from rnn_blocks.recipes.translation.translator import SearchOptions, Translator

CONFIGS = shipped_configs("translation")
LOGGED = {
    *(f"{split}/{name}" for split in ("train", "val") for name in ("loss", "perplexity")),
    *("val/bleu", "val/chrf", "val/exact_match", "data/padding_fraction", "throughput/tokens_per_second"),
}


def translation(*args: str) -> int:
    return recipe(*args, of="translation")


def test_a_run_logs_what_the_table_of_metrics_says_and_draws_bleu_and_attention(
    finished_translation: RunFolder,
) -> None:
    assert set().union(*metrics(finished_translation)) | {"throughput/tokens_per_second"} >= LOGGED
    pictures = {
        path.relative_to(finished_translation.plots).as_posix() for path in finished_translation.plots.rglob("*.png")
    }
    assert pictures == {"loss.png", "gradient_norm.png", "scores.png", "attention/1.png"}
    assert all(0 <= value < 1 for value in column(finished_translation, "data/padding_fraction").values())


def test_each_validation_adds_sentences_of_the_validation_split_to_the_samples(
    finished_translation: RunFolder, pairs: Path
) -> None:
    blocks = finished_translation.samples.read_text().strip().split("\n\n")
    assert [block.split("\n")[0] for block in blocks] == ["=== step 10 ==="] * 3 + ["=== step 20 ==="] * 3
    sources = [re.search(r"^source +(.*)$", block, re.MULTILINE)[1] for block in blocks]
    references = [re.search(r"^reference +(.*)$", block, re.MULTILINE)[1] for block in blocks]
    assert sources[:3] == sources[3:]
    lines = [(pairs / f"val.{ending}").read_text().splitlines() for ending in ("en", "de")]
    assert set(zip(sources, references, strict=True)) <= set(zip(*lines, strict=True))


@pytest.mark.parametrize(("monitor", "best"), [("val/chrf", max), ("val/loss", min)])
def test_the_best_checkpoint_is_the_best_by_what_is_monitored(
    monitor: str, best: Callable[..., float], pairs: Path, tmp_path: Path
) -> None:
    settings = {"monitor": monitor, "trainer.max_steps": 25, "trainer.val_check_interval": 5}
    settings |= {"model.optimizer.init_args.lr": 0.1, "model.lr_scheduler": "null", "trainer.callbacks": "null"}
    assert translation("fit", *tiny_translation(pairs, tmp_path, **settings)) == 0
    folder = only_run(tmp_path, "translation")
    values = column(folder, monitor)
    assert len(set(values.values())) > 2
    assert load(folder, "best")["global_step"] == best(values, key=values.__getitem__) + 1


@pytest.mark.parametrize(("command", "split"), [("validate", "val"), ("test", "test")])
def test_an_evaluation_prints_bleu_chrf_and_exact_matches(
    command: str, split: str, finished_translation: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(finished_translation.path.rglob("*"))
    assert translation(command, "--ckpt_path", str(finished_translation.path)) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"^{split}: BLEU [\d.]+, chrF [\d.]+, exactly right [\d.]+ %, perplexity [\d.]+$", shown, re.M)
    assert sorted(finished_translation.path.rglob("*")) == before


def one_word_pairs(folder: Path) -> Path:
    """Pairs whose targets are one word each, as German numbers are."""
    write_pairs(folder)
    for name in ("train", "val", "test"):
        path = folder / f"{name}.de"
        path.write_text(path.read_text().replace(" ", ""))
    return folder


def test_no_bleu_is_told_where_no_reference_has_four_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = one_word_pairs(tmp_path)
    assert translation("fit", *tiny_translation(folder, tmp_path, **{"data.tokenizer": "char"})) == 0
    run = only_run(tmp_path, "translation")
    assert {"val/chrf", "val/exact_match"} <= {name for row in metrics(run) for name in row}
    assert "bleu" not in run.metrics.read_text().splitlines()[0]
    assert (run.plots / "scores.png").is_file()
    capsys.readouterr()
    assert translation("test", "--ckpt_path", str(run.path)) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^test: chrF [\d.]+, exactly right [\d.]+ %, perplexity [\d.]+$", shown, re.M)
    assert "test: no BLEU, which counts runs of 4 words: no reference has so many" in shown
    assert "test/bleu" not in shown


STOPPED_BY_BLEU = "{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {monitor: val/bleu, mode: max}}"


@pytest.mark.parametrize("option", [{"monitor": "val/bleu"}, {"trainer.callbacks": f"[{STOPPED_BY_BLEU}]"}])
def test_bleu_is_not_watched_where_no_reference_has_four_words(
    option: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = one_word_pairs(tmp_path)
    assert translation("fit", *tiny_translation(folder, tmp_path, **{"data.tokenizer": "char"}, **option)) == 2
    error = capsys.readouterr().err
    assert "error: --monitor val/bleu: BLEU counts runs of 4 words, and no reference" in error
    assert runs(tmp_path / "translation") == []


@pytest.mark.processes
def test_after_sigkill_in_mid_epoch_a_run_ends_bit_for_bit_as_an_undisturbed_one(pairs: Path, tmp_path: Path) -> None:
    settings = {
        "trainer.max_steps": 30,
        "model.dropout": 0.2,
        "model.scheduled_sampling": "{class_path: rnn_blocks.ScheduledSampling, init_args: {decay: linear, k: 50}}",
    }
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert translation("fit", *tiny_translation(pairs, whole, **settings)) == 0
    kill_after_a_checkpoint(start("fit", *tiny_translation(pairs, cut, **settings), of="translation"), cut)
    at = load(only_run(cut, "translation"))
    assert 0 < at["global_step"] < 30
    assert not at["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"]

    assert translation("fit", "--ckpt_path", "last", "--output_dir", str(cut)) == 0
    one, other = only_run(cut, "translation"), only_run(whole, "translation")
    assert_same(trained(load(one)), trained(load(other)))
    assert metrics(one) == metrics(other)


@pytest.mark.processes
def test_a_training_ends_with_the_mean_of_its_best_checkpoints_validated(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"average_checkpoints": 2, "trainer.max_steps": 24, "trainer.val_check_interval": 8}
    assert translation("fit", *tiny_translation(pairs, tmp_path, **settings)) == 0
    shown = capsys.readouterr().out
    told = re.search(
        r"^val/chrf of the averaged weights ([\d.]+), of the best checkpoint ([\d.]+): take --ckpt_path (\w+)$",
        shown,
        re.MULTILINE,
    )
    assert told, shown
    assert told[3] == ("averaged" if float(told[1]) > float(told[2]) else "best")
    folder = only_run(tmp_path, "translation")
    kept = sorted(folder.kept.glob("*.ckpt"))
    assert len(kept) == 2
    held = [torch.load(path, weights_only=True)["state_dict"] for path in kept]
    mean = load(folder, "averaged")["state_dict"]
    for name, value in mean.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (held[0][name].double() + held[1][name].double()).div(2).float())
    assert translation("validate", "--ckpt_path", "averaged", "--output_dir", str(tmp_path)) == 0
    validated = float(re.search(r"chrF ([\d.]+)", capsys.readouterr().out)[1])
    assert validated == pytest.approx(float(told[1]), abs=0.01)
    assert translation("fit", "--ckpt_path", str(folder.checkpoint("averaged")), "--output_dir", str(tmp_path)) == 2
    assert "holds weights alone" in capsys.readouterr().err
    assert translation("validate", "--ckpt_path", str(kept[0])) == 0, "a kept one finds its run's configuration"


def test_average_writes_the_mean_of_the_checkpoints_that_it_is_given(
    finished_translation: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best, last = (finished_translation.checkpoint(name) for name in ("best", "last"))
    output = tmp_path / "mean.ckpt"
    assert translation("average", "--checkpoints", str(best), str(last), "--output", str(output)) == 0
    assert str(output) in capsys.readouterr().out
    assert_same(torch.load(output, weights_only=True)["state_dict"], average_checkpoints([best, last])["state_dict"])
    again = ["average", "--run", str(finished_translation.path), "--output", str(output)]
    before = output.read_bytes()
    assert translation(*again) == 2
    assert f"{output}: there is something already; give another --output, or --overwrite" in capsys.readouterr().err
    assert output.read_bytes() == before
    assert translation(*again, "--overwrite") == 0
    kept = sorted(finished_translation.kept.glob("*.ckpt"))
    assert_same(torch.load(output, weights_only=True)["state_dict"], average_checkpoints(kept)["state_dict"])
    assert Translator.load(output)(["one two"], SearchOptions())


def _saved(path: Path, **weights: Any) -> Path:
    torch.save({"state_dict": weights, "global_step": 7, "loops": {}}, path)
    return path


def test_the_mean_keeps_dtypes_whole_numbers_and_ties(tmp_path: Path) -> None:
    paths = []
    for number in (1, 2, 3):
        tied = torch.full((2, 3), float(number))
        weights = {
            "embedding": tied,
            "output": tied,
            "half": torch.tensor([number / 3]).bfloat16(),
            "count": torch.tensor(number),
            "flag": torch.tensor(number == 3),
        }
        paths.append(_saved(tmp_path / f"{number}.ckpt", **weights))
    found = average_checkpoints(paths)
    assert found.keys() == {"state_dict", "global_step"}
    mean = found["state_dict"]
    assert torch.equal(mean["embedding"], torch.full((2, 3), 2.0))
    assert mean["embedding"].data_ptr() == mean["output"].data_ptr()
    assert mean["half"].dtype == torch.bfloat16
    assert (mean["count"].item(), mean["flag"].item()) == (3, True)


def test_the_mean_tells_a_square_from_its_transpose(tmp_path: Path) -> None:
    square = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    path = _saved(tmp_path / "one.ckpt", there=square, back=square.T)
    mean = average_checkpoints([path, path])["state_dict"]
    assert torch.equal(mean["there"], square)
    assert torch.equal(mean["back"], square.T)


def test_a_mean_is_not_written_in_the_place_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = str(_saved(tmp_path / "one.ckpt", a=torch.zeros(2)))
    for folder in (".", str(tmp_path)):
        assert translation("average", "--checkpoints", one, one, "--output", folder) == 2
        assert f"--output {folder}: this is a folder; give the file to write" in capsys.readouterr().err


def test_checkpoints_of_different_models_are_refused_with_the_first_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = _saved(tmp_path / "one.ckpt", a=torch.zeros(2), b=torch.zeros(3))
    for weights, message in (
        ({"a": torch.zeros(2), "b": torch.zeros(4)}, "'b' is (4,) and there (3,)"),
        ({"a": torch.zeros(2)}, "it lacks 'b'"),
        ({"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)}, "which has no 'c'"),
    ):
        other = _saved(tmp_path / "other.ckpt", **weights)
        assert translation("average", "--checkpoints", str(one), str(other), "--output", str(tmp_path / "x")) == 2
        shown = capsys.readouterr().err
        assert shown.startswith(f"error: {other}: not a checkpoint of the model of {one}")
        assert message in shown
    assert translation("average", "--checkpoints", str(one)) == 2
    assert "1 checkpoint cannot be averaged; give two or more" in capsys.readouterr().err
    assert translation("average") == 2
    assert "give either --run RUN or --checkpoints A B …" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_checkpoints_with_the_same_sizes_and_other_tokenizers_are_refused(
    finished_translation: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = finished_translation.checkpoint("best")
    changed = load(finished_translation, "best")
    state = changed[DATA_STATES["translation"]]
    state["tokenizer" if "tokenizer" in state else "source_tokenizer"] = "{}"
    other = tmp_path / "other.ckpt"
    torch.save(changed, other)
    assert translation("average", "--checkpoints", str(one), str(other), "--output", str(tmp_path / "x")) == 2
    assert f"error: {other}: its tokenizer is not that of {one}" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.processes
@pytest.mark.parametrize("name", CONFIGS)
def test_every_shipped_configuration_trains_by_its_bare_name(name: str, pairs: Path, tmp_path: Path) -> None:
    config = yaml.safe_load(CONFIGS[name].read_text())
    model = config["model"]
    fed = 16 if model["input_feeding"] else 0
    settings = {
        **{key: value for key, value in TINY_TRANSLATION.items() if not key.startswith("model.")},
        "model.encoder.init_args.input_size": 16,
        "model.encoder.init_args.hidden_size": 8,
        "model.decoder.init_args.input_size": 16 + fed,
        "model.decoder.init_args.hidden_size": 16,
        "model.attentional_size": 16,
        "data.vocab_size": "null",
        "data.bpe_dropout": 0.0,
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 2,
    }
    args = ["--config", name, *tiny_translation(pairs, tmp_path, **settings)]
    assert translation("fit", *args) == 0
    folder = only_run(tmp_path, "translation")
    assert load(folder)["global_step"] == 2
    resolved = yaml.safe_load(folder.config.read_text())
    assert resolved["model"]["attention"] == model["attention"]
    assert any(
        callback["class_path"].endswith("AdaptiveGradientClipping") for callback in resolved["trainer"]["callbacks"]
    )


BAD_SETTINGS = {
    "data.joint": ("false", "--model.tie_weights three-way: source and target have vocabularies of their own"),
    "model.attention": ("aditive", "additive"),
    "model.tie_weights": ("four-way", "two-way"),
    "model.decoder.init_args.hidden_size": (-1, "hidden_size must be at least 1, got -1"),
    "model.val_beam_size": (0, "val_beam_size must be at least 1, got 0"),
    "monitor": ("val/blue", "--monitor val/blue: choose one of val/bleu, val/chrf, val/exact_match, val/loss"),
    "average_checkpoints": (1, "--average_checkpoints must be 2 or more, or 0 for none, got 1"),
    "data.train": ("nowhere", "no such text"),
    "samples.sentences": (-1, "--samples.sentences must be 0 or more, got -1"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_a_setting_out_of_its_range_is_refused_and_leaves_no_run(
    name: str, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value, message = BAD_SETTINGS[name]
    settings = {name: value} | ({"model.tie_weights": "three-way"} if name == "data.joint" else {})
    assert translation("fit", *tiny_translation(pairs, tmp_path, **settings)) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert runs(tmp_path / "translation") == []


def test_a_checkpoint_without_tokenizers_is_refused_by_every_command(
    finished_translation: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = load(finished_translation, "best")
    del checkpoint["ParallelDataModule"]
    path = tmp_path / "bare.ckpt"
    torch.save(checkpoint, path)
    config = ["--config", str(finished_translation.config)]
    for command in ("fit", "validate", "test", "translate", "interactive"):
        more = config if command in ("fit", "validate", "test") else []
        assert translation(command, *more, *options(ckpt_path=path, output_dir=tmp_path)) == 2
        shown = capsys.readouterr()
        assert f"{path}: holds no tokenizer: not a checkpoint of the translation recipe" in shown.err


@pytest.mark.processes
def test_two_ranks_train_average_and_draw_as_one_run(pairs: Path, tmp_path: Path) -> None:
    settings = {
        "trainer.max_steps": 6,
        "trainer.val_check_interval": 3,
        "average_checkpoints": 2,
        "logger": "tensorboard",
    }
    ddp = {"trainer.strategy": "ddp", "trainer.devices": 2, "data.batch_tokens": 55}
    told = finish(start("fit", *tiny_translation(pairs, tmp_path, **(settings | ddp)), of="translation"))
    folder = only_run(tmp_path, "translation")
    assert load(folder)["global_step"] == 6
    assert re.search(r"^val/chrf of the averaged weights [\d.]+, of the best checkpoint", told, re.MULTILINE)
    assert folder.checkpoint("averaged").is_file()
    assert len(folder.samples.read_text().strip().split("\n\n")) == 6, "of the first rank alone"
    assert (folder.plots / "attention" / "1.png").is_file()
    assert translation("validate", "--ckpt_path", str(folder.path), "--trainer.devices", "1") == 0
