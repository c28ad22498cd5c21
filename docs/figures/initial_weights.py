"""What the size of the first weights is worth on Multi30k: ``python docs/figures/initial_weights.py``.

The numbers are those of ``metrics.csv`` of two trainings by `multi30k` on 2026-11-29, as docs/recipes tell.
"""

from draw import RED, TEAL, Picture

EVERY = 400  # steps between two validations
AS_SHIPPED = [10.6, 23.2, 26.6, 26.5, 30.5, 30.7, 32.8, 33.7, 33.5, 33.6, 35.2, 35.2, 35.0, 35.2, 35.2]
LAYERS_OWN = [0.4, 3.3, 7.6, 13.0, 18.6, 21.7, 25.0, 26.0, 27.3]


def main() -> None:
    """Draw BLEU of greedy translations over steps."""
    picture = Picture(11.4, 5.6)
    axes = picture.inset(1.15, 1.0, 9.8, 4.2)
    for name, values, colour in (
        ("all weights uniform within ±0.1, as shipped", AS_SHIPPED, RED),
        ("each layer's own first weights, broken off", LAYERS_OWN, TEAL),
    ):
        steps = [EVERY * (number + 1) for number in range(len(values))]
        axes.plot(steps, values, color=colour, lw=1.8, marker="o", ms=3.5, label=name)
    axes.set(xlim=(0, 6200), ylim=(0, 38), xlabel="steps", ylabel="validation BLEU, greedy")
    axes.legend(frameon=False, loc="lower right")
    picture.save("initial_weights")


if __name__ == "__main__":
    main()
