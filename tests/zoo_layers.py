"""Layers for the tests of every layer, of input size 3."""

from collections.abc import Callable

from rnn_blocks import Layer

LAYERS: dict[str, Callable[..., Layer]] = {}
