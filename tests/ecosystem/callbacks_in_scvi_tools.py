"""The callbacks in scvi-tools: the variational autoencoder `SCVI` of gene counts, trained by `lightning.pytorch`."""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anndata
import lightning.pytorch
import numpy as np
import scvi
import torch
from checks import Finding, Package, Training, main, state_of, trainer_options
from lightning.pytorch.callbacks import ModelCheckpoint
from logged import Metrics, only
from page import run_example
from probe import ProbeHooks

CELLS = 96
BATCH = 24


def cells() -> anndata.AnnData:
    """Counts of 30 genes in 96 cells of two batches."""
    generator = np.random.default_rng(0)
    rates = generator.gamma(2.0, 2.0, size=(CELLS, 30))
    data = anndata.AnnData(generator.poisson(rates).astype(np.float32))
    data.obs["batch"] = [str(cell % 2) for cell in range(CELLS)]
    scvi.model.SCVI.setup_anndata(data, batch_key="batch")
    return data


def read_history(path: Path) -> Metrics:
    """What scvi-tools' own logger wrote, which is also `model.history`: a data frame for each metric."""
    with path.open("rb") as file:
        history = pickle.load(file)
    return {name: {int(step): float(value) for step, value in frame[name].items()} for name, frame in history.items()}


class Probe(ProbeHooks, lightning.pytorch.Callback):
    pass


class ScviTools(Package):
    distribution = "scvi-tools"
    model = "SCVI"
    logger = "SimpleLogger, its own"
    lightning = lightning.pytorch
    probe = Probe

    def fit(
        self,
        folder: Path,
        callbacks: Sequence[Any],
        *,
        epochs: int,
        clip: float | None = None,
        exact: bool = False,
        resume: bool = False,
    ) -> Training:
        checkpoint = only(folder / "checkpoints", "whole.ckpt") if resume else None
        model = scvi.model.SCVI(cells(), n_hidden=16, n_latent=4)
        logs = folder / ("logs" if checkpoint is None else "logs-resumed")
        saving = ModelCheckpoint(folder / "checkpoints", filename="whole", enable_version_counter=False)
        models = scvi.train.SaveCheckpoint(str(folder / "models"))
        # The package always shuffles. With a generator of its own for the loader, the order of an epoch depends on
        # nothing but torch's seed at its start, which the probe sets.
        options = trainer_options(folder, [*callbacks, saving, models], epochs, clip)
        model.train(
            batch_size=BATCH,
            shuffle_set_split=False,
            enable_checkpointing=True,
            log_save_dir=str(logs),
            datasplitter_kwargs={"generator": torch.Generator()} if exact else None,
            ckpt_path=checkpoint,
            **options,
        )
        logged = read_history(only(logs, "history.pkl"))
        assert logged.keys() == model.history.keys()
        return Training(model.trainer, state_of(model.trainer.lightning_module), logged)

    def more_checks(self, train: Callable[..., Training]) -> dict[str, Callable[[], Finding]]:
        return {"example": lambda: run_example("scvi-tools", scvi=scvi, data=cells())}


if __name__ == "__main__":
    main(ScviTools())
