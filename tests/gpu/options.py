"""The options of every part."""

import argparse
from pathlib import Path


def read_options(about: str | None) -> argparse.Namespace:
    """Those of the command line, which `check.py` writes."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes and few of them")
    parser.add_argument("--seconds", type=float, default=120.0, help="what does not fit is left out")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="with ptb/ and multi30k/")
    return parser.parse_args()
