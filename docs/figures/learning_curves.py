"""Trainings by shipped configurations, step by step: ``python docs/figures/learning_curves.py``.

The numbers are those of their ``metrics.csv``, as docs/recipes tell.
"""

from collections.abc import Sequence

from draw import FAINT, RED, TEAL, VIOLET, Picture
from matplotlib.axes import Axes

PTB_QUICK = [234.0, 154.8, 133.2, 122.3, 115.0, 109.3, 104.8, 101.6, 100.1, 99.8]  # 2026-11-27
PTB_10M = [  # 2026-11-29
    *(223.0, 145.4, 123.6, 113.0, 106.1, 102.0, 98.4, 96.2, 94.0, 91.8),
    *(89.6, 88.5, 87.5, 86.5, 85.7, 84.8, 84.5, 84.0, 83.6, 83.6),
]
PUBLISHED = 78.8  # srush/cs287, after 30 epochs

# ptb-medium: the training perplexity of the first epoch up to a share of it, and that of the validation text after it
MEDIUM_SHARES = [0.008, 0.107, 0.206, 0.306, 0.405, 0.505, 0.604, 0.704, 0.803, 0.903, 1.0]
MEDIUM = [5455.7, 1251.9, 895.2, 713.3, 610.4, 540.8, 483.8, 443.5, 412.5, 385.4, 364.5]  # 2026-12-01
MEDIUM_TENSORLAYER = [5173.5, 1219.5, 866.2, 695.2, 598.5, 531.9, 477.1, 438.3, 407.9, 381.3, 360.8]
MEDIUM_VALIDATION, MEDIUM_VALIDATION_TENSORLAYER = 205.8, 208.9

CHARACTERS = [1.659, 1.528, 1.456, 1.406, 1.392]  # bits, ptb-char, 2026-11-30
CHARACTERS_TRAINING = [  # means of 800 steps, with dropout
    *(3.607, 2.128, 1.769, 1.658, 1.609, 1.572, 1.517, 1.485, 1.479, 1.457),
    *(1.419, 1.383, 1.390, 1.364, 1.338, 1.300, 1.320, 1.297, 1.290, 1.254),
]
ONE_LAYER = [1.675, 1.629, 1.583, 1.508, 1.455, 1.441]  # one LSTM layer of 800 at 0.004
CHARACTERS_TESTED, CHARACTERS_PUBLISHED = 1.355, 1.36  # Bai et al. 2018

BETWEEN = 400  # steps from one validation of multi30k to the next; three trainings of 2026-11-29
MULTI30K = [
    *(11.5, 23.4, 27.0, 28.5, 31.4, 32.0, 32.3, 34.0, 35.1, 35.4, 35.7),
    *(36.5, 36.8, 36.0, 37.5, 37.1, 37.7, 37.3, 37.9, 37.6, 37.9, 38.1),
]
WITHIN_TENTH = [10.6, 23.2, 26.6, 26.5, 30.5, 30.7, 32.8, 33.7, 33.5, 33.6, 35.2, 35.2, 35.0, 35.2, 35.2]
SMALL = [0.4, 3.3, 7.6, 13.0, 18.6, 21.7, 25.0, 26.0, 27.3]

RACE = {  # seconds of CPU time in training, and BLEU then; translation_race.py --train, 2026-11-30
    "Seq2Seq": [(269, 15.52), (506, 23.42), (725, 28.33), (943, 30.58)],
    "JoeyNMT 2.3.0": [
        *((590, 1.29), (1156, 2.33), (1735, 11.64), (2261, 22.53), (2865, 28.39), (3457, 29.90), (4030, 29.43)),
    ],
}


def draw_curve(axes: Axes, places: Sequence[float], values: Sequence[float], colour: str, name: str) -> None:
    """Draw what was measured, a dot each."""
    axes.plot(places, values, color=colour, lw=1.8, marker="o", ms=3.5, label=name)


def small_budget() -> None:
    """Draw validation perplexity over epochs, of words of the Penn Treebank."""
    picture = Picture(11.4, 6.0)
    axes = picture.inset(1.15, 1.0, 9.8, 4.6)
    for name, values, colour in (("ptb-quick", PTB_QUICK, TEAL), ("ptb-10m", PTB_10M, RED)):
        draw_curve(axes, range(1, len(values) + 1), values, colour, name)
    axes.axhline(PUBLISHED, color=FAINT, lw=1.2, ls="--", label="2 × 512, tied, after 30 epochs (srush/cs287)")
    axes.set(xlim=(0.5, 20.5), ylim=(74, 160), xlabel="epochs", ylabel="validation perplexity", xticks=range(2, 21, 2))
    axes.legend(frameon=False)
    picture.save("small_budget")


def medium() -> None:
    """Draw the first epoch of the medium model, ours and TensorLayer's."""
    picture = Picture(11.4, 5.0)
    axes = picture.inset(1.35, 1.0, 9.6, 3.7)
    for name, values, after, colour in (
        ("TensorLayer's example, which ends at 87.5", MEDIUM_TENSORLAYER, MEDIUM_VALIDATION_TENSORLAYER, TEAL),
        ("ptb-medium", MEDIUM, MEDIUM_VALIDATION, RED),
    ):
        draw_curve(axes, MEDIUM_SHARES, values, colour, f"{name}: training so far")
        axes.plot(1.0, after, color=colour, ls="", marker="*", ms=10, label="validation after the epoch")
    axes.set(xlim=(0, 1.05), ylim=(180, 7000), yscale="log", xlabel="share of the first epoch", ylabel="perplexity")
    axes.set_yticks([200, 500, 1000, 2000, 5000], ["200", "500", "1,000", "2,000", "5,000"])
    axes.minorticks_off()
    axes.legend(frameon=False)
    picture.save("ptb_medium")


def characters() -> None:
    """Draw bits a character over epochs, and those of the test text at the end."""
    picture = Picture(11.4, 5.6)
    axes = picture.inset(1.15, 1.0, 9.8, 4.2)
    for name, values, colour in (
        ("ptb-char, validation", CHARACTERS, RED),
        ("one layer of 800 at twice the rate, validation", ONE_LAYER, TEAL),
    ):
        draw_curve(axes, range(1, len(values) + 1), values, colour, name)
    epochs = [800 * (number + 1) / 3266 for number in range(len(CHARACTERS_TRAINING))]
    axes.plot(epochs, CHARACTERS_TRAINING, color=FAINT, lw=1.2, label="ptb-char, training")
    axes.plot(5, CHARACTERS_TESTED, color=RED, ls="", marker="*", ms=10, label="ptb-char, test")
    axes.axhline(CHARACTERS_PUBLISHED, color=FAINT, lw=1.2, ls="--", label="LSTM, test (Bai et al. 2018)")
    axes.set(xlim=(0, 6.2), ylim=(1.2, 2.1), xlabel="epochs", ylabel="bits a character", xticks=range(1, 7))
    axes.legend(frameon=False)
    picture.save("characters")


def initial_weights() -> None:
    """Draw BLEU of greedy translations over steps, by what the weights started from."""
    picture = Picture(11.4, 5.6)
    axes = picture.inset(1.15, 1.0, 9.8, 4.2)
    for name, values, colour in (
        ("embeddings within ±0.4, layers as they say, as shipped", MULTI30K, RED),
        ("all weights within ±0.1, dropout 0.4, 6,000 steps", WITHIN_TENTH, VIOLET),
        ("embeddings within ±0.1, layers as they say, dropout 0.4, broken off", SMALL, TEAL),
    ):
        steps = [BETWEEN * (number + 1) for number in range(len(values))]
        draw_curve(axes, steps, values, colour, name)
    axes.set(xlim=(0, 9200), ylim=(0, 40), xlabel="steps", ylabel="validation BLEU, greedy")
    axes.legend(frameon=False, loc="lower right")
    picture.save("initial_weights")


def race_to_bleu() -> None:
    """Draw BLEU of greedy translations over CPU time, of `Seq2Seq` and of JoeyNMT."""
    picture = Picture(11.4, 5.0)
    axes = picture.inset(1.15, 1.0, 9.8, 3.7)
    for (name, points), colour in zip(RACE.items(), (RED, TEAL), strict=True):
        seconds, scores = zip(*points, strict=True)
        minutes = [second / 60 for second in seconds]
        draw_curve(axes, minutes, scores, colour, name)
    axes.axhline(30, color=FAINT, lw=1.2, ls="--")
    axes.set(xlim=(0, 70), ylim=(0, 34), xlabel="CPU time in training, minutes", ylabel="validation BLEU, greedy")
    axes.legend(frameon=False, loc="lower right")
    picture.save("race_to_bleu")


if __name__ == "__main__":
    small_budget()
    medium()
    characters()
    initial_weights()
    race_to_bleu()
