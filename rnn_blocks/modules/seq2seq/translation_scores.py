"""BLEU, chrF and exact matches of translations."""

from collections.abc import Sequence
from typing import Literal

import torch
import torchmetrics
from torch import Tensor, nn
from torchmetrics.aggregation import MaxMetric, MeanMetric
from torchmetrics.text import SacreBLEUScore

from rnn_blocks.modules.seq2seq.chrf import CharacterFScore

BLEU_WORDS = 4
"""How long the runs of words are that BLEU counts, at most."""

UNSEARCHED: Literal["disable", "ignore"] = (
    "disable" if tuple(map(int, torchmetrics.__version__.split(".")[:2])) >= (1, 4) else "ignore"
)
"""torchmetrics' word for metrics in which NaN is not looked for, for that waits for the device; once there was none."""


class TranslationScores(nn.Module):
    """BLEU and chrF as sacreBLEU has them, and how many translations are exactly right.

    BLEU is Papineni et al. (2002) over the whole corpus, on text cut as by mteval-v13a, through torchmetrics; it is 0
    where no four words in a row match (sacreBLEU's ``smooth_method="none"``). chrF is Popović (2015), of characters up
    to 6 and no words (sacreBLEU's chrF2). All are percentages. In a distributed run they are those of all ranks. Where
    no reference has four words BLEU is 0 whatever was translated, and ``bleu_says_something`` is False.

    Args:
        lowercase: whether case is disregarded.

    >>> scores = TranslationScores()
    >>> scores.update(["the cat sat on the mat .", "a dog"], ["the cat sat on the mat .", "the dog"])
    >>> {name: round(value.item(), 1) for name, value in scores.compute().items()}
    {'bleu': 93.4, 'chrf': 88.8, 'exact_match': 50.0}
    >>> scores.signature.split("|torchmetrics")[0]
    'nrefs:1|case:mixed|eff:no|tok:13a|smooth:none'
    """

    def __init__(self, lowercase: bool = False) -> None:
        super().__init__()
        self.lowercase = lowercase
        self.bleu = SacreBLEUScore(tokenize="13a", lowercase=lowercase)
        self.chrf = CharacterFScore(lowercase)
        self.exact = MeanMetric(nan_strategy=UNSEARCHED)
        self.longest = MaxMetric(nan_strategy=UNSEARCHED)

    @property
    def signature(self) -> str:
        """How BLEU was computed, in sacreBLEU's own words."""
        return f"nrefs:1|case:{self._case}|eff:no|tok:13a|smooth:none|torchmetrics:{torchmetrics.__version__}"

    @property
    def chrf_signature(self) -> str:
        """The same of chrF."""
        return f"nrefs:1|case:{self._case}|eff:yes|nc:6|nw:0|space:no"

    @property
    def _case(self) -> str:
        return "lc" if self.lowercase else "mixed"

    @property
    def updated(self) -> bool:
        """Whether there is anything to score."""
        return bool(self.bleu.update_called)

    @property
    def bleu_says_something(self) -> bool:
        """Whether a reference has as many words as BLEU counts in a row, on any rank: all ranks must ask."""
        return bool(self.longest.compute() >= BLEU_WORDS)

    def update(self, translations: Sequence[str], references: Sequence[str]) -> None:
        """Add sentences.

        Args:
            translations: what the model wrote.
            references: one of each, in the same order.

        Raises:
            ValueError: where they are not as many.
        """
        if len(translations) != len(references):
            raise ValueError(f"{len(translations)} translations were given with {len(references)} references")
        nested = [[reference] for reference in references]
        self.bleu.update(list(translations), nested)
        self.chrf.update(translations, references)
        self.longest.update(max((self.words(reference) for reference in references), default=0))
        same = [ours == theirs for ours, theirs in zip(translations, references, strict=True)]
        self.exact.update(torch.tensor(same, dtype=torch.float32))

    def words(self, text: str) -> int:
        """Words of a text, as BLEU counts them: punctuation stands apart."""
        return len(self.bleu.tokenizer(text))

    def compute(self) -> dict[str, Tensor]:
        """``bleu``, ``chrf`` and ``exact_match``, in percent."""
        scores = {"bleu": self.bleu.compute(), "chrf": self.chrf.compute(), "exact_match": self.exact.compute()}
        return {name: 100 * torch.as_tensor(value) for name, value in scores.items()}

    def reset(self) -> None:
        """Forget all sentences."""
        for metric in (self.bleu, self.chrf, self.exact, self.longest):
            metric.reset()
