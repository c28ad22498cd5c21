"""``rnn-blocks sweep``: a Weights & Biases sweep file, run on this machine without a server."""

import contextlib
import io
import os
import sys
from importlib import import_module
from pathlib import Path

from tqdm import tqdm  # type: ignore[import-untyped]

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.command_line.commands import COMMANDS, RECIPE_MODULES
from rnn_blocks.recipes.run.folder import OUTPUT_DIR, own_folder
from rnn_blocks.recipes.tools.sweep.outcome import LOG, Outcome, saved_outcome
from rnn_blocks.recipes.tools.sweep.points import Point, points_of, points_to_check
from rnn_blocks.recipes.tools.sweep.report import draw, table, write_csv
from rnn_blocks.recipes.tools.sweep.runner import SweepRunner
from rnn_blocks.recipes.tools.sweep.spec import SweepSpec, local_method, read_sweep, shipped_sweeps, sweep_path


def sweep(
    file: str,
    processes: int = 1,
    output_dir: str = OUTPUT_DIR,
    method: str | None = None,
    count: int | None = None,
    seed: int = 1,
    options: list[str] = [],  # noqa: B006  (never changed)
    dry_run: bool = False,
) -> None:
    """Run a sweep on this machine: the points of a grid or of a random search, resumable, with a table at the end.

    Args:
        file: A sweep file, as `wandb sweep` takes it, or the name of a shipped one (see `rnn-blocks sweep --list`).
        processes: How many points are trained at a time; they share the threads of this machine.
        output_dir: The sweep's folder is sweeps/NAME below it.
        method: grid or random, in place of the file's.
        count: At most so many points; a random search needs it, here or as run_cap in the file.
        seed: Of the random draws.
        options: Options that every run gets, each NAME=VALUE, such as trainer.max_steps=100.
        dry_run: Only check the file and show the command lines.
    """
    recipes = swept_recipes()
    spec = read_sweep(sweep_path(file), recipes)
    if processes < 1:
        raise InputError(f"--processes must be at least 1, got {processes}")
    if count is not None and count < 1:
        raise InputError(f"--count must be at least 1, got {count}")
    wrong = [option for option in options if "=" not in option]
    if wrong:
        raise InputError(f"--options {wrong[0]}: write NAME=VALUE, such as trainer.max_steps=100")
    given = tuple(f"--{option.removeprefix('--')}" for option in options)
    points = points_of(spec, local_method(spec, method), count=count, seed=seed, options=given)
    for point in points_to_check(points):
        _check(spec, point)
    folder = Path(output_dir) / "sweeps" / spec.name
    if dry_run:
        for point in points:
            state = " (done)" if saved_outcome(folder / point.folder_name) else ""
            sys.stdout.write(f"rnn-blocks {spec.recipe} fit {' '.join(point.args)}{state}\n")
        sys.stdout.write(f"{len(points)} points, in {folder}\n")
        return
    with own_folder(folder, "another process runs this sweep"):
        try:
            outcomes = _run(spec, folder, points, processes)
        except KeyboardInterrupt:
            sys.stderr.write(f"Interrupted; the same command goes on from here: {folder}\n")
            raise
    _tell(spec, folder, outcomes)


def swept_recipes() -> list[str]:
    """The recipes that have a ``fit``.

    >>> "language-model" in swept_recipes()
    True
    """
    return [recipe for recipe, commands in COMMANDS.items() if "fit" in commands]


def list_sweeps() -> None:
    """Print the shipped sweeps, each with what its file begins with.

    >>> list_sweeps()  # doctest: +ELLIPSIS
    language-model-default...
    """
    for name, path in shipped_sweeps().items():
        lines = path.read_text(encoding="utf-8").splitlines()
        about = " ".join(line.removeprefix("#").strip() for line in lines[: lines.index("program: rnn-blocks")])
        sys.stdout.write(f"{name:26}{about.split('. ')[0].rstrip('.')}\n")


def _run(spec: SweepSpec, folder: Path, points: list[Point], processes: int) -> dict[Point, Outcome]:
    before = sum(saved_outcome(folder / point.folder_name) is not None for point in points)
    if before:
        sys.stdout.write(f"{before} of {len(points)} points are done already\n")
    best: list[float] = []
    with tqdm(total=len(points), desc=spec.name, unit="run") as bar:

        def told(point: Point, outcome: Outcome) -> None:
            if outcome.best is not None:
                best.append(outcome.best)
                bar.set_postfix({f"best {spec.metric}": (min if spec.goal == "minimize" else max)(best)})
            if outcome.status == "failed":
                bar.write(f"failed: {point.folder_name}: {outcome.reason}", file=sys.stderr)
            bar.update()

        return SweepRunner(spec, folder, processes).run(points, told)


def _tell(spec: SweepSpec, folder: Path, outcomes: dict[Point, Outcome]) -> None:
    write_csv(folder / "sweep.csv", outcomes, spec)
    drawn = draw(folder / "sweep.png", outcomes, spec)
    sys.stdout.write(f"{table(outcomes, spec)}Table      {folder / 'sweep.csv'}\n")
    if drawn:
        sys.stdout.write(f"Plot       {folder / 'sweep.png'}\n")
    failed = [point for point, outcome in outcomes.items() if outcome.status == "failed"]
    if failed:
        sys.stdout.flush()
        for point in failed:
            sys.stderr.write(f"error: {outcomes[point].reason}\n  see {folder / point.folder_name / LOG}\n")
        sys.stderr.write(f"{len(failed)} of {len(outcomes)} points failed; the same command tries them again\n")
        raise SystemExit(1)


def _check(spec: SweepSpec, point: Point) -> None:
    """Let the recipe's parser read a point's command line, before anything is trained."""
    said, kept = io.StringIO(), dict(os.environ)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            import_module(RECIPE_MODULES[spec.recipe]).CLI(["fit", *point.args, "--print_config"])
    except SystemExit as ended:
        if ended.code:
            told = [line for line in said.getvalue().splitlines() if not line.startswith("See rnn-blocks")]
            reason = "\n".join(told).removeprefix("error: ")
            raise InputError(f"{spec.name}: {point.folder_name.rsplit('-', 1)[0]}: {reason}") from None
    finally:
        os.environ.clear()
        os.environ.update(kept)


FUNCTION = sweep
SWITCHES = {"--list": list_sweeps}
