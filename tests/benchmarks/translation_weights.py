"""The weights of `Seq2Seq` in JoeyNMT's names: both sides of `translation_race.py` translate with one trained model.

The two are the same function where attention has no bias at its keys (`"concat"`) and the output layer's is zero, as
JoeyNMT has them. Its recurrences have a second bias, zero but in the candidate. Its special pieces have other numbers:
`<unk>` is its first.
"""

import torch
from torch import Tensor

_DIRECTIONS = {"forward_layer": "", "backward_layer": "_reverse"}
_OF_PIECES = {  # a row a piece
    "src_embed.lut.weight": "encoder.embedding.weight",
    "trg_embed.lut.weight": "decoder.embedding.weight",
    "decoder.output_layer.weight": "decoder.output.weight",
}
_RENAMED = {
    "decoder.bridge_layer.weight": "bridge.state_layer.weight",
    "decoder.bridge_layer.bias": "bridge.state_layer.bias",
    "decoder.attention.key_layer.weight": "decoder.recurrent.cell.attention.key_layer.weight",
    "decoder.attention.query_layer.weight": "decoder.recurrent.cell.attention.query_layer.weight",
    "decoder.att_vector_layer.weight": "decoder.recurrent.cell.combine.weight",
    "decoder.att_vector_layer.bias": "decoder.recurrent.cell.combine.bias",
}


def joey_weights(ours: dict[str, Tensor], numbers: list[int]) -> dict[str, Tensor]:
    """The `model_state` of a JoeyNMT checkpoint; `numbers` are JoeyNMT's of our pieces, in our order."""
    if sorted(numbers) != list(range(len(ours["decoder.output.weight"]))):
        raise ValueError("JoeyNMT's vocabulary does not hold the pieces of this model, each once")
    if ours["decoder.output.bias"].any():
        raise ValueError("JoeyNMT's output layer has no bias, but this model's is not zero")
    theirs = {name: ours[other] for name, other in _RENAMED.items()}
    rows = torch.tensor(numbers).argsort()
    theirs |= {name: ours[other][rows] for name, other in _OF_PIECES.items()}
    theirs["decoder.attention.energy_layer.weight"] = ours["decoder.recurrent.cell.attention.v"][None]
    for layer, ending in _DIRECTIONS.items():
        theirs |= _gru("encoder", f"encoder.layer.layers.0.{layer}.cell", ours, ending)
    return theirs | _gru("decoder", "decoder.recurrent.cell.layer.layers.0.cell", ours)


def _gru(part: str, cell: str, ours: dict[str, Tensor], ending: str = "") -> dict[str, Tensor]:
    candidate = ours[f"{cell}.bias_hn"]
    second = torch.cat([candidate.new_zeros(2 * len(candidate)), candidate])
    weights = {"weight_ih": ours[f"{cell}.weight_ih"], "weight_hh": ours[f"{cell}.weight_hh"]}
    weights |= {"bias_ih": ours[f"{cell}.bias"], "bias_hh": second}
    return {f"{part}.rnn.{name}_l0{ending}": weight for name, weight in weights.items()}
