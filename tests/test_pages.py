"""The look at the pages finds what is wrong with a page, and nothing where nothing is."""

import sys
from pathlib import Path

import pytest

PAGES = Path(__file__).resolve().parent / "pages"
sys.path.insert(0, str(PAGES))  # a script's folder, as when it is run
from browser import Browser, find_chromium  # noqa: E402
from look import faults  # noqa: E402

sys.path.remove(str(PAGES))

WORD = "long" * 300
FAULTS = {
    "well": ("<p>$5 and 5 %</p><pre>" + WORD + "</pre><code>\\(x\\)</code>", None),
    "wide": (f"<p>{WORD}</p>", "pixels wide in a column of"),
    "scrolls": (f"<style>.content {{ overflow-x: auto }}</style><p>{WORD}</p>", "pixels wide in a column of"),
    "hidden": (f'<div style="overflow: hidden"><p>{WORD}</p></div>', "cut off: <div>"),
    "sticks out": ('<p style="width: 3000px">wide</p>', "cut off: <p> wide"),
    "tex": ("<p>the loss \\(x^2\\)</p>", "TeX: the loss"),
    "formula": ('<p><span class="math">x^2</span></p>', "formula that is not set: x^2"),
    "picture": ('<p><img src="none.png"></p>', "missing picture: none.png"),
    "network": (
        '<p><script src="https://example.org/a.js"></script></p>',
        "asks the network: https://example.org/a.js",
    ),
}
STYLE = "<style>body { margin: 0 } pre { overflow-x: auto }</style>"


@pytest.mark.processes
@pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium")
def test_each_fault_is_found_and_a_page_without_one_is_well(tmp_path: Path) -> None:
    with Browser(str(find_chromium())) as browser:
        for width, height in ((1280, 1000), (390, 844)):
            browser.resize(width, height)
            for name, (body, expected) in FAULTS.items():
                page = tmp_path / f"{name}.html"
                viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
                page.write_text(f"<!doctype html>{viewport}{STYLE}<div class=content><article>{body}</article></div>")
                found = faults(browser, page)
                assert bool(found) == (expected is not None), (name, found)
                assert expected is None or any(expected in fault for fault in found), (name, found)
