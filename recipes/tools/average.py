"""``rnn-blocks RECIPE average``: a checkpoint of the mean weights of several."""

import sys
from pathlib import Path

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.run.averaging import average_checkpoints, kept_checkpoints
from rnn_blocks.recipes.run.checkpoints import AtomicCheckpointIO
from rnn_blocks.recipes.run.folder import AVERAGED, RunFolder


def average(
    run: str | None = None,
    checkpoints: list[str] = [],  # noqa: B006
    output: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a checkpoint of the mean weights of several.

    Args:
        run: A run's folder: of its best checkpoints, which a training with --average_checkpoints keeps.
        checkpoints: The checkpoints, in place of a run.
        output: The file to write; by default averaged.ckpt beside the run's other checkpoints, or here.
        overwrite: Replace the file, where there is one.
    """
    if (run is None) == (not checkpoints):
        raise InputError("give either --run RUN or --checkpoints A B …")
    folder = None if run is None else RunFolder(Path(run))
    paths = list(map(Path, checkpoints)) if folder is None else kept_checkpoints(folder)
    if len(paths) < 2:
        raise InputError(f"{len(paths)} checkpoint{'s' * (len(paths) != 1)} cannot be averaged; give two or more")
    target = Path(output) if output else Path(f"{AVERAGED}.ckpt") if folder is None else folder.checkpoint(AVERAGED)
    if target.is_dir():
        raise InputError(f"--output {output}: this is a folder; give the file to write")
    if target.exists() and not overwrite:
        raise InputError(f"{target}: there is something already; give another --output, or --overwrite")
    AtomicCheckpointIO().save_checkpoint(average_checkpoints(paths), target)
    sys.stdout.write(f"{target}: the mean of {', '.join(map(str, paths))}\n")


FUNCTION = average
