"""A model of two parts, its optimizer, and a step of it."""

import torch
from torch import nn

from rnn_blocks.callbacks import Auto

BOUNDED = Auto(longest_update=0.05)


def two_parts(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    return model, torch.optim.Adam(model.parameters(), **{"lr": 0.1, **options})


def backward(model, scale=1.0):
    model.zero_grad()
    (scale * model(torch.ones(2, 3))).sum().backward()
