"""The tasks of the long-range recipe against their definitions, its cells, and what flows back through them."""

import math

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rnn_blocks
from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.long_range.cells import CELLS, hidden_size_for, make_layer
from rnn_blocks.recipes.long_range.comparison.flow import gradient_flow
from rnn_blocks.recipes.long_range.data import GeneratedBatches, LongRangeData
from rnn_blocks.recipes.long_range.model import LongRangeModel
from rnn_blocks.recipes.long_range.tasks import TASKS, AddingProblem, CopyMemory, make_task

SIZES = {"length": st.integers(2, 60), "batch_size": st.integers(1, 9), "seed": st.integers(0, 2**40)}


@given(**SIZES)
@settings(max_examples=30, deadline=None)
def test_the_target_of_the_adding_problem_is_the_sum_of_the_two_marked_numbers(length, batch_size, seed):
    inputs, targets = AddingProblem(length).batch(batch_size, split="train", seed=seed, index=3)
    assert inputs.shape == (length, batch_size, 2)
    assert inputs.dtype == targets.dtype == torch.float32
    assert ((inputs[..., 0] >= 0) & (inputs[..., 0] < 1)).all()
    for row in range(batch_size):
        marked = [t for t in range(length) if inputs[t, row, 1] == 1]
        assert len(marked) == 2
        assert inputs[:, row, 1].sum() == 2
        torch.testing.assert_close(targets[row, 0], inputs[marked[0], row, 0] + inputs[marked[1], row, 0])


@given(**(SIZES | {"length": st.integers(1, 60)}))
@settings(max_examples=30, deadline=None)
def test_the_copy_memory_shows_ten_symbols_waits_and_asks_for_them(length, batch_size, seed):
    inputs, targets = CopyMemory(length).batch(batch_size, split="train", seed=seed, index=3)
    assert inputs.shape == (length + 20, batch_size, 10)
    assert (inputs.sum(-1) == 1).all()
    seen = inputs.argmax(-1)
    for row in range(batch_size):
        symbols = seen[:10, row].tolist()
        assert all(0 <= symbol < 8 for symbol in symbols)
        assert seen[10:, row].tolist() == [8] * (length - 1) + [9] + [8] * 10
        assert targets[:, row].tolist() == [8] * (length + 10) + symbols


def test_every_pair_of_steps_is_marked_as_often_as_any_other():
    inputs, _ = AddingProblem(4).batch(12_000, split="train", seed=1, index=0)
    _, counts = np.unique(inputs[..., 1].numpy().T, axis=0, return_counts=True)
    assert len(counts) == 6
    assert abs(counts / 2000 - 1).max() < 0.1


def test_to_guess_at_the_adding_problem_costs_the_variance_of_a_sum_of_two():
    task = AddingProblem(10)
    _, targets = task.batch(200_000, split="val", seed=0, index=0)
    ones = torch.ones_like(targets)
    assert float(task.loss(ones, targets)) == pytest.approx(task.guess, rel=0.01)
    assert task.guess == pytest.approx(2 * (1 / 3 - 1 / 4))  # of each number, E[x²] - E[x]²


@pytest.mark.parametrize("length", [1, 7, 500])
def test_to_guess_at_the_copy_memory_costs_ten_even_choices_of_eight(length):
    task = CopyMemory(length)
    _, targets = task.batch(3, split="val", seed=0, index=0)
    logits = torch.full((*targets.shape, 9), -1e4, dtype=torch.float64)
    logits[:-10, :, 8] = 0.0  # certain of the blanks
    logits[-10:, :, :8] = 0.0  # none of the symbols is likelier
    torch.testing.assert_close(task.loss(logits, targets).item(), task.guess)
    torch.testing.assert_close(task.guess, 10 * math.log(8) / (length + 20))
    torch.testing.assert_close(task.loss_at_the_end(logits, targets).item(), math.log(8))


def test_the_accuracy_of_the_copy_memory_counts_the_recalled_symbols_alone():
    task = CopyMemory(5)
    _, targets = task.batch(4, split="val", seed=0, index=0)
    right = torch.nn.functional.one_hot(targets, 9).float()
    wrong = right.clone()
    wrong[:-10] = 0.0  # what is said before is not looked at
    wrong[-1, :2] = right[-1, :2].roll(1, -1)
    assert task.accuracy(right, targets) == 1
    torch.testing.assert_close(task.accuracy(wrong, targets).item(), 38 / 40)


@pytest.mark.parametrize("name", TASKS)
def test_a_batch_follows_from_split_seed_and_number_and_no_two_are_alike(name):
    task = make_task(name, 12)
    keys = [(split, seed, index) for split in ("train", "val", "test") for seed in (0, 1) for index in (0, 1)]
    drawn = {}
    for split, seed, index in keys:
        torch.manual_seed(index)  # of no consequence
        first, second = (task.batch(5, split=split, seed=seed, index=index) for _ in range(2))
        assert all(map(torch.equal, first, second))
        drawn[split, seed, index] = first[0]
    assert len({inputs.numpy().tobytes() for inputs in drawn.values()}) == len(keys)


@pytest.mark.parametrize(("name", "length", "least"), [("adding", 1, 2), ("adding", -3, 2), ("copy", 0, 1)])
def test_a_length_too_short_for_its_task_is_told(name, length, least):
    with pytest.raises(InputError, match=f"length {length}: the {name} task needs at least {least}"):
        make_task(name, length)


def test_an_unknown_task_or_cell_is_told_with_the_valid_ones():
    with pytest.raises(InputError, match=r"task 'ading': did you mean 'adding'\? Valid are adding, copy"):
        make_task("ading", 10)
    with pytest.raises(InputError, match=r"cell 'lsmt': did you mean 'lstm'\? Valid are elman, .*lru"):
        LongRangeModel("adding", 10, "lsmt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_size": 0}, "hidden_size 0"),
        ({"lr": 0.0}, r"lr 0\.0"),
        (
            {"cell": "dilated", "length": 500, "parameters": 20},
            "parameters 20: the smallest dilated for length 500 has",
        ),
    ],
)
def test_a_number_out_of_its_range_is_told(arguments, message):
    with pytest.raises(InputError, match=message):
        LongRangeModel(**({"task": "copy", "length": 10, "cell": "gru"} | arguments))


@pytest.mark.parametrize("name", ["batch_size", "eval_sequences", "eval_batch_size"])
def test_a_batch_without_sequences_is_told(name):
    with pytest.raises(InputError, match=f"{name} 0: give 1 or more"):
        LongRangeData("copy", 10, **{name: 0})


def test_ranks_share_the_batches_of_one_process_between_them():
    task = make_task("copy", 3)
    alone = list(GeneratedBatches(task, 4, split="train", seed=1, batches=6))
    ranks = [
        list(GeneratedBatches(task, 4, split="train", seed=1, batches=3, rank=rank, world_size=2)) for rank in (0, 1)
    ]
    together = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    assert all(torch.equal(one[0], other[0]) for one, other in zip(alone, together, strict=True))


def test_a_loader_goes_on_with_the_batch_after_its_state():
    task = make_task("adding", 5)
    loader = GeneratedBatches(task, 2, split="train", seed=1, batches=5)
    batches = iter(loader)
    next(batches), next(batches)
    other = GeneratedBatches(task, 2, split="train", seed=1, batches=5)
    other.load_state_dict(loader.state_dict())
    assert all(torch.equal(one[0], two[0]) for one, two in zip(batches, other, strict=True))
    assert len(list(other)) == 5  # a pass after it is whole


def test_no_sequence_of_a_training_comes_twice_however_short_its_epochs(tmp_path):
    class Note(pl.Callback):
        def __init__(self):
            self.sums = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.sums.append(batch[0].sum().item())

    def fit(epochs, **options):
        note = Note()
        trainer = pl.Trainer(
            max_epochs=epochs, limit_train_batches=3, callbacks=[note], accelerator="cpu", logger=False,
            enable_checkpointing=False, enable_progress_bar=False, num_sanity_val_steps=0, limit_val_batches=0,
            enable_model_summary=False, **options,
        )  # fmt: skip
        model = LongRangeModel("adding", 5, "gru", hidden_size=4)
        data = LongRangeData("adding", 5, batch_size=2, eval_sequences=2, eval_batch_size=2)
        trainer.fit(model, data)
        return note.sums

    task = make_task("adding", 5)
    made = [task.batch(2, split="train", seed=1, index=index)[0].sum().item() for index in range(9)]
    assert fit(3) == made
    assert fit(2, overfit_batches=2) == made[:2] * 2


def test_the_sets_of_evaluation_are_the_same_for_every_seed():
    one, other = (LongRangeData("adding", 9, seed=seed, eval_sequences=20, eval_batch_size=10) for seed in (1, 2))
    for mine, yours in (
        (one.val_dataloader(), other.val_dataloader()),
        (one.test_dataloader(), other.test_dataloader()),
    ):
        assert len(mine) == 2
        assert all(torch.equal(a[0], b[0]) for a, b in zip(mine, yours, strict=True))
    assert not torch.equal(next(iter(one.val_dataloader()))[0], next(iter(one.test_dataloader()))[0])


@pytest.mark.parametrize("name", CELLS)
def test_every_cell_is_trained_in_all_its_parts(name):
    torch.manual_seed(0)
    model = LongRangeModel("copy", 3, name, hidden_size=4 * CELLS[name].multiple(3))
    inputs, targets = model.task.batch(3, split="train", seed=0, index=0)
    loss = model.task.loss(model(inputs), targets)
    loss.backward()
    assert loss.isfinite()
    idle = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not idle


@pytest.mark.parametrize("name", ["elman", "lstm", "lru"])
def test_models_have_about_as_many_parameters_as_asked_for(name):
    model = LongRangeModel("adding", 6, name, parameters=3000)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(3000, rel=0.05)


@pytest.mark.parametrize("name", ["gru", "clockwork", "dilated-lstm"])
def test_no_other_hidden_size_comes_nearer_to_the_parameters_asked_for(name):
    def parameters(hidden_size):
        model = LongRangeModel("copy", 20, name, hidden_size=hidden_size)
        return sum(p.numel() for p in model.parameters())

    found = hidden_size_for(name, 10, 9, 20, 2000)
    step = CELLS[name].multiple(20)
    distances = [abs(parameters(size) - 2000) for size in (found - step, found, found + step)]
    assert distances[1] == min(distances)


def test_the_hidden_size_is_found_without_drawing_from_the_random_numbers():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    hidden_size_for("lstm", 2, 1, 50, 1000)
    assert torch.equal(torch.get_rng_state(), before)


def test_chrono_gates_and_leaky_units_are_spread_over_the_length():
    forget = make_layer("lstm-chrono", 2, 300, 64).layers[0].cell.bias.detach()[64:128]
    assert 0 <= float(forget.min()) <= float(forget.max()) <= math.log(299)
    assert make_layer("leaky", 2, 300, 64).cell.time_constants.max().item() == pytest.approx(300)
    assert [layer.dilation for layer in make_layer("dilated", 10, 500, 8).layers] == [2**k for k in range(9)]


@pytest.mark.parametrize(("task", "cell"), [("adding", "elman"), ("copy", "elman"), ("adding", "gru")])
def test_the_gradient_flow_is_that_of_a_loop_over_steps(task, cell):
    torch.manual_seed(0)
    model = LongRangeModel(task, 8, cell, hidden_size=5).double()
    inputs, targets = (
        t.double() if t.is_floating_point() else t for t in model.task.batch(4, split="val", seed=0, index=0)
    )
    layer = model.layer.layers[0]
    states, outputs, state = [], [], None
    for step in inputs:
        output, state = layer.step(step, state)
        states.append(state)
        outputs.append(output)
    hidden = torch.stack(outputs)
    predictions = model.output(hidden if model.task.every_step else hidden[-1])
    gradients = torch.autograd.grad(model.task.loss_at_the_end(predictions, targets), states)
    expected = [float(gradient.norm()) for gradient in gradients]
    torch.testing.assert_close(gradient_flow(model, (inputs, targets)), expected)


@pytest.mark.parametrize("cell", ["dilated", "minlstm", "lru", "lstm", "clockwork"])
def test_the_gradient_flow_leaves_the_model_as_it_was(cell):
    torch.manual_seed(0)
    model = LongRangeModel("copy", 5, cell, hidden_size=6)
    batch = model.task.batch(3, split="val", seed=0, index=0)
    numbers = torch.get_rng_state()
    with torch.no_grad():
        before = model(batch[0])
    norms = gradient_flow(model, batch)
    assert len(norms) == model.task.steps
    assert all(map(math.isfinite, norms))
    assert norms[-1] > 0
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), numbers)
    with torch.no_grad():
        assert torch.equal(model(batch[0]), before)


def test_the_flow_of_a_stack_is_the_norm_of_all_its_layers_states():
    torch.manual_seed(0)
    model = LongRangeModel("adding", 4, "dilated", hidden_size=3)
    inputs, targets = model.task.batch(2, split="val", seed=0, index=0)
    # a dilated Elman network by hand: the state of each layer is its output
    zero = torch.zeros(2, 3)
    below, kept = list(inputs), []
    for layer in model.layer.layers:
        outputs = []
        for t, step in enumerate(below):
            h, _ = layer.cell(step, outputs[t - layer.dilation] if t >= layer.dilation else zero)
            outputs.append(h)
        below = outputs
        kept.append(outputs)
    loss = model.task.loss_at_the_end(model.output(below[-1]), targets)
    states = [h for outputs in kept for h in outputs]
    reached = torch.autograd.grad(loss, states, allow_unused=True)
    squares = [0.0 if g is None else float(g.square().sum()) for g in reached]
    steps = len(inputs)
    expected = [math.sqrt(sum(squares[t::steps])) for t in range(steps)]
    torch.testing.assert_close(gradient_flow(model, (inputs, targets)), expected, rtol=1e-4, atol=1e-7)


def test_a_model_is_loaded_from_its_checkpoint_alone(tmp_path):
    model = LongRangeModel("copy", 4, "gru", hidden_size=6)
    data = LongRangeData("copy", 4, batch_size=3, eval_sequences=4, eval_batch_size=2)
    trainer = pl.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = LongRangeModel.load_from_checkpoint(tmp_path / "model.ckpt")
    assert loaded.hidden_size == model.hidden_size
    assert isinstance(loaded.layer, rnn_blocks.GRU)
    inputs, _ = model.task.batch(2, split="val", seed=0, index=0)
    torch.testing.assert_close(loaded.eval()(inputs), model.eval()(inputs))
