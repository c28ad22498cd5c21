"""What a translation run shows of itself: sentences it translated, where it looked, and how full its batches are."""

from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from rnn_blocks.callbacks.trainer import log_figure
from rnn_blocks.modules import Seq2Seq
from rnn_blocks.modules.seq2seq.chrf import CharacterFScore
from rnn_blocks.recipes.run.folder import RunFolder
from rnn_blocks.recipes.run.samples import ValidationSamples
from rnn_blocks.recipes.translation.attention_map import draw_attention
from rnn_blocks.recipes.translation.pairs.data import ParallelDataModule
from rnn_blocks.seq2seq import Hypothesis


class TranslationSamples(ValidationSamples):
    """Translates a few sentences of the validation split at each validation, as the validation itself does.

    They are the table ``val/translations`` in Weights & Biases, scored each by its chrF; pictures of the attention go
    to the run's plots and to Weights & Biases, a column for each source token and a row for each target token.

    Args:
        folder: the run's.
        sentences: how many, spread evenly over the split.
        attention: of how many of them the attention is drawn.

    >>> from pathlib import Path
    >>> TranslationSamples(RunFolder(Path("run")), sentences=8, attention=2).state_key
    'TranslationSamples'
    """

    def __init__(self, folder: RunFolder, *, sentences: int, attention: int) -> None:
        super().__init__(folder, "val/translations", ["source", "reference", "hypothesis", "chrf"])
        self._sentences = sentences
        self._attention = attention

    def rows(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[list[Any]]:
        """Source, reference, hypothesis and its chrF."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, ParallelDataModule) or not self._sentences:
            return []
        assert isinstance(pl_module, Seq2Seq)
        sources, references = self._chosen(data)
        found = self._translated(pl_module, data, sources)
        texts = data.detokenize([best.tokens for best in found])
        for number, (source, best) in enumerate(list(zip(sources, found, strict=True))[: self._attention], start=1):
            self._draw(trainer, data, number, source, best)
        return [
            [source, reference, text, _chrf(text, reference)]
            for source, reference, text in zip(sources, references, texts, strict=True)
        ]

    def told(self, row: list[Any]) -> str:
        """A line each."""
        names = ("source", "reference", "hypothesis", "chrF")
        return "\n".join(f"{name:12}{value}" for name, value in zip(names, row, strict=True))

    def _chosen(self, data: ParallelDataModule) -> tuple[list[str], list[str]]:
        pairs = data.splits["val"]
        count = pairs.source.num_rows
        places = np.unique(np.linspace(0, count - 1, min(self._sentences, count)).round().astype(int)).tolist()
        with pairs.source_text.open() as sources, pairs.target_text.open() as targets:
            return [sources.text(place) for place in places], [targets.text(place) for place in places]

    def _translated(self, model: Seq2Seq, data: ParallelDataModule, sources: list[str]) -> list[Hypothesis]:
        ids = [torch.tensor(sentence) for sentence in data.encode_source(sources)]
        found = model.translate(
            torch.nn.utils.rnn.pad_sequence(ids, batch_first=True),
            torch.tensor([len(sentence) for sentence in ids]),
            beam_size=model.beam_sizes["val"],
            return_attention=bool(self._attention) and model.decoder.attention is not None,
        )
        return [best for best, *_ in found]

    def _draw(self, trainer: pl.Trainer, data: ParallelDataModule, number: int, source: str, best: Hypothesis) -> None:
        if best.attention is None:
            return
        (ids,) = data.encode_source([source])
        target = [*data.codec.target_tokens(best.tokens), *["<eos>"] * best.finished]
        title = f"step {trainer.global_step}"
        figure = draw_attention(best.attention, data.source_tokens(ids), target, title=title)
        log_figure(trainer, f"attention/{number}", figure, folder=self._folder.plots)


def _chrf(text: str, reference: str) -> float:
    score = CharacterFScore(sync_on_compute=False)  # the first rank is alone here
    score.update([text], [reference])
    return round(100 * float(score.compute()), 1)


class PaddingFraction(Callback):
    """Logs at each epoch's end ``data/padding_fraction``, the part of the target positions that was padding.

    >>> PaddingFraction().state_key
    'PaddingFraction'
    """

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log it."""
        padding = getattr(trainer.train_dataloader, "padding_fraction", None)
        if padding is not None:
            pl_module.log("data/padding_fraction", padding)
