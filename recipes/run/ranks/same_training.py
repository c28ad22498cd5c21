"""All ranks of a training train the same, or none begins."""

import hashlib
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.callbacks import Callback

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.run.folder import RunFolder

ABOUT_A_HOST = {"output_dir", "name", "project", "ckpt_path", "trainer.default_root_dir"}


class SameTraining(Callback):
    """Compares options, text and the step to begin at over the ranks, before the first step.

    Ranks on one machine share all of it. Those of others may have been started by another command, have another text or
    another Python's library, or not see the checkpoint that the first goes on from. As long as the tensors' shapes are
    the same, that trains something, and nothing else tells.

    Args:
        folder: the run's, as the first rank has it.
        config: the resolved configuration, as YAML.
        step: that the training begins at.
        shared: what the run needs that every host can see its folder for, if anything.
        chosen: options that every rank chooses for its machine, by their names.

    >>> SameTraining(RunFolder(Path("run")), "{}", step=0).state_dict()
    {}
    """

    def __init__(
        self,
        folder: RunFolder,
        config: str,
        *,
        step: int,
        shared: str | None = None,
        chosen: Mapping[str, Any] | None = None,
    ) -> None:
        self._folder = folder
        self._options = dict(compared_options(yaml.safe_load(config)))
        self._chosen = chosen or {}
        self._options.update(self._chosen)
        self._step = step
        self._shared = shared

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compare.

        Raises:
            InputError: on every rank where one differs; that one says in what.
        """
        if stage != "fit" or trainer.world_size == 1:
            return
        state: dict[str, Any] = trainer.datamodule.state_dict()  # type: ignore[attr-defined]
        text = {name: _digest(value) for name, value in state.items() if name not in ("source", "seen")}
        mine = (self._options, text, self._step, str(self._folder.path.resolve()))
        first = trainer.strategy.broadcast(mine, src=0)
        wrong = None if trainer.is_global_zero else self._difference(text, *first)
        if not trainer.strategy.reduce_boolean_decision(wrong is None, all=True):
            raise InputError(
                f"rank {trainer.global_rank} on host {socket.gethostname()} {wrong}"
                if wrong
                else "another rank cannot take part in this training, and says why"
            )

    def _difference(
        self, mine_text: dict[str, str], options: dict[str, Any], text: dict[str, str], step: int, folder: str
    ) -> str | None:
        """In what this rank differs from the first."""
        if step != self._step:
            return (
                f"begins at step {self._step}, the first rank at step {step}: it does not see the checkpoint of "
                f"{folder}; to go on with a run, every host must find the same --output_dir"
            )
        for name in sorted(options.keys() | self._options.keys()):
            theirs, mine = options.get(name), self._options.get(name)
            if theirs != mine:
                same = "give every rank the same" if name in self._chosen else "start every rank with the same command"
                return f"has --{name} {mine}, the first rank {theirs}: {same}"
        if text != mine_text:
            other = ", ".join(name for name in text if text[name] != mine_text.get(name))
            return (
                f"reads another text than the first rank ({other} differ); give every host the same files, and for "
                "`stdlib` the same Python"
            )
        if self._shared and not Path(folder).is_dir():
            return f"does not see {folder}, which {self._shared} needs: give an --output_dir that every host sees"
        return None


def compared_options(options: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """The options of a training that have to be the same on every host, by their dotted names.

    Paths may differ: what text lies there is compared by itself.

    >>> dict(compared_options({"output_dir": "runs", "data": {"train": "a.txt", "bptt": 8}, "model": {"lr": 0.1}}))
    {'data.bptt': 8, 'model.lr': 0.1}
    """
    for name, value in options.items():
        place = f"{within}{name}"
        if isinstance(value, Mapping):
            yield from compared_options(value, f"{place}.")
        elif place not in ABOUT_A_HOST and not (place.startswith("data.") and isinstance(value, str)):
            yield place, value


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()
