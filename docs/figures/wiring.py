"""The wiring of the blocks, unrolled over a few steps: ``python docs/figures/wiring.py`` draws all of it."""

from itertools import pairwise

from draw import BLUE, FAINT, GREEN, GREY, INK, LILAC, ORANGE, RED, TEAL, Picture, Place
from matplotlib.patches import Patch


def cell_and_layer() -> None:
    """One step, and the sequence that a layer makes of it."""
    picture = Picture(13.4, 4.9)
    picture.title(0.5, 4.45, "a cell: one step")
    picture.title(5.2, 4.45, "a layer: a sequence in, a sequence out")
    x = picture.box(2.4, 0.8, "$x_t$", GREY)
    project = picture.box(2.4, 1.85, "project", "white", width=1.5)
    step = picture.box(2.4, 2.9, "step", BLUE, width=1.5)
    output = picture.box(2.4, 3.85, "$y_t$", GREEN)
    for start, end in [(x, project), (project, step), (step, output)]:
        picture.arrow(start, end)
    picture.arrow((0.75, 2.9), step, colour=TEAL, width=1.6)
    picture.arrow(step, (4.05, 2.9), colour=TEAL, width=1.6)
    picture.text(0.98, 3.22, "$s_{t-1}$", colour=TEAL)
    picture.text(3.72, 3.22, "$s_t$", colour=TEAL)

    columns = [6.7, 8.4, 10.1, 11.8]
    steps = [picture.box(c, 2.9, "step", BLUE, width=1.0) for c in columns]
    picture.box(9.25, 1.85, "project: all steps in one product", "white", width=6.1)
    for k, (c, one) in enumerate(zip(columns, steps, strict=True), start=1):
        picture.arrow(picture.box(c, 0.8, f"$x_{k}$", GREY), (c, 1.53))
        picture.arrow((c, 2.17), one)
        picture.arrow(one, picture.box(c, 3.85, f"$y_{k}$", GREEN))
    places: list[Place] = [(5.25, 2.9), *steps, (13.1, 2.9)]
    for start, end in pairwise(places):
        picture.arrow(start, end, colour=TEAL, width=1.6)
    picture.text(5.5, 3.22, "$s_0$", colour=TEAL)
    picture.text(12.75, 3.22, "$s_4$", colour=TEAL)
    picture.save("cell_and_layer")


def bidirectional() -> None:
    """Past and future of each word."""
    picture = Picture(11.9, 5.3)
    columns = [2.7, 4.8, 6.9, 9.0]
    words = ["Twinkle", "twinkle", "___", "star"]
    xs = [picture.box(c, 0.98, f"$x_{k}$", GREY) for k, c in enumerate(columns, start=1)]
    ahead = [picture.box(c - 0.42, 2.15, f"$h_{k}$", BLUE, width=0.78) for k, c in enumerate(columns, start=1)]
    back = [picture.box(c + 0.42, 3.15, f"$g_{k}$", ORANGE, width=0.78) for k, c in enumerate(columns, start=1)]
    ys = [picture.box(c, 4.45, f"$y_{k}$", GREEN) for k, c in enumerate(columns, start=1)]

    def connect(start: Place, end: Place, reaches_blank: bool) -> None:
        picture.arrow(start, end, colour=RED if reaches_blank else INK, width=1.7 if reaches_blank else 1.2)

    for k, (x, h, g, y) in enumerate(zip(xs, ahead, back, ys, strict=True)):
        connect(x, h, k <= 1)
        connect(x, g, k == 3)
        connect(h, y, k == 2)
        connect(g, y, k == 2)
    right: list[Place] = [(0.95, 2.15), *ahead, (11.2, 2.15)]
    left: list[Place] = [(11.2, 3.15), *back[::-1], (0.95, 3.15)]
    for k, (start, end) in enumerate(pairwise(right)):
        connect(start, end, k in (1, 2))
    for k, (start, end) in enumerate(pairwise(left)):
        connect(start, end, k == 1)
    for c, word in zip(columns, words, strict=True):
        picture.text(c, 0.45, word, size=10)
    picture.text(7.45, 4.45, "little", size=10, colour=RED, align="left")
    picture.text(0.9, 2.42, "forward", size=10, align="left")
    picture.text(11.2, 3.42, "backward", size=10, align="right")
    picture.save("bidirectional")


def deep() -> None:
    """The ways of figure 10.13, and the deep output."""
    picture = Picture(17.7, 5.9)
    names = ["a  Stack: sRNN", "b  DeepTransition: DT", "c  … with shortcut: DT(S)", "d  … and DeepOutput: DOT(S)"]
    for number, name in enumerate(names):
        left = 0.5 + 4.25 * number
        picture.title(left, 5.45, name)
        columns = [left + 0.5 + 1.4 * k for k in range(3)]
        previous: list[Patch] = []
        for k, c in enumerate(columns):
            h = picture.box(c, 2.0, _at("h", k), BLUE)
            picture.arrow(picture.box(c, 0.75, _at("x", k), GREY), h)
            tower = [h]
            if number == 0:
                tower.append(picture.box(c, 3.3, _at("z", k), ORANGE))
            if number == 3:
                tower.append(picture.box(c, 3.45, "MLP", LILAC, width=0.95))
            tower.append(picture.box(c, 4.6, _at("y", k), GREEN))
            for below, above in pairwise(tower):
                picture.arrow(below, above)
            states = tower[:2] if number == 0 else [h]
            if previous and number == 0:
                for old, new in zip(previous, states, strict=True):
                    picture.arrow(old, new)
            elif previous:
                layer = picture.box(c - 0.7, 2.72, "φ", LILAC, width=0.5, height=0.46)
                picture.arrow(previous[0], layer)
                picture.arrow(layer, h)
                if number > 1:
                    picture.arrow(previous[0], h, colour=RED, width=1.7)
            previous = states
    picture.save("deep")


def skips_across_layers() -> None:
    """What a stack's ``skip`` adds, at one step of time."""
    picture = Picture(14.6, 8.1)
    for number, skip in enumerate(["residual", "highway", "dense", "input"]):
        c = 1.85 + 3.6 * number
        picture.title(c - 1.3, 7.65, f'skip="{skip}"')
        added = skip in ("residual", "highway")
        layers = [picture.box(c, 2.0 + 1.75 * k, f"layer {k}", BLUE, width=1.35) for k in range(3)]
        below = picture.box(c, 0.75, "$x$", GREY)
        for k, layer in enumerate(layers):
            picture.arrow(below, layer)
            below = layer
            if not added:
                continue
            low, high = (1.4 if k else 1.25) + 1.75 * k, 2.8 + 1.75 * k
            below = picture.sign(c, high, "+" if skip == "residual" else "$t$")
            picture.arrow(layer, below)
            picture.route([(c, low), (c + 1.05, low), (c + 1.05, high), (c + 0.22, high)], colour=RED, width=1.7)
        picture.arrow(below, picture.box(c, 7.0, "$y_2$", GREEN))
        for k in range(2):
            picture.text(c - 0.4, (3.27 if added else 2.78) + 1.75 * k, f"$y_{k}$")
        if not added:
            for k in (1, 2):
                top = 2.0 + 1.75 * k - 0.33
                turn = [(c + 1.05, 1.24), (c + 1.05, top - 0.42), (c + 0.42, top - 0.42), (c + 0.42, top)]
                picture.route([(c, 1.24), *turn], colour=RED, width=1.7)
        if skip == "dense":
            turn = [(c - 1.05, 2.5), (c - 1.05, 4.77), (c - 0.42, 4.77), (c - 0.42, 5.17)]
            picture.route([(c, 2.5), *turn], colour=RED, width=1.7)
    picture.save("skips_across_layers")


def skips_through_time() -> None:
    """The edges that skips through time, dilation and clocks make between steps."""
    picture = Picture(18.6, 5.5)
    picture.title(0.5, 5.15, "SkipThroughTime, delay 3")
    columns = [0.95 + 1.0 * k for k in range(6)]
    states = [picture.box(c, 2.55, f"$h_{k}$", BLUE, width=0.64, height=0.56) for k, c in enumerate(columns, start=1)]
    for k, (c, state) in enumerate(zip(columns, states, strict=True), start=1):
        picture.arrow(picture.box(c, 1.3, f"$x_{k}$", GREY, width=0.64, height=0.56), state)
    for old, new in pairwise(states):
        picture.arrow(old, new)
    for old, new in zip(columns, columns[3:], strict=False):
        picture.arrow((old + 0.12, 2.85), (new - 0.12, 2.85), bend=-0.5, colour=RED, width=1.7)
    picture.text(3.45, 3.95, "$s$ · $h_{t-3}$", colour=RED)
    picture.text(3.45, 0.5, "both paths through the same weights", size=10)
    picture.text(9.35, 0.5, "each layer reads its own past, d steps back", size=10)
    picture.text(14.85, 0.5, "hollow: stays as it was", size=10)

    picture.title(7.0, 5.15, "Dilated, [1, 2, 4]")
    columns = [7.25 + 0.6 * k for k in range(8)]
    for row, (dilation, colour) in enumerate([(0, GREY), (1, BLUE), (2, BLUE), (4, BLUE)]):
        y = 1.0 + 1.05 * row
        nodes = [picture.dot(c, y, colour) for c in columns]
        for c, node in zip(columns, nodes, strict=True):
            if dilation:
                picture.arrow((c, y - 0.9), node, colour=FAINT, width=0.9)
        for old, new in zip(columns, columns[dilation:], strict=False):
            if dilation > 1:
                picture.arrow((old + 0.05, y + 0.15), (new - 0.05, y + 0.16), bend=-0.45, colour=RED, width=1.4)
        for old, new in pairwise(nodes):
            if dilation == 1:
                picture.arrow(old, new, colour=RED, width=1.4)

    picture.title(12.6, 5.15, "Clockwork, [1, 2, 4]")
    columns = [12.9 + 0.55 * k for k in range(8)]
    for c in columns:
        picture.arrow(picture.dot(c, 1.0, GREY), (c, 1.72), colour=FAINT, width=0.9)
    for row, period in enumerate([1, 2, 4]):
        y = 2.05 + 1.05 * row
        for k, c in enumerate(columns):
            due = k % period == 0
            picture.dot(c, y, BLUE if due else "white", edge=INK if due else FAINT)
            if k:
                picture.axes.plot([c - 0.4, c - 0.15], [y, y], color=INK if due else RED, lw=1.2 if due else 1.7)
        picture.text(17.05, y, f"every {period}", size=10, align="left")
    picture.save("skips_through_time")


def _at(letter: str, k: int) -> str:
    return f"${letter}_{{t{k - 1:+d}}}$" if k != 1 else f"${letter}_t$"


def main() -> None:
    """All of them."""
    for draw in (cell_and_layer, bidirectional, deep, skips_across_layers, skips_through_time):
        draw()


if __name__ == "__main__":
    main()
