"""Cells for the tests of every cell, with their equations: linear."""

from collections.abc import Callable

from rnn_blocks import Cell

CELLS: dict[str, Callable[[int, int], Cell]] = {}
