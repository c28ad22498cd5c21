"""What trust in a momentum changed, training by training: ``python docs/figures/momentum.py``.

The numbers are those of the table in docs/clipping.md, "Trust in a momentum", which is read.
"""

import re
from pathlib import Path

from draw import FAINT, RED, TEAL, Picture

PAGE = Path(__file__).resolve().parent.parent / "clipping.md"
ROW = re.compile(r"\| (\S+) \| (\S+) \| \S+ \| ([+-][\d.]+) % \| ([+-][\d.]+) % \|")


def rows() -> list[tuple[str, float, float]]:
    """Name with rate, and the loss over that of no clipping, before and now."""
    text = PAGE.read_text(encoding="utf-8").split("### Trust in a momentum")[1].split("###")[0]
    found = ROW.findall(text)
    losses = [(f"{name}, {rate}", 1 + float(then) / 100, 1 + float(now) / 100) for name, rate, then, now in found]
    return sorted(losses, key=lambda row: row[2])


def trust_in_a_momentum() -> None:
    """Draw the loss over that of no clipping, before and now."""
    table = rows()
    picture = Picture(11.4, 9.6)
    axes = picture.inset(3.9, 1.0, 7.1, 8.2)
    places = range(len(table))
    axes.hlines(places, [row[1] for row in table], [row[2] for row in table], color=FAINT, lw=1)
    axes.plot([row[1] for row in table], places, color=TEAL, ls="", marker="o", ms=4, label="before")
    axes.plot([row[2] for row in table], places, color=RED, ls="", marker="o", ms=4, label="now")
    axes.axvline(1, color=FAINT, lw=1.2, ls="--")
    axes.set(xscale="log", xlim=(0.015, 8), xlabel="held-out loss over that of no clipping", ylim=(-1, len(table)))
    axes.set_xticks([0.02, 0.1, 0.5, 1, 2, 5], labels=["0.02", "0.1", "0.5", "1", "2", "5"])
    axes.set_yticks(places, labels=[row[0] for row in table], fontsize=8)
    axes.minorticks_off()
    axes.legend(frameon=False, loc="lower right")
    picture.save("trust_in_a_momentum")


if __name__ == "__main__":
    trust_in_a_momentum()
