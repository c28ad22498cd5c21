"""The data of a language model: any text, tokenized once and read as lanes."""

import zlib

from typing_extensions import Unpack

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.data.corpora.corpus import Split
from rnn_blocks.recipes.data.corpus_module import CorpusOptions, TextCorpusModule
from rnn_blocks.recipes.data.shares import batches_of_an_epoch, place_among_ranks
from rnn_blocks.recipes.data.store import PreparedText
from rnn_blocks.recipes.language_model.lanes import Lanes
from rnn_blocks.signatures import with_options_of


@with_options_of(TextCorpusModule)
class TextDataModule(TextCorpusModule):
    r"""A corpus of text as batches for a language model.

    The first run tokenizes the corpus into the cache folder; later runs find it there by its content and settings.

    Args:
        batch_size: Lanes read side by side in training, on each device.
        bptt: Tokens of a lane in each training batch (steps of truncated backpropagation through time).
        variable_bptt: Draw the length of each training batch around ``bptt``, others each epoch (Merity et al. 2018,
            section 5): normally with a standard deviation of 5, one in twenty around half of it; at least 5 and at
            most ``bptt`` + 20. The model's ``lr_for_bptt`` makes the learning rate follow.
        seed: Of the lengths drawn.
        eval_batch_size: Lanes in validation and test; by default as ``batch_size``.
        eval_bptt: Tokens of a lane in each validation or test batch; by default as ``bptt``.

    Raises:
        InputError: the arguments do not go together. ``prepare`` raises it for all that is wrong with the text.

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "sea.txt")
    ...     _ = path.write_text("the sea the sea the open sea\n" * 50)
    ...     data = TextDataModule(str(path), tokenizer="word", batch_size=2, bptt=5, cache_dir=folder)
    ...     data.prepare()
    ...     batch = next(iter(data.train_dataloader()))
    >>> data.vocabulary_size, data.tokenizer.decode(batch.inputs[0].tolist())
    (5, 'the sea the sea the')
    """

    def __init__(
        self,
        source: str = "stdlib",
        *,
        batch_size: int = 20,
        bptt: int = 35,
        variable_bptt: bool = False,
        seed: int = 0,
        eval_batch_size: int | None = None,
        eval_bptt: int | None = None,
        **corpus: Unpack[CorpusOptions],
    ) -> None:
        super().__init__(source, **corpus)
        self._train_shape = (batch_size, bptt)
        self._variable_bptt, self._seed = variable_bptt, seed
        self.eval_shape = (eval_batch_size or batch_size, eval_bptt or bptt)
        sizes = {"batch_size": batch_size, "bptt": bptt, "eval_batch_size": eval_batch_size, "eval_bptt": eval_bptt}
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise InputError(f"{name} {size}: give 1 or more")
        if seed < 0:
            raise InputError(f"seed {seed}: give 0 or more")

    def _check(self, prepared: PreparedText) -> None:
        for split, tokens in prepared.splits.items():
            if split == "train":
                Lanes(tokens, *self._train_shape)
            else:
                Lanes(tokens, *self.eval_shape, complete=True)

    def gzip_bits_per_byte(self, split: Split) -> float:
        """What ``gzip -9`` makes of a split's text, in bits per byte: the mark that a model should beat."""
        compressor = zlib.compressobj(9, wbits=31)
        plain = compressed = 0
        for piece in self._corpus.pieces(split):
            text = piece.encode()
            plain += len(text)
            compressed += len(compressor.compress(text))
        return 8 * (compressed + len(compressor.flush())) / plain

    def train_dataloader(self) -> Lanes:
        """The lanes of the train split that are this process's."""
        rank, world_size = place_among_ranks(self.trainer)
        trainer = self.trainer
        lanes = Lanes(
            self.splits["train"],
            *self._train_shape,
            variable=self._variable_bptt,
            seed=self._seed,
            rank=rank,
            world_size=world_size,
            current_epoch=None if trainer is None else lambda: trainer.current_epoch,
        )
        # A checkpoint of the moment where Lightning ends an epoch is one of an epoch's end.
        lanes.end_pass_after(batches_of_an_epoch(len(lanes), self.trainer))
        return lanes

    def val_dataloader(self) -> Lanes:
        """The lanes of the validation split that are this process's; every token is predicted once."""
        return self._eval_lanes("val")

    def test_dataloader(self) -> Lanes:
        """The lanes of the test split that are this process's; every token is predicted once."""
        return self._eval_lanes("test")

    def _eval_lanes(self, split: Split) -> Lanes:
        rank, world_size = place_among_ranks(self.trainer)
        return Lanes(self.splits[split], *self.eval_shape, complete=True, rank=rank, world_size=world_size)
