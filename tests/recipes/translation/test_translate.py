"""`rnn-blocks translation translate|interactive`: lines in, lines out."""

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_runs import options, recipe, start, tiny_translation

from rnn_blocks import GRU
from rnn_blocks.modules import Seq2Seq
from rnn_blocks.recipes.run.folder import RunFolder
from rnn_blocks.recipes.translation import translate as module
from rnn_blocks.recipes.translation.attention_map import alignment_pairs
from rnn_blocks.recipes.translation.pairs.codec import TextCodec
from rnn_blocks.recipes.translation.translate import read_groups
from rnn_blocks.recipes.translation.translator import SearchOptions, Translation, Translator

LINES = ["one two three", "", "six", "four five six one two", "   ", "two two", "three one"]


def translation(*args: str) -> int:
    return recipe(*args, of="translation")


@pytest.fixture(scope="module")
def translator(finished_translation: RunFolder) -> Translator:
    return Translator.load(finished_translation.checkpoint("best"))


@pytest.fixture
def run(finished_translation: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Translates lines of a file; the lines of the output."""

    def translated(lines: Sequence[str], *args: str) -> list[str]:
        path = tmp_path / "input.txt"
        path.write_text("".join(f"{line}\n" for line in lines))
        given = options(input=path, ckpt_path=finished_translation.path)
        assert translation("translate", *given, *args) == 0
        return capsys.readouterr().out.split("\n")[:-1]

    return translated


def best(translator: Translator, line: str, **settings: Any) -> list[Translation]:
    return translator([line], SearchOptions(**settings))[0]


def test_each_line_has_its_translation_in_its_place_and_an_empty_line_an_empty_one(
    run: Any, translator: Translator, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [best(translator, line)[0].text if line.strip() else "" for line in LINES]
    assert run(LINES) == alone
    assert run(LINES, "--batch-tokens", "5") == alone
    monkeypatch.setattr(module.read_groups, "__kwdefaults__", {"size": 2, "wait": False})
    assert run(LINES) == alone


def test_scores_n_best_and_alignments_are_columns_and_lines_of_the_search(run: Any, translator: Translator) -> None:
    shown = run(LINES, "--n-best", "3", "--scores", "--alignments", "--beam-size=4")
    assert len(shown) == 3 * len(LINES)
    for number, line in enumerate(LINES):
        rows = shown[3 * number : 3 * number + 3]
        if not line.strip():
            assert rows == ["", "", ""]
            continue
        found = best(translator, line, beam_size=4, n_best=3, attention=True)
        for row, (text, hypothesis) in zip(rows, found, strict=True):
            shown_text, score, pairs = row.split("\t")
            assert shown_text == text
            assert float(score) == pytest.approx(hypothesis.score, abs=1e-4)
            assert pairs == alignment_pairs(hypothesis.attention, len(line.split()), len(hypothesis.tokens))
        assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)


def test_penalties_and_the_longest_length_reach_the_search(run: Any, translator: Translator) -> None:
    settings = {"length_penalty": 0.0, "coverage_penalty": 0.5, "max_length": 2, "beam_size": 3}
    assert run(LINES[:1], *options(**settings)) == [best(translator, LINES[0], **settings)[0].text]
    assert len(run(LINES[:1], "--max_length", "1", "--sample", "--seed", "1")[0].split()) <= 1


def test_draws_repeat_with_their_seed_and_differ_without(run: Any) -> None:
    lines = LINES[:1] * 30
    one = run(lines, "--sample", "--seed", "3", "--temperature", "2.0")
    assert run(lines, "--sample", "--seed", "3", "--temperature", "2.0") == one
    assert run(lines, "--sample", "--seed", "4", "--temperature", "2.0") != one
    assert len(set(one)) > 3
    assert run(lines, "--sample", "--top_k", "1") == run(lines, "--beam_size", "1")


def test_the_attention_file_holds_tokens_and_weights_of_each_translation(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "maps.jsonl"
    shown = run(LINES, "--attention-file", str(path), "--n-best", "2")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    filled = [number for number, line in enumerate(LINES, start=1) if line.strip()]
    assert [(row["line"], row["rank"]) for row in rows] == [(number, rank) for number in filled for rank in (1, 2)]
    for row in rows:
        assert row["text"] == shown[2 * (row["line"] - 1) + row["rank"] - 1]
        assert row["source_tokens"] == ["▁" + word for word in LINES[row["line"] - 1].split()] + ["<eos>"]
        weights = torch.tensor(row["attention"])
        assert weights.shape == (len(row["target_tokens"]), len(row["source_tokens"]))
        torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)), atol=1e-3, rtol=0)


def test_gzip_byte_order_marks_and_dos_line_ends_are_read(
    finished_translation: RunFolder, tmp_path: Path, translator: Translator
) -> None:
    path, output = tmp_path / "input.gz", tmp_path / "output.txt"
    path.write_bytes(gzip.compress("\ufeffone two\r\nsix".encode()))
    given = options(input=path, output=output, ckpt_path=finished_translation.path)
    assert translation("translate", *given) == 0
    assert output.read_text().splitlines() == [best(translator, "one two")[0].text, best(translator, "six")[0].text]


@pytest.mark.parametrize("packed", [False, True])
def test_a_pipe_with_a_name_is_read_as_a_file_is(
    packed: bool, finished_translation: RunFolder, tmp_path: Path, translator: Translator
) -> None:
    path, output = tmp_path / "input.pipe", tmp_path / "output.txt"
    os.mkfifo(path)
    content = b"one two\nsix\n"
    writer = threading.Thread(
        target=path.write_bytes, args=(gzip.compress(content) if packed else content,), daemon=True
    )
    writer.start()
    given = options(input=path, output=output, ckpt_path=finished_translation.path)
    assert translation("translate", *given) == 0
    writer.join(60)
    assert output.read_text().splitlines() == [best(translator, "one two")[0].text, best(translator, "six")[0].text]


@pytest.mark.parametrize(
    ("content", "args", "message"),
    [
        (b"one two\nsix\none \xff\xfe\ntwo\n", [], "line 3 is not text in UTF-8: byte 0xff at place 5 of the line"),
        (b"one two\nsix\n" + b"one " * 9 + b"\ntwo\n", ["--max-source-length", "8"], "line 3 has 9 tokens, more than"),
    ],
)
def test_what_was_translated_before_a_line_that_cannot_be_stays(
    content: bytes,
    args: list[str],
    message: str,
    finished_translation: RunFolder,
    tmp_path: Path,
    translator: Translator,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, output = tmp_path / "input.txt", tmp_path / "output.txt"
    path.write_bytes(content)
    given = options(input=path, output=output, ckpt_path=finished_translation.path)
    assert translation("translate", *given, *args) == 2
    assert f"error: {path}: {message}" in capsys.readouterr().err
    assert output.read_text().splitlines() == [best(translator, "one two")[0].text, best(translator, "six")[0].text]


@pytest.mark.processes
def test_a_pipe_is_translated_as_it_comes_and_an_interrupt_keeps_what_is_done(
    finished_translation: RunFolder, translator: Translator
) -> None:
    command = [sys.executable, "-m", "rnn_blocks.recipes", "translation", "translate"]
    with subprocess.Popen(
        [*command, *options(ckpt_path=finished_translation.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        bufsize=0,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for line in ("one two", "six"):  # the second only after the first has come back
            process.stdin.write(line.encode() + b"\n")
            assert process.stdout.readline().decode() == best(translator, line)[0].text + "\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == b"\ninterrupted: 2 lines were translated before\n"


@pytest.mark.processes
def test_a_reader_that_goes_away_ends_it_quietly(finished_translation: RunFolder, tmp_path: Path) -> None:
    path = tmp_path / "input.txt"
    path.write_text("one two three\n" * 3000)
    process = start(
        "translate", *options(input=path, ckpt_path=finished_translation.path, beam_size=1), of="translation"
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(100) == 141
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()


def test_a_file_is_read_in_whole_groups(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []

    def spied(*arguments: Any, **options: Any) -> Any:
        for group in read_groups(*arguments, **options):
            found.append(len(group))
            yield group

    monkeypatch.setattr(module, "read_groups", spied)
    run(["a man"] * 2_500, "--beam-size", "1")
    assert found == [1000, 1000, 500]


def test_lines_that_are_there_come_in_groups_and_a_slow_writer_is_not_waited_for() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as file:
        groups = read_groups(file, "-", size=2)
        os.write(writing, b"a\nb\nc\nd")
        assert [next(groups), next(groups)] == [["a", "b"], ["c"]]
        os.write(writing, b"e\n")
        assert next(groups) == ["de"]
        os.close(writing)
        assert list(groups) == []


BAD_OPTIONS = {
    "beam_size": (0, "--beam_size must be at least 1, got 0"),
    "n_best": (6, "--n_best must be at most --beam_size (5), got 6"),
    "max_length": (0, "--max_length must be at least 1, got 0"),
    "length_penalty": (-1, "--length_penalty must be a finite number, 0 or above, got -1.0"),
    "coverage_penalty": ("-.5", "--coverage_penalty must be a finite number, 0 or above, got -0.5"),
    "temperature": (0.5, "--temperature is for draws at random, which --sample asks for"),
    "top_p": (0.9, "--top_p is for draws at random"),
    "batch_tokens": (0, "--batch_tokens must be at least 1, got 0"),
    "input": ("nothing.txt", "nothing.txt: no such file"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_a_bad_option_is_refused_before_the_model_is_looked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    value, message = BAD_OPTIONS[name]
    output = tmp_path / "kept.txt"
    output.write_text("mine")
    given = {"ckpt_path": "no.ckpt", "output": output, name: value}
    assert translation("translate", *options(**given)) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error: {message}")
    assert output.read_text() == "mine"
    if name not in ("input", "batch_tokens"):
        assert translation("interactive", *options(ckpt_path="no.ckpt", **{name: value})) == 2
        assert capsys.readouterr().err.startswith(f"error: {message}")


def test_a_file_is_not_translated_onto_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "text"
    path.write_text("one\n")
    assert translation("translate", *options(input=path, output=tmp_path / "." / "text")) == 2
    assert f"--input and --output are the same file, {path}" in capsys.readouterr().err
    assert path.read_text() == "one\n"


def test_a_model_without_attention_has_no_alignments(
    translator: Translator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codec = TextCodec.from_state(translator.codec.state())
    size = codec.source_vocab_size
    blind = Translator(Seq2Seq(GRU(4, 8), GRU(4, 8), size, size, attention=None, input_feeding=False), codec)
    monkeypatch.setattr(Translator, "load", lambda *_: blind)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\n")))
    checkpoint = tmp_path / "some.ckpt"
    checkpoint.touch()
    assert translation("translate", "--alignments", *options(ckpt_path=checkpoint)) == 2
    assert "--alignments, --attention_file: this model has no attention" in capsys.readouterr().err
    assert translation("translate", *options(ckpt_path=checkpoint)) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_interactive_shows_n_best_with_scores_and_where_the_best_looked(
    finished_translation: RunFolder,
    translator: Translator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one two\n\nsix\n"))
    args = ["--n-best", "2", "--alignments", *options(ckpt_path=finished_translation.path)]
    assert translation("interactive", *args) == 0
    shown = capsys.readouterr().out
    for line in ("one two", "six"):
        for each in best(translator, line, n_best=2):
            assert f"{each.score:9.4f}  {each.text}\n" in shown
    assert "  ▁one" in shown or "  ▁two" in shown or "  <eos>" in shown


@pytest.mark.parametrize("tokenizer", ["word", "bpe", "char"])
def test_what_training_never_saw_is_told_once_and_translated_all_the_same(
    tokenizer: str, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"data.tokenizer": tokenizer, "trainer.max_steps": 10}
    settings |= {"data.vocab_size": 300} if tokenizer == "bpe" else {}
    assert translation("fit", *tiny_translation(pairs, tmp_path, **settings)) == 0
    path, output = tmp_path / "input.txt", tmp_path / "output.txt"
    given = ["translate", *options(input=path, output=output, output_dir=tmp_path)]
    capsys.readouterr()
    path.write_text("one two\nsix three four\n")
    assert translation(*given) == 0
    assert "never seen" not in capsys.readouterr().err
    path.write_text("21\none 12\n2 \ufeff é\n")
    assert translation(*given) == 0
    error = capsys.readouterr().err
    assert error.count("never seen in training") == 1
    assert f"{path}: never seen in training: '2', '1', '\\ufeff', 'é'\n" in error
    assert len(output.read_text().splitlines()) == 3


def test_a_word_or_piece_of_the_other_side_alone_is_told(
    finished_translation: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"one vier\nvier\n"), isatty=lambda: False))
    assert translation("translate", *options(ckpt_path=finished_translation.path)) == 0
    assert capsys.readouterr().err == "standard input: never seen in training: 'vier'\n"
