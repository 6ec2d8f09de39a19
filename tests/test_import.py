"""`import skve` is light, every public name is there, the docstrings' examples run, and the metadata are true."""

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import skve

HEAVY = ["torch", "torchvision", "timm", "transformers", "skorch", "sklearn", "safetensors", "pandas", "matplotlib"]
# metrics and others have docstrings that are tested with their modules
PUBLIC = [
    "skve",
    "skve.vision",
    "skve.text",
    "skve.datasets",
    "skve.testing",
    "skve._fitted.saving",
    "skve.uncertainty",
]

ROOT = Path(__file__).resolve().parents[1]
# Extras for development, and those of engines, whose own requirements decide which versions go together.
NOT_WITH_THE_LOWEST = {"peers", "gemma", "docs", "dev", "dask", "ray", "spark"}


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
    assert set(skve._PUBLIC) | {"SKOPS_TYPES", "__version__"} == set(skve.__all__)


def test__getattr__unknown_name__attribute_error():
    with pytest.raises(AttributeError, match="module 'skve' has no attribute 'Nothing'"):
        skve.Nothing  # noqa: B018 - the access is what is tested
    with pytest.raises(ImportError):
        from skve import Nothing  # noqa: F401


def test__public_names__of_version_0_1__there_with_their_parameters():
    for line in (ROOT / "tests" / "public_names_0_1.txt").read_text("utf-8").splitlines():
        path, has_parameters, parameters = line.partition("(")
        found = pkgutil.resolve_name(path)
        if has_parameters:
            wanted = re.findall(r"\w+", parameters)
            assert [name for name in inspect.signature(found).parameters if name in wanted] == wanted, path


def unannotated():
    """Return the public functions and methods of each module, each with what lacks an annotation."""
    names = (ROOT / "tests" / "public_names_0_1.txt").read_text("utf-8").splitlines()
    found = {}
    for line in names + [f"skve.{name}" for name in skve.__all__ if name != "__version__"]:
        path = line.partition("(")[0]
        owner, _, name = path.rpartition(".")
        value = inspect.getattr_static(pkgutil.resolve_name(owner), name, None) or pkgutil.resolve_name(path)
        value = value.__init__ if inspect.isclass(value) else value
        for wrapped in ("fget", "fn", "__func__"):  # of properties, available_if, class and static methods
            value = getattr(value, wrapped, value)
        if getattr(value, "__module__", "").startswith("skve") and not name.endswith("_request"):
            signature = inspect.signature(value)
            missing = [one.name for one in signature.parameters.values() if one.annotation is one.empty]
            missing += ["return"] * (signature.return_annotation is signature.empty)
            found.setdefault(value.__module__, {})[value.__qualname__] = sorted({*missing} - {"self", "cls"})
    return found


UNANNOTATED = unannotated()


@pytest.mark.parametrize("module", UNANNOTATED)
def test__public_signatures__each__annotated(module):
    assert {name: missing for name, missing in UNANNOTATED[module].items() if missing} == {}


def test__testing__every_name_that_it_lists__there_without_transformers():
    code = "import sys; sys.modules['transformers'] = None; from skve.testing import *; check_text_estimator"
    assert run(code) == ""


def test__estimators__each__public_and_with_documented_parameters():
    for name in skve.ESTIMATORS:
        estimator = getattr(skve, name)
        documented = re.findall(r"^(\w+) : ", estimator.__doc__.partition("\nAttributes\n")[0], re.MULTILINE)
        assert documented == list(inspect.signature(estimator).parameters), name
        assert set(estimator().get_params()) == set(estimator._parameter_constraints)


def test__version__and_package_metadata__agree():
    import importlib.metadata

    try:
        installed = importlib.metadata.version("skve")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("skve is not installed, only on the path")
    assert installed == skve.__version__


def versions(requirements, operators):
    """The sorted pairs of name and version; every requirement has to give exactly one version by these operators."""
    pairs = []
    for requirement in requirements:
        given = [one.version for one in requirement.specifier if one.operator in operators]
        assert len(given) == 1, f"{requirement} gives {len(given)} versions by {' or '.join(operators)}; wanted one"
        pairs.append((canonicalize_name(requirement.name), Version(given[0])))
    return sorted(set(pairs))


def test__lowest_versions__the_file_that_is_tested__pins_what_pyproject_promises():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    groups = [project["dependencies"], *(extras[name] for name in extras.keys() - NOT_WITH_THE_LOWEST)]
    promised = [Requirement(one) for needs in groups for one in needs]
    lines = (ROOT / ".ci" / "min-requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    promised = [one for one in promised if one.name != "skve"]  # an extra that names others of skve
    assert versions(pinned, ["=="]) == versions(promised, [">=", "=="])


def test__lowest_versions__the_documented_command__makes_no_errors_of_any_deprecation():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    errors = [one.removeprefix("error::") for one in options["filterwarnings"] if one.startswith("error::")]
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = contributing.partition("### Lowest versions\n")[2].partition("\n#")[0]
    assert errors
    assert [one for one in errors if f"-W default::{one}" not in section] == []


@pytest.mark.parametrize("name", PUBLIC)
def test__docstrings__examples__run_and_show_what_they_say(name):
    module = importlib.import_module(name)
    modules = [module]
    if name == "skve.vision":
        modules.append(importlib.import_module("skve._base"))  # the methods that it inherits
    if hasattr(module, "__path__") and name != "skve":
        modules += [
            importlib.import_module(f"{name}.{found.name}") for found in pkgutil.iter_modules(module.__path__)
        ]
    results = [doctest.testmod(one, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS) for one in modules]
    assert sum(result.failed for result in results) == 0
    if name != "skve":
        assert sum(result.attempted for result in results) > 0


@pytest.mark.slow  # every module of torch is compiled anew
@pytest.mark.parametrize(("option", "words"), [("-O", "(6, 3)"), ("-OO", "Run python -O instead.")])
def test__python__without_assertions_and_docstrings__small_fit_or_what_to_do(option, words):
    """Everything but training is imported without docstrings, too; skorch makes its own of others."""
    code = (
        "import skve.vision, skve.text, skve.selective, skve.diagnosis, skve.metrics, skve.plots, skve.testing\n"
        "from tests.toys import toy_classifier, toy_images\n"
        "X, y = toy_images(per_class=2)\n"
        "try: print(toy_classifier(max_epochs=1, n_members=1).fit(X, y).predict_proba(X).shape)\n"
        "except ImportError as error: print(error)\n"
    )
    root = Path(skve.__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-B", "-W", "ignore", option, "-c", code], cwd=root, capture_output=True, text=True
    )
    assert run.stdout.strip().endswith(words), run.stderr
