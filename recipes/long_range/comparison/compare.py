"""``rnn-blocks long-range compare``: cells put to the test over lengths, in a table and a picture."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.long_range.cells import CELLS, check_cell
from rnn_blocks.recipes.long_range.comparison.figure import draw_comparison
from rnn_blocks.recipes.long_range.comparison.report import csv_table, markdown_table, text_table
from rnn_blocks.recipes.long_range.comparison.schedule import train_all
from rnn_blocks.recipes.long_range.comparison.settings import AUTO, Result, Settings
from rnn_blocks.recipes.long_range.tasks import make_task
from rnn_blocks.recipes.run.folder import OUTPUT_DIR, own_folder, write_whole

DEFAULT_CELLS = "elman,leaky,skip,dilated,gru,lstm,minlstm"


def compare(
    task: str = "adding",
    cells: str = DEFAULT_CELLS,
    lengths: str = "50,100,200,400",
    clipping: str = AUTO,
    seeds: int = 1,
    parameters: int = 16_000,
    batch_size: int = 50,
    lr: float | None = None,
    max_steps: int = 3000,
    eval_every: int = 100,
    eval_sequences: int = 500,
    solved_below: float | None = None,
    processes: int = 1,
    accelerator: str = "auto",
    name: str | None = None,
    output_dir: str = OUTPUT_DIR,
) -> None:
    """Train cells over lengths, and draw what they solve and how far back their gradients reach.

    Args:
        task: adding or copy.
        cells: Names joined by commas; `rnn-blocks long-range cells` lists them.
        lengths: The task's lengths T, joined by commas.
        clipping: auto, none or a threshold of the gradient norm; several joined by commas are compared too.
        seeds: How many trainings there are of each kind, with the seeds 1, 2, ….
        parameters: Of each network, about; hidden sizes follow.
        batch_size: Sequences of a batch.
        lr: Learning rate of Adam; by default each cell's own.
        max_steps: The most optimizer steps of a training.
        eval_every: Steps between two evaluations.
        eval_sequences: Sequences of an evaluation.
        solved_below: Loss at which a training has solved the task and ends; by default a tenth of a guess's for
            adding, 0.001 for copy.
        processes: How many trainings run at a time.
        accelerator: Lightning's: auto, cpu, gpu, ….
        name: Of the comparison's folder; by default compare-TASK. The same folder is gone on with.
        output_dir: Folder that it goes into, as long-range/NAME.
    """
    chosen, over = _split("cells", cells), _lengths(lengths)
    if seeds < 1:
        raise InputError(f"seeds {seeds}: give 1 or more")
    if processes < 1:
        raise InputError(f"processes {processes}: give 1 or more")
    for cell in chosen:
        check_cell(cell)
    tasks = [make_task(task, length) for length in over]
    one = Settings(
        task,
        over[0],
        chosen[0],
        parameters=parameters,
        lr=lr,
        batch_size=batch_size,
        max_steps=max_steps,
        eval_every=eval_every,
        eval_sequences=eval_sequences,
        solved_below=tasks[0].solved_below if solved_below is None else solved_below,
    )
    grid = [
        replace(one, cell=cell, clipping=clip, length=length, seed=seed)
        for cell in chosen
        for clip in _split("clipping", clipping)
        for length in over
        for seed in range(1, seeds + 1)
    ]
    for settings in grid:
        settings.check()
    folder = Path(output_dir) / "long-range" / (name or f"compare-{task}")
    with own_folder(folder, "another comparison is running in this folder; give another --name"):
        try:
            results, failures = train_all(grid, folder / "trainings", processes=processes, accelerator=accelerator)
        except KeyboardInterrupt:
            sys.stderr.write(f"Interrupted; the same command goes on from here: {folder}\n")
            raise
        if results:
            write_report(results, folder)
            sys.stdout.write(text_table(results) + "\n\n")
            sys.stdout.write(f"Table      {folder / 'table.md'}, {folder / 'table.csv'}\n")
            sys.stdout.write(f"Picture    {folder / 'comparison.png'}\n")
    if failures:
        sys.stderr.write("".join(f"error: {failure}\n" for failure in failures))
        sys.stderr.write("The same command makes the trainings again that failed, and no others.\n")
        sys.exit(1)


def list_cells() -> None:
    """List the cells by name, with their learning rates."""
    width = max(map(len, CELLS))
    for name, choice in CELLS.items():
        sys.stdout.write(f"{name:{width}}  {choice.about} (lr {choice.lr:g})\n")


def write_report(results: Sequence[Result], folder: Path) -> None:
    """Write ``table.md``, ``table.csv`` and ``comparison.png`` of some results, each as a whole."""
    for name, text in (("table.md", markdown_table(results)), ("table.csv", csv_table(results))):
        write_whole(folder / name, text)
    draw_comparison(results, folder / "comparison.png")


def _split(option: str, given: str) -> list[str]:
    parts = list(dict.fromkeys(part.strip() for part in given.split(",")))
    if "" in parts:
        raise InputError(f"{option} {given!r}: give names joined by commas, such as {'lstm,gru'!r}")
    return parts


def _lengths(given: str) -> list[int]:
    try:
        return sorted(int(part) for part in _split("lengths", given))
    except ValueError as error:
        raise InputError(f"lengths {given!r}: give whole numbers joined by commas, such as '50,100'") from error
