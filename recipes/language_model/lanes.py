"""Batches of a contiguous stream of tokens, read as lanes side by side."""

from collections.abc import Callable, Iterator
from io import FileIO
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rnn_blocks.modules.language_model.text_batch import TextBatch
from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.data.store import TokenFile
from rnn_blocks.recipes.language_model.chunk_lengths import DrawnLengths, FixedLengths

IGNORED = -100


class Lanes:
    """The chunks of a token file for truncated backpropagation through time, as a loader for a Trainer.

    The tokens are cut into ``batch_size * world_size`` contiguous lanes, and each batch carries all lanes ``bptt``
    steps on, so that a state can be carried from batch to batch. Rank ``r`` reads the lanes from ``r * batch_size`` on:
    one process with all lanes sees in its rows just what the ranks see, in order.

    The position within a pass and the number of the epoch are its state: a Trainer saves it in its checkpoints and,
    resumed in mid-epoch, goes on with the first batch that was not seen.

    Args:
        tokens: the token ids.
        batch_size: lanes of this rank.
        bptt: steps of a chunk; the last one of a pass may be shorter.
        variable: whether lengths of chunks are drawn around ``bptt``, others each epoch: see
            :class:`~rnn_blocks.recipes.language_model.chunk_lengths.DrawnLengths`.
        seed: of these lengths.
        complete: whether every token after the first is predicted exactly once, the last lanes filled up with targets
            of -100 (for evaluation). Otherwise all lanes have one length and up to a lane's count of tokens at the end
            is left out (for training).
        rank: this process's place among those that share the lanes.
        world_size: how many they are.
        current_epoch: tells the number of the epoch that begins; None counts finished passes. A Trainer that goes on
            after an epoch's end does not restore a loader's state, but knows its epoch.

    Raises:
        InputError: there are too few tokens for one batch.

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "train.bin")
    ...     np.arange(11, dtype=np.uint16).tofile(path)
    ...     for batch in Lanes(TokenFile(path, "uint16", num_tokens=11, num_bytes=11), batch_size=2, bptt=3):
    ...         print(batch.inputs.tolist(), batch.targets.tolist(), batch.fresh)
    [[0, 1, 2], [5, 6, 7]] [[1, 2, 3], [6, 7, 8]] True
    [[3, 4], [8, 9]] [[4, 5], [9, 10]] False
    """

    def __init__(
        self,
        tokens: TokenFile,
        batch_size: int,
        bptt: int,
        *,
        variable: bool = False,
        seed: int = 0,
        complete: bool = False,
        rank: int = 0,
        world_size: int = 1,
        current_epoch: Callable[[], int] | None = None,
    ) -> None:
        self._tokens = tokens
        self._lanes = batch_size * world_size
        needed = 2 if complete else self._lanes * bptt + 1
        if tokens.num_tokens < needed:
            raise InputError(_too_short(tokens, needed, batch_size, bptt, world_size, complete))
        predictions = tokens.num_tokens - 1
        self._steps = -(-predictions // self._lanes) if complete else predictions // self._lanes
        lanes = np.arange(rank * batch_size, (rank + 1) * batch_size)
        self._origins = lanes[:, None] * self._steps  # (lanes, 1)
        self._lengths = DrawnLengths(self._steps, bptt, seed=seed) if variable else FixedLengths(self._steps, bptt)
        self._current_epoch = current_epoch
        self._shape = {
            "lanes": self._lanes,
            "bptt": bptt,
            "tokens": tokens.num_tokens,
            "variable_bptt": variable,
            "seed": seed if variable else 0,
        }
        self._pass = len(self)
        self._epoch = self._position = self._resume_at = 0

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[TextBatch]:
        # All of this waits for the first batch: a Trainer makes iterators that it does not use, and makes the one that
        # it uses before it knows its epoch.
        first, self._resume_at = self._resume_at, 0
        if first == 0:
            finished = self._position >= self._pass
            self._epoch = self._current_epoch() if self._current_epoch else self._epoch + finished
        ends = self._lengths.epoch(self._epoch).cumsum().tolist()
        with self._tokens.path.open("rb", buffering=0) as file:
            for index in range(first, len(ends)):
                self._position = index + 1
                yield self._batch(file, ends[index - 1] if index else 0, ends[index])

    def end_pass_after(self, batches: int) -> None:
        """Says that the reader will end its passes early: a state taken there is one of a pass's end."""
        self._pass = min(batches, len(self))

    def state_dict(self) -> dict[str, int]:
        """The epoch, the number of batches handed out in it, and the shape that gives the number its meaning."""
        return {"epoch": self._epoch, "position": self._position, "batches": self._pass, **self._shape}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lets the next pass go on where the state was taken; at a pass's end, from the beginning of the next.

        Raises:
            InputError: the state is of the middle of a pass over lanes of another shape.
        """
        # checkpoints from before chunks could vary do not say
        there = {"epoch": 0, "variable_bptt": False, "seed": 0} | state_dict
        epoch, position = int(there["epoch"]), int(there["position"])
        if position >= there["batches"]:
            epoch, position = epoch + 1, 0
        if position and any(there[name] != self._shape[name] for name in self._shape):
            raise InputError(
                f"the checkpoint was taken in the middle of an epoch over {_described(there)}; this run has "
                f"{_described(self._shape)}: resume with the same batch_size, bptt and number of devices"
            )
        self._epoch, self._position, self._resume_at = epoch, position, position

    def _batch(self, file: FileIO, start: int, stop: int) -> TextBatch:
        last = self._tokens.num_tokens - 1
        places = self._origins + np.arange(start, stop + 1)  # (lanes, time + 1)
        window = torch.from_numpy(self._tokens_at(file, places).astype(np.int64))
        inputs, targets = window[:, :-1].contiguous(), window[:, 1:].contiguous()
        predictions = targets.numel()
        if places[-1, -1] > last:
            beyond = torch.from_numpy(places[:, 1:] > last)
            targets = targets.masked_fill(beyond, IGNORED)  # a new tensor: those of one lane are views of one memory
            predictions -= int(beyond.sum())
        num_bytes = predictions * self._tokens.num_bytes / self._tokens.num_tokens
        return TextBatch(inputs, targets, num_bytes, fresh=start == 0)

    def _tokens_at(self, file: FileIO, places: npt.NDArray[np.int64]) -> npt.NDArray[np.integer]:
        # Read, not mapped: a mapped file's pages count as the process's memory, and with large pages one fault makes
        # two megabytes of each lane resident. A read from the page cache takes a microsecond or two.
        ids = np.zeros(places.shape, dtype=self._tokens.dtype)  # past the end of the file zeros stay, a valid id
        for row, place in zip(ids, places[:, 0].tolist(), strict=True):
            file.seek(place * ids.itemsize)
            file.readinto(row)
        return ids


def _described(shape: dict[str, Any]) -> str:
    drawn = " drawn with seed {seed}".format(**shape) if shape["variable_bptt"] else ""
    return "{tokens} tokens in {lanes} lanes (batch size times ranks) with bptt {bptt}".format(**shape) + drawn


def _too_short(tokens: TokenFile, needed: int, batch_size: int, bptt: int, world_size: int, complete: bool) -> str:
    split, there = tokens.path.stem, tokens.num_tokens
    if complete:
        return f"the {split} split has {there} tokens, and an evaluation needs at least {needed}: give it more text"
    ranks = f" × {world_size} ranks" if world_size > 1 else ""
    return (
        f"the {split} split has {there} tokens, and one batch needs {needed} (batch_size {batch_size}{ranks} × bptt"
        f" {bptt} + 1): lower batch_size or bptt, or give it more text"
    )
