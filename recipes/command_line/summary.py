"""What a run left, told at its end."""

from shlex import quote

from rnn_blocks.recipes.run.folder import AVERAGED, BEST, LAST, RunFolder
from rnn_blocks.recipes.run.tracking import offline_runs


def places(folder: RunFolder) -> str:
    """Where the things of a run lie, line by line.

    >>> from pathlib import Path
    >>> print(places(RunFolder(Path("run"))), end="")
    Run        run
    Metrics    run/metrics.csv
    """
    lines = [f"Run        {folder.path}"]
    for name in (BEST, LAST, AVERAGED):
        if folder.checkpoint(name).is_file():
            lines.append(f"Checkpoint {folder.checkpoint(name)}")
    lines += [f"Plot       {path}" for path in sorted(folder.plots.glob("*.png"))]
    lines.append(f"Metrics    {folder.metrics}")
    offline = offline_runs(folder)
    if offline:
        lines.append(f"W&B run    {offline[-1]}  (offline; upload with: wandb sync {quote(str(offline[-1]))})")
    elif (folder.path / "wandb").is_dir():
        lines.append(f"W&B run    {folder.path / 'wandb'}")
    return "\n".join(lines) + "\n"
