"""The callbacks with trainers of `lightning.pytorch` and of `pytorch_lightning`, both in one process.

All other tests of the callbacks train with one of them, `lightnings.CHOSEN`.
"""

import logging
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path
from types import ModuleType

import lightnings
import nine_lines
import pytest
import torch
from lightnings import Lightning

from rnn_blocks.callbacks import AdaptiveGradientClipping, GradientNormMonitor, NonMonotonicAveraging
from rnn_blocks.callbacks.trainer import log_figure, namespaces

HERE = Path(__file__).parents[1]  # all tests of the callbacks


@pytest.fixture(params=lightnings.PACKAGES)
def pl(request: pytest.FixtureRequest) -> Lightning:
    return Lightning(request.param)


def fit(pl, callbacks, model=None, **options):
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    limits = {"max_steps": 4, "limit_val_batches": 0, "log_every_n_steps": 1, "accelerator": "cpu"}
    trainer = pl.Trainer(callbacks=callbacks, **({"logger": False} | quiet | limits | options))
    trainer.fit(model or pl.BoringModel())
    return trainer


def run(program: str) -> subprocess.CompletedProcess[str]:
    """A program in a process of its own, beside the tests' helpers."""
    command = [sys.executable, "-W", "ignore", "-c", program]
    return subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)


def test_nine_lines_of_a_users_program_log_and_resume(pl, tmp_path):
    nine_lines.check(pl.package, tmp_path)


def test_a_callback_needs_no_list_around_it(pl):
    assert "grad_norm/total" in fit(pl, GradientNormMonitor()).callback_metrics


@pytest.mark.parametrize(("strategy", "named"), [("DeepSpeedStrategy", "DeepSpeed"), ("FSDPStrategy", "FSDPStrategy")])
@pytest.mark.parametrize("callback", [AdaptiveGradientClipping, GradientNormMonitor, NonMonotonicAveraging])
def test_a_strategy_that_hides_gradients_is_refused_by_the_users_own_exception(
    pl, callback, strategy, named, monkeypatch
):
    instance = callback()
    trainer = pl.Trainer(callbacks=[instance], accelerator="cpu", logger=False, enable_checkpointing=False)
    monkeypatch.setattr(pl.Trainer, "strategy", property(lambda self: object.__new__(getattr(pl, strategy))))
    with pytest.raises(pl.MisconfigurationException, match=f"{callback.__name__} cannot be used with {named}"):
        instance.setup(trainer, pl.BoringModel(), "fit")


def test_an_optimizer_without_one_gradient_a_step_is_refused_by_the_users_own_exception(pl):
    class ByLbfgs(pl.BoringModel):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters())

    with pytest.raises(pl.MisconfigurationException, match="cannot be used with LBFGS"):
        fit(pl, [AdaptiveGradientClipping()], ByLbfgs())


def test_averaging_beside_lightnings_own_is_refused(pl):
    callbacks = [NonMonotonicAveraging(), pl.StochasticWeightAveraging(swa_lrs=0.1)]
    with pytest.raises(pl.MisconfigurationException, match="StochasticWeightAveraging would both average"):
        fit(pl, callbacks)


def test_own_gradient_clipping_is_told_of_and_lightnings_is_not(pl, recwarn):
    class Clips(pl.BoringModel):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)

    with pytest.warns(UserWarning, match=r"Clips\.configure_gradient_clipping runs after AdaptiveGradientClipping"):
        fit(pl, [AdaptiveGradientClipping()], Clips())
    recwarn.clear()
    fit(pl, [AdaptiveGradientClipping()])
    assert not [warning for warning in recwarn if "configure_gradient_clipping" in str(warning.message)]


def test_tensorboard_gets_histograms_and_pictures_and_files_lie_in_its_version(pl, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = pl.TensorBoardLogger(tmp_path, version=7)
    fit(pl, [GradientNormMonitor(histogram_every_n_steps=2)], logger=logger)
    events = EventAccumulator(logger.log_dir, size_guidance={"histograms": 0}).Reload()
    assert [event.step for event in events.Histograms("grad_norm/histogram")] == [1, 3]
    assert events.Images("gradient_norm_histogram")
    assert (tmp_path / "lightning_logs" / "version_7" / "plots" / "gradient_norm_histogram.png").is_file()


def test_weights_and_biases_gets_histograms_and_pictures(pl, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    rows = []
    run = type("Run", (), {"log": lambda self, row, **options: rows.append(row)})
    monkeypatch.setattr(pl.WandbLogger, "experiment", run())
    logger = pl.WandbLogger(save_dir=tmp_path, offline=True)
    fit(pl, [GradientNormMonitor(histogram_every_n_steps=2)], logger=logger)
    kinds = [type(row["grad_norm/histogram"]) for row in rows if "grad_norm/histogram" in row]
    assert kinds == [wandb.Histogram] * 2
    assert isinstance(
        [row for row in rows if "gradient_norm_histogram" in row][-1]["gradient_norm_histogram"][0], wandb.Image
    )


def test_files_of_a_csv_logger_lie_in_its_version(pl, tmp_path):
    from rnn_blocks.callbacks.figures import new_figure

    trainer = pl.Trainer(logger=pl.CSVLogger(tmp_path, version=3), accelerator="cpu")
    path = log_figure(trainer, "flow", new_figure("title", "x", "y")[0])
    assert path == tmp_path / "lightning_logs" / "version_3" / "plots" / "flow.png"


def test_the_command_line_takes_them_with_their_arguments(pl, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program"])
    options = ["--trainer.callbacks+=rnn_blocks.callbacks.GradientNormMonitor", "--trainer.callbacks.depth=2"]
    options += ["--trainer.accelerator=cpu", "--trainer.logger=false"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of jsonargparse, about how Lightning calls it
        command_line = import_module(f"{pl.package}.cli").LightningCLI
        callbacks = command_line(
            pl.BoringModel, args=options, run=False, seed_everything_default=False
        ).trainer.callbacks
    assert [callback.depth for callback in callbacks if isinstance(callback, GradientNormMonitor)] == [2]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("imported", "speaks"),
    [
        pytest.param("lightning.pytorch, rnn_blocks.callbacks.trainer", "lightning.pytorch", marks=pytest.mark.slow),
        ("pytorch_lightning, rnn_blocks.callbacks.trainer", "pytorch_lightning"),
        ("rnn_blocks.callbacks.trainer, pytorch_lightning", "lightning.pytorch"),  # nobody's yet: one that is set up
    ],
)
def test_lightning_goes_on_to_speak_through_the_users_logger(imported, speaks):
    """Each of the packages puts its own where both look for one, when it is imported."""
    program = (
        f"import {imported}, logging, sys\n"
        "from lightning_utilities.core.rank_zero import log, rank_zero_deprecation_category as category\n"
        "assert {'lightning.pytorch', 'pytorch_lightning'} <= set(sys.modules)\n"
        "assert log.isEnabledFor(logging.INFO) and log.hasHandlers()\n"
        "print(log.name, category.__module__)"
    )
    result = run(program)
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout.split() == [
        f"{speaks}.utilities.rank_zero",
        f"{lightnings.PACKAGES[speaks]}.utilities.rank_zero",
    ]


HIDES = """
import sys

class Hides:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hides(finder) for finder in sys.meta_path]
"""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("package", "hidden"),
    [("lightning.pytorch", ("pytorch_lightning", "lightning_fabric")), ("pytorch_lightning", ("lightning",))],
)
def test_either_is_enough(package, hidden, tmp_path):
    program = HIDES.replace("HIDDEN", repr(hidden)) + (
        f"sys.path.insert(0, {str(HERE.parent)!r})\n"
        "import pathlib, nine_lines\n"
        f"nine_lines.check({package!r}, pathlib.Path({str(tmp_path)!r}))\n"
        f"print({{name.partition('.')[0] for name in sys.modules}} & {set(hidden)})\n"
        f"__import__({hidden[0]!r})"
    )
    result = run(program)
    assert result.stdout.splitlines()[-1] == "set()", result.stderr[-4000:]
    assert f"ModuleNotFoundError: No module named {hidden[0]!r}" in result.stderr  # it was hidden indeed


@pytest.mark.parametrize("module", ["lightning/__init__.py", "lightning/pytorch/notes.txt", "lightning.py", ""])
def test_what_a_user_calls_lightning_is_not_taken_for_it(module, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "lightning")
    if module:
        (tmp_path / module).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / module).write_text("raise SystemExit")
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
    else:
        monkeypatch.setitem(sys.modules, "lightning", ModuleType("lightning"))
    assert not namespaces._is_here("lightning", "pytorch")
    monkeypatch.undo()
    assert namespaces._is_here("lightning", "pytorch")


@pytest.mark.processes
def test_a_package_of_the_users_by_the_name_of_one_does_not_hide_the_other(tmp_path):
    (tmp_path / "lightning").mkdir()
    (tmp_path / "lightning" / "__init__.py").write_text("")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from rnn_blocks.callbacks.trainer import namespaces"
    result = run(f"{program}; print(*namespaces.HERE)")
    assert result.stdout.splitlines() == ["pytorch_lightning"], result.stderr[-4000:]


def test_every_other_test_of_the_callbacks_takes_lightning_from_one_place():
    for path in HERE.rglob("*.py"):
        if path.name not in ("lightnings.py", Path(__file__).name):
            words = path.read_text().split()
            named = [
                words[k + 1]
                for k, word in enumerate(words[:-1])
                if word in ("from", "import") and words[k + 1].partition(".")[0] in ("lightning", "pytorch_lightning")
            ]
            assert not named, f"{path.name} imports {named}: take it from lightnings"


@pytest.mark.processes
@pytest.mark.parametrize("silenced", [pytest.param("lightning.pytorch", marks=pytest.mark.slow), "pytorch_lightning"])
def test_whoever_silences_lightning_is_not_spoken_to(silenced):
    program = f"""
import logging
import rnn_blocks.callbacks, rnn_blocks.callbacks.trainer
import {silenced} as pl
logging.getLogger({silenced!r}).setLevel(logging.ERROR)
pl.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
"""
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert "GPU available" not in result.stderr + result.stdout
    assert logging.getLogger(silenced).level != logging.ERROR
