"""Text that a vocabulary or a training does not know."""

import re
from pathlib import Path

import pytest
import torch
from tiny_runs import column, only_run, options, recipe, tiny, write_text

from rnn_blocks.recipes.run.folder import RunFolder, runs


def word_run(folder: Path, test: str, **more: object) -> list[str]:
    """The options of a tiny run on words, with half of its validation text unknown, tested on a text."""
    known = write_text(folder / "known.txt").read_text()
    (folder / "val.txt").write_text("def nothing\n" * 200)
    (folder / "test.txt").write_text(test)
    settings = {"data.tokenizer": "word", "data.vocab_size": "null", "data.train": folder / "known.txt"}
    settings |= {"data.val": folder / "val.txt", "data.test": folder / "test.txt", "data.source": "stdlib"}
    assert known.startswith("def ")
    return tiny(folder / "known.txt", folder, **(settings | more))


def test_the_share_of_unknown_words_is_logged_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recipe("fit", *word_run(tmp_path, "for gone in gone\n" * 100)) == 0
    run = only_run(tmp_path)
    assert list(column(run, "val/unknown").values()) == pytest.approx([1 / 3] * 2)
    capsys.readouterr()
    for command, share in (("validate", "33.33"), ("test", "40.00")):
        assert recipe(command, *options(ckpt_path=run.path)) == 0
        shown = capsys.readouterr().out
        split = "val" if command == "validate" else "test"
        assert f"{split}: {share} % of the tokens are <unk>" in shown
        assert re.search(rf"{split}/unknown", shown)


def test_a_split_of_unknown_words_alone_has_no_perplexity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recipe("fit", *word_run(tmp_path, "gone gone\n\n" * 100)) == 2
    message = "is nothing but <unk>: of its 200 words none is in the vocabulary"
    assert re.search(rf"error: the test split of .*test\.txt {message}", capsys.readouterr().err)
    assert runs(tmp_path / "language-model") == []
    assert recipe("fit", *word_run(tmp_path, "def gone\n" * 100)) == 0
    (tmp_path / "test.txt").write_text("gone gone\n\n" * 100)
    capsys.readouterr()
    assert recipe("test", *options(ckpt_path=only_run(tmp_path).path)) == 2
    told = capsys.readouterr()
    assert message in told.err
    assert "perplexity" not in told.out


def test_a_tokenizer_of_bytes_has_nothing_unknown(finished_run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert recipe("test", *options(ckpt_path=finished_run.path)) == 0
    shown = capsys.readouterr().out
    assert "perplexity" in shown
    assert "unk" not in shown


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("def value", ""),
        ("def é\u200b", "--prompt: never seen in training: 'é', '\\u200b'\n"),
        ("X = def X", "--prompt: never seen in training: 'X'\n"),
    ],
)
def test_what_of_a_prompt_training_never_saw_is_told(
    prompt: str, told: str, finished_run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe("generate", *options(ckpt_path=finished_run.path, max_tokens=2, prompt=prompt)) == 0
    shown = capsys.readouterr()
    assert shown.err == told
    assert shown.out.startswith(prompt)


def test_of_words_those_of_the_prompt_that_are_unknown_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe("fit", *word_run(tmp_path, "for gone in gone\n" * 100, **{"trainer.max_steps": 2})) == 0
    capsys.readouterr()
    run = only_run(tmp_path)
    assert recipe("generate", *options(ckpt_path=run.path, max_tokens=2, prompt="def nam name\n(")) == 0
    assert capsys.readouterr().err == "--prompt: never seen in training: 'nam'\n"


def test_a_checkpoint_that_does_not_say_what_training_saw_is_still_written_with(
    finished_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(finished_run.checkpoint("last"), weights_only=False)
    del state[next(name for name, part in state.items() if isinstance(part, dict) and "seen" in part)]["seen"]
    torch.save(state, tmp_path / "old.ckpt")
    assert recipe("generate", *options(ckpt_path=tmp_path / "old.ckpt", max_tokens=2, prompt="def é")) == 0
    assert "never seen" not in capsys.readouterr().err
