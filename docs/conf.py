"""Settings of the documentation site, which ``make docs`` builds from the pages that docs/site.py gathers."""

from bqdispatch_provider import __version__

project = "airflow-provider-bqdispatch"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = "BqTail dispatch for Airflow"
exclude_patterns = ["files"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
nitpicky = True
# Objects of other packages, and of the rooms behind what users import, have no pages here.
nitpick_ignore_regex = [
    ("py:.*", r"(?!bqdispatch_provider).*"),
    ("py:.*", r"bqdispatch_provider\.(core|cycle|delivery|gcp|config_keys|testing)\..*"),
]
