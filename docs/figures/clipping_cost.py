"""What clipping costs, training by training: ``python docs/figures/clipping_cost.py``.

The numbers are those of the tables in docs/clipping.md, which are read.
"""

import re
from pathlib import Path

from draw import FAINT, RED, TEAL, VIOLET, Picture

PAGE = Path(__file__).resolve().parent.parent / "clipping.md"
# training, seeds, healthy rates, the loss above that of no clipping and its standard error
ROW = re.compile(r"^\| ([\w-]+)\*? \(\d\) \| [^|]+ \| ([+-][\d.]+) %(?: ± ([\d.]+))? \|", re.MULTILINE)
KINDS = {"Adam and its kin": TEAL, "SGD": VIOLET, "SGD with a momentum": RED}


def kind(name: str) -> str:
    """What a training is optimized by, as its name says."""
    if name.endswith(("momentum", "nesterov", "-mom")):
        return "SGD with a momentum"
    return "SGD" if name.endswith("-sgd") else "Adam and its kin"


def clipping_cost() -> None:
    """Draw the loss above that of no clipping at the worst healthy rate, the lowest first."""
    text = PAGE.read_text(encoding="utf-8")
    table = sorted((float(above), float(error or 0), name) for name, above, error in ROW.findall(text))
    picture = Picture(11.4, 16.4)
    axes = picture.inset(4.4, 1.0, 6.6, 15.0)
    for label, colour in KINDS.items():
        rows = [(place, *row) for place, row in enumerate(table) if kind(row[2]) == label]
        places, above, errors, _ = zip(*rows, strict=True)
        axes.errorbar(above, places, xerr=errors, color=colour, ls="", marker="o", ms=4, elinewidth=1, label=label)
    axes.axvline(0, color=FAINT, lw=1.2, ls="--")
    axes.set_xscale("symlog", linthresh=3, linscale=1)
    axes.set(xlim=(-150, 300), ylim=(-1, len(table)))
    axes.set_xlabel("held-out loss above that of no clipping, %")
    ticks = [-100, -30, -10, -3, 0, 3, 10, 30, 100]
    axes.set_xticks(ticks, labels=[f"{tick:+d}" if tick else "0" for tick in ticks])
    axes.set_yticks(range(len(table)), labels=[name for _, _, name in table], fontsize=7.5)
    axes.minorticks_off()
    axes.grid(axis="x", color=FAINT, alpha=0.25)
    axes.legend(frameon=False, loc="lower right")
    picture.save("clipping_cost")


if __name__ == "__main__":
    clipping_cost()
