"""Command lines, rewritten before they are parsed, and named by what refuses their values."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any


def values_of(args: list[str], *options: str) -> list[str]:
    """All that some options are given, in their order.

    >>> values_of(["--config", "a", "-c", "b"], "--config", "-c")
    ['a', 'b']
    """
    found: list[str] = []
    for index, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name in options and equals:
            found.append(value)
        elif arg in options and index + 1 < len(args):
            found.append(args[index + 1])
    return found


def map_values(args: list[str], options: tuple[str, ...], function: Callable[[str], str]) -> list[str]:
    """The arguments with what a function makes of the values of some options.

    >>> map_values(["-c", "a", "--config=b"], ("--config", "-c"), str.upper)
    ['-c', 'A', '--config=B']
    """
    mapped: list[str] = []
    for arg in args:
        if mapped and mapped[-1] in options:
            mapped.append(function(arg))
        elif arg.split("=", 1)[0] in options and "=" in arg:
            option, value = arg.split("=", 1)
            mapped.append(f"{option}={function(value)}")
        else:
            mapped.append(arg)
    return mapped


def spelled_out(args: list[str], types: dict[str, Any]) -> list[str]:
    """Options as the parser knows them: underscores, ``true`` after a switch, a list in brackets.

    What is no option's name stays as it is, and so does all that follows ``--``.

    Args:
        args: the command line.
        types: of the options, by name.

    >>> spelled_out(["--n-best", "3", "--loud", "--files", "a", "b"], {"n_best": int, "loud": bool, "files": list[str]})
    ['--n_best', '3', '--loud', 'true', '--files', '["a", "b"]']
    """
    spelled: list[str] = []
    rest = list(args)
    while rest:
        arg = rest.pop(0)
        if arg == "--":
            return [*spelled, arg, *rest]
        given, equals, value = arg.partition("=")
        name = given.removeprefix("--").replace("-", "_")
        if not arg.startswith("--") or name not in types:
            spelled.append(arg)
            continue
        spelled.append(f"--{name}{equals}{value}")
        if equals:
            continue
        if types[name] is bool and (not rest or rest[0].lower() not in ("true", "false")):
            spelled.append("true")
        elif types[name] == list[str] and rest and not rest[0].startswith(("--", "[")):
            end = next((place for place, word in enumerate(rest) if word.startswith("--")), len(rest))
            spelled.append(json.dumps(rest[:end]))
            del rest[:end]
    return spelled


def by_option(message: str, options: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> str:
    """What a class says of an argument and its value, said of the option that gives it.

    A message stays as it is where no option or more than one may be meant.

    Args:
        message: begins with the argument's name.
        options: all that hold, nested by name.
        files: the configurations among which the option may be, by name.

    >>> by_option("bptt 0: give 1 or more", {"data": {"bptt": 0}, "model": {"lr": 0}}, {})
    '--data.bptt 0: give 1 or more'
    >>> by_option("bptt 0: give 1 or more", {"data": {"bptt": 0}}, {"my.yaml": {"data": {"bptt": 0}}})
    '--data.bptt 0: give 1 or more (it is in my.yaml)'
    >>> by_option("bptt must be whole, got 2.5", {"data": {"bptt": 0}}, {})
    'bptt must be whole, got 2.5'
    """
    name, rest = re.findall(r"^`?(\w*)`?(.*)", message, re.DOTALL)[0]
    found = [(path, value) for path, value in _leaves(options) if path[-1] == name and str(value) in rest]
    if len(found) != 1:
        return message
    (option,) = found
    holding = [file for file, config in files.items() if option in _leaves(config)]
    return f"--{'.'.join(option[0])}{rest}" + (f" (it is in {' and '.join(holding)})" if holding else "")


def _leaves(options: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(options, Mapping):
        for name, value in options.items():
            yield from _leaves(value, (*path, str(name)))
    else:
        yield path, options
