"""``translate``: a file or standard input, line by line."""

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from typing_extensions import Unpack

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.data.corpora.files import GZIP_MAGIC, open_text
from rnn_blocks.recipes.data.corpora.plain import decode_line
from rnn_blocks.recipes.data.progress import progress_bar
from rnn_blocks.recipes.data.seen import missing_told
from rnn_blocks.recipes.run.folder import OUTPUT_DIR, find_checkpoint
from rnn_blocks.recipes.translation.attention_map import alignment_pairs
from rnn_blocks.recipes.translation.translator import SearchArguments, SearchOptions, Translation, Translator
from rnn_blocks.signatures import with_options_of

STANDARD = "-"
GROUP = 1000  # lines that are sorted by length and translated before any of them is written
READ_BYTES = 1 << 20


@with_options_of(SearchOptions, but=("attention",))
def translate(
    input: str = STANDARD,
    output: str = STANDARD,
    ckpt_path: str = "best",
    *,
    scores: bool = False,
    alignments: bool = False,
    attention_file: str | None = None,
    max_source_length: int = 1000,
    batch_tokens: int = 2000,
    device: str = "auto",
    output_dir: str = OUTPUT_DIR,
    **search: Unpack[SearchArguments],
) -> None:
    """Translate a file or standard input, line by line.

    Line n of the output is the translation of line n of the input, an empty line that of an empty one. With --n_best N
    each line of the input has N lines in the output, best first. --scores and --alignments add columns behind the text,
    separated by tabs. What is done is written at once: it stays where the command is interrupted. Characters and pieces
    that the training never saw are told on standard error, each once.

    Args:
        input: A file in UTF-8, plain or gzip, or - for standard input.
        output: A file, or - for standard output.
        ckpt_path: A checkpoint, a run's folder, 'best', 'last' or 'averaged' of the newest run, or artifact:NAME:ALIAS.
        scores: Add each translation's score: its log-probability in nats, with the search's penalties.
        alignments: Add the pairs source-target of token places, from 0, by the highest attention of each target token.
        attention_file: Write tokens and attention of each translation to this file as lines of JSON.
        max_source_length: Tokens of a line at most; a longer one is refused.
        batch_tokens: Source tokens that are translated side by side.
        device: Where to compute: cpu, cuda, cuda:1, …; auto is a GPU where there is one.
        output_dir: Folder of the runs, for 'best', 'last' and 'averaged'.
    """
    options = SearchOptions(**search, attention=alignments or attention_file is not None)
    for name, size in (("batch_tokens", batch_tokens), ("max_source_length", max_source_length)):
        if size < 1:
            raise InputError(f"--{name} must be at least 1, got {size}")
    _check_apart(input=input, output=output, attention_file=attention_file)
    with _reading(input) as source:
        translator = Translator.load(find_checkpoint(ckpt_path, Path(output_dir) / "translation"), device)
        if options.attention and translator.model.decoder.attention is None:
            raise InputError("--alignments, --attention_file: this model has no attention")
        with (
            _writing(output) as target,
            nullcontext() if attention_file is None else _writing(attention_file) as maps,
            _progress(input, output) as bar,
        ):
            done, told = 0, set[str]()
            try:
                is_file = input != STANDARD and Path(input).is_file()
                groups = read_groups(source, input, wait=is_file or options.seed is not None)
                for lines in _of_length(translator, groups, input, max_source_length):
                    if missing := [part for part in translator.missing(lines) if part not in told]:
                        told.update(missing)
                        sys.stderr.write(f"{_named(input)}: {missing_told(missing)}\n")
                    found = translator(lines, _reseeded(options, done), batch_tokens=batch_tokens)
                    target.write("".join(_rows(each, options.n_best, scores, alignments) for each in found))
                    target.flush()
                    if maps is not None:
                        maps.write(_maps(translator, lines, found, done))
                        maps.flush()
                    done += len(lines)
                    bar.update(len(lines))
            except KeyboardInterrupt:
                sys.stderr.write(f"\ninterrupted: {done:,} lines were translated before\n")
                raise


def read_groups(file: BinaryIO, name: str, *, size: int = GROUP, wait: bool = False) -> Iterator[list[str]]:
    r"""Lines without their ends, in groups of at most ``size``: of a pipe, those that have come so far.

    Args:
        file: a buffered binary file or pipe of lines in UTF-8.
        name: of the file, for the message.
        size: lines of a group at most.
        wait: whether to wait until each group is full, so that groups do not depend on the writer's pace.

    Raises:
        InputError: for bytes that are no UTF-8, with the line's number; the lines before come as a group first.

    >>> import io
    >>> list(read_groups(io.BytesIO(b"one\n\ntwo\r\nthree"), "text", size=2, wait=True))
    [['one', ''], ['two', 'three']]
    """
    number, pending, waiting = 0, b"", list[bytes]()
    while True:
        chunk = file.read1(READ_BYTES)  # type: ignore[attr-defined]  # every buffered reader has it
        *whole, pending = (pending + chunk).split(b"\n")
        waiting += [line + b"\n" for line in whole]
        if not chunk and pending:
            waiting.append(pending)
        while waiting and (len(waiting) >= size or not wait or not chunk):
            group, waiting = waiting[:size], waiting[size:]
            lines: list[str] = []
            for data in group:
                number += 1
                try:
                    lines.append(decode_line(_named(name), number, data, "the lines before it are translated"))
                except InputError:
                    if lines:
                        yield lines
                    raise
            yield lines
        if not chunk:
            return


def _rows(found: Sequence[Translation], n_best: int, scores: bool, alignments: bool) -> str:
    """The output lines of one input line: as many as asked for, empty where the search found no more."""
    rows = []
    for text, hypothesis in found:
        columns = [text]
        if scores:
            columns.append(f"{hypothesis.score:.4f}")
        if alignments:
            weights = hypothesis.attention
            assert weights is not None
            columns.append(alignment_pairs(weights, weights.shape[1] - 1, len(hypothesis.tokens)))
        rows.append("\t".join(columns))
    rows += [""] * (n_best - len(rows))
    return "".join(f"{row}\n" for row in rows)


def _maps(translator: Translator, lines: list[str], found: list[list[Translation]], done: int) -> str:
    rows = []
    for number, (line, translations) in enumerate(zip(lines, found, strict=True), start=done + 1):
        for rank, (text, hypothesis) in enumerate(translations, start=1):
            assert hypothesis.attention is not None
            (ids,) = translator.encode([line])
            row: dict[str, Any] = {
                "line": number,
                "rank": rank,
                "text": text,
                "score": round(hypothesis.score, 4),
                "source_tokens": translator.codec.source_tokens(ids),
                "target_tokens": translator.target_tokens(hypothesis),
                "attention": [[round(weight, 4) for weight in weights] for weights in hypothesis.attention.tolist()],
            }
            rows.append(json.dumps(row, ensure_ascii=False))
    return "".join(f"{row}\n" for row in rows)


def _reseeded(options: SearchOptions, done: int) -> SearchOptions:
    """Draws of their own for each group, the same in each run."""
    return options if options.seed is None else dataclasses.replace(options, seed=options.seed + done)


def _check_apart(**files: str | None) -> None:
    """No file may be read and written at once."""
    seen: dict[Path, str] = {}
    for name, path in files.items():
        if path is None or path == STANDARD:
            continue
        place = Path(path).resolve()
        if place in seen:
            raise InputError(f"--{seen[place]} and --{name} are the same file, {path}")
        seen[place] = name


def _of_length(translator: Translator, groups: Iterator[list[str]], name: str, limit: int) -> Iterator[list[str]]:
    """The groups, as far as no line has more tokens than the limit."""
    number = 0
    for lines in groups:
        lengths = [len(ids) - 1 for ids in translator.encode(lines)]
        long = next((place for place, length in enumerate(lengths) if length > limit), None)
        if long is None:
            number += len(lines)
            yield lines
            continue
        yield lines[:long]
        raise InputError(
            f"{_named(name)}: line {number + long + 1} has {lengths[long]:,} tokens, more than --max_source_length "
            f"{limit}: give a sentence a line, or raise the limit; the lines before it are translated"
        )


def _named(path: str) -> str:
    return "standard input" if path == STANDARD else path


def _reading(path: str) -> AbstractContextManager[BinaryIO]:
    return nullcontext(sys.stdin.buffer) if path == STANDARD else open_text(Path(path))


def _writing(path: str) -> AbstractContextManager[TextIO]:
    if path == STANDARD:
        cast(Any, sys.stdout).reconfigure(encoding="utf-8", errors="strict")
        return nullcontext(sys.stdout)
    try:
        return open(path, "w", encoding="utf-8", newline="\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error


def _progress(input: str, output: str) -> Any:
    """A bar where a file is read or stderr is a terminal, and not among what is typed or shown."""
    typed = input == STANDARD and (sys.stdin.isatty() or not sys.stderr.isatty())
    shown = output == STANDARD and sys.stdout.isatty()
    return progress_bar("translating", _num_lines(input), " lines", hidden=typed or shown)


def _num_lines(path: str) -> int | None:
    """Where it is known at once."""
    if path == STANDARD or not Path(path).is_file():  # a pipe must not be opened twice
        return None
    with open(path, "rb") as file:
        if file.peek(2)[:2] == GZIP_MAGIC:
            return None
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(READ_BYTES), b""))
