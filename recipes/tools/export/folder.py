"""The folder that an export is: graphs or weights, tokenizers, and a file that tells how to use them."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from rnn_blocks.modules.hub import Pretrained
from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.tools.export.graphs import OTHERS, TRACED, Graph, Port, first_state, graphs_of
from rnn_blocks.recipes.tools.export.programs import ENDINGS, check_exportable, write_program

Format = Literal["safetensors", "torch-export", "onnx"]
FORMATS: tuple[Format, ...] = ("safetensors", "torch-export", "onnx")
ABOUT, FIRST_STATE = "export.json", "first_state.npz"


def export_model(
    model: Pretrained,
    folder: Path,
    format: Format,
    *,
    tokenizers: Mapping[str, str] | None = None,
    metrics: Mapping[str, float] | None = None,
    graphs: Sequence[str] = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a model for use elsewhere, each part of it run again from its file and compared with the model.

    The folder is filled when all of it is right, and left as it was where something is not.

    Args:
        model: a ``LanguageModel``, ``Seq2Seq`` or ``ClozeModel``; it is put into evaluation mode.
        folder: where to.
        format: ``"safetensors"``: weights and configuration, for ``from_pretrained``; ``"torch-export"`` or ``"onnx"``:
            graphs that need nothing of this library, see :func:`~rnn_blocks.recipes.tools.export.graphs.graphs_of`.
        tokenizers: files of tokenizers, by name.
        metrics: what the model reached, for its card.
        graphs: which of the model's graphs, by name; by default all.
        overwrite: whether files of an earlier export may be replaced.

    Returns:
        The deviation of each graph from the model (0 for the weights), or why it was left out, by name.

    Raises:
        InputError: where the folder holds something, a package is missing, or the model cannot be exported so; the
            layer that cannot is named.

    >>> import tempfile, rnn_blocks
    >>> model = rnn_blocks.LanguageModel(rnn_blocks.GRU(4, 4), vocab_size=9)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = export_model(model, Path(folder, "mine"), "safetensors")
    ...     found, sorted(path.name for path in Path(folder, "mine").iterdir())
    ({'weights': 0.0}, ['README.md', 'config.json', 'export.json', 'model.safetensors'])
    """
    if format not in FORMATS:
        raise InputError(f"--format {format}: choose one of {', '.join(FORMATS)}")
    if graphs and format == "safetensors":
        raise InputError(f"--graphs {' '.join(graphs)}: safetensors holds weights, no graphs")
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not overwrite)):
        raise InputError(f"{folder}: there is something already; give another --output, or --overwrite")
    assert isinstance(model, nn.Module)
    model.eval()
    check_exportable(model, format)
    chosen = [] if format == "safetensors" else _chosen(graphs_of(model), graphs)
    with _filled(folder) as inside:
        about: dict[str, Any] = {"model": type(model).__name__, "format": format}
        for name, content in (tokenizers or {}).items():
            (inside / name).write_text(content, encoding="utf-8")
        if format == "safetensors":
            results: dict[str, Any] = {"weights": _write_weights(model, inside, metrics)}
        else:
            results = _write_graphs(model, chosen, inside, format, about)
        (inside / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return results


def _write_weights(model: Pretrained, inside: Path, metrics: Mapping[str, float] | None) -> float:
    assert isinstance(model, nn.Module)
    try:
        model.save_pretrained(inside, model_card_kwargs={"metrics": metrics})
        packages = [type(part).__module__.partition(".")[0] for part in model.modules()]  # this process has run them
        again: Any = type(model).from_pretrained(inside, trust=packages)
    except (ImportError, ValueError) as error:
        raise InputError(str(error)) from error
    for name, tensor in model.state_dict().items():
        if not torch.equal(tensor.cpu(), again.state_dict()[name]):
            raise InputError(f"{inside.name}: {name} is another one when it is read again")
    return 0.0


def _chosen(graphs: Sequence[Graph], names: Sequence[str]) -> list[Graph]:
    for name in names:
        if name not in [graph.name for graph in graphs]:
            valid = ", ".join(graph.name for graph in graphs)
            raise InputError(f"--graphs {name}: this model has {valid}")
    return [graph for graph in graphs if graph.name in names or not names]


def _write_graphs(
    model: nn.Module, graphs: Sequence[Graph], inside: Path, format: str, about: dict[str, Any]
) -> dict[str, Any]:
    results: dict[str, Any] = {}
    about["graphs"] = {}
    for graph in graphs:
        path = inside / f"{graph.name}{ENDINGS[format]}"
        try:
            results[graph.name] = write_program(graph, path, format)
        except InputError as error:
            if graph.needed or len(graphs) == 1:
                raise
            for part in inside.glob(f"{path.name}*"):
                part.unlink()
            results[graph.name] = str(error)
            continue
        about["graphs"][graph.name] = _told(graph, path.name, results[graph.name])
    state = first_state(model)
    if state:
        tensors = {f"state_{k}": tensor.detach().cpu().numpy() for k, tensor in enumerate(state)}
        np.savez(inside / FIRST_STATE, allow_pickle=False, **tensors)
        about["first_state"] = f"{FIRST_STATE}: of one sequence, to be repeated over the batch"
    for name in ("bos", "eos", "pad", "mask_id"):
        if isinstance(getattr(model, name, None), int):
            about[name] = getattr(model, name)
    return results


def _told(graph: Graph, file: str, deviation: float) -> dict[str, Any]:
    def ports(given: tuple[Port, ...]) -> list[dict[str, Any]]:
        return [
            {"name": port.name, "dtype": str(port.dtype).removeprefix("torch."), "shape": list(port.axes)}
            for port in given
        ]

    open_sizes = {axis for port in graph.inputs for axis in port.axes if isinstance(axis, str)}
    return {
        "file": file,
        "about": graph.about,
        "inputs": ports(graph.inputs),
        "outputs": ports(graph.outputs),
        "states": graph.states,
        "recorded_with": {size: TRACED[size] for size in sorted(open_sizes)},
        "compared_with": {size: [OTHERS[size], 1] for size in sorted(open_sizes)},
        "deviation": deviation,
    }


@contextmanager
def _filled(folder: Path) -> Iterator[Path]:
    """A folder beside it, whose files are moved into it when all went well."""
    whole = folder.resolve()  # "." has a name as well
    beside = whole.with_name(f".{whole.name}.tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
    except OSError as error:
        raise InputError(f"{folder}: cannot write here ({error.strerror}); give another --output") from error
    try:
        yield beside
        folder.mkdir(exist_ok=True)
        for path in sorted(beside.iterdir()):
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
