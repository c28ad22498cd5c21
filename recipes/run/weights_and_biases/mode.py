"""Whether a run is written to W&B's server or to a file: a server that cannot be had never stops a training."""

import os
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, TypeAlias

from lightning.pytorch.utilities import rank_zero_only

from rnn_blocks.recipes import InputError

Mode: TypeAlias = Literal["online", "offline", "disabled", "shared"]
PROJECT = "rnn-blocks"
ANSWER_WITHIN = 5.0  # seconds that the server has to answer
VIEWER = "query Viewer { viewer { id } }"  # W&B's way to ask whose key it is


def wandb_project(given: str | None) -> str:
    """The project of a run: what is given, else ``$WANDB_PROJECT``, else ``rnn-blocks``.

    >>> wandb_project("mine")
    'mine'
    """
    return given or os.environ.get("WANDB_PROJECT") or PROJECT


def wandb_mode() -> Mode:
    """What ``$WANDB_MODE``, ``wandb disabled`` or ``wandb offline`` says; else online where the user is logged in.

    Asks the user nothing. Where the server cannot be had, it is offline, and one line on standard error says why.

    Raises:
        InputError: for settings of Weights & Biases that cannot be.
    """
    if getattr(rank_zero_only, "rank", 0) != 0:
        return "offline"  # only the first rank opens the run
    mode, why, wanted = _mode()
    if mode == "offline" and wanted:
        say_offline(why)
    return mode


def why_no_server() -> str:
    """Why nothing can be had from the server; empty where it can.

    Raises:
        InputError: for settings of Weights & Biases that cannot be.
    """
    return _mode().why


class _Mode(NamedTuple):
    mode: Mode
    why: str = ""  # it is not online
    wanted: bool = True  # whether the user will think that it is


def _mode() -> _Mode:
    import wandb

    chosen = os.environ.get("WANDB_MODE")
    try:
        chosen = chosen or wandb.setup().settings.mode
        if chosen in ("disabled", "offline", "dryrun"):
            mode: Mode = "disabled" if chosen == "disabled" else "offline"
            return _Mode(mode, f"it is set to {chosen} (WANDB_MODE, or wandb {mode})", wanted=False)
        if chosen not in ("online", "run", "shared"):
            raise InputError(f"WANDB_MODE {chosen}: choose online, offline or disabled")
        settings = wandb.setup().settings
        logged_in = wandb.login(prompt=False, verify=False)
    except wandb.errors.Error as error:
        return _Mode("offline", first_line(error))
    except InputError:
        raise
    except ValueError as error:
        told = " ".join(str(error).split()).split(" [type=")[0]
        raise InputError(f"settings of Weights & Biases: {told}") from error
    if not logged_in:
        return _Mode("offline", "there is no API key; log in with: wandb login", wanted="WANDB_MODE" in os.environ)
    trouble = _trouble_with(settings)
    if trouble:
        return _Mode("offline", f"{settings.base_url} {trouble}")
    return _Mode("shared" if chosen == "shared" else "online")


def say_offline(why: str) -> None:
    """Say in one line why a run is not written to the server."""
    sys.stderr.write(f"Weights & Biases is offline: {why}\n")


def _trouble_with(settings: Any) -> str:
    """Why the server does not serve this user; empty where it does."""
    found: list[str] = []
    # looking up a host's name can take longer than any time-out
    asking = threading.Thread(target=lambda: found.append(_asked(settings)), daemon=True)
    asking.start()
    asking.join(ANSWER_WITHIN)
    return found[0] if found else f"did not answer within {ANSWER_WITHIN:g} s"


def _asked(settings: Any) -> str:
    import requests  # of W&B

    url, key = f"{settings.base_url.rstrip('/')}/graphql", settings.api_key
    given = {"http": settings.http_proxy, "https": settings.https_proxy}
    proxies = {scheme: proxy for scheme, proxy in given.items() if proxy}
    proxies = requests.utils.get_environ_proxies(url) | proxies
    try:
        answer = requests.post(
            url,
            json={"query": VIEWER},
            auth=("api", key) if key else None,
            proxies=proxies,
            timeout=ANSWER_WITHIN,
        )
    except requests.exceptions.ProxyError as error:
        proxy = requests.utils.select_proxy(url, proxies) or "that is set"
        return f"is not to be had through the proxy {_without_password(proxy)} ({_reason(error)})"
    except requests.exceptions.SSLError:
        return ""  # W&B trusts other certificates than requests does: opening the run will tell
    except requests.exceptions.Timeout:
        return f"did not answer within {ANSWER_WITHIN:g} s"
    except (OSError, ValueError) as error:  # requests' own are among them
        return f"cannot be reached ({_reason(error)})"
    if answer.status_code in (401, 403):
        return f"does not accept the API key (HTTP {answer.status_code}); log in with: wandb login --relogin"
    if answer.status_code == 407:
        return "is not to be had: the proxy wants a password (HTTP 407)"
    if not answer.ok:
        return f"answers with HTTP {answer.status_code}"
    try:
        viewer = answer.json()["data"]["viewer"]
    except (ValueError, KeyError, TypeError):
        return "gives an answer that is not of Weights & Biases"
    if viewer is None and key:
        return "does not accept the API key; log in with: wandb login --relogin"
    return ""


def _reason(error: BaseException) -> str:
    """What the system said, in the words that users know."""
    causes = list(_causes(error))
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return "unknown host"
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return "connection refused"
    if any(isinstance(cause, TimeoutError) for cause in causes):
        return f"no answer within {ANSWER_WITHIN:g} s"
    said = [cause.strerror or str(cause) for cause in causes if isinstance(cause, OSError) and cause.args]
    return said[-1].splitlines()[0] if said else type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it, the first cause last; requests and urllib3 hide it in several ways."""
    seen: list[BaseException] = []
    waiting = [error]
    while waiting:
        one = waiting.pop(0)
        if any(one is other for other in seen):
            continue
        seen.append(one)
        yield one
        hidden = [*one.args, getattr(one, "reason", None), one.__cause__, one.__context__]
        waiting += [each for each in hidden if isinstance(each, BaseException)]


def _without_password(url: str) -> str:
    scheme, slashes, rest = url.rpartition("://")
    return f"{scheme}{slashes}{rest.rsplit('@', 1)[-1]}"


def first_line(error: BaseException) -> str:
    r"""What an error says first, or else its kind.

    >>> first_line(OSError("no room\nat all")), first_line(OSError())
    ('no room', 'OSError')
    """
    return str(error).splitlines()[0] if str(error) else type(error).__name__
