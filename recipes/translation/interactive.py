"""``interactive``: what is typed, translated line by line."""

import contextlib
import sys
from pathlib import Path

from typing_extensions import Unpack

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.data.corpora.plain import given_text
from rnn_blocks.recipes.data.seen import missing_told
from rnn_blocks.recipes.run.ending.signals import Terminated
from rnn_blocks.recipes.run.folder import OUTPUT_DIR, find_checkpoint
from rnn_blocks.recipes.translation.attention_map import attention_text
from rnn_blocks.recipes.translation.translator import SearchArguments, SearchOptions, Translator
from rnn_blocks.signatures import with_options_of

PROMPT = "> "


@with_options_of(SearchOptions, but=("attention",))
def interactive(
    ckpt_path: str = "best",
    *,
    alignments: bool = False,
    device: str = "auto",
    output_dir: str = OUTPUT_DIR,
    **search: Unpack[SearchArguments],
) -> None:
    """Translate what is typed, a line at a time; Ctrl-D ends it.

    Args:
        ckpt_path: A checkpoint, a run's folder, 'best', 'last' or 'averaged' of the newest run, or artifact:NAME:ALIAS.
        n_best: Translations shown, each with its score: its log-probability in nats, with the search's penalties.
        alignments: Show where the best translation looked.
        device: Where to compute: cpu, cuda, cuda:1, …; auto is a GPU where there is one.
        output_dir: Folder of the runs, for 'best', 'last' and 'averaged'.
    """
    options = SearchOptions(**search, attention=alignments)
    translator = Translator.load(find_checkpoint(ckpt_path, Path(output_dir) / "translation"), device)
    if alignments and translator.model.decoder.attention is None:
        raise InputError("--alignments: this model has no attention")
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (lines can be edited and called back)
    terminal = sys.stdin.isatty()
    while True:
        try:
            line = given_text("the line", input(PROMPT if terminal else ""))
        except InputError as error:
            sys.stderr.write(f"{error}\n")
            continue
        except UnicodeError:  # where Python is told to be strict
            sys.stderr.write("the line: not text in UTF-8\n")
            continue
        except EOFError:
            sys.stdout.write("\n" * terminal)
            return
        except KeyboardInterrupt as ended:  # Ctrl-C drops what was typed
            if isinstance(ended, Terminated):
                raise
            sys.stdout.write("\n")
            continue
        if missing := translator.missing([line]):
            sys.stderr.write(f"{missing_told(missing)}\n")
        sys.stdout.write(shown(translator, line, options))
        sys.stdout.flush()


def shown(translator: Translator, line: str, options: SearchOptions) -> str:
    """What is shown of a line: its translations with their scores, and the attention of the best."""
    (found,) = translator([line], options)
    text = "".join(f"{each.score:9.4f}  {each.text}\n" for each in found)
    if options.attention and found:
        weights = found[0].hypothesis.attention
        assert weights is not None
        (ids,) = translator.encode([line])
        labels = translator.codec.source_tokens(ids), translator.target_tokens(found[0].hypothesis)
        text += "\n" + attention_text(weights, *labels) + "\n"
    return text
