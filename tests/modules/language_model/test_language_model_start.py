"""What a language model is made of, and which weights it starts from."""

import pytest
import torch

from rnn_blocks import (
    GRU,
    LRU,
    LSTM,
    RGLRU,
    RHN,
    SRU,
    IndRNN,
    LanguageModel,
    LayerNormGRU,
    LayerNormLSTM,
    LearnedState,
    LRUCell,
    Recurrent,
)


def test_init_range_draws_every_matrix_uniformly():
    model = LanguageModel(LSTM(40, 40), 300, init_range=0.03)
    matrices = {name: parameter for name, parameter in model.named_parameters() if parameter.dim() > 1}
    assert len(matrices) == 4
    for name, matrix in matrices.items():
        assert matrix.abs().max() <= 0.03, name
        assert matrix.abs().max() > 0.029, name
        assert matrix.std().item() == pytest.approx(0.03 / 3**0.5, rel=0.15), name
    assert not model.output.bias.any()


@pytest.mark.parametrize("layer", [LSTM, LayerNormLSTM, LayerNormGRU, LRU, RGLRU, IndRNN, RHN, SRU])
def test_init_range_leaves_gains_decays_and_biases_as_the_cell_says(layer):
    made = layer(8, 8)
    vectors = {name: value.clone() for name, value in made.named_parameters() if value.dim() < 2}
    model = LanguageModel(made, 30, init_range=0.01)
    now = dict(model.layer.named_parameters())
    assert vectors
    assert all(torch.equal(value, now[name]) for name, value in vectors.items())
    assert all(value.abs().max() <= 0.01 for value in now.values() if value.dim() > 1)


def test_init_range_leaves_a_first_state_that_is_learned_at_zero():
    cell = LearnedState(LRUCell(8, 8))  # of complex numbers, which are pairs of real ones
    model = LanguageModel(Recurrent(cell), 30, init_range=0.01)
    assert cell.starts[0].dim() == 2
    assert not cell.starts[0].any()
    assert 0.005 < model.embedding.weight.abs().max() <= 0.01


def test_init_range_is_taken_without_numbers():
    with torch.device("meta"):
        layer = LSTM(8, 8)
        torch.nn.utils.parametrizations.weight_norm(layer.layers[0].cell, "weight_hh")
        model = LanguageModel(layer, 30, init_range=0.01)
    assert model.embedding.weight.is_meta


@pytest.mark.parametrize("tie_weights", [False, True])
def test_init_range_draws_a_weight_that_is_computed(tie_weights):
    layer = LSTM(8, 8)
    torch.nn.utils.parametrizations.weight_norm(layer.layers[0].cell, "weight_hh")
    torch.nn.utils.prune.l1_unstructured(layer.layers[0].cell, "weight_ih", amount=0.5)
    pruned = layer.layers[0].cell.weight_ih == 0
    model = LanguageModel(layer, 30, init_range=0.01, tie_weights=tie_weights)
    cell = model.layer.layers[0].cell
    assert 0.005 < cell.weight_hh.abs().max() <= 0.01 + 1e-6
    assert (cell.parametrizations.weight_hh.original0 > 0).all()
    assert torch.equal(cell.weight_ih == 0, pruned)
    assert 0.005 < cell.weight_ih.abs().max() <= 0.01
    assert (model.output.weight is model.embedding.weight) == tie_weights
    assert 0.005 < model.output.weight.abs().max() <= 0.01


def test_without_init_range_the_layers_weights_stay_as_its_cells_drew_them():
    layer = LSTM(40, 40)
    before = [parameter.clone() for parameter in layer.parameters()]
    model = LanguageModel(layer, 300)
    assert all(map(torch.equal, before, layer.parameters()))
    assert not model.output.bias.any()
    for weight in (model.embedding.weight, model.output.weight):
        assert 0.099 < weight.abs().max() <= 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"dropout": -0.5}, "dropout must be at least 0 and below 1, got -0.5"),
        ({"lr_interval": "batch"}, "lr_interval must be 'epoch' or 'step', got 'batch'"),
        ({"init_range": -0.1}, "init_range must be above 0, got -0.1"),
        ({"init_range": 0.0}, "init_range must be above 0, got 0.0"),
        ({"layer": GRU(6, 5), "tie_weights": True}, "got input_size 6 and output_size 5"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LanguageModel(**{"layer": LSTM(6, 6), "vocab_size": 30} | options)
    with pytest.raises(ValueError, match="vocab_size must be at least 2, got 1"):
        LanguageModel(LSTM(6, 6), 1)
