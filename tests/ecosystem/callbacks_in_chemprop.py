"""The callbacks in Chemprop: a message-passing network over molecules, trained by `lightning.pytorch`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch
from checks import Package, Training, main, state_of, trainer_options
from chemprop import data, models, nn
from logged import only, read_csv
from probe import ProbeHooks

CHAINS = ["C" * carbons + end for carbons in range(1, 9) for end in ("", "O", "N", "Cl", "C(=O)O", "c1ccccc1")]
"""Small molecules, as SMILES."""


def molecules() -> data.MoleculeDataset:
    """Each with the length of its name, which a network can learn."""
    points = [data.MoleculeDatapoint.from_smi(smiles, [len(smiles) / 8]) for smiles in CHAINS]
    return data.MoleculeDataset(points)


class Probe(ProbeHooks, lightning.pytorch.Callback):
    pass


class Chemprop(Package):
    distribution = "chemprop"
    model = "MPNN (bond messages)"
    logger = "CSVLogger, as its command line has it"
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
        checkpoint = only(folder, "*.ckpt") if resume else None
        loader = data.build_dataloader(molecules(), batch_size=12, shuffle=not exact)
        messages = nn.BondMessagePassing(d_h=16, depth=3)
        model = models.MPNN(messages, nn.MeanAggregation(), nn.RegressionFFN(input_dim=16, hidden_dim=16))
        options = trainer_options(folder, callbacks, epochs, clip)
        logger = lightning.pytorch.loggers.CSVLogger(folder, "trainer_logs")
        trainer = lightning.pytorch.Trainer(logger=logger, **options)
        trainer.fit(model, loader, ckpt_path=checkpoint, weights_only=False)
        return Training(trainer, state_of(model), read_csv(Path(trainer.logger.log_dir) / "metrics.csv"))


if __name__ == "__main__":
    main(Chemprop())
