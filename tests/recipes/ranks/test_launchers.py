"""What starts the ranks of several machines, as the pages tell: SLURM's script, and Lightning by hand."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_runs import assert_same, finish, load, metrics, only_run, start, tiny, trained

from rnn_blocks.recipes.run.folder import RunFolder

pytestmark = pytest.mark.processes

SCRIPT = Path(__file__).parents[3] / "examples" / "many-machines" / "slurm.sh"
SETTINGS = {"data.batch_size": 4, "model.dropout": 0.1, "trainer.max_steps": 200, "trainer.log_every_n_steps": 2}
SRUN = """#!/bin/sh
# Two tasks on two nodes, which are both this machine; the highest exit code is srun's.
test "$1" = --kill-on-bad-exit=1 && shift
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_NODEID=$rank SLURM_LOCALID=0 "$@" &
    echo $! > "$TASKS/$rank"
done
code=0
for rank in 0 1; do
    wait "$(cat "$TASKS/$rank")" || code=$?
done
exit $code
"""
JOB = {
    "SLURM_JOB_NAME": "language-model",
    "SLURM_NTASKS": "2",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_CPUS_PER_TASK": "1",
    "MASTER_ADDR": "127.0.0.1",
}


class Cluster:
    """A SLURM of one machine that runs the script of the pages, and writes down what `scontrol` is asked."""

    def __init__(self, home: Path) -> None:
        self.tasks, self.asked, tools = home / "tasks", home / "asked.txt", home / "bin"
        self.tasks.mkdir()
        tools.mkdir()
        for name, program in (("srun", SRUN), ("scontrol", f'#!/bin/sh\necho "$@" >> {self.asked}\n')):
            (tools / name).write_text(program)
            (tools / name).chmod(0o755)
        self.path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])

    def sbatch(self, *args: str, job: str, restarts: int = 0) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            ["bash", str(SCRIPT), *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                **os.environ,
                **JOB,
                "SLURM_JOB_ID": job,
                "SLURM_RESTART_COUNT": str(restarts),
                "TASKS": str(self.tasks),
                "PATH": self.path,
            },
        )

    def warn(self) -> None:
        for rank in (0, 1):
            os.kill(int((self.tasks / str(rank)).read_text()), signal.SIGUSR1)


def ended(job: "subprocess.Popen[str]", code: int = 0) -> str:
    told = job.communicate(timeout=200)[0]
    assert job.returncode == code, told[-6000:]
    return told


def test_slurm_runs_a_job_of_two_nodes_again_and_it_ends_as_if_undisturbed(text: Path, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    ended(cluster.sbatch(*tiny(text, tmp_path / "whole", **SETTINGS), job="4710"))
    undisturbed = only_run(tmp_path / "whole")
    args = tiny(text, tmp_path / "warned", **SETTINGS)
    job = cluster.sbatch(*args, job="4711")
    while not list((tmp_path / "warned").glob("*/*/checkpoints/last.ckpt")):
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.002)
    cluster.warn()
    ended(job, code=128 + signal.SIGUSR1)
    assert cluster.asked.read_text() == "requeue 4711\n", "of two tasks the first asks"
    folder = only_run(tmp_path / "warned")
    assert 0 < load(folder)["global_step"] < 200

    told = ended(cluster.sbatch(*args, job="4711", restarts=1))
    assert told.count("the job goes on with this run") == 1
    assert only_run(tmp_path / "warned").path == folder.path
    assert_same(trained(load(folder)), trained(load(undisturbed)))
    assert metrics(folder) == metrics(undisturbed)


def test_two_machines_by_hand_make_one_run_and_go_on_with_it(text: Path, tmp_path: Path) -> None:
    """Lightning starts the ranks of each machine: the first process of the second is not the first of all."""

    def both(*args: str) -> RunFolder:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29500 + os.getpid() % 1000)}
        for machine in [start("fit", *args, NODE_RANK=str(node), **address) for node in (0, 1)]:
            finish(machine)
        return only_run(tmp_path)

    two = {"trainer.num_nodes": 2, "trainer.devices": 1, "trainer.strategy": "ddp"}
    short = {"trainer.max_steps": 4, "samples.prompts": "[]"}
    folder = both(*tiny(text, tmp_path, **(SETTINGS | two | short)))
    assert load(folder)["global_step"] == 4
    given = ("--output_dir", str(tmp_path), "--ckpt_path", "last", "--trainer.max_steps", "8")
    assert both(*given).path == folder.path
    assert load(folder)["global_step"] == 8
    assert [int(row["step"]) for row in metrics(folder)] == [1, 3, 5, 7]
