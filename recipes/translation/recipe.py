"""The translation recipe: train on pairs of lines, measure BLEU, chrF and exact matches."""

import sys
from collections.abc import Callable
from typing import ClassVar

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from rnn_blocks.modules import Seq2Seq, TranslationScores
from rnn_blocks.modules.seq2seq.translation_scores import BLEU_WORDS
from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.command_line.cli import RecipeCLI
from rnn_blocks.recipes.run.checkpoints import Mode
from rnn_blocks.recipes.translation.interactive import interactive
from rnn_blocks.recipes.translation.pairs.data import ParallelDataModule
from rnn_blocks.recipes.translation.samples import PaddingFraction, TranslationSamples
from rnn_blocks.recipes.translation.translate import translate


class TranslationCLI(RecipeCLI):
    """``rnn-blocks translation fit|validate|test``."""

    recipe = "translation"
    monitor = "val/bleu"
    monitors: ClassVar[dict[str, Mode]] = {
        "val/bleu": "max",
        "val/chrf": "max",
        "val/exact_match": "max",
        "val/loss": "min",
    }

    def __init__(self, args: list[str]) -> None:
        super().__init__(Seq2Seq, ParallelDataModule, args)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The samples, and the sizes of the vocabularies, which the data know."""
        super().add_arguments_to_parser(parser)
        group = parser.add_argument_group("samples", "Sentences of the validation split translated at each validation")
        group.add_argument("--samples.sentences", type=int, default=8, help="How many, spread over the split")
        group.add_argument("--samples.attention", type=int, default=2, help="Of how many the attention is drawn")
        self.link_vocabulary(parser, source_vocab_size="source_vocab_size", target_vocab_size="target_vocab_size")

    def before_instantiate_classes(self) -> None:
        """Refuse to tie the embeddings of two vocabularies."""
        options = self.config[self.config["subcommand"]]
        if options["model"].get("tie_weights") == "three-way" and options["data"].get("joint") is False:
            raise InputError(
                "--model.tie_weights three-way: source and target have vocabularies of their own with --data.joint "
                "false; choose two-way, or --data.joint true"
            )
        super().before_instantiate_classes()

    def extra_callbacks(self, options: Namespace) -> list[pl.Callback]:
        """Translations of a few sentences, and how much of a batch is padding."""
        assert self.folder is not None
        samples = options["samples"]
        for name in ("sentences", "attention"):
            if samples[name] < 0:
                raise InputError(f"--samples.{name} must be 0 or more, got {samples[name]}")
        self._check_monitors(options)
        return [
            PaddingFraction(),
            TranslationSamples(self.folder, sentences=samples["sentences"], attention=samples["attention"]),
        ]

    def _check_monitors(self, options: Namespace) -> None:
        """Refuse to watch BLEU where it is 0 whatever is translated."""
        callbacks = options["trainer"].get("callbacks") or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        watched = {options["monitor"], *(callback.get("init_args", {}).get("monitor") for callback in callbacks)}
        if "val/bleu" not in watched:
            return
        references, scores = self.datamodule.splits["val"].target_text, TranslationScores()
        with references.open() as lines:
            if any(scores.words(lines.text(place)) >= BLEU_WORDS for place in range(references.num_rows)):
                return
        raise InputError(
            f"--monitor val/bleu: BLEU counts runs of {BLEU_WORDS} words, and no reference of the validation split has"
            " so many: watch val/chrf, val/exact_match or val/loss"
        )

    def _say(self, split: str) -> None:
        metrics = self.trainer.callback_metrics
        if self.trainer.is_global_zero:
            bleu = metrics.get(f"{split}/bleu")
            sys.stdout.write(
                f"{split}: {'' if bleu is None else f'BLEU {bleu:.2f}, '}chrF {metrics[f'{split}/chrf']:.2f}, "
                f"exactly right {metrics[f'{split}/exact_match']:.2f} %, perplexity "
                f"{metrics[f'{split}/perplexity']:.3f}\n"
            )
            if bleu is None:
                sys.stdout.write(
                    f"{split}: no BLEU, which counts runs of {BLEU_WORDS} words: no reference has so many\n"
                )


CLI = TranslationCLI
FUNCTIONS: dict[str, Callable[..., None]] = {
    "translate": translate,
    "interactive": interactive,
}
