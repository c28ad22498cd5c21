"""The recipes on the device: tokens a second beside nn.LSTM's, bf16 against float32, a resumed run bit for bit."""

import argparse
import csv
import functools
import importlib.util
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from options import read_options
from rows import Deadline, Row, tell

HERE = Path(__file__).resolve().parent
EXTRA = ("datasets", "filelock", "jsonargparse", "matplotlib", "num2words", "tokenizers", "tqdm", "wandb", "yaml")
SMALL = {  # of what is only looked at for being the same
    "model.layer.init_args.input_size": 64,
    "model.layer.init_args.hidden_size": 64,
    "data.vocab_size": 300,
    "data.batch_size": 8,
    "data.bptt": 16,
    "trainer.limit_val_batches": 2,
    "trainer.val_check_interval": 10,
    "checkpoint_every_n_steps": 5,
    "samples.prompts": "[]",
}


def main_of_recipes(arguments: list[str]) -> int:
    """``rnn-blocks ARGUMENTS``."""
    from rnn_blocks.recipes.__main__ import main as run  # once it is known that all is installed

    return run(arguments)


class Recipes:
    """Runs recipes in this process, each in a folder of its own.

    Args:
        device: ``"cuda"`` or ``"cpu"``.
        folder: for text and runs.
        quick: whether everything is small.
    """

    def __init__(self, device: str, folder: Path, quick: bool) -> None:
        self.device = device
        self.folder = folder
        self.quick = quick
        self.text = folder / "code.txt"
        library = Path(os.__file__).parent  # real text that every machine has
        size = 60_000 if quick else 8_000_000
        written = "".join(path.read_text(errors="ignore") for path in sorted(library.glob("*.py")))
        self.text.write_text((written * (1 + size // len(written)))[:size])

    def run(self, recipe: str, name: str, settings: dict[str, object]) -> Path:
        """Train; the run's folder."""
        known = {
            "output_dir": self.folder / name,
            "logger": "csv",
            "trainer.accelerator": "gpu" if self.device == "cuda" else "cpu",
            "trainer.devices": 1,
            "trainer.enable_progress_bar": "false",
        }
        arguments = [part for key, value in (known | settings).items() for part in (f"--{key}", str(value))]
        environment = dict(os.environ)
        try:
            code = main_of_recipes([recipe, "fit", *arguments])
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            os.environ.clear()
            os.environ.update(environment)
            torch.use_deterministic_algorithms(False)
        if code:
            raise RuntimeError(f"{recipe} fit {' '.join(arguments)}: exit {code}; see log.txt")
        (folder,) = (self.folder / name / recipe).iterdir()
        return folder

    def small(self, name: str, **settings: object) -> Path:
        """A run of a small model on real text, the same on every machine."""
        own = {"data.source": self.text, "trainer.max_steps": 20, "trainer.log_every_n_steps": 5}
        return self.run("language-model", name, SMALL | own | {k.replace("__", "."): v for k, v in settings.items()})


def column(run: Path, name: str) -> list[float]:
    """A metric's values, in order."""
    with (run / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Of a run's last checkpoint."""
    loaded = torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
    found: dict[str, torch.Tensor] = loaded["state_dict"]
    return found


def check_resume(recipes: Recipes) -> None:
    """A run that goes on from its tenth step and one that was never stopped."""
    whole = recipes.small("whole", trainer__deterministic="true")  # needs the variable that `main` sets
    half = recipes.small("half", trainer__deterministic="true", trainer__max_steps=10)
    settings = {"ckpt_path": "last", "trainer.max_steps": 20, "output_dir": recipes.folder / "half"}
    resumed = recipes.run("language-model", "half", settings)
    assert resumed == half, (resumed, half)
    one, other = weights(whole), weights(resumed)
    off = max(float((one[name] - other[name]).abs().max()) for name in one)
    tell(Row("recipes", "a resumed run is the undisturbed one, bit for bit", off == 0, off, "largest difference"))


def check_precision(recipes: Recipes) -> None:
    """The same training in bf16 and in single precision."""
    steps = 20 if recipes.quick else 300
    losses = {}
    for precision in ("bf16-mixed", "32-true"):
        again = {"trainer__max_steps": steps, "trainer__val_check_interval": steps, "trainer__precision": precision}
        losses[precision] = column(recipes.small(precision, **again), "val/loss")[-1]
    off = abs(losses["bf16-mixed"] / losses["32-true"] - 1)
    note = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
    tell(Row("recipes", f"validation loss of bf16-mixed after {steps} steps", off < 0.02, off, "off float32's", note))


def check_speed(recipes: Recipes) -> None:
    """The default recipe, and the same model of nn.LSTM."""
    layer = "torch_layer.TorchLSTM"
    sizes = {"model.layer.init_args.input_size": 256, "model.layer.init_args.hidden_size": 256}
    steps = {"trainer.max_steps": 20, "trainer.log_every_n_steps": 5} if recipes.quick else {"trainer.max_steps": 500}
    shared = {"data.source": recipes.text, "samples.prompts": "[]", "trainer.val_check_interval": 250} | steps
    if recipes.quick:
        shared |= {"data.vocab_size": 300, "data.batch_size": 8, "data.bptt": 16, "trainer.val_check_interval": 20}
    speeds = {}
    for precision in ("32-true",) if recipes.quick else ("32-true", "bf16-mixed"):
        for name, own in (("nn.LSTM", {"model.layer": layer} | sizes), ("LSTM", {})):
            begin = time.monotonic()
            run = recipes.run("language-model", f"{name}-{precision}", own | shared | {"trainer.precision": precision})
            seconds = time.monotonic() - begin
            speeds[name] = speed(run)
            note = f"{seconds:.0f} s from start to end, validation perplexity {column(run, 'val/perplexity')[-1]:.1f}"
            tell(Row("recipes", f"default, {name}, {precision}", None, speeds[name], "tokens/s", note))
        ratio = speeds["LSTM"] / speeds["nn.LSTM"]
        tell(Row("recipes", f"default, {precision}", None, ratio, "tokens/s ÷ the same model of nn.LSTM"))


def speed(run: Path) -> float:
    """Tokens a second, in the middle of a run's second half; NaN where it ended before it had logged any."""
    found = column(run, "throughput/tokens_per_second")
    return statistics.median(found[len(found) // 2 :]) if found else math.nan


def check_shipped(recipes: Recipes, name: str, data: Path, seconds: float) -> None:
    """A shipped configuration on its corpus, or on what stands for it, for so many seconds."""
    minutes, rest = divmod(int(max(15.0, min(seconds, 120.0))), 60)
    limit: dict[str, object] = {"trainer.max_time": f"00:00:{minutes:02}:{rest:02}", "config": name}
    if name == "ptb-quick":
        recipe, files = "language-model", {split: data / "ptb" / f"ptb.{long}.txt.gz" for split, long in PTB.items()}
        stand_in: dict[str, object] = {"data.source": recipes.text, "data.vocab_size": 10_000}
    else:
        recipe, files = "translation", {split: data / "multi30k" / stem for split, stem in MULTI30K.items()}
        stand_in = few_pairs(recipes.folder) if recipes.quick else {"data.source": "numbers"}
    there = not recipes.quick and all(list(path.parent.glob(f"{path.name}*")) for path in files.values())
    given: dict[str, object] = {f"data.{split}": path for split, path in files.items()} if there else stand_in
    limit |= {"trainer.limit_val_batches": 20, "trainer.log_every_n_steps": 5}
    if recipes.quick:
        sizes = {f"model.{side}.init_args.hidden_size": size for side, size in (("encoder", 16), ("decoder", 32))}
        limit |= sizes | {"data.vocab_size": 280, "trainer.max_steps": 3}
        limit |= {"trainer.limit_val_batches": 2, "trainer.log_every_n_steps": 1}
        given |= {"trainer.val_check_interval": 3}
    run = recipes.run(recipe, name, limit | given)
    if recipe == "translation":
        check_translator(run)
    metric = "val/bleu" if recipe == "translation" else "val/perplexity"
    values = column(run, metric)
    note = f"{'its corpus' if there else 'another text in its place'}; {metric} {values[-1]:.1f}" if values else ""
    tell(Row("recipes", f"{name}, {minutes * 60 + rest} s", None, speed(run), "tokens/s", note))


def few_pairs(folder: Path) -> dict[str, object]:
    """Digits in English and, the other way round, in German."""
    digits = {
        "en": ["zero", "one", "two", "three", "four", "five"],
        "de": ["null", "eins", "zwei", "drei", "vier", "fünf"],
    }
    for language, words in digits.items():
        order = 1 if language == "en" else -1
        lines = [" ".join(words[n // 6**place % 6] for place in range(3)[::order]) + "\n" for n in range(216)]
        (folder / f"pairs.{language}").write_text("".join(lines))
    return {f"data.{split}": folder / "pairs" for split in ("train", "val", "test")}


def check_translator(run: Path) -> None:
    """A trained model, loaded for use: by default on the GPU."""
    from rnn_blocks.recipes import SearchOptions, Translator

    translator = Translator.load(run / "checkpoints" / "last.ckpt")
    found = translator(["one two", "", "two"], SearchOptions(beam_size=3, n_best=2))
    ok = [len(each) for each in found] == [2, 0, 2]
    tell(Row("recipes", "translating with what was trained", ok, note=f"on {translator.model.device}"))


PTB = {"train": "train", "val": "valid", "test": "test"}
MULTI30K = {"train": "train", "val": "val", "test": "test_2016_flickr"}


def main() -> None:
    """Rows as they come."""
    options: argparse.Namespace = read_options(__doc__)
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        tell(Row("recipes", "not run", ok=False, note=f"not installed: {', '.join(missing)}; see tests/gpu/wheels.sh"))
        return
    deadline = Deadline(options.seconds)
    sys.path.insert(0, str(HERE))  # where `torch_layer` is
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # before the device is first used
        os.environ.setdefault("RNN_BLOCKS_CACHE", str(Path(folder, "cache")))
        recipes = Recipes(options.device, Path(folder), options.quick)
        shipped = ("multi30k",) if options.quick else ("ptb-quick", "multi30k")
        deadline.each(
            "recipes",
            {
                "resume": functools.partial(check_resume, recipes),
                "precision": functools.partial(check_precision, recipes),
                "speed": functools.partial(check_speed, recipes),
            },
        )
        for number, name in enumerate(shipped):
            seconds = deadline.left() / (len(shipped) - number) - 20  # a start and a validation take some
            deadline.each("recipes", {name: functools.partial(check_shipped, recipes, name, options.data, seconds)})


if __name__ == "__main__":
    main()
