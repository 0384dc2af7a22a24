"""Settings of Sphinx: `make docs` writes the pages to docs/_build."""

from __future__ import annotations

from tenflex._version import __version__

project = "tenflex"
author = "The tenflex developers"
project_copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
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
