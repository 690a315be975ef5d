"""Sphinx configuration; builds without the network: make docs."""

import re

from pyro_vae.base.version import __version__

project = "pyro-vae"
author = "The pyro-vae engineers"
project_copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["_build", "examples"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"pyro-vae {version}"


def escape_stars(app, what, name, obj, options, lines):
    """Let docstrings write a shape as (B, *event_shape): the star is not the start of an emphasis."""
    lines[:] = [re.sub(r"(?<=[ (])\*(?=\w+_shape|latent event|event)", r"\\*", line) for line in lines]


def setup(app):
    app.connect("autodoc-process-docstring", escape_stars)
