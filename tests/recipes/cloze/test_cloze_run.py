"""`rnn-blocks cloze fit|validate|test|predict|average`: what a run does, keeps and goes on with."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_runs import (
    TINY_CLOZE,
    assert_same,
    column,
    kill_after_a_checkpoint,
    load,
    metrics,
    only_run,
    options,
    recipe,
    start,
    trained,
)
from tokenizers import Tokenizer

from rnn_blocks import GRU, Bidirectional, ClozeModel
from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.cloze.fill import Filler, table
from rnn_blocks.recipes.command_line.shipped_configs import shipped_configs
from rnn_blocks.recipes.data.tokenizer import bpe_tokenizer, char_tokenizer, word_tokenizer
from rnn_blocks.recipes.run.folder import RunFolder

NUMBER = r"[\d.]+"


@pytest.fixture(scope="module")
def sea(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each line says first and last the same word."""
    path = tmp_path_factory.mktemp("text") / "sea.txt"
    path.write_text("".join(f"{word} sea and a {word}\n" for word in ("blue", "open", "deep") * 80))
    return path


def tiny(text: Path, output_dir: Path, **settings: Any) -> list[str]:
    return options(**(TINY_CLOZE | {"data.source": text, "output_dir": output_dir} | settings))


def cloze(*args: str) -> int:
    return recipe(*args, of="cloze")


@pytest.fixture(scope="module")
def finished(sea: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of 20 steps, with one validation each 10 and their average. Not to be written to."""
    output_dir = tmp_path_factory.mktemp("filled")
    assert cloze("fit", *tiny(sea, output_dir, average_checkpoints=2)) == 0
    return only_run(output_dir, "cloze")


def test_a_run_logs_its_metrics_fills_in_samples_and_averages(finished: RunFolder) -> None:
    logged = {f"{split}/{name}" for split in ("train", "val") for name in ("loss", "perplexity")} | {"val/accuracy"}
    assert set().union(*metrics(finished)) >= logged
    losses = column(finished, "val/loss")
    assert list(losses) == [9, 19]
    assert losses[19] < losses[9]
    blocks = finished.samples.read_text().split("=== step ")[1:]
    assert [block.split("\n")[:2] for block in blocks] == [
        [f"{step} ===", text] for step in (10, 20) for text in ("the ___ sea", "___ sea and ___")
    ]
    assert len(re.findall(rf"^  \S+ +{NUMBER} %$", blocks[-1], re.MULTILINE)) == 6
    for name in ("best", "last", "averaged"):
        assert finished.checkpoint(name).is_file()
    assert (finished.plots / "loss.png").is_file()


@pytest.mark.parametrize(("command", "split"), [("validate", "val"), ("test", "test")])
def test_an_evaluation_tells_perplexity_and_accuracy_of_the_blanks_the_same_each_time(
    command: str, split: str, finished: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for _ in range(2):
        assert cloze(command, "--ckpt_path", str(finished.path)) == 0
        shown += re.findall(
            rf"^{split}: of the blanks perplexity ({NUMBER}), rightly filled in ({NUMBER}) %$",
            capsys.readouterr().out,
            re.MULTILINE,
        )
    assert len(shown) == 2
    assert shown[0] == shown[1]
    if split == "val":
        best = min(column(finished, "val/perplexity").values())
        assert float(shown[0][0]) == pytest.approx(best, abs=0.01)


@pytest.mark.processes
def test_after_sigkill_in_mid_epoch_a_run_ends_bit_for_bit_as_an_undisturbed_one(sea: Path, tmp_path: Path) -> None:
    settings = {"trainer.max_steps": 30, "model.dropout": 0.2}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert cloze("fit", *tiny(sea, whole, **settings)) == 0
    kill_after_a_checkpoint(start("fit", *tiny(sea, cut, **settings), of="cloze"), cut)
    at = load(only_run(cut, "cloze"))
    assert 0 < at["global_step"] < 30
    assert cloze("fit", "--ckpt_path", "last", "--output_dir", str(cut)) == 0
    one, other = only_run(cut, "cloze"), only_run(whole, "cloze")
    assert_same(trained(load(one)), trained(load(other)))
    assert metrics(one) == metrics(other)


def test_predict_shows_the_candidates_of_each_blank_with_their_probabilities(
    finished: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--ckpt_path", str(finished.path)]
    assert cloze("predict", "blue sea and a ___", "--top_k", "4", *place) == 0
    out, err = capsys.readouterr()
    head, *rows = out.splitlines()
    assert head == "blue sea and a ___"
    assert err == ""
    found = [re.fullmatch(rf"  (\S+) +({NUMBER}) %", row) for row in rows]
    assert len(found) == 4
    assert len({len(row) for row in rows}) == 1, "aligned"
    values = [float(row[2]) for row in found]
    assert values == sorted(values, reverse=True)
    assert 0 < sum(values) <= 100.05
    filled = Filler.load(finished.checkpoint("best"))("blue sea and a ___", top_k=4)
    assert [row[1] for row in found] == [text for text, _ in filled[0]]

    assert cloze("predict", "--blank", "?", *place, "? sea and a ?") == 0
    out = capsys.readouterr().out
    assert re.findall(r"^blank \d of 2$", out, re.MULTILINE) == ["blank 1 of 2", "blank 2 of 2"]
    assert out.endswith("\nEach blank is filled in with the others blank: candidates need not go together.\n")

    assert cloze("predict", "green sea and a ___", *place) == 0
    assert capsys.readouterr().err == "not in the vocabulary, read as <unk>: green\n"


@pytest.mark.parametrize(
    ("tokenizer", "told"),
    [("char", "not in the vocabulary, read as <unk>: é, 7\n"), ("bpe", "never seen in training: 'é', '7'\n")],
)
def test_what_of_a_text_with_blanks_training_never_saw_is_told(
    tokenizer: str, told: str, sea: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"data.tokenizer": tokenizer, "trainer.max_steps": 2, "samples.texts": '["the ___"]'}
    settings |= {"data.vocab_size": 300} if tokenizer == "bpe" else {}
    assert cloze("fit", *tiny(sea, tmp_path, **settings)) == 0
    place = ["--ckpt_path", str(only_run(tmp_path, "cloze").path)]
    for given, shown in (("sea ___", ""), ("sea é ___ 7 and é", told)):
        capsys.readouterr()
        assert cloze("predict", given, *place) == 0
        assert capsys.readouterr().err == shown


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["the clouds"], r'there is no blank in \'the clouds\': mark it by ___, as in "the clouds are in the ___"'),
        (["the ___", "--blank", "@"], r"there is no blank in 'the ___': mark it by @"),
        (["the ___", "--blank", " "], r"--blank ' ': give something that can be seen"),
        (["one\n___"], r"this model was trained on lines \(--data\.unit line\); give it one at a time"),
        (["the ___", "--top_k", "0"], r"--top_k must be at least 1, got 0"),
        (["the ___", "--ckpt_path", "no.ckpt"], r"--ckpt_path no\.ckpt: no such file"),
    ],
)
def test_bad_input_of_predict_is_told(
    args: list[str], message: str, finished: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    place = [] if "--ckpt_path" in args else ["--ckpt_path", str(finished.path)]
    assert cloze("predict", *args, *place) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples.texts": '["the sea"]'}, r"there is no blank in 'the sea'"),
        ({"samples.top_k": 0}, r"--samples\.top_k must be at least 1, got 0"),
        ({"data.mask_rate": 1.5}, r"mask_rate 1\.5: give a part of the tokens, above 0 and below 1"),
        ({"monitor": "val/bleu"}, r"--monitor val/bleu: choose one of val/loss, val/accuracy"),
    ],
)
def test_bad_input_of_a_training_is_told_before_it_begins(
    settings: dict[str, Any], message: str, sea: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cloze("fit", *tiny(sea, tmp_path, **settings)) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.rglob("*.ckpt"))


def filler(tokenizer: Any) -> Filler:
    torch.manual_seed(0)
    size = tokenizer.get_vocab_size()
    return Filler(ClozeModel(Bidirectional(GRU(4, 4, engine="loop")), size + 1, size), tokenizer, "line")


def test_a_byte_level_blank_takes_the_space_before_it() -> None:
    words = filler(Tokenizer.from_str(bpe_tokenizer(["the sea, the open sea\n" * 50], 300).to_str()))
    ids = words.tokenizer.encode("the open sea\n").ids
    mask = words.model.mask_id
    assert len(ids) == 4
    assert words.read("the ___ sea").ids == [ids[0], mask, *ids[2:]]
    assert words.read("the ___ sea").spaced == [True]
    assert words.read("___ open ___").ids == [mask, ids[1], mask, ids[3]]
    assert words.read("___ open ___").spaced == [False, True]
    space = [words._shown(token, True) for token in (ids[1], ids[0], ids[3])]
    assert space == ["open", "'the'", "'\\n'"], "in quotes what would not stand behind the space as the blank does"
    assert [words._shown(token, False) for token in (ids[1], ids[0])] == ["' open'", "the"]


def test_words_and_characters_are_read_as_they_stand() -> None:
    words = filler(word_tokenizer(["<unk>", "<eos>", "the", "sea", ","]))
    assert words.read("the ___, sea").ids == [2, 5, 4, 3, 1]
    assert words.read("the ___ <unk> ocean").unknown == ["ocean"]
    letters = filler(char_tokenizer(["abc \n"]))
    assert letters.read("a__ c___", blank="__").ids[:3] == [letters.tokenizer.token_to_id("a"), 6, 2]


def test_a_table_is_aligned_over_all_blanks() -> None:
    assert table([[("a", 0.5), ("longer", 0.25)], [("b", 1.0)]]).splitlines() == [
        "blank 1 of 2",
        "  a        50.00 %",
        "  longer   25.00 %",
        "",
        "blank 2 of 2",
        "  b       100.00 %",
    ]


def test_average_writes_the_mean_of_checkpoints(finished: RunFolder, tmp_path: Path) -> None:
    given = [str(finished.checkpoint(name)) for name in ("best", "last")]
    output = tmp_path / "mean.ckpt"
    assert cloze("average", "--checkpoints", *given, "--output", str(output)) == 0
    held = [torch.load(path, weights_only=True)["state_dict"]["embedding.weight"] for path in (*given, output)]
    torch.testing.assert_close(held[2], (held[0] + held[1]) / 2)
    assert cloze("predict", "the ___", "--ckpt_path", str(output)) == 0


def test_a_checkpoint_of_another_recipe_is_refused(finished_run: RunFolder) -> None:
    with pytest.raises(InputError, match=r"ckpt: not a checkpoint of the cloze recipe, but one of language-model"):
        Filler.load(finished_run.checkpoint("best"))


@pytest.mark.processes
@pytest.mark.parametrize("name", shipped_configs("cloze"))
def test_every_shipped_configuration_runs(
    name: str, sea: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it is, but for the text, where it needs one, and the number of steps."""
    path = shipped_configs("cloze")[name]
    settings = {
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 2,
        "trainer.enable_progress_bar": "false",
        "trainer.accelerator": "cpu",
        "output_dir": tmp_path,
        "logger": "csv",
        "data.batch_tokens": 128,
        "data.cache_dir": tmp_path / "cache",
    }
    if yaml.safe_load(path.read_text())["data"].get("source") != "rhymes":
        settings |= {f"data.{split}": sea for split in ("train", "val", "test")}
        settings |= {"data.vocab_size": "null", "data.tokenizer": "word"}
    if name == "default":
        settings["data.source"] = "stdlib"
    with_name = ["--config", name, *options(**settings)]
    assert cloze("fit", *with_name) == 0, capsys.readouterr().err
    assert only_run(tmp_path, "cloze").checkpoint("last").is_file()
