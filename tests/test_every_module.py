"""What users do to torch's modules works on every module that is neither a cell nor a layer.

Cells and layers answer the same in `tests/layers/test_what_users_do.py` and `test_lengths_and_calls.py`.
"""

import copy
import math
import pickle
from importlib import import_module

import pytest
import torch
import zoo
import zoo_layers
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.testing import assert_close
from torchmetrics import Metric
from zoo_wholes import FAST, MASK, VOCAB, WHOLES

from rnn_blocks import Cell, DecoderCell, Layer, Recurrent, TokenLoss, TranslationScores
from rnn_blocks.engine import state_tensors

CLOSE = {"rtol": 1e-9, "atol": 1e-11}
PLACES = ("rnn_blocks", *(f"rnn_blocks.{room}" for room in ("cells", "layers", "seq2seq", "modules", "callbacks")))
LENGTHS = [5, 0, 3]
PAST = torch.arange(5) >= torch.tensor(LENGTHS)[:, None]
METRICS = {
    "TokenLoss": lambda: (TokenLoss(), (torch.tensor(2.0), torch.tensor(3))),
    "TranslationScores": lambda: (TranslationScores(), (["a cat sat on it"], ["a cat sat on that"])),
}
every_module = pytest.mark.parametrize("name", zoo.rest_is_slow(WHOLES, FAST))
every_module_with_lengths = pytest.mark.parametrize(
    "name",
    zoo.rest_is_slow(
        [name for name, whole in WHOLES.items() if whole.has_lengths], [n for n in FAST if WHOLES[n].has_lengths]
    ),
)


def made(name):
    torch.manual_seed(0)
    module = WHOLES[name].make().double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn_like(parameter)  # where one starts at 0, nobody would see it
    return module


def drawn(name):
    torch.manual_seed(1)
    features = WHOLES[name].features
    if features:
        return torch.randn(3, 5, features, dtype=torch.float64, requires_grad=True)
    return torch.randint(VOCAB, (3, 5))


def lengths_of(name, lengths=(5, 2, 3)):
    return torch.tensor(lengths) if WHOLES[name].has_lengths else None


def results(name, module, batch, lengths):
    return [tensor for tensor in state_tensors(WHOLES[name].call(module, batch, lengths)) if tensor.numel()]


def total(tensors):
    return sum(tensor.sin().sum() for tensor in tensors)


def outcome(name, module, batch, lengths):
    """All that comes out, the batch's gradient, and those of all weights; zeros where there is none."""
    module.zero_grad()
    if batch.is_floating_point():
        batch = batch.detach().clone().requires_grad_()
    tensors = results(name, module, batch, lengths)
    total(tensors).backward()
    gradients = {
        key: torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
        for key, weight in module.named_parameters()
    }
    return tensors, torch.zeros_like(batch) if batch.grad is None else batch.grad, gradients


def weights_of(module):
    """Every weight with the part that has it, tied ones with each."""
    return [
        (part, key)
        for part in module.modules()
        for key, weight in list(part.named_parameters(recurse=False))
        if weight.dim()
    ]


def test_no_public_module_is_forgotten():
    public = set()
    for place in PLACES:
        names = vars(import_module(place)).get("__all__", ())
        found = [getattr(import_module(place), name) for name in names]
        public |= {one for one in found if isinstance(one, type) and issubclass(one, nn.Module)}
    instances = [
        *(make(4, 4) for make in zoo.CELLS.values()),
        *(make() for make in zoo_layers.LAYERS.values()),
        *(whole.make() for whole in WHOLES.values()),
        *(make()[0] for make in METRICS.values()),
    ]
    answering = {kind for one in instances for part in one.modules() for kind in type(part).__mro__}
    assert public - answering == set()


class Squashed(nn.Module):
    """A parametrisation that counts how often it is computed."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, weight):
        self.calls += 1
        return 1.5 * weight.tanh()


@every_module
def test_parametrised_weights_are_the_computed_ones_and_not_computed_at_each_step(name):
    plain, changed = made(name), made(name)
    slopes = {key: 1.5 * (1 - weight.detach().tanh().square()) for key, weight in plain.named_parameters()}
    with torch.no_grad():
        for key, weight in plain.named_parameters():
            if weight.dim():
                weight.copy_(1.5 * weight.tanh())
            else:
                slopes[key] = 1.0
    computed = [Squashed() for _ in weights_of(changed)]
    for (part, key), squashed in zip(weights_of(changed), computed, strict=True):
        parametrize.register_parametrization(part, key, squashed, unsafe=True)
    before = [squashed.calls for squashed in computed]
    batch, lengths = drawn(name), lengths_of(name)
    *tensors, found = outcome(name, changed, batch, lengths)
    calls = [squashed.calls - known for squashed, known in zip(computed, before, strict=True)]
    assert max(calls, default=1) <= 1 + ("decoder" in name or name == "Seq2Seq")  # once more for its steps
    *wanted, gradients = outcome(name, plain, batch, lengths)
    assert_close(tensors, wanted, **CLOSE)
    found = {key.replace("parametrizations.", "").replace(".original", ""): value for key, value in found.items()}
    assert_close(found, {key: gradients[key] * slopes[key] for key in found}, **CLOSE)


@every_module
def test_reparametrised_weights_train(name):
    module = made(name)
    for part, key in weights_of(module):
        if getattr(part, key).dim() == 2:
            parametrizations.weight_norm(part, key)
    optimizer = torch.optim.SGD([*module.parameters(), torch.zeros(1)], lr=0.05)
    *expected, _ = outcome(name, made(name), drawn(name), lengths_of(name))
    for step in range(3):
        *tensors, gradients = outcome(name, module, drawn(name), lengths_of(name))
        assert all(gradient.any() for key, gradient in gradients.items() if key.endswith("original1"))
        if step == 0:
            assert_close(tensors, expected, **CLOSE)
        optimizer.step()


@every_module
def test_pruned_weights_train_as_masked_ones_and_stay_zero(name):
    plain, pruned = made(name), made(name)
    masks = {}
    for (part, key), (twin, _) in zip(weights_of(pruned), weights_of(plain), strict=True):
        prune.l1_unstructured(part, key, amount=0.4)
        masks[id(getattr(twin, key))] = mask = getattr(part, f"{key}_mask")
        getattr(twin, key).data *= mask
    for _ in range(3):
        *found, _ = outcome(name, pruned, drawn(name), lengths_of(name))
        *wanted, _ = outcome(name, plain, drawn(name), lengths_of(name))
        assert_close(found, wanted, **CLOSE)
        with torch.no_grad():
            for weight in plain.parameters():
                weight -= 0.1 * masks.get(id(weight), 1) * (0 if weight.grad is None else weight.grad)
            for weight in pruned.parameters():
                weight -= 0.1 * (0 if weight.grad is None else weight.grad)
    results(name, pruned, drawn(name), lengths_of(name))
    for (part, key), (twin, _) in zip(weights_of(pruned), weights_of(plain), strict=True):
        weight = part.get_parameter(key) * getattr(part, key.replace("_orig", "_mask"))
        assert_close(weight, getattr(twin, key.removesuffix("_orig")), **CLOSE)


def called_parts(module):
    """The parts that somebody may hang a hook on: all that are run as wholes, and of cells those inside a decoder's."""
    cells = [part for part in module.modules() if isinstance(part, Cell) and not isinstance(part, DecoderCell)]
    inside = {id(part) for cell in cells for part in cell.modules()}
    others = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.Sequential, Metric, TranslationScores, Cell)
    decoders = [part for part in module.modules() if isinstance(part, DecoderCell)]
    stepped = {
        id(part)
        for cell in decoders
        for part in cell.layer.modules()
        if cell.sequential and isinstance(part, Layer)  # by `step`, which calls its cells
    }
    runners = {id(part) for part in module.modules() if isinstance(part, Recurrent) and part.cell in decoders}
    return [
        part for part in module.modules() if not isinstance(part, others) and id(part) not in inside | stepped | runners
    ]


@every_module
def test_parts_are_called_as_modules_each_time(name):
    module, called = made(name), []
    results(name, module, drawn(name), lengths_of(name))  # by steps that are recorded, where they are
    names = {part: key for key, part in module.named_modules()}
    parts = [part for part in called_parts(module) if part is not module]
    for part in parts:
        part.register_forward_pre_hook(lambda part, args: called.append((names[part], "before")))
        part.register_forward_hook(lambda part, args, result: called.append((names[part], "after")))
    counts = []
    for _ in range(2):
        called.clear()
        results(name, module, drawn(name), lengths_of(name))
        assert {names[part] for part in parts} == {part for part, _ in called}
        counts.append(sorted(called))
    assert counts[0] == counts[1]


@every_module_with_lengths
def test_nothing_past_a_length_counts(name):
    module, batch, found = made(name), drawn(name), []
    numbers = batch.is_floating_point()
    for filling in (0.0, math.nan, math.inf) if numbers else (0, 7, -100, 10**6):
        own = batch.detach().masked_fill(PAST[..., None] if numbers else PAST, filling)
        found.append(outcome(name, module, own, lengths_of(name, LENGTHS)))
        assert not found[-1][1][PAST].any()
        assert all(gradient.isfinite().all() for gradient in found[-1][2].values())
    for one in found[1:]:
        assert_close(one, found[0], rtol=0, atol=0)


@every_module
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by torch itself, in forward mode
def test_function_transforms_work(name):
    whole, module, batch, lengths = WHOLES[name], made(name), drawn(name), lengths_of(name)

    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, sequences, lengths):
            return results(name, self.module, sequences, lengths)

    called = Called()
    weights = {key: weight.detach() for key, weight in called.named_parameters()}
    *_, expected = outcome(name, module, batch, lengths)
    found = torch.func.grad(lambda own: total(torch.func.functional_call(called, own, (batch, lengths))))(weights)
    assert_close({key.removeprefix("module."): value for key, value in found.items()}, expected, **CLOSE)

    def one(sequence, length=None, own=weights):
        length = None if length is None else length[None]
        return total(torch.func.functional_call(called, own, (sequence[None], length)))

    given = [batch.detach()] if lengths is None else [batch.detach(), lengths]
    if whole.vmaps:
        singly = torch.stack([one(*row) for row in zip(*given, strict=True)])
        assert_close(torch.func.vmap(one)(*given), singly, **CLOSE)
        each = torch.func.vmap(lambda *row: torch.func.grad(lambda own: one(*row, own=own))(weights))(*given)
        assert all(gradient.isfinite().all() for gradient in each.values())
    if batch.is_floating_point():
        expected = torch.autograd.functional.jacobian(lambda own: one(own, own=weights), batch[0].detach())
        assert_close(torch.func.jacrev(one)(batch[0].detach()), expected, **CLOSE)
        assert_close(torch.func.jacfwd(one)(batch[0].detach()), expected, **CLOSE)


@every_module_with_lengths
def test_lengths_may_be_a_list_or_none_but_no_marks(name):
    module, batch = made(name), drawn(name)
    expected = results(name, module, batch, torch.tensor(LENGTHS))
    assert_close(results(name, module, batch, LENGTHS), expected, rtol=0, atol=0)
    assert_close(results(name, module, batch, torch.tensor(LENGTHS, dtype=torch.int32)), expected, rtol=0, atol=0)
    assert all(tensor.isfinite().all() for tensor in results(name, module, batch, [0, 0, 0]))
    assert_close(results(name, module, batch, [5, 5, 5]), results(name, module, batch, None), **CLOSE)
    if "bridge" not in name:  # whose lengths are an encoder's
        for marks in ([True, False, True], torch.tensor([True, False, True])):
            with pytest.raises(ValueError, match=r"lengths must be 3 integers, one a sequence, got torch.bool"):
                results(name, module, batch, marks)


@every_module
def test_a_module_that_has_run_is_copied_and_pickled(name):
    module, batch, lengths = made(name), drawn(name), lengths_of(name)
    outcome(name, module, batch, lengths)
    expected = outcome(name, module, batch, lengths)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert_close(outcome(name, other, batch, lengths), expected, rtol=0, atol=0)
        assert not {id(weight) for weight in other.parameters()} & {id(weight) for weight in module.parameters()}


@pytest.mark.parametrize("name", METRICS)
def test_a_score_that_has_counted_is_copied_and_pickled(name):
    metric, arguments = METRICS[name]()
    metric.update(*arguments)
    expected = metric.compute()
    for other in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        other.update(*arguments)
        assert_close(other.compute(), expected)


def test_hooks_of_a_cell_inside_a_decoder_run_at_each_step_with_what_it_takes():
    decoder, seen = made("decoder with coverage"), []
    cell = decoder.layer.layers[0].cell
    results("decoder with coverage", decoder, drawn("decoder"), LENGTHS)
    cell.register_forward_pre_hook(lambda module, args: seen.append((module, args[0].shape)))
    results("decoder with coverage", decoder, drawn("decoder"), LENGTHS)
    assert seen == [(cell, (3, cell.input_size))] * 3


def test_searches_and_blanks_take_lengths_as_a_list():
    model, source, lengths = made("Seq2Seq").eval(), drawn("Seq2Seq"), torch.tensor([5, 1, 3])
    padded = source.masked_fill(torch.arange(5) >= lengths[:, None], -1)
    for search, options in ((model.translate, {"beam_size": 2}), (model.sample, {"seed": 0})):
        expected = search(source, lengths, max_length=4, **options)
        assert search(padded, lengths.tolist(), max_length=4, **options) == expected
    for call in (model.translate, model.sample):
        with pytest.raises(ValueError, match=r"source_lengths must be 3 integers, one a source, got torch.bool"):
            call(source, [True, True, True])
    blanks, ids = made("ClozeModel"), drawn("ClozeModel").index_fill(1, torch.tensor(0), MASK)
    expected = blanks.fill(ids, lengths=torch.tensor([5, 0, 3]))
    for own in (ids, ids.masked_fill(PAST, 10**6)):
        assert_close(tuple(blanks.fill(own, lengths=[5, 0, 3])), tuple(expected))
    with pytest.raises(ValueError, match=r"lengths must be 3 integers, one a sequence, got torch.bool"):
        blanks.fill(ids, lengths=[True, False, True])
