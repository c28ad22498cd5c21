"""The language-model recipe: train on text, measure perplexity and bits per byte, write text."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from tokenizers import Tokenizer

from rnn_blocks.modules import LanguageModel
from rnn_blocks.modules.generation import check_sampling
from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.command_line.cli import RecipeCLI
from rnn_blocks.recipes.data.corpora.corpus import Split
from rnn_blocks.recipes.data.corpora.plain import given_text
from rnn_blocks.recipes.data.seen import Seen, missing_told
from rnn_blocks.recipes.data.unknown import UnknownShare, unknown_told
from rnn_blocks.recipes.language_model.adaptation import (
    Adaptation,
    adaptation_of,
    add_adaptation_options,
    measure_adaptively,
)
from rnn_blocks.recipes.language_model.data import TextDataModule
from rnn_blocks.recipes.language_model.samples import TextSamples
from rnn_blocks.recipes.run.folder import OUTPUT_DIR, find_checkpoint
from rnn_blocks.recipes.run.load import load_model

NAME = "language-model"


class LanguageModelCLI(RecipeCLI):
    """``rnn-blocks language-model fit|validate|test``."""

    recipe = NAME

    def __init__(self, args: list[str]) -> None:
        self._adaptation: Adaptation | None = None
        super().__init__(LanguageModel, TextDataModule, args)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand != "fit":
            add_adaptation_options(parser)
        return parser

    def before_instantiate_classes(self) -> None:
        """Look at the options before any long work."""
        if self.config["subcommand"] != "fit":
            self._adaptation = adaptation_of(self.config[self.config["subcommand"]])
        super().before_instantiate_classes()

    def splits_read(self, options: Namespace) -> tuple[Split, ...]:
        """Beside the one evaluated those that the adaptation learns from."""
        splits = super().splits_read(options)
        wanted = self._adaptation
        if wanted is None:
            return splits
        learnt: list[Split] = ["val"] if wanted.tuned else []
        if wanted.dynamic is not None and wanted.dynamic.method == "rms":
            learnt.append("train")
        return (*splits, *(split for split in learnt if split not in splits))

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The recipes' own; a model that adapts reads its text in order, in one process."""
        trainer = super().instantiate_trainer(**kwargs)
        if self._adaptation is not None and trainer.world_size > 1:
            raise InputError(
                f"--cache and --dynamic read the text in one process, not in {trainer.world_size}: "
                "give --trainer.devices 1"
            )
        return trainer

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The samples, and the size of the vocabulary, which the data know."""
        super().add_arguments_to_parser(parser)
        group = parser.add_argument_group("samples", "Text written at each validation")
        group.add_argument("--samples.prompts", type=list[str], default=[], help="What to continue; none by default")
        group.add_argument("--samples.max_tokens", type=int, default=100, help="Tokens to add")
        group.add_argument("--samples.temperature", type=float, default=0.8, help="0 takes the most probable token")
        self.link_vocabulary(parser, vocab_size="vocabulary_size")

    def extra_callbacks(self, options: Namespace) -> list[pl.Callback]:
        """Samples of text."""
        samples = options["samples"]
        prompts = [given_text("--samples.prompts", prompt) for prompt in samples["prompts"]]
        if samples["max_tokens"] < 1:
            raise InputError(f"--samples.max_tokens must be at least 1, got {samples['max_tokens']}")
        try:
            check_sampling(samples["temperature"], None, None)
        except ValueError as error:
            raise InputError(f"--samples.{error}") from None
        if not prompts:
            return []
        assert self.folder is not None
        return [
            TextSamples(
                self.folder,
                prompts,
                max_tokens=samples["max_tokens"],
                temperature=samples["temperature"],
            )
        ]

    def measures(self) -> list[pl.Callback]:
        """How much of the text is unknown."""
        return [UnknownShare()]

    def _say(self, split: Literal["val", "test"]) -> None:
        # beside what a compressor makes of the same text
        metrics = self.trainer.callback_metrics
        if self.trainer.is_global_zero:
            gzip = self.datamodule.gzip_bits_per_byte(split)
            limit = self.trainer.limit_val_batches if split == "val" else self.trainer.limit_test_batches
            same = "the same text" if limit == 1.0 else f"the whole {split} split"
            sys.stdout.write(
                f"{split}: perplexity {metrics[f'{split}/perplexity']:.2f}, "
                f"bits per byte {metrics[f'{split}/bits_per_byte']:.3f} (gzip -9 of {same}: {gzip:.3f})\n"
                f"{unknown_told(self.datamodule, split)}"
            )
            sys.stdout.flush()
        if self._adaptation is not None:
            adapted = measure_adaptively(self.model, self.datamodule, self.trainer, split, self._adaptation)
            for way, found in adapted.items():
                sys.stdout.write(
                    f"{split}: perplexity {found['perplexity']:.2f}, bits per byte {found['bits_per_byte']:.3f} with "
                    f"{way}\n"
                )


def generate(
    prompt: str,
    ckpt_path: str = "best",
    max_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    output_dir: str = OUTPUT_DIR,
) -> None:
    """Continue a prompt, writing to standard output as the text comes.

    Args:
        prompt: The text to continue.
        ckpt_path: A checkpoint, a run's folder, 'best' or 'last' of the newest run, or artifact:NAME:ALIAS.
        max_tokens: How many tokens to add.
        temperature: Divides the logits; 0 takes the most probable token.
        top_k: Draw only from the k most probable tokens.
        top_p: Draw only from the most probable tokens that together reach this probability.
        seed: Makes the draw repeatable.
        output_dir: Folder of the runs, for 'best' and 'last'.
    """
    prompt = given_text("--prompt", prompt)
    model, state = load_model(find_checkpoint(ckpt_path, Path(output_dir) / NAME), LanguageModel, NAME)
    tokenizer, seen = Tokenizer.from_str(state["tokenizer"]), Seen.from_state(state.get("seen"))
    ids = tokenizer.encode(prompt).ids
    if not ids:
        raise InputError("--prompt: the tokenizer makes no token of it; give some text")
    if max_tokens < 1:
        raise InputError(f"--max_tokens must be at least 1, got {max_tokens}")
    try:
        check_sampling(temperature, top_k, top_p, seed)  # before anything is written
    except ValueError as error:
        raise InputError(f"--{error}") from error
    try:
        stream = model.stream(torch.tensor([ids]), temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        if seen is not None and (missing := seen.missing(tokenizer, prompt)):
            sys.stderr.write(f"--prompt: {missing_told(missing)}\n")
        written = tokenizer.decode(ids)
        sys.stdout.write(written)
        for _ in range(max_tokens):
            ids.append(int(next(stream)))
            text = tokenizer.decode(ids)
            if not text.endswith("\ufffd"):  # a character whose bytes are not all there yet
                sys.stdout.write(text[len(written) :])
                sys.stdout.flush()
                written = text
    except ValueError as error:
        raise InputError(str(error)) from error
    sys.stdout.write("\n")


def load_language_model(path: Path) -> tuple[LanguageModel, Tokenizer]:
    """The model and the tokenizer of a checkpoint.

    Args:
        path: a checkpoint that the recipe wrote.

    Raises:
        InputError: where it is not one.

    >>> load_language_model(Path("no.ckpt"))
    Traceback (most recent call last):
    ...
    rnn_blocks.recipes.InputError: no.ckpt: no such checkpoint
    """
    model, state = load_model(path, LanguageModel, NAME)
    return model, Tokenizer.from_str(state["tokenizer"])


CLI = LanguageModelCLI
FUNCTIONS: dict[str, Callable[..., None]] = {"generate": generate}
