"""Every shipped configuration of a language model trains, and the published ones say what was published."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_runs import load, only_run, options, recipe, write_text

from rnn_blocks import LSTM, LSTMCell, Mogrifier
from rnn_blocks.recipes.command_line.shipped_configs import shipped_configs

CONFIGS = {name: yaml.safe_load(path.read_text()) for name, path in shipped_configs("language-model").items()}
SIZES = ("input_size", "hidden_size", "size")
CLIPPED = {
    "ptb-small": 5.0,
    "ptb-medium": 5.0,
    "ptb-large": 10.0,
    "ptb-tied-650": 7.0,
    "ptb-awd": 0.25,
    "ptb-mogrifier": 10.0,
    "wikitext-2": 0.25,
}


def shrunk(node: Any) -> Any:
    """A layer's configuration with a fiftieth of its features."""
    if isinstance(node, dict):
        return {
            key: value // 50 if key in SIZES and isinstance(value, int) else shrunk(value)
            for key, value in node.items()
        }
    return [shrunk(value) for value in node] if isinstance(node, list) else node


def small(config: dict[str, Any], tmp_path: Path) -> list[str]:
    """Options for two steps of a configuration on a text of a few words."""
    settings: dict[str, object] = {
        "data.source": "stdlib",
        "data.hub_config": "null",
        "data.batch_size": 4,
        "data.eval_batch_size": 2,
        "trainer.max_steps": 2,
        "trainer.limit_val_batches": 2,
        "trainer.enable_progress_bar": "false",
        "trainer.accelerator": "cpu",
        "samples.max_tokens": 2,
        "logger": "csv",
        "output_dir": tmp_path,
    }
    settings |= {f"data.{split}": write_text(tmp_path / f"{split}.txt", 500) for split in ("train", "val", "test")}
    if config.get("data", {}).get("tokenizer", "bpe") == "bpe":
        settings["data.vocab_size"] = 300
    return options(**settings)


@pytest.mark.processes
@pytest.mark.parametrize("names", [[name] for name in CONFIGS] + [["ptb-small", "adaptive-clipping"]], ids="+".join)
def test_every_shipped_configuration_trains_by_its_bare_name(names: list[str], tmp_path: Path) -> None:
    overlays = tmp_path / "small.yaml"
    layers = [shrunk(CONFIGS[name]["model"]["layer"]) for name in names if "model" in CONFIGS[name]]
    overlays.write_text(yaml.safe_dump({"model": {"layer": layers[-1]}} if layers else {"data": {"bptt": 35}}))
    if not layers:  # it is laid over the default
        names = ["default", *names]
        overlays.write_text(yaml.safe_dump({"model": {"layer": shrunk(CONFIGS["default"]["model"]["layer"])}}))
    named = [part for name in [*names, str(overlays)] for part in ("--config", name)]
    assert recipe("fit", *named, *small(CONFIGS[names[0]], tmp_path)) == 0
    folder = only_run(tmp_path)
    assert load(folder)["global_step"] == 2
    policies = [
        callback["init_args"]["policy"]
        for callback in yaml.safe_load(folder.config.read_text())["trainer"]["callbacks"]
        if callback["class_path"].endswith("AdaptiveGradientClipping")
    ]
    if names[-1] in CLIPPED:
        fixed = {"class_path": "rnn_blocks.callbacks.Fixed", "init_args": {"threshold": CLIPPED[names[-1]]}}
        assert policies == [fixed]
    else:
        assert policies == ["auto"]


@pytest.mark.parametrize("given", ["[10, 40]", "[10,40]"])
def test_the_softmax_is_adaptive_by_an_option(given: str, tmp_path: Path) -> None:
    overlay = tmp_path / "small.yaml"
    overlay.write_text(yaml.safe_dump({"model": {"layer": shrunk(CONFIGS["default"]["model"]["layer"])}}))
    settings = {"data.tokenizer": "word", "data.vocab_size": "null", "model.tie_weights": "false"}
    chosen = options(**settings | {"model.cutoffs": given, "model.div_value": 2})
    assert recipe("fit", "--config", str(overlay), *small(CONFIGS["default"], tmp_path), *chosen) == 0
    weights = load(only_run(tmp_path))["state_dict"]
    assert weights["output.head.weight"].shape[0] == 10 + 2  # the most frequent words, and one for each group


def rates(config: dict[str, Any]) -> list[float]:
    """The learning rate of each epoch."""
    optimizer = torch.optim.SGD([torch.zeros(1)], **config["model"]["optimizer"]["init_args"])
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, **config["model"]["lr_scheduler"]["init_args"])
    seen = []
    for _ in range(config["trainer"]["max_epochs"]):
        seen += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    return seen


@pytest.mark.parametrize(
    ("name", "size", "dropout", "init", "bptt", "epochs", "constant", "divisor"),
    [
        ("ptb-small", 200, 0.0, 0.1, 20, 13, 4, 2),
        ("ptb-medium", 650, 0.5, 0.05, 35, 39, 6, 1.2),
        ("ptb-large", 1500, 0.65, 0.04, 35, 55, 14, 1.15),
    ],
)
def test_zarembas_models_are_as_published(
    name: str, size: int, dropout: float, init: float, bptt: int, epochs: int, constant: int, divisor: float
) -> None:
    config = CONFIGS[name]
    model, data, layer = config["model"], config["data"], config["model"]["layer"]["init_args"]
    assert (layer["num_layers"], layer["hidden_size"], layer["input_size"]) == (2, size, size)
    assert (layer.get("dropout", 0.0), model["dropout"], model["init_range"]) == (dropout, dropout, init)
    assert (data["bptt"], data["batch_size"], model["sum_over_time"], model["tie_weights"]) == (bptt, 20, True, False)
    assert rates(config) == pytest.approx([divisor ** -max(epoch + 1 - constant, 0) for epoch in range(epochs)])


@pytest.mark.parametrize(
    ("name", "input_dropout", "between", "batch_size", "epochs", "parameters"),
    [("ptb-awd", 0.4, 0.25, 20, 500, 24.2), ("wikitext-2", 0.65, 0.2, 80, 750, 33.6)],
)
def test_the_awd_lstms_are_as_published(
    name: str, input_dropout: float, between: float, batch_size: int, epochs: int, parameters: float
) -> None:
    config = CONFIGS[name]
    model, data, layers = config["model"], config["data"], config["model"]["layer"]["init_args"]["layers"]
    kinds = [layer["class_path"].removeprefix("rnn_blocks.") for layer in layers]
    assert kinds == ["WeightDrop", "VariationalDropout", "WeightDrop", "VariationalDropout", "WeightDrop"]
    lstms = [layer["init_args"]["layer"]["init_args"] for layer in layers[::2]]
    assert [layer["init_args"]["p"] for layer in layers] == [0.5, between, 0.5, between, 0.5]
    widths = [(lstm["input_size"], lstm["hidden_size"]) for lstm in lstms]
    assert widths == [(400, 1150), (1150, 1150), (1150, 400)]
    dropouts = (model["embedding_dropout"], model["input_dropout"], model["dropout"], model["locked_dropout"])
    assert dropouts == (0.1, input_dropout, 0.4, True)
    assert (model["activation_regularisation"], model["temporal_activation_regularisation"]) == (2.0, 1.0)
    assert model["optimizer"]["init_args"] == {"lr": 30.0, "weight_decay": 1.2e-6}
    assert (model["lr_for_bptt"], data["bptt"], data["variable_bptt"]) == (70, 70, True)
    assert (data["batch_size"], config["trainer"]["max_epochs"], model["tie_weights"]) == (batch_size, epochs, True)
    vocabulary = {"ptb-awd": 10_000, "wikitext-2": 33_278}[name]
    weights = sum(4 * hidden * (taken + hidden + 1) for taken, hidden in widths)
    assert (weights + 401 * vocabulary) / 1e6 == pytest.approx(parameters, abs=0.1)


def test_the_mogrifier_has_the_authors_settings() -> None:
    config = CONFIGS["ptb-mogrifier"]
    model, data = config["model"], config["data"]
    assert [layer["class_path"] for layer in model["layer"]["init_args"]["layers"]] == ["rnn_blocks.Recurrent"] * 2
    parameters = 10_000 * (912 + 1)
    for layer in model["layer"]["init_args"]["layers"]:
        dropped = layer["init_args"]["cell"]["init_args"]
        mogrifier = dropped["cell"]["init_args"]
        assert (dropped["p"], dropped["each_call"], mogrifier["rounds"], mogrifier["rank"]) == (0.387, True, 5, 84)
        lstm = LSTMCell(**mogrifier["cell"]["init_args"])
        parameters += sum(p.numel() for p in Mogrifier(lstm, rounds=5, rank=84).parameters())
    assert parameters / 1e6 == pytest.approx(24, abs=0.1)
    assert model["optimizer"]["init_args"] == {"lr": 0.0023, "betas": [0.0, 0.999], "weight_decay": 0.00025}
    assert (data["batch_size"], data["bptt"], model["tie_weights"], model["sum_over_time"]) == (64, 70, True, True)


@pytest.mark.parametrize(("name", "most"), [("ptb-quick", 5.5), ("ptb-10m", 10.0)])
def test_a_cycle_of_the_rate_is_as_long_as_its_training(name: str, most: float) -> None:
    config = CONFIGS[name]
    assert config["model"]["lr_scheduler"]["init_args"]["total_steps"] == config["trainer"]["max_steps"]
    arguments = config["model"]["layer"]["init_args"]["layer"]["init_args"]
    layer = LSTM(**arguments)
    assert layer.input_size == layer.output_size, "the weights are tied"
    parameters = sum(p.numel() for p in layer.parameters()) + 10_000 * (layer.output_size + 1)
    assert 0.8 * most < parameters / 1e6 <= most
