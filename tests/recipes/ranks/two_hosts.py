"""Two hosts on one machine: network namespaces that share a wire, with one rank of torchrun's on each."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

SCRIPT = Path(__file__).parents[3] / "examples" / "many-machines" / "torchrun.sh"


class KeepParameters(Callback):
    """At the end of a training every rank writes its parameters, in the folder of ``$KEPT_PARAMETERS``."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.save(pl_module.state_dict(), Path(os.environ["KEPT_PARAMETERS"], f"{trainer.global_rank}.pt"))


@dataclass(frozen=True)
class Host:
    """A network namespace, its address on the wire, and the wire's end in it."""

    name: str
    address: str
    wire: str


class NoHostsError(Exception):
    """Network namespaces cannot be made here."""


def _ip(*args: str) -> None:
    try:
        subprocess.run(["ip", *args], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoHostsError(getattr(error, "stderr", None) or str(error)) from error


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach each other and nothing else.

    Raises:
        NoHostsError: with what the system said, mostly that only root may.
    """
    one, two = (Host(f"host{end}-{os.getpid()}", f"10.99.0.{end}", f"wire{end}") for end in (1, 2))
    try:
        for host in (one, two):
            _ip("netns", "add", host.name)
        _ip("link", "add", one.wire, "netns", one.name, "type", "veth", "peer", "name", two.wire, "netns", two.name)
        for host in (one, two):
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.wire)
            for device in ("lo", host.wire):
                _ip("-n", host.name, "link", "set", device, "up")
        yield one, two
    finally:
        for host in (one, two):
            subprocess.run(["ip", "netns", "del", host.name], check=False, capture_output=True)


def torchrun(
    hosts: tuple[Host, Host], *args: str, job: str, restarts: int = 0, own_disk: Path | None = None, **environment: str
) -> "list[subprocess.Popen[str]]":
    """Start the script of torchrun on both hosts, for the command `rnn-blocks ARGS` in one rank each.

    Args:
        hosts: where.
        args: of the command.
        job: its name.
        restarts: how often torchrun may start the ranks again.
        own_disk: a folder that the hosts do not share: each has another one under its name.
        environment: of the command.
    """
    return [
        subprocess.Popen(
            ["ip", "netns", "exec", host.name, *_with(own_disk, host), str(SCRIPT), *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                **os.environ,
                "JOB": job,
                "FIRST_HOST": hosts[0].address,
                "RESTARTS": str(restarts),
                "PYTHON": sys.executable,
                "PET_LOCAL_ADDR": host.address,
                "PET_RDZV_CONF": f"is_host={int(host == hosts[0])}",
                "GLOO_SOCKET_IFNAME": host.wire,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]),
                **environment,
            },
        )
        for host in hosts
    ]


def end_all(hosts: tuple[Host, Host]) -> None:
    """Kill whatever still runs on the hosts, such as what a failed test has left there."""
    for host in hosts:
        listed = subprocess.run(["ip", "netns", "pids", host.name], check=False, capture_output=True, text=True)
        for process in map(int, listed.stdout.split()):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def _with(own_disk: Path | None, host: Host) -> list[str]:
    """What a command begins with that finds a folder of the host's own in the place of `own_disk`."""
    if own_disk is None:
        return []
    disk = own_disk.with_name(f"{own_disk.name}-of-{host.wire}")
    disk.mkdir(exist_ok=True)
    return ["sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"', str(disk), str(own_disk)]


def finish_both(launchers: "list[subprocess.Popen[str]]", code: int = 0) -> list[str]:
    """Wait until torchrun has ended on both hosts as it must; what they wrote."""
    told = [launcher.communicate(timeout=280)[0] for launcher in launchers]
    codes = [launcher.returncode for launcher in launchers]
    assert codes == [code, code], "\n\n".join([str(codes), *(text[-6000:] for text in told)])
    return told


def rank_of(launcher: "subprocess.Popen[str]") -> int:
    """The process that a torchrun with one rank has started."""
    (child,) = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return int(child)


def wait_for_a_checkpoint(launchers: "list[subprocess.Popen[str]]", output_dir: Path) -> None:
    """Until a training's first ``last.ckpt`` is there."""
    while not list(output_dir.glob("*/*/checkpoints/last.ckpt")):
        for launcher in launchers:
            assert launcher.poll() is None, launcher.communicate()[0]
        time.sleep(0.002)
