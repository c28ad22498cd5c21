"""The cloze recipe: train on text with blanks, measure how well they are filled in, fill them in."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from rnn_blocks.modules import ClozeModel
from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.cloze.data import ClozeDataModule
from rnn_blocks.recipes.cloze.fill import BLANK, Filler, table
from rnn_blocks.recipes.cloze.samples import ClozeSamples
from rnn_blocks.recipes.command_line.cli import RecipeCLI
from rnn_blocks.recipes.data.seen import missing_told
from rnn_blocks.recipes.data.unknown import UnknownShare, unknown_told
from rnn_blocks.recipes.run.checkpoints import Mode
from rnn_blocks.recipes.run.folder import OUTPUT_DIR, find_checkpoint

NAME = "cloze"


class ClozeCLI(RecipeCLI):
    """``rnn-blocks cloze fit|validate|test``."""

    recipe = NAME
    monitors: ClassVar[dict[str, Mode]] = {"val/loss": "min", "val/accuracy": "max"}

    def __init__(self, args: list[str]) -> None:
        super().__init__(ClozeModel, ClozeDataModule, args)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The samples, and the ids, which the data know."""
        super().add_arguments_to_parser(parser)
        group = parser.add_argument_group("samples", "Blanks filled in at each validation")
        group.add_argument(
            "--samples.texts", type=list[str], default=[], help=f"Texts with blanks, {BLANK}; none by default"
        )
        group.add_argument("--samples.top_k", type=int, default=5, help="Candidates of each blank")
        self.link_vocabulary(parser, vocab_size="vocabulary_size", mask_id="mask_id")

    def extra_callbacks(self, options: Namespace) -> list[pl.Callback]:
        """Samples of filled-in blanks."""
        texts, top_k = options["samples"]["texts"], options["samples"]["top_k"]
        if top_k < 1:
            raise InputError(f"--samples.top_k must be at least 1, got {top_k}")
        filler = Filler(self.model, self.datamodule.tokenizer, self.datamodule.unit)
        for text in texts:
            filler.read(text)  # raises for one without a blank before anything is trained
        assert self.folder is not None
        return [ClozeSamples(self.folder, texts, top_k=top_k)] if texts else []

    def measures(self) -> list[pl.Callback]:
        """How much of the text is unknown."""
        return [UnknownShare()]

    def _say(self, split: Literal["val", "test"]) -> None:
        metrics = self.trainer.callback_metrics
        if self.trainer.is_global_zero:
            sys.stdout.write(
                f"{split}: of the blanks perplexity {metrics[f'{split}/perplexity']:.2f},"
                f" rightly filled in {100 * metrics[f'{split}/accuracy']:.1f} %\n"
                f"{unknown_told(self.datamodule, split)}"
            )


def predict(
    text: str, ckpt_path: str = "best", top_k: int = 5, blank: str = BLANK, output_dir: str = OUTPUT_DIR
) -> None:
    """Fill in the blanks of a text: the most probable candidates of each, with their probabilities.

    Args:
        text: The text, with a marker at each blank: "the clouds are in the ___".
        ckpt_path: A checkpoint, a run's folder, 'best', 'last' or 'averaged' of the newest run, or artifact:NAME:ALIAS.
        top_k: How many candidates of each blank.
        blank: The marker.
        output_dir: Folder of the runs, for 'best', 'last' and 'averaged'.
    """
    if top_k < 1:
        raise InputError(f"--top_k must be at least 1, got {top_k}")
    filler = Filler.load(find_checkpoint(ckpt_path, Path(output_dir) / NAME))
    read = filler.read(text, blank)
    if read.unknown:
        sys.stderr.write(f"not in the vocabulary, read as <unk>: {', '.join(dict.fromkeys(read.unknown))}\n")
    if read.unseen:
        sys.stderr.write(f"{missing_told(read.unseen)}\n")
    found = filler.fill(read, top_k)
    sys.stdout.write(f"{text.strip()}\n{table(found)}\n")
    if len(found) > 1:
        sys.stdout.write("\nEach blank is filled in with the others blank: candidates need not go together.\n")


CLI = ClozeCLI
FUNCTIONS: dict[str, Callable[..., None]] = {"predict": predict}
POSITIONAL = frozenset({"predict"})
"""Functions whose required parameters are given without a name."""
