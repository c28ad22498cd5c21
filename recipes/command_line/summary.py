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
    if folder.checkpoint(LAST).is_file() and not folder.checkpoint(BEST).is_file():
        lines.append("           none is best.ckpt: no validation was made")
    lines += [f"Plot       {path}" for path in sorted(folder.plots.glob("*.png"))]
    for inside in sorted(path for path in folder.plots.glob("*") if path.is_dir()):
        lines.append(f"Plots      {inside}  ({len(list(inside.rglob('*.png')))})")
    lines.append(f"Metrics    {folder.metrics}")
    offline = offline_runs(folder)
    if offline:
        parts = quote(str(offline[-1]))
        if len(offline) > 1:  # of a resumed run, under one id
            parts = f"{quote(str(offline[-1].parent))}/offline-run-*-{offline[-1].name.rpartition('-')[2]}"
        lines.append(f"W&B run    {offline[-1]}  (offline; upload with: wandb sync {parts})")
    elif (folder.path / "wandb").is_dir():
        lines.append(f"W&B run    {folder.path / 'wandb'}")
    return "\n".join(lines) + "\n"
