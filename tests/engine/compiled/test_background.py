"""`auto` on CPU: recorded steps give way to compiled ones at a step that no clock has a say in."""

import copy
import io
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from early_switch import TIME, layer_of, train
from torch import nn
from torch.testing import assert_close

from rnn_blocks import Cell, Recurrent
from rnn_blocks.engine import background
from rnn_blocks.engine.compile import CompilerError


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
def compiler(monkeypatch: pytest.MonkeyPatch, ran: list[bool]) -> Compiler:
    found = Compiler()
    monkeypatch.setattr(background, "_process", found)
    monkeypatch.setattr(
        background,
        "compile_step",
        lambda source, one_thread: (source.forward.function(), source.backward and source.backward.function()),
    )
    return found


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
