"""`auto` on CPU: recorded steps give way to compiled ones at a step that no clock has a say in."""

import copy
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import zoo
from torch import nn
from torch.testing import assert_close

from rnn_blocks import Cell, Recurrent
from rnn_blocks.engine import background, compile_process, fused
from rnn_blocks.engine.compile import CompilerError
from rnn_blocks.engine.compile_process import CompileProcess

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
TIME = 4  # steps of a sequence, of which the first 10 begin a compilation, and the first 22 are recorded ones


class Compiler:
    """What the compiling process does, done at once in this one, and without a compiler."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.waited: list[str] = []
        self.fails: str | None = None

    def ask(self, source):
        self.asked.append(source.digest())
        if self.fails == "ask":
            raise CompilerError("there is no C++ compiler")

    def wait(self, source):
        self.waited.append(source.digest())
        if self.fails == "wait":
            raise CompilerError("g++: fatal error")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each sequence ran on compiled steps."""
    found: list[bool] = []

    def spied(*arguments):
        program = background.faster(*arguments)
        found.append(program is not None)
        return program

    monkeypatch.setattr(fused, "faster", spied)
    monkeypatch.setattr(background, "START", 10)
    monkeypatch.setattr(background, "SWITCH", 22)
    monkeypatch.setattr(background, "_told", False)
    return found


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, ran: list[bool]) -> Compiler:
    found = Compiler()
    monkeypatch.setattr(background, "_process", found)
    monkeypatch.setattr(
        background,
        "compile_step",
        lambda source, one_thread: (source.forward.function(), source.backward and source.backward.function()),
    )
    return found


def layer_of(name: str = "gru", seed: int = 1) -> Recurrent:
    torch.manual_seed(seed)
    return Recurrent(zoo.CELLS[name](3, 5))


def train(layer: nn.Module, sequences: int, *, batch: int = 2, begin: int = 0) -> nn.Module:
    """A few steps of descent on noise, which is another one at each sequence."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.5)
    for number in range(begin, begin + sequences):
        inputs = torch.randn(batch, TIME, 3, generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        outputs, _ = layer(inputs)
        outputs.square().sum().backward()
        optimizer.step()
    return layer


def test_compiled_steps_take_over_at_a_number_of_steps(ran: list[bool], compiler: Compiler) -> None:
    layer, plain = train(layer_of(), 9), layer_of()
    plain.engine = "fused"
    assert ran == [False] * 6 + [True] * 3  # 24 steps recorded, 12 compiled
    assert len(compiler.asked) == len(compiler.waited) == 1
    for got, expected in zip(layer.parameters(), train(plain, 9).parameters(), strict=True):
        assert_close(got, expected)


def test_short_trainings_and_engines_by_name_ask_for_nothing(ran: list[bool], compiler: Compiler) -> None:
    train(layer_of(), 3)
    for engine in ("fused", "native", "loop"):
        layer = layer_of()
        layer.engine = engine
        train(layer, 9)
    with torch.no_grad():
        for batch in range(1, 9):
            layer_of("peephole-lstm")(torch.randn(batch, 40, 3))
    assert ran == [False] * 3
    assert not compiler.asked


def test_shapes_that_do_not_come_back_are_not_compiled(ran: list[bool], compiler: Compiler) -> None:
    layer = layer_of()
    for batch in range(1, 8):
        train(layer, 2, batch=batch)
    assert not compiler.asked


def test_a_cell_has_a_few_shapes_compiled(ran: list[bool], compiler: Compiler) -> None:
    layer = layer_of()
    for batch in range(1, 8):
        train(layer, 8, batch=batch)
    assert len(set(compiler.asked)) == background.MOST_COMPILED
    assert sum(ran) == 2 * background.MOST_COMPILED


def test_deterministic_algorithms_and_the_setting_mean_recorded_steps(
    ran: list[bool], compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        train(layer_of(), 9)
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.setenv(background.SETTING, "0")
    train(layer_of(), 9)
    assert ran == [False] * 18
    assert not compiler.asked


def test_steps_that_draw_or_are_large_stay_recorded(
    ran: list[bool], compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Noisy(Cell):
        fusable = True

        def step(self, projected, state):
            state = nn.functional.dropout(state + projected, 0.5, self.training)
            return state, state

    cell = Noisy(3, 3)
    cell.weight = nn.Parameter(torch.ones(3))
    train(Recurrent(cell), 9)
    monkeypatch.setattr(background, "LARGEST", 9)
    train(layer_of(), 9)
    assert ran == [False] * 18
    assert not compiler.asked


@pytest.mark.parametrize(("capability", "pays"), [("AVX2", False), ("AVX512", True)])
def test_steps_of_few_operators_are_compiled_where_that_gains(
    capability: str, pays: bool, ran: list[bool], compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    train(layer_of("elman-tanh"), 9)
    assert ran == [False] * 6 + [pays] * 3
    assert len(compiler.asked) == pays


@pytest.mark.parametrize("when", ["ask", "wait"])
def test_without_a_compiler_nothing_is_lost_but_speed(when: str, ran: list[bool], compiler: Compiler) -> None:
    compiler.fails = when
    plain = layer_of()
    plain.engine = "fused"
    with pytest.warns(UserWarning, match="training goes on with recorded steps"):
        layer = train(layer_of(), 12)
    train(layer_of("peephole-lstm"), 12)  # a second warning would be an error
    assert ran == [False] * 24
    assert len(compiler.asked) == 2
    for got, expected in zip(layer.parameters(), train(plain, 12).parameters(), strict=True):
        assert torch.equal(got, expected)


def saved(module: nn.Module) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    return file


@pytest.mark.parametrize("sequences", [1, 4, 8])
def test_a_resumed_training_takes_over_where_the_undisturbed_one_does(
    sequences: int, ran: list[bool], compiler: Compiler
) -> None:
    whole = train(nn.ModuleDict({"layer": layer_of()})["layer"], 9)
    undisturbed = list(ran)
    ran.clear()
    first = nn.ModuleDict({"layer": train(layer_of(), sequences)})
    second = nn.ModuleDict({"layer": layer_of(seed=2)})
    second.load_state_dict(torch.load(saved(first), weights_only=True))
    train(second["layer"], 9 - sequences, begin=sequences)
    assert ran == undisturbed
    assert second.state_dict().keys() == nn.ModuleDict({"layer": whole}).state_dict().keys()


class Fitted(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = layer_of()

    def training_step(self, batch, batch_idx):
        return self.layer(batch)[0].square().sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_checkpoint_of_lightning_has_the_steps(ran: list[bool], compiler: Compiler, tmp_path: Path) -> None:
    batches = [torch.randn(2, TIME, 3) for _ in range(3)]
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    models = Fitted(), Fitted()
    for model, epochs, checkpoint in ((models[0], 1, None), (models[1], 3, tmp_path / "last.ckpt")):
        trainer = pl.Trainer(max_epochs=epochs, enable_model_summary=False, default_root_dir=tmp_path, **options)
        trainer.fit(model, torch.utils.data.DataLoader(batches, batch_size=None), ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert ran == [False] * 6 + [True] * 3
    assert list(background.counted(models[1].layer.cell).values()) == [9 * TIME]


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


def test_a_training_begins_anew_with_weights_that_know_of_no_steps(ran: list[bool], compiler: Compiler) -> None:
    layer = layer_of()
    weights = layer_of().state_dict()
    train(layer, 4)
    layer.load_state_dict(dict(weights))
    train(layer_of(), 4)
    assert ran == [False] * 8
    assert background.counted(layer.cell) == background.counted(train(layer_of(), 4).cell)


def test_the_weights_of_a_layer_that_has_not_run_take_a_training_back_to_its_start(
    ran: list[bool], compiler: Compiler
) -> None:
    layer = layer_of()
    start = copy.deepcopy(layer.state_dict())
    train(layer, 4)
    layer.load_state_dict(start)
    assert not background.counted(layer.cell)
    train(layer, 9)
    assert ran[4:] == [False] * 6 + [True] * 3


def test_what_was_compiled_is_at_hand_when_weights_are_loaded(
    ran: list[bool], compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_step, calls = background.compile_step, []
    monkeypatch.setattr(background, "compile_step", lambda *args, **kw: (calls.append(1), compile_step(*args, **kw))[1])
    layer = train(layer_of(), 4)
    early = copy.deepcopy(layer.state_dict())
    train(layer, 5)
    for _ in range(2):
        layer.load_state_dict(layer.state_dict())
        train(layer, 1)
    layer.load_state_dict(early)
    train(layer, 5)
    assert ran == [False] * 6 + [True] * 5 + [False] * 2 + [True] * 3
    assert len(calls) == len(compiler.asked) == 1


def test_the_steps_of_a_cell_with_a_set_of_words_are_known_in_every_process(
    ran: list[bool], compiler: Compiler
) -> None:
    class Turned(str):
        """Stands elsewhere in a set, as every word does in another process."""

        def __hash__(self) -> int:
            return ~super().__hash__()

    counted = []
    for kind in (str, Turned):
        layer = layer_of()
        layer.cell.names = {"of": [(frozenset(kind(f"word {k}") for k in range(20)), 1)]}
        counted.append((repr(layer.cell.names), background.counted(train(layer, 1).cell)))
    assert counted[0][0] != counted[1][0]
    assert counted[0][1] == counted[1][1]


def test_shapes_beyond_the_few_stay_so_in_a_resumed_training(ran: list[bool], compiler: Compiler) -> None:
    layer = layer_of()
    for batch in range(1, 8):
        train(layer, 8, batch=batch)
    resumed = layer_of()
    resumed.load_state_dict(torch.load(saved(layer), weights_only=True))
    ran.clear()
    for batch in range(7, 0, -1):
        train(resumed, 2, batch=batch)
    assert ran == [False] * 6 + [True] * 8


# from here on with the real process


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
