"""The process that compiles steps beside a training: it starts, fails and ends as the training needs."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import zoo
from early_switch import TIME, layer_of, train
from torch import nn
from torch.testing import assert_close

from rnn_blocks import Recurrent
from rnn_blocks.engine import background, compile_process, fused
from rnn_blocks.engine.compile import CompilerError
from rnn_blocks.engine.compile_process import CompileProcess

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ran: list[bool]) -> Iterator[CompileProcess]:
    """A compiling process of the test's own, which has nothing on disk yet."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compile_process, "NICENESS", 0)  # other tests would hold it up
    process = CompileProcess()
    monkeypatch.setattr(background, "_process", process)
    yield process
    process.stop()


def parameters(layer: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in layer.parameters()]


@needs_compiler
@pytest.mark.processes
def test_the_same_seed_gives_the_same_weights_however_long_compiling_takes(
    ran: list[bool], disk: CompileProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.utils import counters

    weights = [parameters(train(layer_of("layer-norm-lstm"), 9))]
    monkeypatch.setattr(disk, "ask", lambda source: None)  # everything is on disk
    weights.append(parameters(train(layer_of("layer-norm-lstm"), 9)))
    monkeypatch.setattr(disk, "ask", CompileProcess.ask.__get__(disk))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setattr(compile_process, "_first_rank_here", lambda: False)  # compiling begins when it should be done
    weights.append(parameters(train(layer_of("layer-norm-lstm"), 9)))
    assert ran == ([False] * 6 + [True] * 3) * 3
    for found in weights[1:]:
        for got, expected in zip(found, weights[0], strict=True):
            assert torch.equal(got, expected)
    assert counters["inductor"]["fxgraph_cache_miss"] == 0  # this process has compiled nothing itself


@needs_compiler
@pytest.mark.processes
def test_two_layers_of_a_kind_are_compiled_once_and_compute_what_recorded_ones_do(
    ran: list[bool], disk: CompileProcess
) -> None:
    results = []
    for engine in ("auto", "fused"):
        torch.manual_seed(1)
        layers = nn.Sequential()
        stack = [Recurrent(zoo.CELLS["gru"](3, 3), engine=engine) for _ in range(2)]
        layers.extend(stack)
        inputs = torch.randn(2, TIME, 3)
        for _ in range(9):
            layers.zero_grad()
            outputs = inputs
            for layer in stack:
                outputs, _ = layer(outputs)
            outputs.square().sum().backward()
        results.append([outputs.detach(), *(p.grad for p in layers.parameters())])
    assert ran[:18] == [False] * 12 + [True] * 6
    for got, expected in zip(*results, strict=True):
        assert_close(got, expected)
    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]) / "rnn_blocks"
    assert len(list(folder.iterdir())) == 1


PROGRAM = """
import sys, time, torch
from rnn_blocks import GRU
from rnn_blocks.engine import background
background.START, background.SWITCH = 10, 10**9
layer = GRU(3, 5)
for _ in range(5):
    layer(torch.randn(2, 4, 3))[0].sum().backward()
assert background._process.is_running
print(background._process._folder, background._process._process.pid, flush=True)
{end}
"""


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


@needs_compiler
@pytest.mark.processes
@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("", 0),
        ("raise SystemExit(3)", 3),
        ("time.sleep(60)", 1),  # interrupted, see below
        ("import os; os.fork() or sys.exit(0); os.wait()", 0),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9),
    ],
)
def test_the_compiling_process_ends_with_the_one_that_asked(end: str, code: int, tmp_path: Path) -> None:
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(end=end)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    assert program.stdout is not None
    folder, pid = program.stdout.readline().split()
    if "sleep" in end:
        program.send_signal(signal.SIGINT)
    _, errors = program.communicate(timeout=60)
    assert program.returncode == code, errors
    assert not errors or "KeyboardInterrupt" in errors
    assert within(5, lambda: not is_alive(int(pid)))
    assert not Path(folder).exists()
    assert Path(folder).parent == Path(tempfile.gettempdir())


def test_a_fork_has_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    process = CompileProcess()
    process._folder, process._owner = tmp_path, -1
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    with pytest.raises(CompilerError, match="no C"):
        process.ask(_source())
    assert (process._folder, process._owner) == (None, os.getpid())
    process._folder, process._owner = tmp_path, -1
    process.stop()
    assert tmp_path.exists()


@needs_compiler
def test_a_process_that_cannot_compile_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    with pytest.raises(CompilerError, match="there is no C\\+\\+ compiler"):
        CompileProcess().ask(_source())


@needs_compiler
@pytest.mark.processes
def test_a_compiler_that_fails_is_told_of(
    disk: CompileProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no such luck >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    disk.ask(_source())
    with pytest.raises(CompilerError, match="torch's compiler cannot compile this step"):
        disk.wait(_source())


@pytest.mark.processes
def test_a_process_that_does_not_come_up_is_told_of(disk: CompileProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    disk.ask(_source())
    with pytest.raises(CompilerError, match="has ended with code 1"):
        disk.wait(_source())


SERVE = """
import os, sys, time
niceness = int(sys.argv[2])
os.nice(niceness)
if niceness:
    open(sys.argv[1] + "/begun", "w").close()
    time.sleep(60)
os.makedirs({folder!r})
open({mark!r}, "w").write(str(os.nice(0)))
"""


def test_a_process_that_is_waited_for_in_vain_is_started_again_at_the_priority_of_the_training(
    disk: CompileProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compile_process, "NICENESS", 10)
    monkeypatch.setenv("CXX", sys.executable)
    source = _source()
    mark = compile_process._mark(source.digest())
    monkeypatch.setattr(compile_process, "_SERVE", SERVE.format(folder=str(mark.parent), mark=str(mark)))
    disk.ask(source)
    first = disk._process
    assert first is not None
    assert disk._folder is not None
    assert within(20, (disk._folder / "begun").exists)
    monkeypatch.setattr(compile_process, "PATIENCE", 0.1)
    with pytest.warns(UserWarning, match="waits until its steps are compiled"):
        disk.wait(source)
    assert first.poll() == -signal.SIGTERM
    assert within(20, lambda: mark.read_text() == str(os.nice(0)))


def _source():
    cell, found = zoo.CELLS["gru"](3, 5), []
    layer = Recurrent(cell, engine="fused")
    original = fused.trace_step

    def traced(*arguments, **options):
        def keep(source, put):
            found.append(source)
            return put(source.forward.function(), source.backward and source.backward.function())

        return original(*arguments, **{**options, "compiler": keep})

    fused.trace_step = traced
    try:
        layer(torch.randn(2, TIME, 3))
    finally:
        fused.trace_step = original
    return found[0]
