"""What the pictures are drawn with: boxes and arrows on a card that can be read on white and on dark pages."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TypeAlias

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Patch
from PIL import Image

IMAGES = Path(__file__).resolve().parent.parent / "images"
INCHES = 0.62  # of one unit of a picture's coordinates
DPI = 192  # twice what a page shows

INK, FAINT, CARD = "#26323f", "#8b97a4", "#f7f8fa"
GREY, BLUE, ORANGE, GREEN = "#dfe4ea", "#c9def5", "#fbdcb8", "#cfe9d2"  # inputs, states, the other states, outputs
LILAC = "#ead8f2"  # layers without a state
RED, TEAL, VIOLET = "#c8372d", "#0f7b82", "#6b4fb3"  # paths that a picture is about

Place: TypeAlias = Patch | tuple[float, float]  # where an arrow starts or ends

plt.rcParams.update(
    {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "mathtext.fontset": "stix",
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": FAINT,
        "xtick.color": INK,
        "ytick.color": INK,
    }
)


class Picture:
    """A card of ``width`` by ``height`` units, with the origin at the lower left."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = plt.figure(figsize=(width * INCHES, height * INCHES), facecolor=CARD)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(0, height))
        self.axes.axis("off")

    def box(self, x: float, y: float, label: str, colour: str, *, width: float = 0.86, height: float = 0.62) -> Patch:
        """A rounded box around a label, by its middle."""
        corner = (x - width / 2 + 0.1, y - height / 2 + 0.1)
        box = FancyBboxPatch(
            corner, width - 0.2, height - 0.2, "round,pad=0.1,rounding_size=0.16", fc=colour, ec=INK, lw=1, zorder=3
        )
        self.axes.add_patch(box)
        self.text(x, y, label)
        return box

    def sign(self, x: float, y: float, label: str, *, colour: str = "white") -> Patch:
        """A small circle around an operation."""
        circle = Circle((x, y), 0.2, fc=colour, ec=INK, lw=1, zorder=3)
        self.axes.add_patch(circle)
        self.text(x, y, label, size=10)
        return circle

    def dot(self, x: float, y: float, colour: str, *, radius: float = 0.15, edge: str = INK) -> Patch:
        """A unit among many."""
        circle = Circle((x, y), radius, fc=colour, ec=edge, lw=1, zorder=3)
        self.axes.add_patch(circle)
        return circle

    def text(
        self, x: float, y: float, label: str, *, size: float = 12, colour: str = INK, align: str = "center"
    ) -> None:
        """A label around (or, aligned, beside) a point."""
        self.axes.text(x, y, label, ha=align, va="center", size=size, color=colour, zorder=4)

    def title(self, x: float, y: float, label: str) -> None:
        """The name of a part of the picture, which starts at ``x``."""
        self.axes.text(x, y, label, ha="left", va="center", size=11, weight="bold", zorder=4)

    def arrow(
        self,
        start: Place,
        end: Place,
        *,
        bend: float = 0.0,
        colour: str = INK,
        width: float = 1.2,
        dashed: bool = False,
    ) -> None:
        """An arrow between the edges of two shapes (or from or to a point); ``bend`` is the height of its arc."""
        self.axes.add_patch(
            FancyArrowPatch(
                _middle(start),
                _middle(end),
                patchA=start if isinstance(start, Patch) else None,
                patchB=end if isinstance(end, Patch) else None,
                connectionstyle=f"arc3,rad={bend}",
                arrowstyle="-|>,head_length=4.5,head_width=2.2",
                shrinkA=0.5 if isinstance(start, Patch) else 0,
                shrinkB=0.5 if isinstance(end, Patch) else 0,
                color=colour,
                lw=width,
                ls=(0, (3, 2)) if dashed else "-",
                zorder=2,
            )
        )

    def route(
        self, points: Sequence[tuple[float, float]], *, colour: str = INK, width: float = 1.2, dashed: bool = False
    ) -> None:
        """An arrow along straight lines, its corners rounded a little."""
        xs, ys = zip(*points[:-1], strict=True)
        style = (0, (3, 2)) if dashed else "-"
        self.axes.plot(xs, ys, color=colour, lw=width, ls=style, solid_joinstyle="round", zorder=2)
        self.arrow(points[-2], points[-1], colour=colour, width=width, dashed=dashed)

    def inset(self, x: float, y: float, width: float, height: float) -> Axes:
        """Axes for numbers, placed in the picture's coordinates."""
        place = (x / self.width, y / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(place, facecolor="none")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8.5, length=3)
        return axes

    def save(self, name: str) -> None:
        """To ``docs/images``."""
        IMAGES.mkdir(exist_ok=True)
        path = IMAGES / f"{name}.png"
        drawn = BytesIO()
        self.figure.savefig(drawn, dpi=DPI)
        plt.close(self.figure)
        picture = Image.open(drawn).convert("RGB")
        # a palette takes a third of the bytes
        picture.quantize(255, method=Image.Quantize.MAXCOVERAGE, kmeans=2).save(path, optimize=True)


def _middle(place: Place) -> tuple[float, float]:
    if isinstance(place, tuple):
        return place
    if isinstance(place, Circle):
        return place.center
    assert isinstance(place, FancyBboxPatch)
    return place.get_x() + place.get_width() / 2, place.get_y() + place.get_height() / 2
