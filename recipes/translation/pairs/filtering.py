"""Which training pairs are left out, and how many for which reason."""

from dataclasses import dataclass

import numpy as np

from rnn_blocks.recipes.data.plan import Indices
from rnn_blocks.recipes.translation.pairs.store import PairFile


@dataclass(frozen=True)
class Kept:
    """The outcome.

    Attributes:
        places: the pairs to train on, ``(kept,)``.
        dropped: how many were left out for each reason, each pair counted once.
    """

    places: Indices
    dropped: dict[str, int]

    def __str__(self) -> str:
        """As a sentence: ``dropped 3 of 9 pairs: 1 empty source, 2 longer than 100 tokens``."""
        lost = sum(self.dropped.values())
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items() if count)
        return f"dropped {lost} of {len(self.places) + lost} pairs" + (f": {reasons}" if reasons else "")


def keep(pairs: PairFile, max_length: int, max_ratio: float | None = None) -> Kept:
    """Leaves out pairs with a side of more than ``max_length`` tokens, or with sides too unlike in length.

    Args:
        pairs: the train split.
        max_length: tokens of either side at most, ``<eos>`` not counted.
        max_ratio: tokens of the longer side for each of the shorter at most; None for any.
    """
    source, target = pairs.source.lengths(), pairs.target.lengths()
    longer, shorter = np.maximum(source, target), np.minimum(source, target)
    too_long = longer > max_length
    uneven = ~too_long & (longer > shorter * max_ratio) if max_ratio is not None else np.zeros_like(too_long)
    dropped = {f"empty {side}": count for side, count in pairs.empty.items()}
    dropped[f"longer than {max_length} tokens"] = int(too_long.sum())
    if max_ratio is not None:
        dropped[f"with a side more than {max_ratio:g} times as long as the other"] = int(uneven.sum())
    return Kept(np.flatnonzero(~too_long & ~uneven), dropped)
