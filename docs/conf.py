from importlib.metadata import version as installed_version
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

project = "rnn-blocks"
author = "the rnn-blocks authors"
release = version = installed_version("rnn-blocks")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "literal"  # the docstrings write code in single backticks as well
myst_heading_anchors = 3
myst_enable_extensions = ["deflist", "dollarmath"]

# The tutorials are run, and run again when their code has changed. An error in one is an error of the build.
nb_execution_mode = "cache"
nb_execution_cache_path = str(Path(__file__).resolve().parent / "_build" / ".jupyter_cache")
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

# MathJax is a part of the pages, so that formulas can be read without a network: one file, glyphs among it.
[mathjax] = find_spec("sphinx-mathjax-offline").submodule_search_locations
mathjax_path = "tex-svg.js"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"rnn-blocks {release}"
html_copy_source = False
html_show_copyright = False
html_static_path = ["_static", str(Path(mathjax, "static", "mathjax", mathjax_path))]
html_css_files = ["width.css"]

# The other packages' documentation is not looked up: the build needs no network.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|lightning|torchmetrics|jsonargparse|tokenizers|numpy|pathlib|collections|typing)(\..*)?"),
    (r"py:.*", r"optuna\..*"),
    (r"py:class", r".*\.Any(Module|Layer|Torch)"),  # type variables
    (r"py:.*", r"(pl|nn|Tensor|Path|Tokenizer|Trainer|Optimizer|MisconfigurationException)(\..*)?"),
]

PUBLIC_PLACES = ("rnn_blocks", "rnn_blocks.callbacks", "rnn_blocks.recipes")


def find_public_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.Element
) -> nodes.reference | None:
    """Lead a name by which a module knows a class to the page that documents it under its public name."""
    name = node["reftarget"].rsplit(".", 1)[-1]
    domain = env.domains["py"]
    for place in PUBLIC_PLACES:
        public = f"{place}.{name}"
        if public in domain.objects:
            return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", public, node, contnode)
    return None


def setup(app: Sphinx) -> None:
    app.connect("missing-reference", find_public_name)
