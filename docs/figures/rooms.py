"""The house: its floors, the rooms on each, and which imports which. ``python docs/figures/rooms.py`` draws it.

Rooms are those of the table in ``tests/test_packaging.py``, one within another drawn as one; arrows are the imports
that the code has, read anew, but for those that follow from others.
"""

import sys
from pathlib import Path

from draw import BLUE, FAINT, GREEN, GREY, INK, LILAC, ORANGE, Picture
from matplotlib.patches import FancyBboxPatch, Patch

sys.path.append(str(Path(__file__).parents[2] / "tests"))

from test_packaging import MAY_IMPORT, MODULES, imported, room_of

FLOORS = {  # from the ground up
    "engine": ("running a step over time, fast", GREY),
    "cells": ("one step of time each", BLUE),
    "layers": ("a sequence in, a sequence out", BLUE),
    "seq2seq": ("encoder, bridge, attention, decoder, search", GREEN),
    "modules": ("LightningModules", GREEN),
    "callbacks": ("for any Lightning project", ORANGE),
    "recipes": ("trainings from the command line", LILAC),
}
WIDTH, MARGIN, LEVEL, BOX, GAP = 21.0, 4.6, 1.15, 0.74, 0.3
Edges = dict[str, set[str]]


def outer_room_of(module: str) -> str:
    """The room of a module that lies in no other one, such as ``recipes.data``."""
    return ".".join(room_of(module).split(".")[:2])


def imports_of_rooms() -> Edges:
    """By room, the other rooms that its modules import from, but for faces, which only hand on."""
    edges: Edges = {}
    for module, path in MODULES.items():
        room = outer_room_of(module)
        if floor_of(room) in FLOORS and not room.endswith("__init__"):
            ends = {outer_room_of(name) for name in imported(path) if name.startswith("rnn_blocks")} - {room}
            edges.setdefault(room, set()).update(ends)
    return edges


def inner_rooms(room: str) -> list[str]:
    """The names of the rooms within a room."""
    return [other.removeprefix(f"{room}.") for other in MAY_IMPORT if "." in room and other.startswith(f"{room}.")]


def floor_of(room: str) -> str:
    """The floor that a room is on."""
    return room.partition(".")[0]


def reachable(room: str, edges: Edges) -> set[str]:
    """All rooms that can be come to from one."""
    return {room}.union(*(reachable(below, edges) for below in edges[room]))


def without_what_follows(edges: Edges) -> Edges:
    """The edges that no way over other rooms stands for."""
    return {
        room: {end for end in ends if not any(end in reachable(other, edges) for other in ends - {end})}
        for room, ends in edges.items()
    }


def levels_of(edges: Edges) -> list[list[str]]:
    """Rooms by the length of the longest way down, those of a level ordered by where their arrows end."""
    depth: dict[str, int] = {}

    def measure(room: str) -> int:
        depth[room] = 1 + max((measure(below) for below in edges[room]), default=-1)
        return depth[room]

    for room in edges:
        measure(room)
    levels: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    place: dict[str, float] = {}
    for number in range(len(levels)):
        rooms = [room for room in edges if depth[room] == number]
        ends = {room: [place[below] for below in edges[room]] for room in rooms}
        rooms.sort(key=lambda room: sum(ends[room]) / len(ends[room]) if ends[room] else 0.0)
        place |= {room: (index + 0.5) / len(rooms) for index, room in enumerate(rooms)}
        levels[number] = rooms
    return levels


def num_lines(room: str) -> int:
    """Lines of a room's modules, to a hundred and at least one: of a picture that need not be drawn again each time."""
    lines = sum(len(path.read_text().splitlines()) for module, path in MODULES.items() if outer_room_of(module) == room)
    return max(round(lines, -2), 100)


def draw_floor(picture: Picture, floor: str, bottom: float, edges: Edges, below: list[str]) -> float:
    """A band with the floor's rooms and the arrows between them; returns where it ends."""
    about, colour = FLOORS[floor]
    rooms = [room for room in edges if floor_of(room) == floor]
    inner = without_what_follows({room: edges[room] & set(rooms) for room in rooms})
    levels = levels_of(inner)
    height = LEVEL * len(levels) + 0.25
    band = FancyBboxPatch(
        (0.2, bottom), WIDTH - 0.4, height, "round,pad=0,rounding_size=0.2", fc=colour, ec=FAINT, lw=1, alpha=0.45
    )
    picture.axes.add_patch(band)
    middle = bottom + height / 2
    picture.text(0.5, middle + 0.32, floor, size=14, align="left")
    picture.text(0.5, middle - 0.08, about, size=8.5, align="left")
    beneath = "all floors below" if len(below) == len(FLOORS) - 1 else ", ".join(below) or "torch alone"
    picture.text(0.5, middle - 0.42, f"imports {beneath}", size=7.5, colour="#5b6875", align="left")
    boxes: dict[str, Patch] = {}
    for number, level in enumerate(levels):
        labels = [room.partition(".")[2] or "its own files" for room in level]
        within = ["".join(f"{name}, " for name in inner_rooms(room)) for room in level]
        told = [f"{inner}{num_lines(room):,} lines" for inner, room in zip(within, level, strict=True)]
        widths = [
            max(1.6, 0.155 * len(label) + 0.5, 0.115 * len(text)) for label, text in zip(labels, told, strict=True)
        ]
        spare = WIDTH - MARGIN - 0.5 - sum(widths)
        x, y = MARGIN + spare / (len(level) + 1), bottom + LEVEL * (number + 0.5) + 0.12
        for room, label, text, width in zip(level, labels, told, widths, strict=True):
            boxes[room] = picture.box(x + width / 2, y, "", "white", width=width, height=BOX)
            picture.text(x + width / 2, y + 0.12, label, size=9.5)
            picture.text(x + width / 2, y - 0.17, text, size=7, colour="#5b6875")
            x += width + spare / (len(level) + 1)
    level_of = {room: number for number, level in enumerate(levels) for room in level}
    for room, ends in inner.items():
        for end in ends:  # what passes a level by goes around its boxes
            bend = 0.0 if level_of[room] - level_of[end] == 1 else 0.28
            picture.arrow(boxes[room], boxes[end], colour=INK, width=0.9, bend=bend)
    return bottom + height + GAP


def main() -> None:
    """Draw all floors into one picture."""
    edges = imports_of_rooms()
    heights = 0.0
    for floor in FLOORS:
        rooms = [room for room in edges if floor_of(room) == floor]
        levels = levels_of(without_what_follows({room: edges[room] & set(rooms) for room in rooms}))
        heights += LEVEL * len(levels) + 0.25 + GAP
    picture = Picture(WIDTH, heights + GAP)
    bottom = GAP
    for floor in FLOORS:
        ends = {floor_of(end) for room in edges if floor_of(room) == floor for end in edges[room]} - {floor}
        bottom = draw_floor(picture, floor, bottom, edges, [other for other in FLOORS if other in ends])
    picture.save("rooms")


if __name__ == "__main__":
    main()
