"""Constructors that add a few options to those of another: each option is said once, and seen in both."""

import inspect
import re
from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeVar

Extended = TypeVar("Extended", bound=Callable[..., Any])


def with_options_of(base: Callable[..., Any], *, but: Collection[str] = ()) -> Callable[[Extended], Extended]:
    """Spell out a last argument ``**options: Unpack[…]`` as the keyword arguments that `base` takes.

    For type checkers ``Unpack`` of a ``TypedDict`` says what they are, and a wrong one is an error; this says it to
    whoever asks when the program runs: ``help``, `inspect.signature`, the command line's parser. What the class or
    function does not take by itself joins its signature, with its default, and what `base` tells of its arguments joins
    its docstring's. A wrong option raises `TypeError`, as ever: in `base`, which they are handed to.

    Args:
        base: a class or function, whose keyword-only arguments are wanted.
        but: those of them that are not.

    Raises:
        TypeError: when the class or function is made, if it has no ``**options``.

    >>> def greet(name: str, *, greeting: str = "Hello", mark: str = "!") -> str:
    ...     '''Greet.
    ...
    ...     Args:
    ...         name: of whom.
    ...         greeting: what to say.
    ...         mark: at the end.
    ...     '''
    ...     return f"{greeting} {name}{mark}"
    >>> @with_options_of(greet)
    ... def greet_all(*names: str, mark: str = ".", **options: str) -> list[str]:
    ...     '''Greet many.
    ...
    ...     Args:
    ...         names: of all.
    ...     '''
    ...     return [greet(name, mark=mark, **options) for name in names]
    >>> inspect.signature(greet_all)
    <Signature (*names: str, mark: str = '.', greeting: str = 'Hello') -> list[str]>
    >>> print(inspect.getdoc(greet_all))
    Greet many.
    <BLANKLINE>
    Args:
        names: of all.
        mark: at the end.
        greeting: what to say.
    """

    def decorate(extended: Extended) -> Extended:
        function: Any = vars(extended).get("__init__") if isinstance(extended, type) else extended
        signature = inspect.signature(function or (lambda: None))
        own = list(signature.parameters.values())
        last = own.pop() if own else None
        if last is None or last.kind is not last.VAR_KEYWORD:
            raise TypeError(f"{extended.__name__} takes no **options that those of {base.__name__} could be")
        added = [
            parameter
            for parameter in inspect.signature(base).parameters.values()
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in {*signature.parameters, *but}
        ]
        function.__signature__ = signature.replace(parameters=[*own, *added])
        function.__annotations__ = {
            **{name: kind for name, kind in function.__annotations__.items() if name != last.name},
            **{parameter.name: parameter.annotation for parameter in added},
        }
        extended.__doc__ = _with_entries(extended, base, function.__signature__.parameters)
        return extended

    return decorate


def _with_entries(extended: Callable[..., Any], base: Callable[..., Any], names: Iterable[str]) -> str:
    """The docstring with an entry for each of the names that it or that of `base` tells of, in their order."""
    before, own, after = _parts(extended)
    told = _parts(base)[1] | own
    return "\n".join([*before, "Args:", *(told[name] for name in names if name in told), "", *after])


def _parts(documented: Callable[..., Any]) -> tuple[list[str], dict[str, str], list[str]]:
    """The lines before a docstring's arguments (or attributes), the entries by name, and the lines after them."""
    lines = (inspect.getdoc(documented) or "").splitlines()
    starts = [place for place, line in enumerate(lines) if line in ("Args:", "Attributes:")]
    if not starts:  # where they would be
        starts = [place for place, line in enumerate(lines) if line in ("Returns:", "Raises:") or line[:3] == ">>>"]
        start = starts[0] if starts else len(lines)
        return lines[:start], {}, lines[start:]
    start = starts[0]
    end = next((n for n, line in enumerate(lines) if n > start and line and line[0] != " "), len(lines))
    entries = re.split(r"\n(?= {4}\S)", "\n".join(lines[start + 1 : end]).rstrip())
    return lines[:start], {entry.strip().partition(":")[0]: entry for entry in entries}, lines[end:]
