"""A command-line parser that knows what one may have meant."""

import difflib
import inspect
import locale
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import reduce
from operator import or_
from pydoc import locate
from typing import Any, NoReturn, cast, get_args

from lightning.pytorch.cli import LightningArgumentParser

from rnn_blocks.recipes.command_line.arguments import spelled_out


class RecipeParser(LightningArgumentParser):
    """Lightning's parser, with the near options named where one is unknown.

    >>> parser = RecipeParser(prog="demo", exit_on_error=False); _ = parser.add_argument("--bptt", type=int)
    >>> parser.near_options("--bpt")
    ['--bptt']
    """

    def near_options(self, unknown: str) -> list[str]:
        """Options that look or end like ``unknown``."""
        options = [option for option in self._option_string_actions if option.startswith("--")]
        leaf = unknown.rsplit(".", 1)[-1].removeprefix("--")
        by_leaf: dict[str, list[str]] = {}
        for option in options:
            by_leaf.setdefault(option.rsplit(".", 1)[-1].removeprefix("--"), []).append(option)
        found = difflib.get_close_matches(unknown, options, n=2, cutoff=0.75)
        for name in difflib.get_close_matches(leaf, by_leaf, n=2, cutoff=0.75):
            found += [option for option in by_leaf[name] if option not in found]
        return found[:3]

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """The parser's own, with configurations read as UTF-8 wherever it runs."""
        with _files_in_utf8():
            return super().parse_args(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message, with what may have been meant, and end with exit code 2."""
        unknown = re.findall(r"(--[\w.\-]+)", message) if "nrecognized" in message else []
        unknown += [f"--{key}" for key in re.findall(r"[Kk]ey [\"'`]([\w.]+)[\"'`] (?:is not|not)", message)]
        unknown += [f"--{key}" for key in re.findall(r"does not accept option '([\w.]+)'", message)]
        near: list[str] = []
        for option in unknown:
            for parser in self._all_parsers():
                near += [name for name in parser.near_options(option) if name not in near]
        for class_path, option in re.findall(r"class_path '([\w.]+)':\s+Option '(\w+)' is not accepted", message):
            arguments = list(inspect.signature(cast(type, locate(class_path))).parameters)
            near += difflib.get_close_matches(option, arguments, n=2)
        classes = re.findall(r"module '([\w.]+)' has no attribute '(\w+)'", message)
        bare = re.findall(r"Expected a dot import path string: (\w+)$", message, re.MULTILINE)
        for module, name in [*classes, *(("rnn_blocks", name) for name in bare)]:
            there = {own.lower(): own for own in dir(sys.modules.get(module))}
            near += [there[own] for own in difflib.get_close_matches(name.lower(), there, n=2)]
        required = re.search(r"arguments are required: (.+)", message)
        for name in required[1].split(", ") if required else ():
            if f"--{name}" in self._option_string_actions:
                message = re.sub(rf"(?<![-\w]){re.escape(name)}\b", f"--{name}", message)
        if near:
            message = f"{message}\nDid you mean {' or '.join(near[:3])}?"
        if not self.exit_on_error:
            super().error(message, ex)
        sys.stderr.write(f"error: {message}\nSee {self.prog.replace('[options] ', '')} --help\n")
        sys.exit(2)

    def _all_parsers(self) -> list["RecipeParser"]:
        subcommands: Any = getattr(self, "_subcommands_action", None)
        below = [] if subcommands is None else list(subcommands._name_parser_map.values())
        return [self, *(parser for parser in below if isinstance(parser, RecipeParser))]


def whole_numbers_first(action: Any) -> None:
    """Let an option that is a number of batches, or else a share of them, take a whole number for what it is.

    In Lightning's annotations the float comes first, as `typing` finds `Union[float, int]` equal to what it was before,
    and 1 would become 1.0, which is all batches.

    >>> parser = RecipeParser(prog="demo"); action = parser.add_argument("--batches", type=float | int | None)
    >>> whole_numbers_first(action)
    >>> parser.parse_args(["--batches", "1"]).batches, parser.parse_args(["--batches", "1.0"]).batches
    (1, 1.0)
    """
    kinds = get_args(getattr(action, "_typehint", None))
    if {int, float} <= set(kinds):
        action._typehint = reduce(or_, sorted(kinds, key=lambda kind: (kind is not int, kind is float)))


@contextmanager
def _files_in_utf8() -> Iterator[None]:
    """Files that are read without an encoding, as the parser reads configurations, are UTF-8 in any locale."""
    before = locale.setlocale(locale.LC_CTYPE)
    with suppress(locale.Error):  # a system without it: its own stays
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    try:
        yield
    finally:
        locale.setlocale(locale.LC_CTYPE, before)


def run_function(function: Callable[..., None], args: list[str], *, prog: str, positional: bool = False) -> None:
    """Call a function by command-line options of its parameters' names.

    A switch needs no ``true`` after it, a list is given item by item, and a dash is as good as an underscore.

    Args:
        function: what to call.
        args: the command line.
        prog: what help and errors call it.
        positional: whether required parameters are given by their place, without a name.

    >>> def greet(name: str, loud: bool = False) -> None:
    ...     "Say hello."
    ...     print(name.upper() if loud else name)
    >>> run_function(greet, ["--loud", "--name", "ada"], prog="demo")
    ADA
    """
    from jsonargparse import auto_cli

    auto_cli(
        function,
        args=spelled_out(args, {name: p.annotation for name, p in inspect.signature(function).parameters.items()}),
        prog=prog,
        description=(inspect.getdoc(function) or "").split("\n\n", 1)[0],
        as_positional=positional,
        allow_abbrev=False,
        parser_class=RecipeParser,
    )
