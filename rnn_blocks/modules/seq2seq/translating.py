"""Searches for translations with a model that is trained, or in training."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rnn_blocks.engine import State
from rnn_blocks.modules.generation import check_sampling, random_generator
from rnn_blocks.modules.token_module import TokenModule
from rnn_blocks.seq2seq import Decoder, Hypothesis, beam_search, sample_search


class Translating(TokenModule):
    """A module with a decoder that translates: what :class:`~rnn_blocks.Seq2Seq` can do besides learning."""

    decoder: Decoder
    bos: int
    eos: int
    pad: int
    length_penalty: float
    coverage_penalty: float
    max_length_ratio: float

    @abstractmethod
    def encode(self, source: Tensor, lengths: Tensor | Sequence[int] | None = None) -> tuple[State, Any]:
        """The decoder's first state, and the memory that its steps read."""

    @torch.no_grad()
    def translate(
        self,
        source: Tensor,
        source_lengths: Tensor | Sequence[int] | None = None,
        *,
        beam_size: int = 5,
        n_best: int = 1,
        max_length: int | None = None,
        length_penalty: float | None = None,
        coverage_penalty: float | None = None,
        groups: int = 1,
        diversity: float = 0.0,
        prefixes: Sequence[Sequence[int]] | None = None,
        return_attention: bool = False,
    ) -> list[list[Hypothesis]]:
        """The most probable translations that a beam search finds.

        Args:
            source: ids, ``(batch, source)``.
            source_lengths: ``(batch,)``; by default all positions count.
            beam_size: hypotheses a sentence; 1 is greedy search.
            n_best: how many of them are wanted of each sentence.
            max_length: tokens of a translation at most; by default as ``max_length_ratio`` says.
            length_penalty: see :func:`~rnn_blocks.beam_search`; by default the model's.
            coverage_penalty: see :func:`~rnn_blocks.beam_search`; by default the model's.
            groups: of diverse beam search.
            diversity: of diverse beam search.
            prefixes: ids that the translation of each sentence must begin with.
            return_attention: whether the hypotheses come with their attention.

        Returns:
            For each sentence its hypotheses, best first.

        Raises:
            ValueError: for an option out of its range, or a source without tokens (its row is named).
        """
        with self.evaluating():
            source, source_lengths = self._checked_source(source, source_lengths)
            state, memory = self.encode(source, source_lengths)
            return self._search(
                source_lengths,
                state,
                memory,
                beam_size=beam_size,
                n_best=n_best,
                max_length=max_length,
                length_penalty=length_penalty,
                coverage_penalty=coverage_penalty,
                groups=groups,
                diversity=diversity,
                prefixes=prefixes,
                return_attention=return_attention,
            )

    @torch.no_grad()
    def sample(
        self,
        source: Tensor,
        source_lengths: Tensor | Sequence[int] | None = None,
        *,
        num_samples: int = 1,
        max_length: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        return_attention: bool = False,
    ) -> list[list[Hypothesis]]:
        """Translations drawn at random, see :func:`~rnn_blocks.sample_search`.

        Args:
            source: ids, ``(batch, source)``.
            source_lengths: ``(batch,)``; by default all positions count.
            num_samples: how many of each sentence.
            max_length: tokens of a translation at most; by default as ``max_length_ratio`` says.
            temperature: divides the logits; 0 takes the most probable token.
            top_k: only the k most probable tokens are drawn from.
            top_p: only the most probable tokens that together reach this probability are drawn from.
            seed: makes the draw repeatable.
            return_attention: whether the samples come with their attention.

        Raises:
            ValueError: for an option out of its range, or a source without tokens (its row is named).
        """
        check_sampling(temperature, top_k, top_p, seed)
        with self.evaluating():
            source, source_lengths = self._checked_source(source, source_lengths)
            state, memory = self.encode(source, source_lengths)
            return sample_search(
                self.decoder.step,
                state,
                memory,
                bos=self.bos,
                eos=self.eos,
                max_length=self._limits(source_lengths, max_length),
                num_samples=num_samples,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                generator=random_generator(self.device, seed),
                banned=self._banned,
                source_lengths=source_lengths,
                return_attention=return_attention,
            )

    def _search(
        self,
        source_lengths: Tensor,
        state: State,
        memory: Any,
        *,
        beam_size: int,
        n_best: int = 1,
        max_length: int | None = None,
        length_penalty: float | None = None,
        coverage_penalty: float | None = None,
        groups: int = 1,
        diversity: float = 0.0,
        prefixes: Sequence[Sequence[int]] | None = None,
        return_attention: bool = False,
    ) -> list[list[Hypothesis]]:
        return beam_search(
            self.decoder.step,
            state,
            memory,
            bos=self.bos,
            eos=self.eos,
            max_length=self._limits(source_lengths, max_length),
            beam_size=beam_size,
            n_best=n_best,
            length_penalty=self.length_penalty if length_penalty is None else length_penalty,
            coverage_penalty=self.coverage_penalty if coverage_penalty is None else coverage_penalty,
            groups=groups,
            diversity=diversity,
            prefixes=prefixes,
            banned=self._banned,
            source_lengths=source_lengths,
            return_attention=return_attention,
        )

    @property
    def _banned(self) -> tuple[int, ...]:
        return (self.pad, self.bos)

    def _limits(self, source_lengths: Tensor, max_length: int | None) -> Tensor:
        if max_length is not None:
            return torch.full_like(source_lengths, max_length)
        return (source_lengths * self.max_length_ratio).long() + 10

    def _checked_source(self, source: Tensor, lengths: Tensor | Sequence[int] | None) -> tuple[Tensor, Tensor]:
        if source.dim() != 2 or source.is_floating_point():
            raise ValueError(f"source must be ids, (batch, source), got {source.dtype} of shape {tuple(source.shape)}")
        if lengths is None:
            lengths = torch.full((len(source),), source.shape[1], device="cpu")
        lengths = lengths if isinstance(lengths, Tensor) else torch.tensor(lengths, device="cpu")
        if lengths.shape != (len(source),) or lengths.is_floating_point() or lengths.dtype == torch.bool:
            raise ValueError(
                f"source_lengths must be {len(source)} integers, one a source, got {lengths.dtype} of shape "
                f"{tuple(lengths.shape)}"
            )
        for row, length in enumerate(lengths.tolist()):
            if not 1 <= length <= source.shape[1]:
                raise ValueError(f"source {row} has the length {length}; it must be from 1 to {source.shape[1]}")
        return source.to(self.device), lengths.to(self.device)
