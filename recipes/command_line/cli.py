"""What the recipes' command lines share: run folders, shipped configurations, tracking, resuming."""

import os
import sys
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import yaml
from filelock import FileLock
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.command_line.arguments import by_option, map_values, values_of
from rnn_blocks.recipes.command_line.from_checkpoint import CONFIG, GivenCheckpoint, given_config, given_option
from rnn_blocks.recipes.command_line.parser import RecipeParser, whole_numbers_first
from rnn_blocks.recipes.command_line.run_callbacks import add_callbacks
from rnn_blocks.recipes.command_line.run_options import (
    add_run_options,
    check_kept_options,
    check_optimizer,
    check_run_options,
    check_schedule,
)
from rnn_blocks.recipes.command_line.shipped_configs import DEFAULT, config_path, shipped_configs
from rnn_blocks.recipes.command_line.summary import places
from rnn_blocks.recipes.command_line.trainer import RecipeTrainer
from rnn_blocks.recipes.command_line.weights_and_biases import check_wandb_options
from rnn_blocks.recipes.data.corpora.corpus import Split
from rnn_blocks.recipes.run.averaging import validate_average
from rnn_blocks.recipes.run.checkpoints import AtomicCheckpointIO, Mode, check_disk_space, check_fits
from rnn_blocks.recipes.run.ending.callback import OwnSignals
from rnn_blocks.recipes.run.ending.job import begun_run, remember_job
from rnn_blocks.recipes.run.ending.signals import interruption, signal_of
from rnn_blocks.recipes.run.folder import (
    BEST,
    ENVIRONMENT,
    LAST,
    OUTPUT_DIR,
    RunFolder,
    find_checkpoint,
    inherited_run_folder,
    new_run_folder,
    run_of_checkpoint,
)
from rnn_blocks.recipes.run.host.precision import begun_precision, choose
from rnn_blocks.recipes.run.load import carried
from rnn_blocks.recipes.run.progress_bar import RecipeProgressBar
from rnn_blocks.recipes.run.ranks.place import is_first_rank, note_rank, on_this_host
from rnn_blocks.recipes.run.tracking import make_loggers, tracked_run_id
from rnn_blocks.recipes.run.weights_and_biases.mode import wandb_project

SPLITS: dict[str, Split] = {"validate": "val", "test": "test"}  # that a command evaluates


class RecipeCLI(LightningCLI):
    """A recipe's ``fit``, ``validate`` and ``test``.

    A recipe gives its name, its model and its data; what it wires between the two it adds in
    ``add_arguments_to_parser``.

    Args:
        model_class: the LightningModule.
        datamodule_class: its data.
        args: the command line, from the subcommand on.
    """

    recipe: ClassVar[str]
    monitor: ClassVar[str] = "val/loss"
    monitors: ClassVar[dict[str, Mode]] = {"val/loss": "min"}

    def __init__(self, model_class: Any, datamodule_class: Any, args: list[str]) -> None:
        self._checkpoint: GivenCheckpoint | None = None
        self._splits: tuple[Split, ...] = ()
        self.folder: RunFolder | None = None
        self._args: list[str] = []  # as given
        self._resumed: RunFolder | None = None
        self._lock: FileLock | None = None
        self._command = args[0] if args else ""
        note_rank()
        args = self._prepared(args)
        defaults = {"default_config_files": [str(shipped_configs(self.recipe)[DEFAULT])]}
        try:
            super().__init__(
                model_class,
                datamodule_class,
                save_config_callback=None,
                trainer_class=RecipeTrainer,
                parser_class=RecipeParser,
                parser_kwargs={
                    "prog": f"rnn-blocks {self.recipe}",
                    "allow_abbrev": False,
                    **dict.fromkeys(self.subcommands(), defaults),
                },
                auto_configure_optimizers=False,
                seed_everything_default=1,
                args=args,
            )
        except (KeyboardInterrupt, SystemExit) as error:
            ended = interruption(error)
            if ended is None:
                raise
            self._tell_ended(signal_of(ended).name)
            raise ended from None
        finally:
            self._leave_folder()

    def _leave_folder(self) -> None:
        if self.folder is not None and self._lock is not None:
            self.folder.leave(self._lock)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # the command line says which
        """The one that is given, of those of the Trainer that a recipe offers, and its arguments from elsewhere.

        A parser has all of the Trainer's options, and takes a while to make: the others are left out.
        """
        hidden = {"model", "dataloaders", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"}
        offered = dict.fromkeys(("fit", "validate", "test"), hidden)
        return {self._command: hidden} if self._command in offered else offered

    def _prepared(self, args: list[str]) -> list[str]:
        """Names made paths (``--config ptb-small``, ``--ckpt_path last``); a checkpoint brings its run's config."""
        if not args or args[0] not in self.subcommands() or {"-h", "--help"} & set(args):
            return args
        command, *rest = args
        rest = map_values(rest, CONFIG, lambda name: str(config_path(self.recipe, name)))
        runs = Path(given_option(rest, "output_dir") or OUTPUT_DIR) / self.recipe
        given = given_option(rest, "ckpt_path")
        self._args = args
        if given is None and command != "fit":
            given = BEST
        elif given is None and (begun := begun_run(runs, args)):
            if is_first_rank():
                sys.stderr.write(f"{begun.path}: the job goes on with this run, which the same command began\n")
            given = str(begun.checkpoint(LAST))
        first: list[str] = []
        if given is not None:
            try:
                path = find_checkpoint(given, runs, given_option(rest, "project"))
            except InputError as error:
                raise InputError(f"{error}{on_this_host()}") from error
            rest += ["--ckpt_path", str(path)]  # the last one counts
            self._checkpoint = GivenCheckpoint(path, self.recipe, SPLITS.get(command))
            first = self._checkpoint.options(rest)
            if command == "fit" and path.stem == LAST:
                self._resumed = run_of_checkpoint(path)  # any but the newest state of a run starts a run of its own
                if self._resumed is None and given == LAST:
                    raise InputError(
                        f"--ckpt_path last: {path.parent.parent} has no config.yaml, without which no training goes on "
                        f"in it; --ckpt_path {quote(str(path))} starts a run of its own from there"
                    )
        return [command, *first, *rest]

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The options that belong to a run."""
        group = parser.add_argument_group("run", "Where a run lies and where its metrics go")
        add_run_options(group.add_argument, self.monitor, self.monitors)
        parser.set_defaults({"trainer.enable_model_summary": False})

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Lightning's, with a short usage line and the Trainer's many options below the recipe's own."""
        usage = f"rnn-blocks {self.recipe} {subcommand} [--config NAME|PATH] [options]"
        parser = super()._prepare_subcommand_parser(klass, subcommand, usage=usage, **kwargs)
        groups: Any = parser._action_groups
        trainer = next(group for group in groups if any(a.dest == "trainer.max_steps" for a in group._group_actions))
        groups.sort(key=lambda group: group is trainer)
        for action in trainer._group_actions:
            whole_numbers_first(action)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Lightning's, without its warning that the process has arguments too."""
        try:
            self.config = parser.parse_args(args)
        except SystemExit as ended:
            given = values_of(self._args, *CONFIG)
            others = [path for path in given if path not in shipped_configs(self.recipe)]
            if self._checkpoint is not None:  # options may be those of another version
                others.append(f"the run of {self._checkpoint.path}")
            if ended.code and others:
                sys.stderr.write(f"(among the options are those of {' and '.join(others)})\n")
            raise
        seed = self.config[self.config["subcommand"]].get("seed_everything")
        if not isinstance(seed, bool | None) and not 0 <= seed < 2**32:
            raise InputError(f"--seed_everything {seed}: give a number from 0 to {2**32 - 1}, or true for any")

    def _parse_ckpt_path(self) -> None:
        """A checkpoint's configuration is its run's ``config.yaml``, which is already read."""

    def before_instantiate_classes(self) -> None:
        """Make the run's folder before any long work."""
        options = self.config[self.config["subcommand"]]
        check_run_options(options, self.monitors)
        if options["trainer"].get("fast_dev_run"):  # a trial is to leave the run as it is
            self._resumed = None
        if self._resumed is not None:
            self._resumed.check_writable()
        self._splits = self.splits_read(options)
        if self._checkpoint is not None:
            self._checkpoint.check_data(options["data"], self._splits)
        if self.config["subcommand"] != "fit":
            return
        check_kept_options(options)
        if self._checkpoint is None:
            check_schedule(options, self._args)
            check_optimizer(options)
        else:
            self._checkpoint.check_optimizer(yaml.safe_load(self._as_yaml(options))["model"])
        check_wandb_options(options)
        options["project"] = wandb_project(options["project"])  # a resumed run goes on in the same
        inherited = inherited_run_folder()
        if inherited is not None:
            self.folder = inherited
            return
        runs = Path(options["output_dir"]) / self.recipe
        if not is_first_rank():  # started by torchrun, SLURM, …: the first rank writes for all
            self.folder = self._resumed or RunFolder(runs)
            return
        self.folder = self._resumed or new_run_folder(runs, options["name"])
        self._lock = self.folder.lock()
        self.folder.check_writable()
        if self._checkpoint is not None and self._checkpoint.is_outdated():
            raise InputError(f"{self._checkpoint.path}: another process has just written it anew; start again")
        if self._resumed is None:
            remember_job(self.folder, self._args)
        os.environ[ENVIRONMENT] = str(self.folder.path.resolve())

    def splits_read(self, options: Namespace) -> tuple[Split, ...]:
        """The splits that a command reads: one that evaluates needs no other, unless a recipe says so."""
        split = SPLITS.get(self.config["subcommand"])
        return ("train", "val", "test") if split is None else (split,)

    def link_vocabulary(self, parser: LightningArgumentParser, **sizes: str) -> None:
        """Let arguments of the model be what the data know of the vocabulary.

        Args:
            parser: of the command.
            sizes: the model's arguments, each with the name of the data's attribute.
        """
        for argument, attribute in sizes.items():
            known = partial(self._of_vocabulary, attribute)
            parser.link_arguments("data", f"model.{argument}", compute_fn=known, apply_on="instantiate")

    def _of_vocabulary(self, attribute: str, data: Any) -> Any:
        if self._checkpoint is not None and self.config["subcommand"] != "fit":
            data.evaluate(self._splits, self._checkpoint.data_state)  # the tokenizer is the checkpoint's
        data.prepare()
        return getattr(data, attribute)

    def instantiate_classes(self) -> None:
        """Lightning's; what a class says of its arguments is bad input.

        Raises:
            InputError: with the message of the class, by the option's name, without what the parser puts around it.
        """
        try:
            super().instantiate_classes()
        except (ValueError, MisconfigurationException) as error:
            root: BaseException = error
            while root.__cause__ is not None and not isinstance(root, InputError):
                root = root.__cause__
            message = str(root) if isinstance(root, InputError) else " ".join(str(root).split())
            files = values_of(self._args, *CONFIG)
            configs = {file: given_config(str(config_path(self.recipe, file))) for file in files}
            raise InputError(by_option(message, self.config[self.config["subcommand"]].as_dict(), configs)) from error

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Lightning's, with the run's loggers, checkpoints and plots."""
        options = self.config[self.config["subcommand"]]
        held = {} if self._checkpoint is None else self._checkpoint.held
        if self._checkpoint is not None:
            check_fits(held, self.model, self._checkpoint.path)
        precision = self._chosen_precision(held)
        if self.folder is None:
            plugins = self._plugins(AtomicCheckpointIO())
            trainer = super().instantiate_trainer(logger=False, plugins=plugins, precision=precision)
            trainer.callbacks.append(OwnSignals())  # type: ignore[attr-defined]
            return trainer
        if self._checkpoint is not None:
            self.datamodule.load_state_dict(self._checkpoint.data_state)  # before anything is written: other data raise
            self._checkpoint.check_schedule(options["trainer"].get("max_steps") or -1)
        if is_first_rank():
            check_disk_space(self.model, self.folder.path, options["average_checkpoints"])
        resumed = self._resumed is not None
        loggers = make_loggers(
            options["logger"],
            self.folder,
            project=options["project"],
            recipe=self.recipe,
            named=options["name"] is not None,
            run_id=tracked_run_id(held) if resumed else None,
            resume_step=held["global_step"] if resumed else None,
            monitors=self.monitors,
        )
        config = self._as_yaml(options)
        trainer = super().instantiate_trainer(
            logger=loggers,
            default_root_dir=self.folder.path,
            precision=precision,
            plugins=self._plugins(AtomicCheckpointIO(carried(config))),
        )
        if self._checkpoint is not None:
            self._checkpoint.check_position(self.datamodule, trainer)
        add_callbacks(
            trainer,
            self.folder,
            options,
            recipe=self.recipe,
            monitors=self.monitors,
            config=config,
            step=0 if self._checkpoint is None else int(held["global_step"]),
            extra=self.extra_callbacks(options),
        )
        return trainer

    def _as_yaml(self, options: Namespace) -> str:
        told = options.clone()
        told.pop("ckpt_path", None)
        return str(self._parser("fit").dump(told, skip_none=False, skip_link_targets=True))

    def _plugins(self, own: AtomicCheckpointIO) -> list[Any]:
        """Those that the user gives beside that of the recipes."""
        given = self._get(self.config_init, "trainer", default={}).get("plugins") or []
        return [*(given if isinstance(given, list) else [given]), own]

    def _chosen_precision(self, held: dict[str, Any]) -> Any:
        """What the Trainer computes in, with a line where there is something to say of it."""
        given = self._get(self.config_init, "trainer", default={})
        chosen = choose(given.get("precision"), given.get("accelerator", "auto"), begun_precision(held))
        if chosen.told is not None and is_first_rank():
            sys.stderr.write(f"{chosen.told}\n")
        return chosen.precision

    def extra_callbacks(self, options: Namespace) -> list[pl.Callback]:
        """The recipe's own callbacks."""
        return []

    def measures(self) -> list[pl.Callback]:
        """The recipe's callbacks of every command: what they log goes with ``validate`` and ``test`` too."""
        return []

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
        callbacks = [*callbacks, *self.measures()]
        given = config.get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        if config.get("enable_progress_bar") is not False and not any(isinstance(one, ProgressBar) for one in given):
            callbacks = [*callbacks, RecipeProgressBar(refresh_rate=10)]
        # without one of the user's Lightning would add its default, and the run's own are added later
        config["enable_checkpointing"] = any(isinstance(one, Checkpoint) for one in given)
        return super()._instantiate_trainer(config, callbacks)

    def after_validate(self) -> None:
        """Say the result."""
        self._say_measured("val")

    def after_test(self) -> None:
        """Say the result."""
        self._say_measured("test")

    def _say_measured(self, split: Literal["val", "test"]) -> None:
        if not any(name.startswith(f"{split}/") for name in self.trainer.callback_metrics):
            raise InputError(f"nothing was measured: no batch of the {split} split was asked for")
        self._say(split)

    def _say(self, split: Literal["val", "test"]) -> None:
        """Write a pass's result to standard output: each recipe its own."""

    def after_fit(self) -> None:
        """Average, where that was asked for, and say where things lie."""
        assert self.folder is not None
        if self.config["fit"]["average_checkpoints"]:
            told = validate_average(self.trainer, self.model, self.datamodule, self.folder)
            if told is not None and self.trainer.is_global_zero:
                sys.stdout.write(f"{told}\n")
        if self.trainer.is_global_zero:
            sys.stdout.write(places(self.folder))

    def _tell_ended(self, signal: str) -> None:
        """Say what a signal left: how to go on, and where things lie."""
        if self.folder is None or not is_first_rank():
            return
        last = self.folder.checkpoint(LAST)
        if last.is_file():
            sys.stdout.write(places(self.folder))
            sys.stdout.flush()
            going_on = f"go on with: rnn-blocks {self.recipe} fit --ckpt_path {quote(str(last))}"
        else:
            going_on = "no step was made"
        sys.stderr.write(f"{self.folder.path}: ended by {signal}; {going_on}\n")
