"""``rnn-blocks sweep``: a Weights & Biases sweep file, run on this machine without a server."""

import contextlib
import io
import os
import sys
from importlib import import_module
from pathlib import Path

import yaml
from optuna.storages import RDBStorage
from sqlalchemy.exc import DatabaseError

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.command_line.commands import RECIPE_MODULES
from rnn_blocks.recipes.command_line.shipped_configs import named_file
from rnn_blocks.recipes.run.folder import OUTPUT_DIR, own_folder
from rnn_blocks.recipes.tools.sweep.report import draw, short_names, table, write_csv
from rnn_blocks.recipes.tools.sweep.runner import LOG, SweepRunner, saved_outcome
from rnn_blocks.recipes.tools.sweep.search import Point, Search
from rnn_blocks.recipes.tools.sweep.spec import SweepSpec, read_sweep, shipped_sweeps


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
    """Run a sweep on this machine: points chosen by Optuna, resumable, with a table at the end.

    Args:
        file: A sweep file, as `wandb sweep` takes it, or the name of a shipped one (see `rnn-blocks sweep --list`).
        processes: How many points are trained at a time; they share the threads of this machine.
        output_dir: The sweep's folder is sweeps/NAME below it.
        method: grid, random or bayes, in place of the file's.
        count: At most so many points; all but a grid need it, here or as run_cap in the file.
        seed: Of what is chosen at random.
        options: Options that every run gets, each NAME=VALUE, such as trainer.max_steps=100.
        dry_run: Only check the file and show the command lines.
    """
    given = tuple(f"--{option.removeprefix('--')}" for option in options)
    spec = read_sweep(named_file(file, shipped_sweeps(), "shipped sweep"), method=method, options=given)
    for name, number in (("processes", processes), ("count", count)):
        if number is not None and number < 1:
            raise InputError(f"--{name} must be at least 1, got {number}")
    wrong = [option for option in options if "=" not in option]
    if wrong:
        raise InputError(f"--options {wrong[0]}: write NAME=VALUE, such as trainer.max_steps=100")
    rehearsal = Search(spec, count=count, seed=seed)
    points = rehearsal.points()
    with_value = {repr(item): point for point in reversed(points) for item in point.values.items()}
    for point in list(dict.fromkeys(with_value.values()))[-12:]:
        _check(spec, point)
    folder = Path(output_dir) / "sweeps" / spec.name
    if dry_run:
        for point in points:
            state = " (done)" if saved_outcome(folder / point.folder_name, spec) else ""
            sys.stdout.write(f"rnn-blocks {spec.recipe} fit {' '.join(point.args)}{state}\n")
        if len(points) < rehearsal.size:
            sys.stdout.write(f"… and {rehearsal.size - len(points)} chosen by what these come to\n")
        sys.stdout.write(f"{rehearsal.size} points, in {folder}\n")
        return
    with own_folder(folder, "another process has begun this sweep, and not ended", timeout=60):
        try:
            storage = RDBStorage(f"sqlite:///{folder / 'optuna.db'}")
        except (RuntimeError, DatabaseError) as error:  # of another version, or damaged
            raise InputError(f"{folder / 'optuna.db'}: Optuna cannot read this; move it away: {error}") from error
        search = Search(spec, count=count, seed=seed, storage=storage)
    try:
        SweepRunner(spec, folder, search, processes).run()
        _tell(spec, folder, search)
    except KeyboardInterrupt:
        sys.stderr.write(f"Interrupted; the same command goes on from here: {folder}\n")
        raise
    finally:
        storage.engine.dispose()


def list_sweeps() -> None:
    """Print the shipped sweeps, each with its description."""
    for name, path in shipped_sweeps().items():
        sys.stdout.write(f"{name:26}{yaml.safe_load(path.read_text(encoding='utf-8'))['description']}\n")


def _tell(spec: SweepSpec, folder: Path, search: Search) -> None:
    outcomes = search.outcomes()
    write_csv(folder / "sweep.csv", outcomes, spec)
    sys.stdout.write(f"{table(outcomes, spec)}Table      {folder / 'sweep.csv'}\n")
    for path in draw(folder, search.study, short_names(outcomes), spec.metric):
        sys.stdout.write(f"Plot       {path}\n")
    sys.stdout.write(f"Dashboard  optuna-dashboard sqlite:///{folder / 'optuna.db'}\n")
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
