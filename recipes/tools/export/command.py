"""``rnn-blocks export``: a checkpoint's model for use without training."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rnn_blocks.modules import ClozeModel, LanguageModel, Seq2Seq
from rnn_blocks.modules.hub import Pretrained
from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.run.checkpoints import read_checkpoint
from rnn_blocks.recipes.run.folder import (
    AVERAGED,
    BEST,
    LAST,
    OUTPUT_DIR,
    find_checkpoint,
    newest_checkpoint,
    run_of_checkpoint,
    runs,
)
from rnn_blocks.recipes.run.load import DATA_STATES, load_model
from rnn_blocks.recipes.run.metrics import read_metrics
from rnn_blocks.recipes.tools.export.folder import Format, export_model

_KINDS: dict[str, type[Any]] = {"language-model": LanguageModel, "translation": Seq2Seq, "cloze": ClozeModel}


def export(
    ckpt: str,
    format: Format = "safetensors",
    output: str | None = None,
    graphs: list[str] = [],  # noqa: B006
    overwrite: bool = False,
    push_to_hub: str | None = None,
    private: bool = False,
    output_dir: str = OUTPUT_DIR,
) -> None:
    """Write a checkpoint's model for use without training, and compare what was written with it.

    Args:
        ckpt: A checkpoint, a run's folder, or 'best', 'last' or 'averaged' of the newest run of all recipes.
        format: safetensors: weights and configuration, for from_pretrained and the Hugging Face Hub; torch-export or
            onnx: graphs for the whole sequence and for one step, which need nothing of this library.
        output: The folder to write; by default export/FORMAT in the run's folder, or here.
        graphs: Which graphs, such as step alone; by default all that the model has.
        overwrite: Replace the files of an earlier export.
        push_to_hub: Also upload the folder to the Hugging Face Hub under this name, USER/NAME (safetensors).
        private: Whether what is uploaded is for you alone.
        output_dir: Folder of the runs, for 'best', 'last' and 'averaged'.
    """
    if push_to_hub is not None and format != "safetensors":
        raise InputError(f"--push_to_hub {push_to_hub}: the Hub takes --format safetensors, not {format}")
    path = _find(ckpt, Path(output_dir))
    model, tokenizers = load_any(path)
    run = run_of_checkpoint(path)
    folder = Path(output) if output else (run.path if run else Path()) / "export" / format
    results = export_model(
        model, folder, format, tokenizers=tokenizers, metrics=_metrics(path), graphs=graphs, overwrite=overwrite
    )
    for name, result in results.items():
        told = result if isinstance(result, str) else f"as the model's, greatest deviation {result:.2g}"
        sys.stdout.write(f"{name:10} {'left out: ' if isinstance(result, str) else ''}{told}\n")
    sys.stdout.write(f"written to {folder}\n")
    if push_to_hub is not None:
        sys.stdout.write(f"uploaded to {_upload(folder, push_to_hub, private)}\n")


def load_any(path: Path) -> tuple[Pretrained, dict[str, str]]:
    """The model of a checkpoint of any recipe, and its tokenizers as files by their names.

    Args:
        path: the checkpoint.

    Raises:
        InputError: where it is not one of a recipe whose models are exported.

    >>> load_any(Path("no.ckpt"))
    Traceback (most recent call last):
    ...
    rnn_blocks.recipes.InputError: no.ckpt: no such checkpoint
    """
    held = read_checkpoint(path)
    for recipe, model_class in _KINDS.items():
        if DATA_STATES[recipe] in held:
            model, state = load_model(path, model_class, recipe)
            return model, _tokenizers(state)
    raise InputError(f"{path}: not a checkpoint of {', '.join(_KINDS)}, whose models are exported")


def _tokenizers(state: dict[str, Any]) -> dict[str, str]:
    one = state.get("tokenizer") or state.get("source_tokenizer")
    other = state.get("target_tokenizer")
    assert isinstance(one, str)
    return {"source_tokenizer.json": one, "target_tokenizer.json": other} if other else {"tokenizer.json": one}


def _find(given: str, parent: Path) -> Path:
    there = [run for recipe in _KINDS for run in runs(parent / recipe)]
    if given not in (BEST, LAST, AVERAGED):
        return find_checkpoint(given, parent, there=there, option="")
    return newest_checkpoint(given, there, f"{parent}/{{{','.join(_KINDS)}}}", option="")


def _metrics(path: Path) -> dict[str, float]:
    """What the run's validation said of the checkpoint's step."""
    run = run_of_checkpoint(path)
    if run is None or not run.metrics.is_file():
        return {}
    step = read_checkpoint(path).get("global_step")
    rows = [row for row in read_metrics(run.metrics) if row["step"] == str(int(step or 0) - 1)]
    return {name: float(value) for row in rows for name, value in row.items() if name.startswith("val/") and value}


def _upload(folder: Path, name: str, private: bool) -> str:
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        repo_id = api.create_repo(name, private=private, exist_ok=True).repo_id
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload by rnn-blocks export"))
    except Exception as error:  # of the network, of the account, of the name: written it is in any case
        raise InputError(f"--push_to_hub {name}: {error} (the folder {folder} is written all the same)") from error


FUNCTION: Callable[..., None] = export
