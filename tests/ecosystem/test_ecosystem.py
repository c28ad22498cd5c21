"""The checks that are made in other packages, on a small module of each Lightning and on broken callbacks."""

import pydoc
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import checks
import lightning.pytorch
import page
import pytest
import pytorch_lightning
import run
import table
import torch
import yaml
from checks import Checks, Package, Training, state_of, trainer_options
from environment import Changes, compare
from logged import only, read_csv
from probe import ProbeHooks, distance, same
from torch import Tensor, nn

from rnn_blocks.callbacks import AdaptiveGradientClipping, Fixed, GradientNormMonitor


class LightningProbe(ProbeHooks, lightning.pytorch.Callback):
    pass


class OldLightningProbe(ProbeHooks, pytorch_lightning.Callback):
    pass


PROBES = {lightning.pytorch: LightningProbe, pytorch_lightning: OldLightningProbe}


class Small(Package):
    """An LSTM on random numbers."""

    distribution = "torch"
    model = "LSTM"
    logger = "CSVLogger"

    def __init__(self, namespace: ModuleType) -> None:
        self.lightning = namespace
        self.probe = PROBES[namespace]

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
        namespace = self.lightning

        class Module(namespace.LightningModule):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.lstm = nn.LSTM(3, 4, batch_first=True)
                self.dropout = nn.Dropout(0.2)

            def training_step(self, batch: list[Tensor]) -> Tensor:
                loss = self.dropout(self.lstm(batch[0])[0]).square().sum()
                self.log("loss", loss)
                return loss

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.Adam(self.parameters(), lr=0.01)

        checkpoint = only(folder / "checkpoints", "*.ckpt") if resume else None
        data = torch.utils.data.TensorDataset(torch.randn(12, 5, 3, generator=torch.Generator().manual_seed(0)))
        saving = namespace.callbacks.ModelCheckpoint(folder / ("resumed" if resume else "checkpoints"))
        logger = namespace.loggers.CSVLogger(folder)
        trainer = namespace.Trainer(logger=logger, **trainer_options(folder, [*callbacks, saving], epochs, clip))
        module = Module()
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=4, shuffle=not exact), ckpt_path=checkpoint)
        return Training(trainer, state_of(module), read_csv(Path(trainer.logger.log_dir) / "metrics.csv"))


pytestmark = pytest.mark.filterwarnings(r"ignore:The dirpath has changed.*")


@pytest.mark.parametrize("namespace", PROBES, ids=lambda namespace: namespace.__name__)
def test_all_checks_hold_in_either_lightning(namespace: ModuleType, tmp_path: Path) -> None:
    findings = [check() for check in Checks(Small(namespace), tmp_path).all_of_them().values()]
    assert [finding.check for finding in findings] == list(table.ALL)
    assert not [finding for finding in findings if not finding.ok]
    assert findings[-1].figure == "bit-equal"


class Drawing(GradientNormMonitor):
    """Takes a random number away from the dropout masks."""

    def on_before_optimizer_step(self, *arguments: Any) -> None:
        torch.rand(1)
        super().on_before_optimizer_step(*arguments)


class Rounding(GradientNormMonitor):
    """Changes gradients by less than any look at a plot would show."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        for parameter in pl_module.parameters():
            parameter.grad.mul_(1 + 1e-5)
        super().on_before_optimizer_step(trainer, pl_module, optimizer)


class Forgetting(AdaptiveGradientClipping):
    """Clips by no history after a resume."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


class Idle(AdaptiveGradientClipping):
    """Never clips."""

    def on_before_optimizer_step(self, *arguments: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("name", "broken", "failing"),
    [
        ("GradientNormMonitor", Drawing, {"monitor"}),
        ("GradientNormMonitor", Rounding, {"monitor", "auto"}),
        ("AdaptiveGradientClipping", Forgetting, {"resume"}),
        ("AdaptiveGradientClipping", Idle, {"fixed", "gradient_clip_val"}),
    ],
)
def test_a_broken_callback_fails_its_checks(
    name: str, broken: type, failing: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, name, broken)
    all_of_them = Checks(Small(lightning.pytorch), tmp_path).all_of_them()
    findings = [checks.attempt(check, all_of_them[check]) for check in failing]
    assert not [finding for finding in findings if finding.ok]


def test_an_installation_that_changes_what_was_there_is_not_harmless() -> None:
    before = {"torch": "2.13.0", "numpy": "2.0", "six": "1.16"}
    assert compare(before, before | {"rnn-blocks": "0.1", "lightning": "2.6.6"}).harmless
    changed = compare(before, before | {"rnn-blocks": "0.1", "numpy": "2.1"})
    assert changed == Changes({"rnn-blocks": "0.1"}, {"numpy": "2.0 → 2.1"}, [])
    assert not changed.harmless
    assert not compare(before, {"torch": "2.13.0", "numpy": "2.0", "rnn-blocks": "0.1"}).harmless
    assert not compare(before, before).harmless


@pytest.mark.processes
def test_what_a_script_tells_is_read_and_what_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "callbacks_in_gluonts.py").write_text(
        "from checks import Finding, tell\nfrom dataclasses import asdict\n"
        "tell('about', {'version': '1', 'lightning': 'l', 'torch': '2', 'model': 'm', 'logger': 'g'})\n"
        "tell('finding', asdict(Finding('monitor', False, 'far', 'why')))\nraise SystemExit(1)"
    )
    (tmp_path / "layers_in_gluonts.py").write_text("print('talk')\nprint('{\"first_loss\": 1.25}')")
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setattr(run.Environment, "make", lambda *arguments, **options: None)
    monkeypatch.setattr(run.Environment, "install_ours", lambda *arguments: Changes({"rnn-blocks": "1"}, {}, []))
    (tmp_path / "gluonts" / "env" / "bin").mkdir(parents=True)
    python = tmp_path / "gluonts" / "env" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    result = run.check("gluonts", tmp_path, tmp_path, fresh=False)
    assert result.findings["monitor"]["note"] == "why"
    assert result.layers == "first loss 1.25"
    assert "monitor: why" in result.failures
    assert "resume: not checked" in result.failures
    written = table.report([result])
    assert "**FAILED** why" in written
    assert "nothing but rnn-blocks came" in written


def test_the_configuration_for_hydra_makes_callbacks_that_stand_beside_each_other() -> None:
    def made(entry: Any) -> Any:  # as `hydra.utils.instantiate` does
        if not isinstance(entry, dict):
            return entry
        settings = {name: made(value) for name, value in entry.items() if name != "_target_"}
        return pydoc.locate(entry["_target_"])(**settings)

    callbacks = [made(entry) for entry in yaml.safe_load(page.shown("Hydra")).values()]
    assert [type(callback) for callback in callbacks] == [GradientNormMonitor, *[AdaptiveGradientClipping] * 2]
    assert callbacks[2].policy == Fixed(5.0)
    lightning.pytorch.Trainer(callbacks=[*callbacks], logger=False, enable_checkpointing=False, accelerator="cpu")
    assert len({callback.state_key for callback in callbacks}) == 3


def test_every_heading_of_the_page_has_code_that_compiles() -> None:
    headings = re.findall(r"^### (.+)$", page.PAGE.read_text(), re.MULTILINE)
    assert len(headings) >= 6
    for heading in headings:
        if heading != "Hydra":
            compile(page.shown(heading), heading, "exec")
    with pytest.raises(ValueError, match="no code"):
        page.shown("Fortran")


def test_comparisons_tell_the_last_bit() -> None:
    one = {"weight": torch.tensor([1.0, float("nan")]), "steps": [1, 2.0, None]}
    assert same(one, {"weight": torch.tensor([1.0, float("nan")]), "steps": [1, 2.0, None]})
    assert not same(one, {"weight": torch.tensor([1.0 + 2**-23, float("nan")]), "steps": [1, 2.0, None]})
    assert not same(one, {"weight": torch.tensor([1.0, float("nan")]), "steps": [1, 2.0]})
    assert not same({"a": 1}, {"a": 1, "b": 2})
    assert distance({"a": torch.tensor([3.0, 4.0])}, {"a": torch.tensor([3.0, 4.5])}) == pytest.approx(0.1)
