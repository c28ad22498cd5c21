"""Models in a folder, and back: by huggingface_hub's mixin, on the disk alone."""

import inspect
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import huggingface_hub
import oracles
import pytest
import torch
import zoo
import zoo_layers
from torch.testing import assert_close

from rnn_blocks import (
    GRU,
    LRU,
    LSTM,
    RHN,
    Bidirectional,
    Cell,
    ClozeModel,
    Elman,
    GRUCell,
    LanguageModel,
    LSTMCell,
    MultiHeadAttention,
    Recurrent,
    RecurrentStack,
    ScheduledSampling,
    Seq2Seq,
    Stack,
    VariationalDropout,
    WeightDrop,
    cells,
)
from rnn_blocks.modules.described import NotDescribableError, describe, rebuild
from rnn_blocks.modules.hub import Pretrained

LAYERS = {
    **{name: lambda make=make: Recurrent(make(3, 4)) for name, make in zoo.CELLS.items()},
    **zoo_layers.LAYERS,
    "a stack of any cell": lambda: RecurrentStack(partial(GRUCell, reset_after=False), 3, [4, 2], bidirectional=True),
    "a stack of a class": lambda: RecurrentStack(LSTMCell, 3, 4, num_layers=2, init="orthogonal"),
    "deep both ways": lambda: RHN(3, 4, depth=2, num_layers=2, bidirectional=True, dropout=0.3),
}
SOME = (
    "lstm",
    "skip-lstm",
    "clockwork-gru",
    "dot-s-rnn",
    "zoneout-leaky-skip-lstm",
    "highway stack",
    "bidirectional",
    "variational dropout, weight drop in evaluation",
    "dilated",
    "LeakyIntegrator",
    "bidirectional sum",
    "a stack of any cell",
    "a stack of a class",
    "deep both ways",
)
MODELS = {
    "tied": lambda: LanguageModel(LSTM(6, 6, num_layers=2, dropout=0.2), 20, tie_weights=True),
    "adaptive": lambda: LanguageModel(LRU(6, 6), 20, cutoffs=[5, 9], div_value=2.0),
    "awd": lambda: LanguageModel(
        Stack([WeightDrop(LSTM(6, 8), 0.5), VariationalDropout(8, 0.3), WeightDrop(LSTM(8, 6), 0.5)]),
        20,
        embedding_dropout=0.1,
        locked_dropout=True,
    ),
    "cloze": lambda: ClozeModel(LSTM(6, 6, bidirectional=True), 20, 19, tie_weights=True),
    "translation": lambda: Seq2Seq(
        GRU(4, 6, bidirectional=True),
        LSTM(3 + 5, 5),
        9,
        11,
        attention=MultiHeadAttention(5, 12, num_heads=5),
        scheduled_sampling=ScheduledSampling("linear", k=50.0),
    ),
    "fixed vector": lambda: Seq2Seq(GRU(4, 6), GRU(4 + 6, 5), 9, 9, attention=None, input_feeding=False, bridge="mean"),
    "three-way": lambda: Seq2Seq(
        GRU(4, 6), GRU(4 + 4, 6), 9, 9, attention="dot", attentional_size=4, tie_weights="three-way"
    ),
}


class ScaledCell(GRUCell):
    """A user's own, which keeps its argument."""

    def __init__(self, input_size: int, hidden_size: int, *, scale: float = 1.0) -> None:
        super().__init__(input_size, hidden_size)
        self.scale = scale

    def step(self, projected, state):
        output, state = super().step(projected, state)
        return output * self.scale, state


class ForgetfulCell(ScaledCell):
    """A user's own, which does not."""

    def __init__(self, input_size: int, hidden_size: int, *, factor: float) -> None:
        super().__init__(input_size, hidden_size, scale=factor)


def outcome(model):
    torch.manual_seed(3)
    source = torch.randint(4, 9, (3, 5))
    with torch.no_grad():
        if isinstance(model, Seq2Seq):
            return model(source, torch.tensor([5, 2, 4]), source)
        return model(source) if isinstance(model, ClozeModel) else model(source)[0]


# Layers as plain data


@pytest.mark.parametrize("name", zoo.rest_is_slow(LAYERS, SOME))
def test_a_layer_is_made_again_from_what_describes_it(name):
    torch.manual_seed(0)
    layer = LAYERS[name]().eval()
    packages = ["oracles", "zoo_layers", "zoo_linear", "zoo_wrappers"]
    again = rebuild(json.loads(json.dumps(describe(layer))), trust=packages).eval()
    again.load_state_dict(layer.state_dict())
    inputs = torch.randn(2, 5, 3)
    state = oracles.random_state(layer.initial_state(2, inputs))
    with torch.no_grad():
        assert_close(again(inputs, state), layer(inputs, state), rtol=0, atol=0)
    assert repr(again) == repr(layer)


REQUIRED = {
    "input_size": 3,
    "hidden_size": 4,
    "periods": [1, 2],
    "layers": 2,
    "time_constant": 3.0,
    "delay": 3,
    "p": 0.3,
}
OTHERWISE = {
    "activation": "relu",
    "candidate": "positive",
    "depth": 2,
    "each_call": True,
    "eps": 1e-3,
    "forget_gate": "exponential",
    "input_size": 5,
    "learned": True,
    "max_phase": 1.0,
    "num_heads": 2,
    "output_size": 6,
    "r_max": 0.9,
    "r_min": 0.2,
    "rank": 2,
    "reset_after": False,
    "rounds": 3,
    "shortcut": True,
    "strength": 0.25,
    "time_constant": [2.0, 9.0],
    "transform_bias": -1.0,
    "width": 5,
}
OPTIONS = [
    (kind, parameter)
    for kind in vars(cells).values()
    if isinstance(kind, type) and issubclass(kind, Cell)
    for parameter in inspect.signature(kind).parameters.values()
    if parameter.default is not parameter.empty
]


@pytest.mark.parametrize(("kind", "option"), OPTIONS, ids=[f"{kind.__name__} {one.name}" for kind, one in OPTIONS])
def test_every_option_of_a_cell_is_told_from_it(kind, option):
    required = [one for one in inspect.signature(kind).parameters.values() if one.default is one.empty]
    given = {one.name: GRUCell(3, 4) if one.name == "cell" else REQUIRED[one.name] for one in required}
    nonlinearity = "tanh" if option.default == "relu" else "relu"
    value = nonlinearity if option.name == "nonlinearity" else OTHERWISE[option.name]
    assert value != option.default
    assert describe(kind(**given, **{option.name: value}))["init_args"][option.name] == value


def test_to_describe_a_layer_draws_no_random_number():
    layer = GRU(3, 4)
    before = torch.get_rng_state()
    describe(layer)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_cannot_be_told_from_a_layer_is_refused_and_named():
    with pytest.raises(NotDescribableError, match=r"ForgetfulCell: its argument 'factor' cannot be told from it"):
        describe(Recurrent(ForgetfulCell(3, 4, factor=2.0)))


def test_a_layer_that_was_changed_after_it_was_made_is_refused():
    layer = LSTM(3, 4, num_layers=2)
    layer.layers[1].cell = GRUCell(4, 4)
    with pytest.raises(NotDescribableError, match=r"layers.1.cell would be LSTMCell, not GRUCell"):
        describe(layer)
    lopsided = Bidirectional(LSTM(3, 4, num_layers=2, dropout=0.1), LSTM(3, 4, num_layers=2, dropout=0.2))
    assert [way.dropout for way in rebuild(describe(lopsided)).children()] == [0.1, 0.2]


def test_a_class_in_no_module_is_refused():
    class Local(GRU):
        pass

    with pytest.raises(NotDescribableError, match="Local lies in no module that could be imported"):
        describe(Local(3, 4))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("subprocess.Popen", r"only classes of rnn_blocks, torch are; .* trust=\['subprocess'\]"),
        ("torch.hub.load", "'torch.hub.load' is no class"),
        ("torch.os.system", "there is no class 'torch.os.system'"),
        ("torch.subprocess.Popen", "there is no class|is no class"),
        ("rnn_blocks.recipes.data.store.PreparedText", "it is no module, optimizer or schedule"),
        ("torch.utils.data.DataLoader", "it is no module, optimizer or schedule"),
        ("rnn_blocks.Nothing", "there is no class 'rnn_blocks.Nothing'"),
        ("rnn_blocks", "there is no class"),
        (7, "describes no object"),
    ],
)
def test_nothing_but_parts_of_models_is_made_of_a_configuration(path, message):
    with pytest.raises(ValueError, match=message):
        rebuild({"class_path": path, "init_args": {}})


# Models in a folder


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_from_its_folder_bit_for_bit(name, tmp_path: Path):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = type(model).from_pretrained(tmp_path)
    assert not again.training
    assert_close(outcome(again), outcome(model), rtol=0, atol=0)
    shared = [len({p.data_ptr() for p in m.parameters()}) for m in (model, again)]
    assert shared[0] == shared[1], "tied weights are tied again"
    assert again.configuration() == model.configuration()
    if isinstance(model, LanguageModel):
        assert torch.equal(again.generate([3, 1], 5, seed=0), model.generate([3, 1], 5, seed=0))
    elif isinstance(model, Seq2Seq):
        assert again.translate(torch.tensor([[4, 2]])) == model.translate(torch.tensor([[4, 2]]))


def test_models_are_huggingface_hubs():
    assert issubclass(Pretrained, huggingface_hub.ModelHubMixin)
    assert isinstance(MODELS["tied"](), huggingface_hub.ModelHubMixin)


def test_an_optimizer_that_is_a_part_of_a_class_is_kept(tmp_path: Path):
    schedule = partial(torch.optim.lr_scheduler.StepLR, step_size=3)
    model = LanguageModel(GRU(4, 4), 9, optimizer=partial(torch.optim.SGD, lr=0.5), lr_scheduler=schedule)
    model.save_pretrained(tmp_path)
    configured = LanguageModel.from_pretrained(tmp_path).configure_optimizers()
    assert configured["optimizer"].defaults["lr"] == 0.5
    assert configured["lr_scheduler"]["scheduler"].step_size == 3


def test_a_layer_that_cannot_be_kept_is_asked_for_by_name(tmp_path: Path):
    layer = Recurrent(ForgetfulCell(4, 4, factor=2.0))
    model = LanguageModel(layer, 9).eval()
    with pytest.warns(UserWarning, match=r"'layer' is not kept: .*'factor'.* from_pretrained\(folder, layer=…\)"):
        model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"give from_pretrained layer=…: it could not be kept, as .*'factor'"):
        LanguageModel.from_pretrained(tmp_path)
    again = LanguageModel.from_pretrained(tmp_path, layer=Recurrent(ForgetfulCell(4, 4, factor=2.0)))
    assert_close(outcome(again), outcome(model), rtol=0, atol=0)


def test_a_users_own_cell_is_made_where_its_package_is_trusted_alone(tmp_path: Path):
    model = LanguageModel(Recurrent(ScaledCell(4, 4, scale=3.0)), 9).eval()
    model.save_pretrained(tmp_path)
    package = ScaledCell.__module__.partition(".")[0]
    assert package in sys.modules
    with pytest.raises(ValueError, match=re.escape(f"trust=[{package!r}]")):
        LanguageModel.from_pretrained(tmp_path)
    again = LanguageModel.from_pretrained(tmp_path, trust=[package])
    assert_close(outcome(again), outcome(model), rtol=0, atol=0)


def test_what_is_no_folder_of_such_a_model_is_refused(tmp_path: Path):
    MODELS["tied"]().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds a rnn_blocks\.LanguageModel, which is no Seq2Seq"):
        Seq2Seq.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="takes no 'dropuot'; did you mean dropout"):
        LanguageModel.from_pretrained(tmp_path, dropuot=0.5)
    with pytest.raises(ValueError, match=r"model.safetensors does not fit the model of its config.json"):
        LanguageModel.from_pretrained(tmp_path, layer=Elman(6, 6))
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"model.safetensors does not fit"):
        LanguageModel.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no model.safetensors"):
        LanguageModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"holds no config.json"):
        LanguageModel.from_pretrained(tmp_path)


@pytest.mark.slow
def test_without_huggingface_hub_models_are_made_all_the_same_and_say_what_to_install():
    script = """
import sys
for name in ("huggingface_hub", "safetensors"):
    sys.modules[name] = None
import importlib.util
find_spec = importlib.util.find_spec
gone = ("huggingface_hub", "safetensors")
importlib.util.find_spec = lambda name, *rest: None if name in gone else find_spec(name, *rest)
import rnn_blocks
model = rnn_blocks.LanguageModel(rnn_blocks.GRU(4, 4), 9)
for call in (model.save_pretrained, model.push_to_hub, rnn_blocks.LanguageModel.from_pretrained):
    try:
        call("mine")
    except ImportError as error:
        print(error)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=200)
    said = "huggingface_hub, safetensors: not installed; this needs pip install 'rnn-blocks[export]'"
    assert ended.stdout.splitlines() == [said] * 3


def test_push_to_hub_uploads_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, seen = MODELS["tied"]().eval(), {}

    def upload(self, *, folder_path, **options):
        again = LanguageModel.from_pretrained(folder_path)
        seen.update(options, same=torch.equal(outcome(again), outcome(model)))
        return "there"

    created = huggingface_hub.RepoUrl("https://huggingface.co/me/mine")
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, repo_id, **options: created)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    assert model.push_to_hub("me/mine") == "there"
    assert (seen["repo_id"], seen["same"]) == ("me/mine", True)


def test_the_card_names_the_task_the_metrics_and_the_configuration():
    card = MODELS["translation"]().generate_model_card(metrics={"val/bleu": 31.25})
    assert card.data.pipeline_tag == "translation"
    assert "| val/bleu | 31.25 |" in card.content
    assert '"class_path": "rnn_blocks.GRU"' in card.content
