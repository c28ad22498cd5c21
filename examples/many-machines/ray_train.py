"""A recipe on the workers of a Ray cluster: ``python ray_train.py --workers 2 language-model fit [options]``."""

from __future__ import annotations  # Ray sends the function without the names that only annotations need

import argparse
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.lightning import RayTrainReportCallback, prepare_trainer
from ray.train.torch import TorchTrainer

from rnn_blocks.recipes.command_line.commands import RECIPE_MODULES
from rnn_blocks.recipes.run.host import quiet, tune_host

OPTIONS = [
    *("--trainer.strategy", "{class_path: ray.train.lightning.RayDDPStrategy}"),
    *("--trainer.plugins", "{class_path: ray.train.lightning.RayLightningEnvironment}"),
    *("--trainer.callbacks+", "{class_path: ray.train.lightning.RayTrainReportCallback}"),
    *("--trainer.devices", "auto"),
]


def train(config: dict[str, Any]) -> None:
    """What each worker does: go on from the checkpoint that was reported last, if there is one."""
    os.chdir(config["directory"])
    quiet()
    tune_host()
    recipe, *args = config["command"]
    cli: Any = import_module(RECIPE_MODULES[recipe]).CLI

    class OnRay(cli):  # type: ignore[misc]
        def instantiate_trainer(self, **settings: Any) -> pl.Trainer:
            return prepare_trainer(super().instantiate_trainer(**settings))

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        OnRay([*args, *OPTIONS])
    else:
        with checkpoint.as_directory() as folder:
            OnRay([*args, *OPTIONS, "--ckpt_path", str(Path(folder, RayTrainReportCallback.CHECKPOINT_NAME))])


def main() -> None:
    """Start the workers and wait for them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpu", action="store_true", help="one for each worker")
    parser.add_argument("--name", default="rnn-blocks", help="of the training in Ray; the same goes on with it")
    parser.add_argument("--storage", default="ray", help="folder that every machine sees, for what is reported")
    parser.add_argument("--failures", type=int, default=3, help="how often the workers are started again")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="RECIPE fit [options]")
    given = parser.parse_args()
    trainer = TorchTrainer(
        train,
        train_loop_config={"command": given.command, "directory": os.getcwd()},
        scaling_config=ScalingConfig(num_workers=given.workers, use_gpu=given.gpu),
        run_config=RunConfig(
            name=given.name,
            storage_path=os.path.abspath(given.storage),
            failure_config=FailureConfig(max_failures=given.failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    print(trainer.fit().metrics)  # noqa: T201


if __name__ == "__main__":
    main()
