"""The command line: ``rnn-blocks RECIPE COMMAND``, or ``python -m rnn_blocks.recipes RECIPE COMMAND``."""

import difflib
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from rnn_blocks.recipes.errors import InputError
from rnn_blocks.recipes.shipped_configs import shipped_configs

EXTRA = ("datasets", "filelock", "jsonargparse", "matplotlib", "tokenizers", "tqdm", "wandb", "yaml")
RECIPES = {"language-model": "train a recurrent language model on text, and let it write"}
COMMANDS = {
    "language-model": {
        "fit": "train; resumes by --ckpt_path last",
        "validate": "loss, perplexity and bits per byte on the validation split",
        "test": "the same on the test split",
        "generate": "continue a prompt",
    }
}


def main(args: Sequence[str] | None = None) -> int:
    """Run a recipe.

    Args:
        args: the command line; by default the process's.

    Returns:
        0; 1 where a run failed; 2 for bad input.

    >>> main(["langage-model", "fit"])
    2
    """
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0
    try:
        return _run(args[0], args[1:])
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except (OSError, FloatingPointError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except RuntimeError as error:
        from lightning.fabric.utilities.exceptions import MisconfigurationException

        from rnn_blocks.callbacks import NonFiniteGradientError

        if isinstance(error, NonFiniteGradientError | MisconfigurationException):
            sys.stderr.write(f"error: {error}\n")
            return 1 if isinstance(error, NonFiniteGradientError) else 2
        raise


def usage() -> str:
    """The help text.

    >>> "language-model" in usage()
    True
    """
    lines = ["usage: rnn-blocks RECIPE COMMAND [options]", "", "Recipes, their commands and shipped configurations:"]
    for recipe, about in RECIPES.items():
        lines += ["", f"  {recipe:18}{about}"]
        lines += [f"    {command:16}{what}" for command, what in COMMANDS[recipe].items()]
        lines.append(f"    --config        {', '.join(shipped_configs(recipe))}")
    lines += [
        "",
        "rnn-blocks RECIPE COMMAND --help lists every option. For example:",
        "  rnn-blocks language-model fit",
        "  rnn-blocks language-model fit --config ptb-small --data.train TRAIN --data.val VALID --data.test TEST",
        '  rnn-blocks language-model generate --prompt "def main("',
    ]
    return "\n".join(lines) + "\n"


def _run(recipe: str, args: list[str]) -> int:
    if recipe not in RECIPES:
        raise InputError(f"{recipe!r} is no recipe; {_hint(recipe, list(RECIPES))}")
    commands = COMMANDS[recipe]
    if not args or args[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0
    if args[0] not in commands:
        raise InputError(f"{args[0]!r} is no command of {recipe}; {_hint(args[0], list(commands))}")
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise InputError(f"{', '.join(missing)}: not installed; recipes need pip install 'rnn-blocks[recipes]'")
    from rnn_blocks.recipes.host import quiet, tune_host

    quiet()
    tune_host()
    from rnn_blocks.recipes.language_model import LanguageModelCLI, generate

    if args[0] == "generate":
        from jsonargparse import auto_cli

        from rnn_blocks.recipes.parser import RecipeParser

        auto_cli(
            generate,
            args=args[1:],
            prog=f"rnn-blocks {recipe} generate",
            description="Continue a prompt, writing to standard output as the text comes.",
            as_positional=False,
            allow_abbrev=False,
            parser_class=RecipeParser,
        )
    else:
        LanguageModelCLI(args)
    return 0


def _hint(given: str, valid: list[str]) -> str:
    near = difflib.get_close_matches(given, valid, n=2, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"valid are {', '.join(valid)}"


if __name__ == "__main__":
    sys.exit(main())
