"""The precision of a training that is left to the machine: what is chosen, what is said, what a resumed run does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator, MPSAccelerator, XLAAccelerator
from tiny_runs import load, only_run, recipe, tiny

from rnn_blocks.recipes.run.host.precision import begun_precision, choose

Machine = Callable[..., None]
NO_UNITS = "this CPU, which has no bfloat16 units"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Lets this be a machine with some CPU and some accelerator."""

    def be(cpu: str = "", gpu: str = "", bfloat16: bool = False) -> None:
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: "AMX" in cpu, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: "AVX512" in cpu, raising=False)
        for name, kind in (("cuda", CUDAAccelerator), ("mps", MPSAccelerator), ("xla", XLAAccelerator)):
            monkeypatch.setattr(kind, "is_available", staticmethod(lambda name=name: name == gpu))
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)

    return be


@pytest.mark.parametrize(
    ("cpu", "gpu", "bfloat16", "accelerator", "chosen", "why"),
    [
        ("AMX, AVX512", "", False, "auto", "bf16-mixed", "this CPU, which has bfloat16 units (AMX)"),
        ("AVX512", "", False, "cpu", "bf16-mixed", "this CPU, which has bfloat16 units (AVX512_BF16)"),
        ("AMX", "", False, CPUAccelerator(), "bf16-mixed", "this CPU, which has bfloat16 units (AMX)"),
        ("", "", True, "auto", "32-true", NO_UNITS),
        ("", "cuda", True, "auto", "bf16-mixed", "this GPU, which has bfloat16 units"),
        ("AMX", "cuda", False, "gpu", "32-true", "this GPU, which has no bfloat16 units"),
        ("AMX", "cuda", False, CUDAAccelerator(), "32-true", "this GPU, which has no bfloat16 units"),
        ("", "cuda", True, "cpu", "32-true", NO_UNITS),
        ("AMX", "mps", False, "auto", "32-true", "this device, of which no bfloat16 units are known"),
        ("AMX", "mps", False, "gpu", "32-true", "this device, of which no bfloat16 units are known"),
        ("AMX", "xla", False, "auto", "32-true", "this device, of which no bfloat16 units are known"),
        ("AMX", "", False, "tpu", "32-true", "this device, of which no bfloat16 units are known"),
    ],
)
def test_bfloat16_is_chosen_where_the_device_has_units_for_it(
    cpu: str, gpu: str, bfloat16: bool, accelerator: Any, chosen: str, why: str, machine: Machine
) -> None:
    machine(cpu, gpu, bfloat16)
    assert choose("auto", accelerator) == (chosen, f"precision: {chosen}, the fastest on {why}")


def test_a_torch_that_does_not_know_its_cpu_trains_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    for check in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, check, raising=False)
    assert choose("auto", "cpu").precision == "32-true"


@pytest.mark.parametrize("asked", ["bf16-mixed", "bf16", "bf16-true"])
def test_a_precision_that_is_slower_is_taken_with_a_word(asked: Any, machine: Machine) -> None:
    machine("AMX")
    assert choose(asked, "cpu") == (asked, None)
    machine()
    assert choose(asked, "cpu") == (asked, f"precision: {asked}, no faster than 32-true on {NO_UNITS}")


@pytest.mark.parametrize("asked", [None, "32-true", "64-true", 32, "16-mixed"])
def test_of_other_precisions_nothing_is_said(asked: Any, machine: Machine) -> None:
    machine()
    assert choose(asked, "cpu", begun="bf16-mixed") == (asked, None)


@pytest.mark.parametrize(("begun", "cpu", "other"), [("bf16-mixed", "", "32-true"), ("32-true", "AMX", "bf16-mixed")])
def test_a_training_that_goes_on_stays_with_what_it_began_with(
    begun: str, cpu: str, other: str, machine: Machine
) -> None:
    machine(cpu)
    precision, told = choose("auto", "cpu", begun)
    assert precision == begun
    assert told is not None
    assert told.startswith(f"precision: {begun}, which this training began with; {other} is the fastest on this CPU")
    assert choose("auto", "cpu", other).told == f"precision: {other}, the fastest on {told.rpartition(' on ')[2]}"


def test_a_run_keeps_what_was_asked_for_and_goes_on_with_what_was_chosen(
    text: Path, tmp_path: Path, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine("AMX")
    short = {"trainer.max_steps": 4, "trainer.val_check_interval": 2, "trainer.precision": "auto"}
    assert recipe("fit", *tiny(text, tmp_path, **short)) == 0
    assert "precision: bf16-mixed, the fastest on this CPU, which has bfloat16 units (AMX)\n" in capsys.readouterr().err
    folder = only_run(tmp_path)
    assert yaml.safe_load(folder.config.read_text())["trainer"]["precision"] == "auto"
    assert begun_precision(load(folder)) == "bf16-mixed"

    machine()  # another one
    last = ["--ckpt_path", "last", "--output_dir", str(tmp_path)]
    begun = f"precision: bf16-mixed, which this training began with; 32-true is the fastest on {NO_UNITS}\n"
    assert recipe("fit", *last, "--trainer.max_steps", "6") == 0
    assert begun in capsys.readouterr().err
    assert load(folder)["global_step"] == 6
    assert begun_precision(load(folder)) == "bf16-mixed"
    assert recipe("validate", *last) == 0
    assert begun in capsys.readouterr().err
    assert recipe("fit", *last, "--trainer.max_steps", "8", "--trainer.precision", "32-true") == 0
    assert "precision:" not in capsys.readouterr().err
    assert begun_precision(load(folder)) == "32-true"


def test_a_configuration_may_leave_it_to_the_machine(text: Path, tmp_path: Path, machine: Machine) -> None:
    machine("AVX512")
    config = tmp_path / "auto.yaml"
    config.write_text("trainer: {precision: auto}\n")
    short = {"trainer.max_steps": 2, "trainer.val_check_interval": 2}
    assert recipe("fit", "--config", str(config), *tiny(text, tmp_path / "runs", **short)) == 0
    assert begun_precision(load(only_run(tmp_path / "runs"))) == "bf16-mixed"


def test_a_precision_that_there_is_not_is_refused_with_those_that_there_are(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe("fit", *tiny(text, tmp_path, **{"trainer.precision": "bf61"})) == 2
    told = capsys.readouterr().err
    assert "trainer.precision" in told
    assert all(known in told for known in ("bf61", "auto", "bf16-mixed", "32-true"))
    assert not list(tmp_path.iterdir())
