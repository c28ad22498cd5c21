"""``interactive``: what is typed, translated line by line."""

import contextlib
import sys
from pathlib import Path

from rnn_blocks.recipes.attention_map import attention_text
from rnn_blocks.recipes.cli import OUTPUT_DIR
from rnn_blocks.recipes.errors import InputError
from rnn_blocks.recipes.run_folder import find_checkpoint
from rnn_blocks.recipes.translator import SearchOptions, Translator

PROMPT = "> "


def interactive(
    ckpt_path: str = "best",
    beam_size: int = 5,
    n_best: int = 1,
    alignments: bool = False,
    length_penalty: float | None = None,
    coverage_penalty: float | None = None,
    max_length: int | None = None,
    sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    device: str = "auto",
    output_dir: str = OUTPUT_DIR,
) -> None:
    """Translate what is typed, a line at a time; Ctrl-D ends it.

    Args:
        ckpt_path: A checkpoint, a run's folder, or 'best', 'last' or 'averaged' of the newest run.
        beam_size: Hypotheses kept of each sentence; 1 is greedy search.
        n_best: Translations shown, each with its score: its log-probability in nats, with the search's penalties.
        alignments: Show where the best translation looked.
        length_penalty: 0 ranks by log-probability, 1 nearly by its mean over the tokens; by default the model's own.
        coverage_penalty: Weight of the source that was not attended to; by default the model's own.
        max_length: Tokens of a translation at most; by default the model's multiple of the source's.
        sample: Draw translations at random instead of searching for the best.
        temperature: Of the draw, divides the logits; 0 takes the most probable token.
        top_k: Draw only from the k most probable tokens.
        top_p: Draw only from the most probable tokens that together reach this probability.
        seed: Makes the draw repeatable.
        device: Where to compute: cpu, cuda, cuda:1, …; auto is a GPU where there is one.
        output_dir: Folder of the runs, for 'best', 'last' and 'averaged'.
    """
    options = SearchOptions(
        beam_size=beam_size,
        n_best=n_best,
        length_penalty=length_penalty,
        coverage_penalty=coverage_penalty,
        max_length=max_length,
        sample=sample,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        attention=alignments,
    )
    translator = Translator.load(find_checkpoint(ckpt_path, Path(output_dir) / "translation"), device)
    if alignments and translator.model.decoder.attention is None:
        raise InputError("--alignments: this model has no attention")
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (lines can be edited and called back)
    terminal = sys.stdin.isatty()
    while True:
        try:
            line = input(PROMPT if terminal else "")
            line.encode()  # bytes that are no UTF-8 came as lone surrogates
        except UnicodeError:
            sys.stderr.write("not text in UTF-8\n")
            continue
        except EOFError:
            sys.stdout.write("\n" * terminal)
            return
        except KeyboardInterrupt:  # drops what was typed
            sys.stdout.write("\n")
            continue
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
