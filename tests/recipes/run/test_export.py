"""`rnn-blocks export`: what is written runs without the model, and as the model does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zoo
import zoo_layers
from tiny_runs import recipe
from torch import nn
from torch.testing import assert_close

from rnn_blocks import (
    GRU,
    LRU,
    LSTM,
    ClozeModel,
    Dilated,
    GRUCell,
    LanguageModel,
    Recurrent,
    Seq2Seq,
    Stack,
    VariationalDropout,
    WeightDrop,
)
from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.run.folder import RunFolder
from rnn_blocks.recipes.tools.export import programs
from rnn_blocks.recipes.tools.export.folder import export_model
from rnn_blocks.recipes.tools.export.graphs import graphs_of
from rnn_blocks.recipes.tools.export.programs import check_exportable, write_program

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
MODELS = {
    "awd": lambda: LanguageModel(
        Stack([WeightDrop(LSTM(6, 8), 0.5), VariationalDropout(8, 0.3), WeightDrop(GRU(8, 6), 0.5)]), 20
    ),
    "adaptive": lambda: LanguageModel(GRU(8, 8), 20, cutoffs=[5, 9], div_value=2.0),
    "translation": lambda: Seq2Seq(GRU(4, 6, bidirectional=True), LSTM(3 + 5, 5), 9, 11, coverage=True),
    "fixed vector": lambda: Seq2Seq(GRU(4, 6), GRU(4 + 6, 5), 9, 9, attention=None, input_feeding=False, bridge="mean"),
    "cloze": lambda: ClozeModel(LSTM(6, 6, bidirectional=True), 20, 19, tie_weights=True),
}


def export(*args: object) -> int:
    return recipe(*map(str, args), of="export")


def stream(session, ids: list[int], first) -> list[np.ndarray]:
    """Token by token, as whoever has only the folder does it."""
    state, logits = dict(first), []
    names = [output.name for output in session.get_outputs()]
    for token in ids:
        found = dict(zip(names, session.run(None, {"ids": np.array([token]), **state}), strict=True))
        state = {name: found[f"next_{name}"] for name in state}
        logits.append(found["logits"])
    return logits


# By the command line


def test_weights_of_a_run_come_back_by_from_pretrained(finished_run: RunFolder, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "mine"
    assert export(finished_run.path, "--output", folder) == 0
    assert f"written to {folder}" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path)) == ["mine"]
    names = ["README.md", "config.json", "export.json", "model.safetensors", "tokenizer.json"]
    assert sorted(os.listdir(folder)) == names
    trained = LanguageModel.load_from_checkpoint(finished_run.checkpoint("best"), map_location="cpu").eval()
    model = LanguageModel.from_pretrained(folder)
    ids = torch.randint(300, (2, 5))
    assert torch.equal(model(ids)[0], trained(ids)[0])
    assert [model.configuration()[name]["class_path"] for name in ("optimizer", "lr_scheduler")] == [
        "torch.optim.adam.Adam",
        "torch.optim.lr_scheduler.OneCycleLR",
    ]
    assert "| val/perplexity |" in (folder / "README.md").read_text()
    assert model.configure_optimizers()["optimizer"].defaults["lr"] > 0, "more training is possible"


def test_a_translation_comes_back_by_from_pretrained(finished_translation: RunFolder, tmp_path: Path) -> None:
    assert export(finished_translation.path, "--output", tmp_path / "mine") == 0
    model = Seq2Seq.from_pretrained(tmp_path / "mine")
    trained = Seq2Seq.load_from_checkpoint(finished_translation.checkpoint("best"), map_location="cpu").eval()
    source = torch.tensor([[4, 5, 2]])
    assert model.translate(source) == trained.translate(source)
    assert (tmp_path / "mine" / "tokenizer.json").is_file()


@pytest.mark.processes
def test_an_onnx_step_streams_what_the_model_says(finished_run: RunFolder, tmp_path: Path, capsys) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = tmp_path / "onnx"
    assert export(finished_run.path, "--format", "onnx", "--output", folder, "--graphs", "step") == 0
    assert "greatest deviation" in capsys.readouterr().out
    assert sorted(os.listdir(folder)) == ["export.json", "first_state.npz", "step.onnx", "tokenizer.json"]
    session = onnxruntime.InferenceSession(folder / "step.onnx")
    ids = [3, 1, 4, 1, 5]
    with np.load(folder / "first_state.npz") as first:
        found = np.concatenate(stream(session, ids, first))
    model = LanguageModel.load_from_checkpoint(finished_run.checkpoint("best"), map_location="cpu").eval()
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0][0]
    assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)
    told = json.loads((folder / "export.json").read_text())
    assert told["graphs"]["step"]["inputs"][0] == {"name": "ids", "dtype": "int64", "shape": ["batch"]}
    assert told["graphs"]["step"]["states"] == {"state_0": "next_state_0", "state_1": "next_state_1"}
    assert [port.shape[0] for port in session.get_inputs()] == ["batch"] * 3


@pytest.mark.processes
def test_a_torch_program_runs_in_a_process_without_this_library(finished_run: RunFolder, tmp_path: Path) -> None:
    folder = tmp_path / "torch"
    assert export(finished_run.path, "--format", "torch-export", "--output", folder, "--graphs", "sequence") == 0
    model = LanguageModel.load_from_checkpoint(finished_run.checkpoint("best"), map_location="cpu").eval()
    ids = torch.randint(300, (3, 9))
    with torch.no_grad():
        torch.save((ids, model(ids)[0]), tmp_path / "expected.pt")
    script = f"""
import sys, numpy, torch
program = torch.export.load({str(folder / "sequence.pt2")!r}).module()
ids, expected = torch.load({str(tmp_path / "expected.pt")!r})
first = numpy.load({str(folder / "first_state.npz")!r})
state = [torch.from_numpy(first[name]).repeat(3, 1) for name in first]
torch.testing.assert_close(program(ids, *state)[0], expected, rtol=1e-4, atol=1e-5)
assert "rnn_blocks" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=200, cwd=tmp_path)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--format", "tflite"], "tflite"),
        (["--format", "onnx", "--push_to_hub", "me/mine"], "the Hub takes --format safetensors, not onnx"),
        (["--format", "onnx", "--graphs", "stepp"], "--graphs stepp: this model has sequence, step"),
        (["--graphs", "step"], "--graphs step: safetensors holds weights, no graphs"),
        (["--overwite"], "Did you mean --overwrite"),
    ],
)
def test_an_option_that_is_none_is_refused_and_leaves_nothing(
    args: list[str], message: str, finished_run: RunFolder, tmp_path: Path, capsys
) -> None:
    assert export(finished_run.path, "--output", tmp_path / "mine", *args) == 2
    assert message in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, capsys) -> None:
    assert export() == 2
    assert "required: ckpt" in capsys.readouterr().err
    assert export("no.ckpt") == 2
    assert "no.ckpt: no such file" in capsys.readouterr().err
    assert export("best", "--output_dir", tmp_path) == 2
    assert f"best: there is no run in {tmp_path}/{{language-model,translation,cloze}} yet" in capsys.readouterr().err
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    assert export(tmp_path / "other.ckpt") == 2
    assert "not a checkpoint of language-model, translation, cloze" in capsys.readouterr().err


# Nothing is lost


def test_nothing_is_overwritten_unless_asked_for(tmp_path: Path) -> None:
    model, folder = LanguageModel(GRU(4, 4), 9), tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"there is something already; give another --output, or --overwrite"):
        export_model(model, folder, "safetensors")
    assert os.listdir(folder) == ["notes.txt"]
    export_model(model, folder, "safetensors", overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["mine"]


def test_the_folder_that_one_is_in_can_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    export_model(LanguageModel(GRU(4, 4), 9), Path(), "safetensors")
    assert "model.safetensors" in os.listdir()
    assert os.listdir(tmp_path) == ["mine"]


class Wrong(nn.Module):
    """What an exporter with a fault would give."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs):
        first, *rest = self.module(*inputs)
        return (first + 0.01, *rest)


def test_a_graph_that_gives_other_numbers_is_an_error_and_leaves_no_file(tmp_path: Path, monkeypatch) -> None:
    def wrong(program, path):
        path.write_bytes(b"wrong")
        return lambda inputs: Wrong(program.module())(*inputs)

    monkeypatch.setattr(programs, "_write_torch", wrong)
    with pytest.raises(InputError, match=r"step: logits is not what the model gives for {'batch': 7}"):
        export_model(LanguageModel(GRU(4, 4), 9), tmp_path / "mine", "torch-export", graphs=["step"])
    assert os.listdir(tmp_path) == []


# What cannot be exported says so


class Peeking(GRUCell):
    """Looks at its numbers."""

    def step(self, projected, state):
        return super().step(projected * 2 if float(state.sum()) > 1 else projected, state)


@pytest.mark.processes
def test_a_cell_that_looks_at_its_numbers_is_named(tmp_path: Path) -> None:
    model = LanguageModel(Stack([GRU(4, 4), Recurrent(Peeking(4, 4))]), 9)
    with pytest.raises(InputError, match=r"step: layer.layers.1 \(Recurrent of Peeking\) cannot be exported"):
        export_model(model, tmp_path / "mine", "torch-export")
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_a_dilated_layer_has_its_step_alone_and_says_why(tmp_path: Path) -> None:
    model = LanguageModel(Dilated([GRUCell(4, 4), GRUCell(4, 4)], [1, 2]), 9)
    found = export_model(model, tmp_path / "mine", "torch-export")
    assert found["step"] < 1e-5
    assert "(DilatedRecurrent of GRUCell) cannot be exported to torch-export" in found["sequence"]
    assert sorted(os.listdir(tmp_path / "mine")) == ["export.json", "first_state.npz", "step.pt2"]


def test_complex_numbers_are_refused_by_onnx_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"which the state of layer \(LRU\) is made of; choose --format torch-export"):
        export_model(LanguageModel(LRU(4, 4), 9), tmp_path / "mine", "onnx")
    assert os.listdir(tmp_path) == []


def test_missing_packages_are_named_with_the_command_that_brings_them(monkeypatch) -> None:
    monkeypatch.setattr(programs, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"onnx, onnxruntime, onnxscript: not installed; .*'rnn-blocks\[export\]'"):
        check_exportable(LanguageModel(GRU(4, 4), 9), "onnx")


def test_a_model_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match="a Linear has no graphs to export; LanguageModel, Seq2Seq and ClozeModel"):
        graphs_of(nn.Linear(2, 1))


# Every model, every layer


@pytest.mark.slow
@pytest.mark.parametrize("format", ["torch-export", "onnx"])
@pytest.mark.parametrize("name", MODELS)
def test_every_graph_of_a_model_is_as_the_model(name: str, format: str, tmp_path: Path) -> None:
    found = export_model(MODELS[name](), tmp_path / "mine", format)  # compares by itself, and raises
    assert len(found) == (1 if name == "cloze" else 2)
    assert max(found.values()) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", [*zoo.CELLS, *(name for name, make in zoo_layers.LAYERS.items() if make().causal)])
def test_every_layers_step_is_exported(name: str, tmp_path: Path) -> None:
    layer = zoo_layers.LAYERS[name]() if name in zoo_layers.LAYERS else Recurrent(zoo.CELLS[name](3, 4))
    _, step = graphs_of(LanguageModel(layer, 9))
    assert write_program(step, tmp_path / "step.pt2", "torch-export") < 1e-4
