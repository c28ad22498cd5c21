"""Which process writes for all, which run a job goes on with, and what ranks must have in common."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.utilities import rank_zero_only
from tiny_runs import recipe, tiny

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.run.ending.job import begun_run, remember_job
from rnn_blocks.recipes.run.folder import RunFolder
from rnn_blocks.recipes.run.ranks.place import is_first_rank, note_rank
from rnn_blocks.recipes.run.ranks.same_training import SameTraining

SCRIPTS = Path(__file__).parents[3] / "examples" / "many-machines"
CONFIG: dict[str, Any] = {
    "seed_everything": 1,
    "output_dir": "runs",
    "model": {"dropout": 0.1},
    "data": {"train": "/data/train.txt", "batch_size": 4},
    "trainer": {"max_steps": 20},
}
TEXT = {"source": "/data/train.txt", "data": "1f", "tokenizer": "{}"}


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 0)


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"NODE_RANK": "0"}, True),
        ({"NODE_RANK": "1"}, False),  # Lightning starts the ranks of each machine
        ({"RANK": "0", "GROUP_RANK": "0"}, True),  # torchrun
        ({"RANK": "2", "GROUP_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"RANK": "0", "NODE_RANK": "1"}, True),
    ],
)
def test_one_process_of_all_machines_is_the_first(
    environment: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    note_rank()
    assert is_first_rank() == first


def test_a_rank_that_cannot_see_the_run_says_on_which_host(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "node7")
    args = ["fit", *tiny(text, tmp_path), "--ckpt_path", "last"]
    assert recipe(*args) == 2
    assert "node7" not in capsys.readouterr().err
    monkeypatch.setenv("NODE_RANK", "1")
    assert recipe(*args) == 2
    assert "there is no run in" in (told := capsys.readouterr().err)
    assert "(on host node7; to go on with a run, every host must find it in its --output_dir)" in told


def test_the_same_command_of_a_torchrun_job_goes_on_with_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # no --rdzv-id: nothing tells one job from another
    remember_job(run, ["fit"])
    assert not (run.path / "job.json").exists()
    assert begun_run(tmp_path, ["fit"]) is None

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "night")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")  # torchrun within a job of SLURM's, which was not run again
    remember_job(run, ["fit"])
    assert json.loads((run.path / "job.json").read_text()) == {"job": "torchrun night", "args": ["fit"]}
    assert begun_run(tmp_path, ["fit"]) is None, "there is no checkpoint yet"
    run.checkpoint("last").touch()
    assert begun_run(tmp_path, ["fit"]) == run
    assert begun_run(tmp_path, ["fit", "--trainer.max_steps", "3"]) is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "day")
    assert begun_run(tmp_path, ["fit"]) is None


class TwoRanks:
    """What a strategy does for the second of two ranks, or for the first."""

    def __init__(self, first: Any, others_agree: bool = True) -> None:
        self.first, self.others_agree = first, others_agree

    def broadcast(self, mine: Any, src: int) -> Any:
        self.mine = mine
        return self.first or mine

    def reduce_boolean_decision(self, decision: bool, all: bool) -> bool:
        assert all
        return decision and self.others_agree


def compare(
    config: dict[str, Any],
    text: dict[str, str],
    first: Any,
    step: int = 0,
    chosen: dict[str, str] | None = None,
    **settings: Any,
) -> Any:
    """`setup` of the rank with these options and this text; what it has told the others."""
    strategy = TwoRanks(first, **settings)
    trainer: Any = SimpleNamespace(
        world_size=2,
        global_rank=0 if first is None else 1,
        is_global_zero=first is None,
        strategy=strategy,
        datamodule=SimpleNamespace(state_dict=lambda: text),
    )
    folder = RunFolder(Path("no-such-folder"))
    callback = SameTraining(folder, json.dumps(config), step=step, shared="--average", chosen=chosen)
    callback.setup(trainer, SimpleNamespace(), "fit")
    return strategy.mine


def changed(section: str, **values: Any) -> dict[str, Any]:
    return {**CONFIG, section: {**CONFIG[section], **values}}


def test_ranks_may_read_the_same_text_from_other_places(tmp_path: Path) -> None:
    *first, _ = compare(CONFIG, TEXT, None)
    here = {**changed("data", train="/mnt/train.txt"), "output_dir": "/scratch"}
    compare(here, {**TEXT, "source": "/mnt/train.txt"}, (*first, str(tmp_path)))


@pytest.mark.parametrize(
    ("config", "text", "step", "told"),
    [
        (changed("data", batch_size=8), TEXT, 0, "has --data.batch_size 8, the first rank 4: start every rank with"),
        (changed("model", dropout=0.0), TEXT, 0, "has --model.dropout 0.0, the first rank 0.1"),
        (changed("model", tied=True), TEXT, 0, "has --model.tied True, the first rank None"),
        (CONFIG, {**TEXT, "data": "2e"}, 0, r"reads another text than the first rank \(data differ\)"),
        (CONFIG, TEXT, 39, "begins at step 39, the first rank at step 0: it does not see the checkpoint of"),
        (CONFIG, TEXT, 0, "does not see .*no-such-folder, which --average needs: give an --output_dir"),
    ],
)
def test_a_rank_that_would_train_something_else_is_told(
    config: dict[str, Any], text: dict[str, str], step: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "node7")
    first = compare(CONFIG, TEXT, None)
    with pytest.raises(InputError, match=f"^rank 1 on host node7 {told}"):
        compare(config, text, first, step)


def test_a_rank_whose_machine_chooses_another_precision_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "node7")
    first = compare(CONFIG, TEXT, None, chosen={"trainer.precision": "bf16-mixed"})
    told = "has --trainer.precision 32-true, the first rank bf16-mixed: give every rank the same"
    with pytest.raises(InputError, match=f"^rank 1 on host node7 {told}$"):
        compare(CONFIG, TEXT, first, chosen={"trainer.precision": "32-true"})


def test_the_other_ranks_end_too() -> None:
    with pytest.raises(InputError, match="another rank cannot take part"):
        compare(CONFIG, TEXT, None, others_agree=False)


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.sh")), ids=lambda script: script.name)
def test_a_launchers_script_gives_options_that_the_command_knows(script: Path, text: Path, tmp_path: Path) -> None:
    options = [word for word in script.read_text().split() if word.startswith("--trainer.")]
    values = {"--trainer.num_nodes": "2", "--trainer.devices": "4", "--trainer.strategy": "ddp"}
    assert set(options) == set(values)
    given = [part for option in options for part in (option, values[option])]
    assert recipe("fit", *tiny(text, tmp_path), *given, "--print_config") == 0
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
