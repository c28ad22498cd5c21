"""Run by `make wheel` in a clean environment, from another folder: what an installed user finds."""

import importlib.util
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import torch

import rnn_blocks
import rnn_blocks.callbacks

checkout = Path(__file__).resolve().parent.parent
place = Path(rnn_blocks.__file__).resolve()
assert checkout / ".venv-wheel" in place.parents, f"rnn_blocks comes from {place}, not from the wheel"
for name in ("callbacks", "recipes", "tests", "docs"):
    assert importlib.util.find_spec(name) is None, f"the wheel puts {name!r} into site-packages"
assert (files("rnn_blocks") / "py.typed").is_file()
assert (files("rnn_blocks.recipes") / "language_model" / "configs" / "default.yaml").is_file()

outputs, _ = rnn_blocks.LSTM(3, 4, num_layers=2)(torch.randn(2, 5, 3))
assert outputs.shape == (2, 5, 4)
for name in rnn_blocks.callbacks.__all__:
    assert getattr(rnn_blocks.callbacks, name)

for name in ("wandb", "jsonargparse", "tokenizers", "datasets", "matplotlib", "tensorboard"):
    assert importlib.util.find_spec(name) is None, f"the package without extras brings {name}"
for package in ("lightning.pytorch", "pytorch_lightning"):
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-P", checkout / "tests" / "nine_lines.py", package, folder], check=True)

command = Path(sys.executable).parent / "rnn-blocks"
shown = subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout
assert "language-model" in shown, shown
bare = subprocess.run([command, "language-model", "fit"], capture_output=True, text=True, check=False)
assert bare.returncode == 2, bare
assert "rnn-blocks[recipes]" in bare.stderr, bare.stderr
sys.stdout.write("the wheel is whole\n")
