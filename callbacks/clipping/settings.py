"""Settings that every clipping has, looked at before anything is made of them."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from rnn_blocks.callbacks.clipping.policies import SCOPES, Auto, ClippingPolicy, Scope


def checked_settings(
    owner: str, policy: ClippingPolicy | Literal["auto"], scope: Scope | None, name: str
) -> tuple[ClippingPolicy, Scope]:
    """The policy and the scope that are meant.

    Raises:
        ValueError: a setting is not one of its choices.
    """
    if policy != "auto" and not isinstance(policy, ClippingPolicy):
        raise ValueError(f"{owner}: policy is {policy!r}; it must be 'auto' or a ClippingPolicy, such as Fixed(5.0)")
    if scope is not None and scope not in SCOPES:
        raise ValueError(
            f"{owner}: scope is {scope!r}; choose one of {', '.join(map(repr, SCOPES))}, or None for the policy's own"
        )
    if not name:
        raise ValueError(f"{owner}: name is ''; it must have a character at least")
    meant: ClippingPolicy = Auto() if isinstance(policy, str) else policy
    return meant, meant.default_scope if scope is None else scope


def refuse_other_settings(owner: str, state: dict[str, Any], policy: ClippingPolicy, scope: Scope) -> None:
    """Raise `ValueError` if a state is of another policy or scope."""
    for setting, here in (("policy", repr(policy)), ("scope", scope)):
        if state[setting] != here:
            raise ValueError(
                f"{owner}: the checkpoint's history is of the {setting} {state[setting]}, and this instance has "
                f"{here}; give it the same {setting}, or begin without that history"
            )


def listed(owner: str, argument: str, names: str | Sequence[str] | None) -> list[str] | None:
    """One name or several as a list.

    Raises:
        ValueError: it is neither.

    >>> listed("", "include", "head"), listed("", "include", ["head", "body"]), listed("", "include", None)
    (['head'], ['head', 'body'], None)
    """
    if names is None:
        return None
    given = [names] if isinstance(names, str) else list(names) if isinstance(names, Iterable) else [names]
    if not all(isinstance(name, str) and name for name in given):
        raise ValueError(f"{owner}: {argument} is {names!r}; it must be a name, or a list of names")
    return given
