"""The options of a run: where it lies, where its metrics go, which checkpoints it keeps."""

import warnings
from collections.abc import Callable, Collection
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.command_line.arguments import values_of
from rnn_blocks.recipes.command_line.weights_and_biases import add_wandb_options
from rnn_blocks.recipes.run.folder import OUTPUT_DIR
from rnn_blocks.recipes.run.tracking import LoggerChoice

_VALIDATED = {"val_check_interval": "batches, or a share of an epoch", "check_val_every_n_epoch": "epochs"}
_OPTIMIZER_RATE = ("--model.optimizer.init_args.lr", "--model.optimizer.lr")
_HIGHEST_RATE = ("--model.lr_scheduler.init_args.max_lr", "--model.lr_scheduler.max_lr")


def add_run_options(add_argument: Callable[..., Any], monitor: str, monitors: Collection[str]) -> None:
    """Add the options to a group of a parser's.

    Args:
        add_argument: the group's.
        monitor: what is monitored by default.
        monitors: what can be.
    """
    add_argument("--output_dir", type=str, default=OUTPUT_DIR, help="Folder that the run's own folder goes into")
    add_argument("--name", type=str | None, default=None, help="Added to the name of the run's folder")
    add_argument(
        "--logger",
        type=LoggerChoice,
        default="wandb",
        help="wandb (online if logged in, else offline), tensorboard, or csv alone; metrics.csv is always written",
    )
    add_argument(
        "--monitor",
        type=str,
        default=monitor,
        help=f"What the best checkpoint has the best of: {', '.join(monitors)}",
    )
    add_wandb_options(add_argument)
    add_argument("--checkpoint_every_n_steps", type=int, default=200, help="Steps between two writes of last.ckpt")
    add_argument(
        "--average_checkpoints",
        type=int,
        default=0,
        help="Keep this many of the best checkpoints, and at the end write and validate the mean of their weights",
    )


def check_kept_options(options: Namespace) -> None:
    """Look at what a training's configuration could not keep, or would keep in vain.

    Args:
        options: of ``fit``.

    Raises:
        InputError: where an option holds bytes that are no UTF-8, or switches the checkpoints off.

    >>> check_kept_options(Namespace(trainer=Namespace(enable_checkpointing=False)))
    Traceback (most recent call last):
    ...
    rnn_blocks.recipes.InputError: --trainer.enable_checkpointing false: a run keeps last.ckpt, to go on, and best.ckpt
    """
    for name, value in options.items():
        if isinstance(value, str) and not value.isascii() and value.encode(errors="replace").decode() != value:
            raise InputError(
                f"--{name} {value!a}: holds bytes that are no UTF-8, which config.yaml cannot keep; rename it"
            )
    if options["trainer"].get("enable_checkpointing") is False:
        raise InputError("--trainer.enable_checkpointing false: a run keeps last.ckpt, to go on, and best.ckpt")


def check_run_options(options: Namespace, monitors: Collection[str]) -> None:
    """Look at them before any long work.

    Args:
        options: of the command.
        monitors: what can be monitored.

    Raises:
        InputError: where one is not one of its choices, or out of its range.

    >>> check_run_options(Namespace(trainer={}, monitor="val/los"), ["val/loss"])
    Traceback (most recent call last):
    ...
    rnn_blocks.recipes.InputError: --monitor val/los: choose one of val/loss
    """
    if options["trainer"].get("logger") not in (None, True, False):
        raise InputError("--trainer.logger: choose by --logger wandb|tensorboard|csv")
    accumulated = options["trainer"].get("accumulate_grad_batches", 1)
    if accumulated < 1:
        raise InputError(f"--trainer.accumulate_grad_batches must be at least 1, got {accumulated}")
    for option, unit in _VALIDATED.items():
        every = options["trainer"].get(option)
        if isinstance(every, int | float) and every <= 0:
            raise InputError(f"--trainer.{option} must be above 0 ({unit}), got {every}")
    if options["monitor"] not in monitors:
        raise InputError(f"--monitor {options['monitor']}: choose one of {', '.join(monitors)}")
    name = options["name"] or ""
    if Path(name).name != name:
        raise InputError(f"--name {name}: it becomes part of a folder's name, and cannot hold a '/'")
    if options["checkpoint_every_n_steps"] < 1:
        raise InputError(f"--checkpoint_every_n_steps must be at least 1, got {options['checkpoint_every_n_steps']}")
    if options["average_checkpoints"] < 0 or options["average_checkpoints"] == 1:
        raise InputError(
            f"--average_checkpoints must be 2 or more, or 0 for none, got {options['average_checkpoints']}"
        )


def check_schedule(options: Namespace, args: list[str]) -> None:
    """Make sure that a new training and its learning-rate schedule fit each other, before any long work.

    Args:
        options: of the command.
        args: the command line.

    Raises:
        InputError: where it would be longer than OneCycleLR, which cannot go on, or where a rate is given to the
            optimizer alone, which OneCycleLR puts its own in the place of.

    >>> schedule = Namespace(
    ...     class_path="torch.optim.lr_scheduler.OneCycleLR", init_args=Namespace(max_lr=0.01, total_steps=3)
    ... )
    >>> model = Namespace(optimizer=Namespace(init_args=Namespace(lr=0.1)), lr_scheduler=schedule, lr_interval="step")
    >>> check_schedule(Namespace(trainer=Namespace(max_steps=6), model=model), [])  # doctest: +NORMALIZE_WHITESPACE
    Traceback (most recent call last):
    ...
    rnn_blocks.recipes.InputError: --trainer.max_steps 6: the learning-rate schedule ends at step 3; give
    --model.lr_scheduler.init_args.total_steps 6 too
    >>> given = ["--model.optimizer.lr", "0.1"]
    >>> check_schedule(Namespace(trainer=Namespace(max_steps=3), model=model), given)  # doctest: +NORMALIZE_WHITESPACE
    Traceback (most recent call last):
    ...
    rnn_blocks.recipes.InputError: --model.optimizer.lr 0.1: OneCycleLR sets the learning rate, which it takes up
    to 0.01; give --model.lr_scheduler.init_args.max_lr 0.1 too
    """
    schedule = options["model"].get("lr_scheduler")
    if schedule is None or not schedule["class_path"].endswith(".OneCycleLR"):
        return
    unit, other = ("step", "epoch") if options["model"].get("lr_interval") == "step" else ("epoch", "step")
    longest, total = options["trainer"].get(f"max_{unit}s"), schedule["init_args"].get("total_steps")
    ends_before = options["trainer"].get(f"max_{other}s") not in (None, -1)  # perhaps: only the data know
    if longest is not None and total is not None and longest > total and not ends_before:
        raise InputError(
            f"--trainer.max_{unit}s {longest}: the learning-rate schedule ends at {unit} {total}; give "
            f"--model.lr_scheduler.init_args.total_steps {longest} too"
        )
    given = [option for option in _OPTIMIZER_RATE if values_of(args, option)]
    if not given or values_of(args, *_HIGHEST_RATE):
        return
    rate, highest = options["model"]["optimizer"]["init_args"]["lr"], schedule["init_args"]["max_lr"]
    if rate != highest:
        raise InputError(
            f"{given[0]} {rate}: OneCycleLR sets the learning rate, which it takes up to {highest}; give "
            f"--model.lr_scheduler.init_args.max_lr {rate} too"
        )


def check_optimizer(options: Namespace) -> None:
    """Make the optimizer and its schedule for a weight of nothing, before any long work.

    Args:
        options: of the command.

    Raises:
        InputError: where their classes refuse their settings.

    >>> sgd = Namespace(class_path="torch.optim.SGD", init_args=Namespace(lr=-1.0))
    >>> check_optimizer(Namespace(model=Namespace(optimizer=sgd)))
    Traceback (most recent call last):
    ...
    rnn_blocks.recipes.InputError: --model.optimizer torch.optim.SGD: Invalid learning rate: -1.0
    """
    import torch

    made: Any = [torch.nn.Parameter(torch.zeros(2, 2))]
    for name in ("optimizer", "lr_scheduler"):
        given = options["model"].get(name)
        if given is None:
            return
        module, _, called = given["class_path"].rpartition(".")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = getattr(import_module(module), called)(made, **given.get("init_args", {}))
                if name == "lr_scheduler":
                    made.step()
        except ZeroDivisionError as error:  # OneCycleLR, whose first phase ends before it has begun
            settings = given["init_args"]
            raise InputError(
                f"--model.{name}.init_args.total_steps {settings.get('total_steps')}: the first phase, a share of "
                f"{settings.get('pct_start', 0.3)} (pct_start), is of one step, of which {given['class_path']} makes "
                "nothing; give another number of steps, or share"
            ) from error
        except ValueError as error:
            raise InputError(f"--model.{name} {given['class_path']}: {error}") from error
        except Exception:  # of something that needs more than this: it is made in its time
            return
        groups = made.param_groups if name == "optimizer" else made.optimizer.param_groups
        option = "lr_scheduler.init_args.max_lr" if "max_lr" in groups[0] else "optimizer.init_args.lr"
        rates = [group.get("max_lr", group.get("initial_lr", group.get("lr"))) for group in groups]
        highest = max((float(rate) for rate in rates if rate is not None), default=1.0)
        if highest <= 0 and (name == "lr_scheduler" or options["model"].get("lr_scheduler") is None):
            raise InputError(f"--model.{option} {highest}: give more than 0, or nothing is learnt")
