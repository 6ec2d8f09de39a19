"""`import skve` is light, every public name is there, and the examples in the docstrings run."""

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest

import skve

HEAVY = ["torch", "torchvision", "timm", "transformers", "skorch", "sklearn", "safetensors", "pandas", "matplotlib"]
# metrics and others have docstrings that are tested with their modules
PUBLIC = ["skve", "skve.vision", "skve.text", "skve.datasets", "skve.testing", "skve._saving", "skve.uncertainty"]


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test__import__skve__no_heavy_library():
    code = f"import sys, skve; skve.__version__; dir(skve); print([m for m in {HEAVY} if m in sys.modules])"
    assert run(code) == "[]"


def test__import__skve__prints_nothing_and_touches_no_random_generator():
    code = (
        "import random, numpy; random.seed(0); numpy.random.seed(0); before = random.getstate(), "
        "numpy.random.get_state()[1].tobytes(); import skve; skve.SVEClassifier; assert before == "
        "(random.getstate(), numpy.random.get_state()[1].tobytes())"
    )
    assert run(code) == ""


@pytest.mark.parametrize("name", skve.__all__)
def test__all__every_name__importable_and_listed(name):
    assert getattr(skve, name) is not None
    assert name in dir(skve)


def test__all__names__cover_what_is_loaded_lazily():
    assert set(skve._PUBLIC) | {"__version__"} == set(skve.__all__)


def test__getattr__unknown_name__attribute_error():
    with pytest.raises(AttributeError, match="module 'skve' has no attribute 'Nothing'"):
        skve.Nothing  # noqa: B018 - the access is what is tested
    with pytest.raises(ImportError):
        from skve import Nothing  # noqa: F401


def test__testing__every_name_that_it_lists__there_without_transformers():
    code = "import sys; sys.modules['transformers'] = None; from skve.testing import *; check_text_estimator"
    assert run(code) == ""


def test__estimators__each__public_and_with_documented_parameters():
    for name in skve.ESTIMATORS:
        estimator = getattr(skve, name)
        documented = estimator.__doc__
        for parameter in estimator().get_params():
            assert f"    {parameter} : " in documented, (name, parameter)
        assert set(estimator().get_params()) == set(estimator._parameter_constraints)


def test__version__and_package_metadata__agree():
    import importlib.metadata

    try:
        installed = importlib.metadata.version("skve")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("skve is not installed, only on the path")
    assert installed == skve.__version__


@pytest.mark.parametrize("name", PUBLIC)
def test__docstrings__examples__run_and_show_what_they_say(name):
    module = importlib.import_module(name)
    modules = [module]
    if name == "skve.vision":
        modules.append(importlib.import_module("skve._base"))  # the methods that it inherits
    if name == "skve.testing":
        modules += [importlib.import_module(f"skve._testing_{kind}") for kind in ("image", "text")]  # passed on
    if hasattr(module, "__path__") and name != "skve":
        modules += [
            importlib.import_module(f"{name}.{found.name}") for found in pkgutil.iter_modules(module.__path__)
        ]
    results = [doctest.testmod(one, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS) for one in modules]
    assert sum(result.failed for result in results) == 0
    if name != "skve":
        assert sum(result.attempted for result in results) > 0
