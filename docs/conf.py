"""Settings of Sphinx: `make docs` writes the pages to docs/_build."""

from __future__ import annotations

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

from tenflex._version import __version__

project = "tenflex"
author = "The tenflex developers"
project_copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "tenflex"

default_role = "code"  # docstrings mark code by single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "imported-members": True}

myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
# The README links to files beside the documentation, as they are read on a forge; the tests check that they exist.
suppress_warnings = ["myst.xref_missing"]


def of_properties(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """A property is described in a sentence: what stands before a colon in it is no type, as napoleon takes it."""
    if what == "property" and lines and re.match(r"[^:`]+: ", lines[0]):
        lines[0] = lines[0].replace(": ", "\\: ", 1)


def mathml(node: nodes.Element, display: str) -> str:
    """A formula in MathML; a prime before an exponent is written as part of it, which the converter wants."""
    text = re.sub(r"'\^(\{[^{}]*\}|\w|\\\w+)", lambda one: "^{\\prime " + one[1].strip("{}") + "}", node.astext())
    try:
        return str(convert(text, display=display))
    except Exception as error:
        raise ValueError(f"cannot write as MathML: {text}") from error


def inline(self: HTML5Translator, node: nodes.math) -> None:
    """A formula as browsers draw it themselves: pages need no script, and nothing from a network."""
    self.body.append(mathml(node, "inline"))
    raise nodes.SkipNode


def block(self: HTML5Translator, node: nodes.math_block) -> None:
    """A formula of its own."""
    self.body.append(f'<div class="math" style="overflow-x:auto">{mathml(node, "block")}</div>')
    raise nodes.SkipNode


html_math_renderer = "mathml"


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", of_properties, priority=100)
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
