"""Threads of the CPU: limits of the environment and of containers, and the count that is quickest."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

import rnn_blocks
from rnn_blocks.recipes.run.host import threads, watch
from rnn_blocks.recipes.run.host.threads import WAITING, limit_threads, quota, usable_cores, wait_quietly
from rnn_blocks.recipes.run.host.trials import LONGEST, PAIRS, WARM_UP, Trials, ladder
from rnn_blocks.recipes.run.host.watch import ThreadWatch


@pytest.fixture
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def groups(folder: Path, lines: str, files: dict[str, str]) -> float:
    (folder / "cgroup").write_text(lines)
    for name, text in files.items():
        path = folder / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return quota(folder / "cgroup", folder / "fs")


@pytest.mark.parametrize(
    ("lines", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, float("inf")),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3),
        ("0::/outside/of/it\n", {"cpu.max": "50000 100000\n"}, 0.5),
        ("4:cpu,cpuacct:/x\n3:memory:/y\n", {"cpu,cpuacct/cpu.cfs_quota_us": "400000\n",
          "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 4),
        ("4:cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1\n", "cpu/x/cpu.cfs_period_us": "100000\n"}, float("inf")),
        ("3:memory:/y\n", {"memory/y/cpu.max": "100000 100000\n"}, float("inf")),
        ("0::/\n", {"cpu.max": "what is this\n"}, float("inf")),
        ("no group at all\n", {}, float("inf")),
    ],
)  # fmt: skip
def test_the_quota_of_a_container_is_read(lines: str, files: dict[str, str], cores: float, tmp_path: Path) -> None:
    assert groups(tmp_path, lines, files) == cores


def test_there_is_no_quota_where_there_are_no_groups(tmp_path: Path) -> None:
    assert quota(tmp_path / "none", tmp_path) == float("inf")


@pytest.mark.parametrize(("cores", "left", "usable"), [(8, 2.0, 2), (8, 1.2, 2), (2, 64.0, 2), (4, 0.3, 1)])
def test_cores_are_those_of_the_affinity_within_the_quota(
    cores: int, left: float, usable: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(threads, "quota", lambda: left)
    assert usable_cores() == usable


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize(("given", "count"), [(None, 1), ("2", 2)])
def test_there_are_no_more_threads_than_cores_but_for_who_says_so(
    given: str | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "quota", lambda: 0.5)
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    limit_threads()
    assert torch.get_num_threads() == count


@pytest.mark.parametrize("asked", [None, *WAITING, "KMP_BLOCKTIME"])
def test_threads_do_not_spin_where_the_environment_does_not_ask_for_it(
    asked: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*WAITING, "KMP_BLOCKTIME"):
        monkeypatch.setenv(name, "")  # so that it is as before afterwards
        monkeypatch.delenv(name)
    wait_quietly()  # torch is there already: nothing would come of it
    assert not set(WAITING) & set(os.environ)
    monkeypatch.delitem(sys.modules, "torch")
    if asked is not None:
        monkeypatch.setenv(asked, "7")
    wait_quietly()
    assert {name: os.environ[name] for name in WAITING if name in os.environ} == (
        WAITING if asked is None else {asked: "7"} if asked in WAITING else {}
    )


def train(trials: Trials, seconds: Callable[[int, float], float], until: float, now: float = 0.0) -> float:
    """Make steps of so many seconds for a count at a time; when they ended."""
    while now < until:
        took = seconds(trials.count, now)
        now += took
        trials.step_took(took, now)
    return now


@example(21, 1.0, 1 / 64, 1.0)  # each fewer thread helps a little
@given(
    st.integers(1, 64),
    st.floats(0.0, 1.0),
    st.floats(0.0, 0.2),
    st.floats(0.005, 2.0),
)
def test_the_quickest_count_is_found_and_finding_it_costs_little(
    most: int, alone: float, waiting: float, scale: float
) -> None:
    """Amdahl's law, and a cost for each thread more: one quickest count, and slower ones to both sides of it."""
    times = {count: scale * (alone + (1 - alone) / count + waiting * (count - 1)) for count in ladder(most)}
    trials, steps = Trials(most), 0

    def seconds(count: int, now: float) -> float:
        nonlocal steps
        steps += 1
        return times[count]

    ended = train(trials, seconds, 4000 * min(times.values()))
    assert times[trials.chosen] <= 1.25 * min(times.values())
    begun = (WARM_UP + PAIRS * 2 * len(times)) * max(times.values())
    assert ended - begun <= 1.2 * steps * min(times.values())


@pytest.mark.parametrize("step", [0.02, 0.2, 1.0])
def test_a_core_that_becomes_busy_and_idle_again_is_noticed(step: float) -> None:
    def seconds(count: int, now: float) -> float:
        busy = 300 <= now < 900
        return step * (1.0 if count == 1 else 2.5 if busy else 0.6)

    trials = Trials(2)
    now = train(trials, seconds, 299)
    assert trials.chosen == 2
    now = train(trials, seconds, 330, now)
    assert trials.chosen == 1
    now = train(trials, seconds, 899, now)
    assert trials.chosen == 1
    now = train(trials, seconds, 900 + LONGEST + 20 * step, now)
    assert trials.chosen == 2


def test_what_is_equally_quick_stays_as_it_is() -> None:
    trials = Trials(8)
    train(trials, lambda count, now: 0.1 * (1 + 0.05 * (count < 8)), 600)
    assert trials.chosen == 8


class Tiny(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        return self.linear(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(steps: int, folder: Path, **options: object) -> None:
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, **options}
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, enable_model_summary=False, callbacks=[ThreadWatch()],
        default_root_dir=folder, **settings,
    )  # fmt: skip
    trainer.fit(Tiny(), DataLoader(torch.ones(8, 2), batch_size=2))


@pytest.fixture
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes as many milliseconds as it has threads, and no time passes between steps."""
    now = 0.0

    def perf_counter() -> float:
        nonlocal now
        now += 0.001 * torch.get_num_threads()
        return now

    monkeypatch.setattr(watch, "time", SimpleNamespace(perf_counter=perf_counter))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.usefixtures("_two_threads", "_clock")
def test_a_training_goes_on_with_the_threads_that_are_quickest_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(WARM_UP + 2 * PAIRS + 2, tmp_path)
    assert torch.get_num_threads() == 1
    told = capsys.readouterr().err.splitlines()
    assert "CPU threads: 2, or fewer where steps are quicker with fewer; OMP_NUM_THREADS=N means N" in told
    assert any(line.startswith("CPU threads: 1 from step ") and "2 ms with 2, 1 ms with 1" in line for line in told)


@pytest.mark.usefixtures("_two_threads", "_clock")
def test_a_training_that_ends_in_a_trial_leaves_the_count_that_was_chosen(tmp_path: Path) -> None:
    fit(WARM_UP + 2, tmp_path)
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("_two_threads", "_clock")
@pytest.mark.parametrize(
    ("given", "options", "told"),
    [
        ("2", {}, "CPU threads: 2, as OMP_NUM_THREADS says"),
        (None, {"deterministic": True}, "CPU threads: 2, for the whole training"),
    ],
)
def test_a_count_that_is_asked_for_stays(
    given: str | None,
    options: dict[str, object],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    try:
        fit(WARM_UP + 2 * PAIRS + 2, tmp_path, **options)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.get_num_threads() == 2
    assert told in capsys.readouterr().err.splitlines()


@pytest.mark.usefixtures("_two_threads")
def test_the_steps_of_a_training_have_the_same_bits_with_any_number_of_threads() -> None:
    """So that a count that changes changes no result, here for the sizes of the shipped default."""

    def trained(counts: list[int]) -> list[torch.Tensor]:
        torch.manual_seed(1)
        layer = rnn_blocks.LSTM(256, 256)
        model = rnn_blocks.LanguageModel(layer, vocab_size=4096, tie_weights=True)
        optimizer = torch.optim.Adam(model.parameters(), 0.003)
        for step, count in enumerate(counts):
            torch.set_num_threads(count)
            tokens = torch.randint(4096, (64, 16), generator=torch.Generator().manual_seed(step))
            outputs, _ = layer(model.embedding(tokens))
            loss = nn.functional.cross_entropy(model.output(outputs).flatten(0, 1), tokens.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return [parameter.detach() for parameter in model.parameters()]

    assert all(map(torch.equal, trained([1, 1, 1]), trained([2, 1, 2])))
