"""Where a translation looked: the attention as a picture, as text, and as pairs of words."""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING
from unicodedata import combining, east_asian_width

from torch import Tensor

from rnn_blocks.callbacks.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHADES = " ░▒▓█"


def draw_attention(
    weights: Tensor, source_tokens: Sequence[str], target_tokens: Sequence[str], *, title: str = ""
) -> "Figure":
    """A heat map: a row for each target token, a column for each source token, dark where the weight is high.

    Args:
        weights: ``(target, source)``, each from 0 to 1.
        source_tokens: labels, ``source`` of them.
        target_tokens: labels, ``target`` of them.
        title: of the picture.

    >>> import torch
    >>> figure = draw_attention(torch.eye(2), ["a", "man"], ["ein", "Mann"])
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['ein', 'Mann']
    """
    rows, columns = weights.shape
    cell = max(0.12, min(0.32, 12 / max(rows, columns)))  # inches
    size = (max(3.5, 1.8 + cell * columns), max(2.5, 1.3 + cell * rows))
    figure, axes = new_figure(title, "", "", size=size)
    axes.grid(False)
    picture = axes.imshow(weights.float().numpy(), cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    letters = max(4.0, min(9.0, cell * 30))
    fonts = font_families([*source_tokens, *target_tokens])
    # a token may hold dollar signs, between which matplotlib would read a formula
    axes.set_xticks(range(columns), source_tokens, rotation=90, fontsize=letters, family=fonts, parse_math=False)
    axes.set_yticks(range(rows), target_tokens, fontsize=letters, family=fonts, parse_math=False)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[["top", "right", "bottom", "left"]].set_visible(False)
    figure.colorbar(picture, ax=axes, fraction=0.04, pad=0.02).ax.tick_params(labelsize=8)
    return figure


def font_families(texts: Iterable[str]) -> list[str]:
    """Matplotlib's own font, then installed ones that have the letters it lacks, as of Hangul or Han.

    >>> font_families(["ein", "Mann"])
    ['DejaVu Sans']
    """
    from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

    own = findfont(FontProperties())
    families = [get_font(own).family_name]
    lacking = {ord(letter) for text in texts for letter in text} - letters_of(own)
    regular = {font.name: font.fname for font in fontManager.ttflist if font.style == "normal" and font.weight == 400}
    regular = {name: file for name, file in regular.items() if not name.startswith("Last Resort")}  # boxes for all
    while lacking and regular:
        most = max(sorted(regular), key=lambda name: len(lacking & letters_of(regular[name])))
        if not lacking & letters_of(regular[most]):
            break
        families.append(most)
        lacking -= letters_of(regular[most])
    return families


@cache
def letters_of(font_file: str) -> frozenset[int]:
    """The code points that a font has glyphs for; of one that cannot be read, none."""
    from matplotlib.font_manager import get_font

    try:
        return frozenset(get_font(font_file).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def attention_text(weights: Tensor, source_tokens: Sequence[str], target_tokens: Sequence[str]) -> str:
    """The same for a terminal: source tokens numbered, a line for each target token, shaded in five steps.

    >>> import torch
    >>> print(attention_text(torch.eye(2), ["a", "man"], ["ein", "Mann"]))
             0  1
       ein  ██     a
      Mann     ██  man
    """
    columns = weights.shape[1]
    width = max(map(cells_of, target_tokens), default=0) + 2
    lines = [" " * width + "  " + " ".join(f"{column % 100:>2}" for column in range(columns))]
    for token, row in zip(target_tokens, weights.tolist(), strict=True):
        cells = " ".join(SHADES[min(4, round(weight * 4))] * 2 for weight in row)
        best = max(range(columns), key=row.__getitem__)
        lines.append(f"{' ' * (width - cells_of(token))}{token}  {cells}  {source_tokens[best]}")
    return "\n".join(lines)


def cells_of(text: str) -> int:
    """How many cells of a terminal a text takes: letters of East Asia and emoji take two, marks none.

    >>> cells_of("한글"), cells_of("naïve"), cells_of("e\N{COMBINING ACUTE ACCENT}")
    (4, 5, 1)
    """
    return sum(1 + (east_asian_width(one) in "WF") for one in text if not combining(one))


def alignment_pairs(weights: Tensor, num_source: int, num_target: int) -> str:
    """``source-target`` pairs of token places from 0, as Pharaoh wrote them: each target token with its highest weight.

    A target token that looks at the source's ``<eos>`` most has no pair, and neither has the target's ``<eos>``.

    Args:
        weights: ``(target, source)``, with rows and columns for ``<eos>`` behind the others.
        num_source: source tokens without ``<eos>``.
        num_target: target tokens without ``<eos>``.

    >>> import torch
    >>> alignment_pairs(torch.tensor([[0.1, 0.9, 0.0], [0.8, 0.2, 0.0], [0.1, 0.1, 0.8]]), 2, 2)
    '1-0 0-1'
    """
    highest = weights[:num_target].argmax(1).tolist() if num_target else []
    return " ".join(f"{source}-{target}" for target, source in enumerate(highest) if source < num_source)
