"""Copies of a module, made in every way, and runs from one seed, which tell whether two modules are the same."""

import copy
import io
import pickle

import torch
from torch import nn


def through_a_file(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def copies_of(module):
    loaded = copy.deepcopy(module)
    for parameter in loaded.parameters():
        nn.init.zeros_(parameter)
    loaded.load_state_dict(through_a_file(module.state_dict()))
    return copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded


def run_seeded(layer, *arguments, **options):
    torch.manual_seed(7)
    return layer(*arguments, **options)
