"""Two trainings on words of the Penn Treebank for an evening: ``python docs/figures/small_budget.py``.

The numbers are those of ``metrics.csv`` of `ptb-quick` (2026-11-27) and `ptb-10m` (2026-11-29), as docs/recipes tell.
"""

from draw import FAINT, RED, TEAL, Picture

QUICK = [234.0, 154.8, 133.2, 122.3, 115.0, 109.3, 104.8, 101.6, 100.1, 99.8]
TEN_MILLION = [
    *(223.0, 145.4, 123.6, 113.0, 106.1, 102.0, 98.4, 96.2, 94.0, 91.8),
    *(89.6, 88.5, 87.5, 86.5, 85.7, 84.8, 84.5, 84.0, 83.6, 83.6),
]
PUBLISHED = 78.8  # srush/cs287, after 30 epochs


def main() -> None:
    """Draw validation perplexity over epochs."""
    picture = Picture(11.4, 6.0)
    axes = picture.inset(1.15, 1.0, 9.8, 4.6)
    for name, values, colour in (("ptb-quick", QUICK, TEAL), ("ptb-10m", TEN_MILLION, RED)):
        axes.plot(range(1, len(values) + 1), values, color=colour, lw=1.8, marker="o", ms=3.5, label=name)
    axes.axhline(PUBLISHED, color=FAINT, lw=1.2, ls="--", label="2 × 512, tied, after 30 epochs (srush/cs287)")
    axes.set(xlim=(0.5, 20.5), ylim=(74, 160), xlabel="epochs", ylabel="validation perplexity", xticks=range(2, 21, 2))
    axes.legend(frameon=False)
    picture.save("small_budget")


if __name__ == "__main__":
    main()
