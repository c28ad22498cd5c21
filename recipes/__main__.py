"""The command line: ``rnn-blocks RECIPE COMMAND`` or ``rnn-blocks TOOL``, or ``python -m rnn_blocks.recipes …``."""

import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.command_line.commands import (
    COMMANDS,
    RECIPE_MODULES,
    RECIPES,
    SHARED_COMMAND_MODULES,
    TOOL_MODULES,
    TOOLS,
)
from rnn_blocks.recipes.command_line.shipped_configs import shipped_configs
from rnn_blocks.recipes.run.ending.signals import Terminated, ended_by_signals, ended_later, exit_code, interruption
from rnn_blocks.recipes.run.host.threads import limit_threads, wait_quietly

EXTRA = ("datasets", "filelock", "jsonargparse", "matplotlib", "optuna", "tokenizers", "tqdm", "wandb", "yaml")


def main(args: Sequence[str] | None = None) -> int:
    """Run a recipe.

    Args:
        args: the command line; by default the process's.

    Returns:
        0; 1 where a run failed; 2 for bad input; 130 where it was interrupted, 143 by SIGTERM; 141 where nobody reads.

    >>> main(["langage-model", "fit"])
    2
    """
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0
    try:
        with ended_by_signals():
            try:
                return _run(args[0], args[1:])
            except (KeyboardInterrupt, SystemExit) as error:
                ended = interruption(error)
                if ended is None:
                    raise
                return _ended(ended)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except BrokenPipeError:  # by the reader of standard output: `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python flushes when it ends
        return 141
    except (OSError, FloatingPointError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except Exception as error:
        from lightning.fabric.utilities.exceptions import MisconfigurationException

        from rnn_blocks.callbacks import NonFiniteGradientError

        if isinstance(error, NonFiniteGradientError | MisconfigurationException):
            sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
            return 1 if isinstance(error, NonFiniteGradientError) else 2
        raise


def _ended(ended: KeyboardInterrupt) -> int:
    if isinstance(ended, Terminated) and ended.requeue:
        from rnn_blocks.recipes.run.ending.slurm import requeue

        requeue()
    return exit_code(ended)


def usage() -> str:
    """The help text.

    >>> "language-model" in usage()
    True
    """
    lines = [
        "usage: rnn-blocks RECIPE COMMAND [options]",
        "       rnn-blocks TOOL [options]",
        "",
        "Recipes, their commands and shipped configurations:",
    ]
    for recipe, about in RECIPES.items():
        lines += ["", f"  {recipe:18}{about}"]
        lines += [f"    {command:16}{what}" for command, what in COMMANDS[recipe].items()]
        lines.append(f"    --config        {', '.join(shipped_configs(recipe))}")
    lines += ["", "Tools:", *(f"  {tool:18}{about}" for tool, about in TOOLS.items())]
    lines += [
        "",
        "rnn-blocks RECIPE COMMAND --help lists every option. For example:",
        "  rnn-blocks language-model fit",
        "  rnn-blocks language-model fit --config ptb-small --data.train TRAIN --data.val VALID --data.test TEST",
        '  rnn-blocks language-model generate --prompt "def main("',
        "  rnn-blocks translation fit --config multi30k --data.train TRAIN --data.val VAL --data.test TEST",
        "  rnn-blocks translation translate --input FILE.en --output FILE.de --beam-size 5",
        "  rnn-blocks long-range compare --task copy --cells gru,lstm,dilated --lengths 50,100,200 --processes 2",
        '  rnn-blocks cloze predict "the clouds are in the ___"',
        "  rnn-blocks export best --format onnx --output FOLDER",
    ]
    return "\n".join(lines) + "\n"


def _run(recipe: str, args: list[str]) -> int:
    if recipe in TOOLS:
        return _run_tool(recipe, args)
    if recipe not in RECIPES:
        raise InputError(f"{recipe!r} is no recipe; {_hint(recipe, [*RECIPES, *TOOLS])}")
    commands = COMMANDS[recipe]
    if not args or args[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0
    if args[0] not in commands:
        raise InputError(f"{args[0]!r} is no command of {recipe}; {_hint(args[0], list(commands))}")
    _begin()
    _prepare()
    module = _imported(RECIPE_MODULES[recipe])
    shared = SHARED_COMMAND_MODULES.get(args[0])
    function = _imported(shared).FUNCTION if shared else module.FUNCTIONS.get(args[0])
    if function is None:
        module.CLI(args)
    else:
        positional = args[0] in getattr(module, "POSITIONAL", ())
        _run_function(function, args[1:], prog=f"rnn-blocks {recipe} {args[0]}", positional=positional)
    return 0


def _run_tool(tool: str, args: list[str]) -> int:
    _begin()
    module = _imported(TOOL_MODULES[tool])
    switches = getattr(module, "SWITCHES", {})  # options that need no other argument, and no torch
    if args and args[0] in switches:
        switches[args[0]]()
    else:
        _prepare()
        _run_function(module.FUNCTION, args, prog=f"rnn-blocks {tool}", positional=True)
    return 0


def _begin() -> None:
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise InputError(f"{', '.join(missing)}: not installed; recipes need pip install 'rnn-blocks[recipes]'")
    wait_quietly()  # before anybody imports torch


def _prepare() -> None:
    process = _imported("rnn_blocks.recipes.run.host.process")
    process.quiet()
    process.tune_host()
    _imported("torch")
    limit_threads()


def _run_function(function: Any, args: list[str], prog: str, positional: bool) -> None:
    _imported("rnn_blocks.recipes.command_line.parser").run_function(function, args, prog=prog, positional=positional)


def _imported(module: str) -> Any:
    with ended_later():  # a library in C++ that was imported half ends by an abort, or cannot be imported again
        return import_module(module)


def _hint(given: str, valid: list[str]) -> str:
    near = difflib.get_close_matches(given, valid, n=2, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"valid are {', '.join(valid)}"


if __name__ == "__main__":
    sys.exit(main())
