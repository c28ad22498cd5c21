"""Looks at every page of the built documentation in Chromium, without a network, wide and on a phone's width.

    python tests/pages/look.py docs/_build/html [--screenshots FOLDER]

A page is at fault where it is wider than the window, where something in it sticks out, where TeX is left as it is or
cannot be set, where a picture is missing, and where anything is asked of a network. Ends with 1 if one is. Where there
is no Chromium it says so, and ends well.
"""

import argparse
import sys
from pathlib import Path

from browser import Browser, find_chromium

SIZES = ((1280, 1000), (390, 844))
FAULTS = (Path(__file__).parent / "faults.js").read_text()
OF_SPHINX = ("genindex.html", "search.html", "py-modindex.html")


def faults(browser: Browser, page: Path) -> list[str]:
    """What is wrong with a page as it is shown."""
    asked = browser.open(page.as_uri())
    network = [f"asks the network: {address}" for address in asked if not address.startswith(("file:", "data:"))]
    found: list[str] = browser.run(FAULTS)
    return network + found


def main() -> int:
    """Looks, and tells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the built documentation")
    parser.add_argument("--screenshots", type=Path, help="a folder for a picture of each page at each width")
    options = parser.parse_args()
    program = find_chromium()
    if program is None:
        print("No page was looked at: there is no Chromium.")
        return 0
    root = options.folder.resolve()
    built = (page for page in sorted(root.rglob("*.html")) if "_static" not in page.parts)
    pages = [page for page in built if page.name not in OF_SPHINX]
    if not pages:
        print(f"{options.folder}: no pages; build them by `make docs`", file=sys.stderr)
        return 1
    wrong = set()
    with Browser(program) as browser:
        for width, height in SIZES:
            browser.resize(width, height)
            for page in pages:
                name = page.relative_to(root).as_posix()
                for fault in faults(browser, page):
                    wrong.add(name)
                    print(f"{name}, {width} pixels: {fault}")
                if options.screenshots is not None:
                    options.screenshots.mkdir(parents=True, exist_ok=True)
                    picture = name.removesuffix(".html").replace("/", "_")
                    browser.screenshot(options.screenshots / f"{picture}-{width}.png")
    widths = " and ".join(str(width) for width, _ in SIZES)
    print(f"{len(pages)} pages, {widths} pixels wide: {len(wrong) or 'none'} at fault")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
