"""Configuration of the documentation site; CONTRIBUTING.md says how to build it."""

import csv
import socket
import sys
import zlib
from pathlib import Path

from docutils import nodes
from docutils.utils.math import latex2mathml
from sklearn.base import BaseEstimator
from sphinx_gallery.sorting import ExplicitOrder

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import skve  # noqa: E402

project = "skve"
author = "The skve developers"
version = release = skve.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "numpydoc",
    "myst_nb",  # guides in Markdown, and notebooks
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "auto_examples/*.md5", "auto_examples/*.ipynb"]  # a notebook of each example
templates_path = ["_templates"]
default_role = "literal"  # docstrings write `parameters` with single backticks

# Docstrings
autosummary_generate = True
autosummary_context = {
    # Methods that every estimator of scikit-learn has, which scikit-learn documents.
    "foreign": [*dir(BaseEstimator), "fit_transform", "get_feature_names_out", "set_output"]
    + [f"set_{method}_request" for method in ("fit", "partial_fit", "score", "predict", "transform")],
}
toc_object_entries_show_parents = "hide"
autodoc_typehints = "none"  # numpydoc's sections say more
numpydoc_show_class_members = False
numpydoc_xref_param_type = True
numpydoc_xref_ignore = "all"
numpydoc_xref_aliases = {
    "DataFrame": "pandas.DataFrame",
    "RandomState": "numpy.random.RandomState",
    "sklearn.exceptions.NotFittedError": "sklearn.exceptions.NotFittedError",
    "sklearn.utils.Bunch": "sklearn.utils.Bunch",
    "torch.device": "torch.device",
    "torch.nn.Module": "torch.nn.Module",
    "torch.nn.Sequential": "torch.nn.Sequential",
}

# Guides
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4

# Notebooks are stored without outputs, and run when their page is built.
nb_execution_mode = "auto"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_show_tb = True

# Gallery
EXAMPLES = [
    "plot_first_look.py",
    "plot_members.py",
    "plot_report.py",
    "plot_risk_coverage.py",
    "plot_uncertainty.py",
    "plot_reliability.py",
    "plot_training.py",
    "plot_layers.py",
    "plot_scaling.py",
]
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"/plot_",
    "ignore_pattern": r"^(?!plot_)",
    "within_subsection_order": ExplicitOrder(EXAMPLES),
    "backreferences_dir": "api/backreferences",
    "doc_module": ("skve",),
    "download_all_examples": False,
    "copyfile_regex": r"",
    "show_memory": False,
    "abort_on_example_error": True,
    "matplotlib_animations": False,
}

# Look
html_theme = "pydata_sphinx_theme"
html_title = "skve"
html_baseurl = skve.DOCUMENTATION
html_static_path = ["_static"]
html_context = {"default_mode": "auto"}  # dark or light, as the browser says
html_css_files = ["skve.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "show_prev_next": False,
    "navbar_align": "left",
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_sidebars = {"evidence": []}  # a page without a section of its own: the table gets the room
copyright = "the skve developers"
html_math_renderer = "mathml"  # which browsers draw themselves: MathJax would come from the network


# Names of other projects: their inventories where there is a network, else the names that skve's pages use.
OTHERS = {
    "numpy": "https://numpy.org/doc/stable/",
    "pandas": "https://pandas.pydata.org/docs/",
    "python": "https://docs.python.org/3/",
    "sklearn": "https://scikit-learn.org/stable/",
    "torch": "https://docs.pytorch.org/docs/stable/",
}
intersphinx_timeout = 5


def _is_reachable(address):
    host = address.split("/")[2]
    try:
        socket.create_connection((host, 443), timeout=3).close()
    except OSError:
        return False
    return True


def _write_inventory(name, path):
    """Write the rows of inventories.csv about a project in the format that intersphinx reads."""
    with (HERE / "inventories.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["project"] == name]
    lines = "".join(f"{row['name']} {row['role']} 1 {row['page']} -\n" for row in rows)
    head = ["Sphinx inventory version 2", f"Project: {name}", "Version: ", "The remainder is compressed using zlib."]
    path.write_bytes("".join(f"# {line}\n" for line in head).encode() + zlib.compress(lines.encode()))


def _choose_inventories(app, config):
    config.intersphinx_mapping = {}
    for name, address in OTHERS.items():
        own = None
        if not _is_reachable(address):
            own = Path(app.doctreedir) / f"{name}.inv"
            own.parent.mkdir(parents=True, exist_ok=True)
            _write_inventory(name, own)
        config.intersphinx_mapping[name] = (address, None if own is None else str(own))


def _visit_math(self, node):
    block = isinstance(node, nodes.math_block)
    tree = latex2mathml.tex2mathml(node.astext(), as_block=block)
    self.body.append(f'<div class="math">{tree}</div>' if block else tree)
    raise nodes.SkipNode


def _only_rst_galleries(app, config):
    """Keep folders with a README.md, which are no galleries, out of the gallery."""
    config.sphinx_gallery_conf["source_suffix"] = {".rst": "restructuredtext"}


def setup(app):
    app.connect("config-inited", _only_rst_galleries, priority=900)
    app.connect("config-inited", _choose_inventories, priority=100)
    app.add_html_math_renderer("mathml", (_visit_math, None), (_visit_math, None))
