"""chrF as sacreBLEU has it."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

ORDER = 6  # the longest n-grams
BETA = 2  # how many times more recall counts than precision


class CharacterFScore(Metric):
    """The F-score of character n-grams over a corpus (Popović 2015, "chrF"), as sacreBLEU computes its ``chrF2``.

    With ``P`` and ``R`` the means of precision and recall over the n-gram lengths 1 to 6 that both sides have::

        chrF = 5 P R / (4 P + R)

    Spaces are no characters. torchmetrics' ``CHRFScore`` is another number: it takes the mean of the F-scores, lengths
    that no sentence has count as 0, and the references of translations without any match are not missed in the recall.

    Args:
        lowercase: whether case is disregarded.
        sync_on_compute: whether, in a distributed run, the score is that of all ranks, which must then all ask for it.

    >>> chrf = CharacterFScore()
    >>> chrf.update(["a cat"], ["the cat"])
    >>> round(chrf.compute().item(), 4)
    0.3125
    """

    full_state_update = False
    counts: Tensor
    """n-grams of translations, of references and in both, ``(3, 6)``."""

    def __init__(self, lowercase: bool = False, *, sync_on_compute: bool = True) -> None:
        super().__init__(sync_on_compute=sync_on_compute)
        self.lowercase = lowercase
        self.add_state("counts", torch.zeros(3, ORDER, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, translations: Sequence[str], references: Sequence[str]) -> None:
        """Add sentences, and one reference of each in the same order."""
        total = torch.zeros(3, ORDER, dtype=torch.int64)
        for pair in zip(translations, references, strict=True):
            ours, theirs = ("".join((text.lower() if self.lowercase else text).split()) for text in pair)
            for n in range(1, ORDER + 1):
                written, wanted = _ngrams(ours, n), _ngrams(theirs, n)
                if wanted:  # without, nothing of this length could be right
                    found = (written.total(), wanted.total(), (written & wanted).total())
                    total[:, n - 1] += torch.tensor(found)
        self.counts += total.to(self.counts.device)

    def compute(self) -> Tensor:
        """Between 0 and 1, in float64."""
        written, wanted, matches = self.counts.double()
        both = (written > 0) & (wanted > 0)
        precision, recall = ((matches[both] / of[both]).mean() for of in (written, wanted))
        score = (1 + BETA**2) * precision * recall / (BETA**2 * precision + recall)
        return torch.nan_to_num(score)  # 0 where nothing matches, or there is nothing to match


def _ngrams(text: str, n: int) -> Counter[str]:
    return Counter(text[start : start + n] for start in range(len(text) - n + 1))
