"""Two hosts train one model: as two ranks of one host do, and after a rank was killed as if it had not been."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import assert_same, finish, load, metrics, only_run, start, tiny, trained
from two_hosts import (
    Host,
    NoHostsError,
    end_all,
    finish_both,
    rank_of,
    torchrun,
    two_hosts,
    wait_for_a_checkpoint,
)

from rnn_blocks.recipes.run.folder import RunFolder

pytestmark = pytest.mark.slow

STEPS = 150
SETTINGS = {
    "model.dropout": 0.1,
    "data.batch_size": 4,
    "trainer.max_steps": STEPS,
    "trainer.val_check_interval": 39,
    "trainer.callbacks+": "two_hosts.KeepParameters",
}


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    try:
        with two_hosts() as hosts:
            yield hosts
    except NoHostsError as error:
        pytest.skip(f"network namespaces cannot be made here: {error}")


@pytest.fixture(autouse=True)
def _nothing_is_left(hosts: tuple[Host, Host]) -> Iterator[None]:
    yield
    end_all(hosts)


def fit(text: Path, output_dir: Path, **settings: Any) -> list[str]:
    return ["language-model", "fit", *tiny(text, output_dir, **(SETTINGS | settings))]


def parameters(folder: Path) -> list[dict[str, torch.Tensor]]:
    """Of the ranks, as each of them wrote them."""
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def undisturbed(hosts: tuple[Host, Host], text: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of both hosts that nobody disturbed."""
    output_dir = tmp_path_factory.mktemp("undisturbed")
    finish_both(torchrun(hosts, *fit(text, output_dir), job="undisturbed", KEPT_PARAMETERS=str(output_dir)))
    return only_run(output_dir)


def test_two_hosts_train_the_parameters_of_two_ranks_of_one_host(
    undisturbed: RunFolder, text: Path, tmp_path: Path
) -> None:
    module = {"PYTHONPATH": str(Path(__file__).parent), "KEPT_PARAMETERS": str(tmp_path)}
    finish(
        start("fit", *tiny(text, tmp_path, **SETTINGS, **{"trainer.devices": 2, "trainer.strategy": "ddp"}), **module)
    )
    kept = [*parameters(tmp_path), *parameters(undisturbed.path.parents[1])]
    for each in kept:
        assert_same(each, load(undisturbed)["state_dict"])
    assert load(undisturbed)["global_step"] == STEPS
    assert metrics(undisturbed) == metrics(only_run(tmp_path))


def assert_as_undisturbed(output_dir: Path, undisturbed: RunFolder) -> None:
    folder = only_run(output_dir)
    assert_same(trained(load(folder)), trained(load(undisturbed)))
    for each in parameters(output_dir):
        assert_same(each, load(undisturbed)["state_dict"])
    assert metrics(folder) == metrics(undisturbed)


@pytest.mark.parametrize("place", [0, 1])
def test_a_rank_is_killed_and_torchrun_restarts_the_training_to_the_same_parameters(
    place: int, hosts: tuple[Host, Host], undisturbed: RunFolder, text: Path, tmp_path: Path
) -> None:
    launchers = torchrun(hosts, *fit(text, tmp_path), job="killed", restarts=2, KEPT_PARAMETERS=str(tmp_path))
    wait_for_a_checkpoint(launchers, tmp_path)
    os.kill(rank_of(launchers[place]), signal.SIGKILL)
    assert 0 < load(only_run(tmp_path))["global_step"] < STEPS
    told = "".join(finish_both(launchers))
    assert f"{only_run(tmp_path).path}: the job goes on with this run" in told
    assert_as_undisturbed(tmp_path, undisturbed)


def test_a_rank_is_killed_and_the_same_command_goes_on_from_the_last_checkpoint(
    hosts: tuple[Host, Host], undisturbed: RunFolder, text: Path, tmp_path: Path
) -> None:
    launchers = torchrun(hosts, *fit(text, tmp_path), job="killed", KEPT_PARAMETERS=str(tmp_path))
    wait_for_a_checkpoint(launchers, tmp_path)
    os.kill(rank_of(launchers[1]), signal.SIGKILL)
    finish_both(launchers, code=1)
    assert 0 < load(only_run(tmp_path))["global_step"] < STEPS
    again = [*fit(text, tmp_path), "--ckpt_path", "last"]
    finish_both(torchrun(hosts, *again, job="again", KEPT_PARAMETERS=str(tmp_path)))
    assert_as_undisturbed(tmp_path, undisturbed)


def test_hosts_without_a_shared_folder_train_and_are_told_that_they_cannot_go_on(
    hosts: tuple[Host, Host], text: Path, tmp_path: Path
) -> None:
    own_disk = tmp_path / "runs"
    own_disk.mkdir()
    args = fit(text, own_disk, **{"trainer.max_steps": 20, "trainer.val_check_interval": 10})
    environment = {"job": "own", "own_disk": own_disk, "KEPT_PARAMETERS": str(tmp_path)}
    finish_both(torchrun(hosts, *args, **environment))
    first, second = parameters(tmp_path)
    assert_same(first, second)
    run = only_run(tmp_path / "runs-of-wire1")
    assert_same(load(run)["state_dict"], first)
    assert list((tmp_path / "runs-of-wire2").rglob("*")) == []

    told = "".join(finish_both(torchrun(hosts, *args, **environment), code=1))
    (wrong,) = re.findall("^.*error: rank 1 on host .*$", told, re.MULTILINE)
    seen = own_disk / "language-model" / run.path.name
    assert f"begins at step 0, the first rank at step 20: it does not see the checkpoint of {seen}" in wrong
    assert "every host must find the same --output_dir" in wrong
    assert "error: another rank cannot take part in this training" in told
