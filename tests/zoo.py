"""Every cell there is, plain and wrapped, by name: what the properties that hold for all cells are tested on."""

import oracles
import zoo_gated
import zoo_linear
import zoo_wrappers

CELLS = {
    **oracles.CELLS,
    "own": oracles.LeakySum,
    **zoo_gated.CELLS,
    **zoo_linear.CELLS,
    **zoo_wrappers.CELLS,
}
