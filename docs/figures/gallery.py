"""The small pictures of the gallery, cut from the others: ``python docs/figures/gallery.py``, in a second."""

from io import BytesIO

from draw import IMAGES
from PIL import Image

SIZE = (560, 340)
FOLDER = IMAGES / "gallery"

# What of a picture is shown: left, top, right and bottom, as parts of its width and height.
WHOLE = (0.0, 0.0, 1.0, 1.0)
SHOWN = {
    "cell_and_layer": (0.37, 0.0, 1.0, 1.0),
    "deep": (0.0, 0.0, 0.5, 1.0),
    "skips_through_time": (0.36, 0.0, 1.0, 0.95),
    "bidirectional": WHOLE,
    "regularisation": (0.545, 0.0, 1.0, 1.0),
    "gradient_flow": WHOLE,
    "clipping_advice": (0.0, 0.0, 0.69, 0.94),
    "gradient_flow_monitor": (0.0, 0.0, 1.0, 0.5),
    "clipping_sweep": (0.423, 0.199, 0.806, 0.394),
    "long_range_comparison": (0.0, 0.035, 0.725, 0.845),
    "translation_comparison": WHOLE,
    "cloze_comparison": WHOLE,
}


def thumbnail(name: str) -> Image.Image:
    """A part of a picture, as large as it fits, on the picture's own ground."""
    picture = Image.open(IMAGES / f"{name}.png").convert("RGB")
    ground = picture.getpixel((2, 2))
    sizes = (picture.width, picture.height) * 2
    part = picture.crop(tuple(round(place * size) for place, size in zip(SHOWN[name], sizes, strict=True)))
    part.thumbnail(SIZE, Image.Resampling.LANCZOS)
    card = Image.new("RGB", SIZE, ground)
    card.paste(part, ((SIZE[0] - part.width) // 2, (SIZE[1] - part.height) // 2))
    return card


def main() -> None:
    """Draws all."""
    FOLDER.mkdir(exist_ok=True)
    for name in SHOWN:
        card = thumbnail(name).quantize(128, method=Image.Quantize.MAXCOVERAGE, kmeans=2)
        drawn = BytesIO()
        card.save(drawn, "png", optimize=True)
        (FOLDER / f"{name}.png").write_bytes(drawn.getvalue())


if __name__ == "__main__":
    main()
