"""A command that begins with a checkpoint: the configuration of its run, beside what the command is given."""

import os
from collections.abc import Mapping, Sequence
from glob import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.command_line.arguments import values_of
from rnn_blocks.recipes.data.corpora.corpus import HUB, NAMED, Split
from rnn_blocks.recipes.run.checkpoints import read_checkpoint
from rnn_blocks.recipes.run.load import Configuration, check_recipe, configuration_of, has_configuration

CONFIG = ("--config", "-c")

TEXTS = ("source", "train", "val", "test")
"""Options of the data of every recipe with a text: one source of all splits, or one text for each."""

TOKENIZER = ("tokenizer", "vocab_size", "min_count", "vocabulary", "joint", "lowercase")
"""Options of the data that make the tokenizer."""

_PATHS = (*TEXTS, "vocabulary", "cache_dir")


def given_data(args: list[str]) -> set[str]:
    """The options of the data that a command line gives, by itself or by a configuration file.

    >>> sorted(given_data(["--data.train", "a.txt", "--data.val=b.txt", "--data", "{test: c.txt}"]))
    ['test', 'train', 'val']
    """
    names = {arg.partition("=")[0].removeprefix("--data.") for arg in args if arg.startswith("--data.")}
    sections: list[Any] = [_read(value) for value in values_of(args, "--data")]
    sections += [given_config(value).get("data") for value in values_of(args, *CONFIG)]
    return names.union(*(section for section in sections if isinstance(section, dict)))


def given_option(args: list[str], name: str) -> str | None:
    """What a command line gives an option, by itself or by a configuration file; the last one counts.

    >>> given_option(["--config", "{name: a}", "--name", "b", "-c", "{name: c}", "--config={data: {}}"], "name")
    'c'
    >>> given_option([], "name")
    """
    found: Any = None
    for arg, after in pairwise([*args, ""]):
        option, equals, value = arg.partition("=")
        value = value if equals else after
        if option == f"--{name}":
            found = value
        elif option in CONFIG:
            found = given_config(value).get(name, found)
    return None if found is None else str(found)


def given_config(value: str) -> dict[str, Any]:
    """What a value of ``--config`` holds, a path or the options themselves; nothing where it cannot be read.

    >>> given_config("{data: {bptt: 3}}"), given_config("{data: ")
    ({'data': {'bptt': 3}}, {})
    """
    config = _read(Path(value).read_text(encoding="utf-8") if Path(value).is_file() else value)
    return config if isinstance(config, dict) else {}


def _read(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None  # the parser tells


def for_command(configuration: Configuration, given: set[str], split: Split | None) -> dict[str, Any]:
    """The options of a run as they hold for another command.

    Relative paths become absolute, unless the command is started where the run was, or the folder in which that was
    started is not there. A text that is given takes the place of the run's, whether that was a source or files.

    Args:
        configuration: the run's.
        given: options of the data that the command line gives.
        split: that it evaluates; None where a training goes on.

    >>> run = Configuration({"data": {"source": "a.txt", "train": None}}, "config.yaml", Path("/"))
    >>> for_command(run, set(), "test")
    {'data': {'source': '/a.txt', 'train': None}}
    >>> for_command(run, {"test"}, "test")
    {'data': {'train': None}}
    """
    data = dict(configuration.values["data"])
    if configuration.directory is not None and os.path.isdir(configuration.directory):
        for name in _PATHS:
            if isinstance(data.get(name), str):
                data[name] = _absolute(name, data[name], configuration.directory)
    if given & ({split} if split else set(TEXTS[1:])):
        for name in ("source", "hub_config"):
            data.pop(name, None)
    elif "source" in given:
        for name in (*TEXTS[1:], "hub_config"):
            data.pop(name, None)
    return {**configuration.values, "data": data}


def _absolute(name: str, value: str, directory: Path) -> str:
    if directory == Path.cwd() or (name == "source" and value in NAMED):
        return value
    if name == "source" and value.startswith(HUB):  # a dataset's name, or a folder
        folder = directory / Path(value.removeprefix(HUB)).expanduser()
        return f"{HUB}{folder}" if os.path.isdir(folder) else value
    return str(directory / Path(value).expanduser())


def read_alone(data: Any, splits: Sequence[Split]) -> None:
    """Where the splits are files of their own, let the first that is read stand for those that need not be there."""
    if data.get(splits[0]) is not None:
        for name in TEXTS[1:]:
            if name not in splits:
                data[name] = data[splits[0]]


class GivenCheckpoint:
    """The checkpoint that a command begins with.

    Args:
        path: the file.
        recipe: the recipe's name.
        split: that the command evaluates; None where a training goes on.

    Raises:
        InputError: where it is not one that the command can begin with, before any long work.

    >>> GivenCheckpoint(Path("no.ckpt"), "cloze", "test")
    Traceback (most recent call last):
    ...
    rnn_blocks.recipes.InputError: no.ckpt: no such checkpoint
    """

    def __init__(self, path: Path, recipe: str, split: Split | None) -> None:
        self.path = path
        self._version = _version(path)
        self.held = read_checkpoint(path)
        self.data_state = check_recipe(self.held, path, recipe)
        if split is None and "optimizer_states" not in self.held:
            raise InputError(f"{path}: holds weights alone: no training goes on with them; give 'last' or 'best'")
        self._split = split
        self._configuration: Configuration | None = None
        self._given: set[str] = set()

    def is_outdated(self) -> bool:
        """Whether the file has been written anew since it was read."""
        return _version(self.path) != self._version

    def options(self, args: list[str]) -> list[str]:
        """What its configuration adds to a command line, to stand before it.

        Args:
            args: the command line. A configuration in it stands for one that the checkpoint lacks.

        Raises:
            InputError: where it has none, or one that cannot be read.
        """
        if not has_configuration(self.held, self.path) and values_of(args, *CONFIG):
            return []
        self._given = given_data(args)
        self._configuration = configuration_of(self.held, self.path)
        options = for_command(self._configuration, self._given, self._split)
        return ["--config", yaml.safe_dump(options, sort_keys=False, allow_unicode=True)]

    def check_schedule(self, max_steps: int) -> None:
        """Look at its learning-rate schedules before a training goes on.

        Args:
            max_steps: of the training; -1 for no end.

        Raises:
            InputError: where one ends before.
        """
        for schedule in self.held.get("lr_schedulers", []):
            total = schedule.get("total_steps")  # of OneCycleLR, which cannot go on
            if total is not None and max_steps > total:
                raise InputError(
                    f"--trainer.max_steps {max_steps}: the checkpoint's learning-rate schedule ends at step {total}; "
                    "start a new training with a longer schedule, or choose a schedule without an end"
                )

    def check_optimizer(self, model: Mapping[str, Any]) -> None:
        """Look at the optimizer and its schedule before a training goes on: they go on as the checkpoint has them.

        Args:
            model: its options that hold now, as plain data.

        Raises:
            InputError: where one is not the run's.
        """
        held = {} if self._configuration is None else self._configuration.values.get("model", {})
        for name in ("optimizer", "lr_scheduler", "lr"):
            if name in held and (changed := _changed(held[name], model.get(name), f"model.{name}")):
                option, was, now = changed
                raise InputError(
                    f"--{option} {now}: the checkpoint was trained with {was}, and its optimizer and learning-rate "
                    "schedule go on as they are: leave the option out, or start a new training"
                )

    def check_position(self, data: Any, trainer: pl.Trainer) -> None:
        """Look at the batches of the epoch in which a training goes on, before the run is touched.

        Args:
            data: the datamodule.
            trainer: tells the ranks that share the data, and how much of an epoch is read.

        Raises:
            InputError: where they are not those of the epoch that the checkpoint was taken in.
        """
        states = self.held.get("loops", {}).get("fit_loop", {}).get("state_dict", {}).get("combined_loader", [])
        if not states:
            return
        data.trainer = trainer
        loader = data.train_dataloader()
        data.trainer = None
        if hasattr(loader, "load_state_dict"):
            loader.load_state_dict(states[0])

    def check_data(self, data: Any, splits: Sequence[Split]) -> None:
        """Look at the options of the data before any is read, and leave aside what will not be.

        Args:
            data: the options that hold now.
            splits: those that will be read.

        Raises:
            InputError: where a text of the run is not there, with the path, where it comes from, and the option that
                gives another; or where an option of the tokenizer is not that of the checkpoint.
        """
        if self._configuration is not None:
            self._check_texts(self._configuration, data, splits)
            if self._split is not None:
                self._check_tokenizer(self._configuration, data)
        if self._split is not None:
            read_alone(data, splits)

    def _check_texts(self, configuration: Configuration, data: Any, splits: Sequence[Split]) -> None:
        held: Mapping[str, Any] = configuration.values["data"]
        names: list[str] = [*splits] if any(data.get(split) for split in splits) else ["source"]
        for name in names if self._split else [*names, "vocabulary"]:
            value = data.get(name)
            if not isinstance(value, str) or not isinstance(held.get(name), str) or name in self._given:
                continue
            if name == "source" and (value in NAMED or value.startswith(HUB)):
                continue
            if missing := _missing(Path(value).expanduser()):
                started = configuration.directory
                where = "" if started is None else f", which was started in {started}"
                other = self._split if self._split and name == "source" else name
                raise InputError(
                    f"{value}: {missing}; it is data.{name}, {held[name]!r}, of the run{where} "
                    f"({configuration.place}): give another by --data.{other}"
                )

    def _check_tokenizer(self, configuration: Configuration, data: Any) -> None:
        held: Mapping[str, Any] = configuration.values["data"]
        for name in TOKENIZER:
            if name in self._given and name in held and data.get(name) != held[name]:
                raise InputError(
                    f"--data.{name} {data.get(name)}: the checkpoint's model was trained with {held[name]}, and its "
                    "tokenizer is in the checkpoint: leave the option out"
                )


def _changed(was: Any, now: Any, option: str) -> tuple[str, Any, Any] | None:
    """The first option that is another now, with both values."""
    if isinstance(was, dict) and isinstance(now, dict):
        found = (_changed(value, now.get(name), f"{option}.{name}") for name, value in was.items())
        return next((changed for changed in found if changed), None)
    try:
        same = float(was) == float(now)  # 1e-3 is a string to YAML
    except (TypeError, ValueError):
        same = was == now
    return None if same else (option, was, now)


def _version(path: Path) -> tuple[int, int] | None:
    """Another one each time that the file is written; None where it is not there."""
    if not path.exists():
        return None
    status = path.stat()
    return status.st_mtime_ns, status.st_ino


def _missing(path: Path) -> str | None:
    """Why there is neither a file nor one for each language; None where there is."""
    try:
        there = path.exists() or any(path.parent.glob(f"{escape(path.name)}.*"))
    except PermissionError:
        return "permission denied"
    return None if there else "no such file"
