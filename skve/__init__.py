"""Singular value ensembles: image and text classifiers that estimate their uncertainty."""

import importlib
import os

__version__ = "0.2.0.dev0"

# Public name -> module that defines it. Names are imported on first use, so that `import skve` loads
# neither torch nor timm, transformers or skorch.
_PUBLIC = {
    "SVEClassifier": "skve.vision",
    "SVETextClassifier": "skve.text",
    "SelectiveClassifier": "skve.selective",
    "clear_cache": "skve._backbones.cache",
    "diagnose": "skve.diagnosis",
    "estimate_memory": "skve.memory",
    "load": "skve._fitted.saving",
    "predict_uncertainty": "skve.uncertainty",
    "report": "skve.reporting",
}
_SUBMODULES = {"datasets", "metrics", "plots", "testing", "uncertainty"}

# Where the documentation site is, with a slash at the end; the HTML views of estimators link to it once there is one.
DOCUMENTATION = os.environ.get("SKVE_DOCS_URL", "")

ESTIMATORS = ("SVEClassifier", "SVETextClassifier")  # what `load` may build

#: The types of skve in a file of skops, for `skops.io.load(file, trusted=skve.SKOPS_TYPES)`.
SKOPS_TYPES = [
    "skve._fitted.state.FittedState",
    "skve.selective.SelectiveClassifier",
    "skve.text.SVETextClassifier",
    "skve.vision.SVEClassifier",
]

__all__ = [
    "SKOPS_TYPES",
    "SVEClassifier",
    "SVETextClassifier",
    "SelectiveClassifier",
    "__version__",
    "clear_cache",
    "diagnose",
    "estimate_memory",
    "load",
    "predict_uncertainty",
    "report",
]


def __getattr__(name):
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    if name in _SUBMODULES:
        return importlib.import_module(f"skve.{name}")
    raise AttributeError(f"module 'skve' has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *_PUBLIC, *_SUBMODULES})
