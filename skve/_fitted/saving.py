"""Fitted estimators as folders of safetensors and JSON, and back."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from skve._backbones.embedded import EmbeddedBackbone
from skve._fitted.saved_schema import NAMES, check_document
from skve._fitted.state import FittedState
from skve._inputs.labels import labels_from_json, labels_to_json
from skve._runtime.device import resolve_device
from skve._runtime.warnings import warn
from skve._runtime.wording import quoted, shortened
from skve.exceptions import BackboneError, SavedModelError, SkveError

if TYPE_CHECKING:
    from skve._base import BaseSVEClassifier
    from skve.selective import SelectiveClassifier

FORMAT_VERSION = 1
DOCUMENT = "skve.json"
STAGING = ".skve.saving"  # a folder in the model's folder, where a save prepares its files
LOCK = ".skve.lock"  # only where a folder itself cannot be locked
_SELECTIVE = "SelectiveClassifier"
PAIRS = "pairs"  # marks a dict in the parameters, as a list of its items
_TENSORS = re.compile(r"(members|training|regression|backbone|tokenizer)-[0-9a-f]{16}\.safetensors")
_LARGEST_DOCUMENT = 32 * 1024**2  # bytes
_GIVE = "pass it to skve.load(folder, backbone=module), for texts as backbone=(model, tokenizer)"


# -------------------------------------------------------------------------------------------------- save


def save(estimator, folder, *, include_backbone, selective=None):
    """Write a fitted estimator; see `BaseSVEClassifier.save`. `selective` is what a SelectiveClassifier adds to it.

    Files of tensors are named after their content, and `skve.json`, which refers to them, is replaced last and
    at once: whenever the writing stops, the folder holds a whole model, the old one or the new. Savers into one
    folder wait for one another.
    """
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"folder must be a path, got {folder!r}.")
    if not os.fspath(folder):
        raise SavedModelError("folder must be a path, got ''. Pass '.' for the current folder.")
    folder = pathlib.Path(folder)
    if folder.exists() and not folder.is_dir():
        raise SavedModelError(f"folder must be a folder, which a model is saved as, got {str(folder)!r}, a file.")
    tensors, document = _content(estimator, include_backbone, selective)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            _check_is_free(folder)
            _write(folder, tensors, document)
    except OSError as error:
        raise type(error)(
            error.errno,
            f"The model was not saved in {folder}, and an older one there is whole: {error.strerror or error}",
            error.filename,
        ) from error


def _content(estimator, include_backbone, selective):
    """Return what is to be written, before anything is: files of tensors by their stem, and the document."""
    from safetensors.numpy import save as to_bytes

    state = estimator._state
    include_backbone = include_backbone or isinstance(state.spec, EmbeddedBackbone)  # it has no other place
    tensors = {"members": state.arrays}
    if state.training:
        tensors["training"] = state.training
    if state.regression:
        tensors["regression"] = state.regression
    if include_backbone:
        embedded = _embed(estimator)
        tensors["backbone"] = embedded.arrays
        if embedded.files:  # a tokenizer's
            tensors["tokenizer"] = {name: np.frombuffer(data, np.uint8) for name, data in embedded.files.items()}
    contents = {
        stem: to_bytes({name: np.ascontiguousarray(value) for name, value in arrays.items()})
        for stem, arrays in tensors.items()
    }
    parameters, left_out = _plain_parameters(estimator)
    if include_backbone and "backbone" in left_out:
        left_out.remove("backbone")
    if left_out:
        hint = f"; {_GIVE}" if "backbone" in left_out else ""
        warn(f"not saved, since they are no plain values: {left_out}{hint}")
    document = {
        "format_version": FORMAT_VERSION,
        "class": type(estimator).__name__,
        "versions": package_versions(),
        "parameters": parameters,
        "files": {stem: _entry(stem, data) for stem, data in contents.items()},
        "arrays": list(state.arrays),
        "classes": labels_to_json(estimator.classes_),
        "preprocess": estimator.preprocess_,
        "history": estimator.history_,
        "n_iter": estimator.n_iter_,
        "temperature": estimator.temperature_,
        "fitted": {name: value for name, value in vars(estimator).items() if name in {*estimator._learned, NAMES}},
        "state": {
            field.name: getattr(state, field.name)
            for field in dataclasses.fields(state)
            if field.name not in ("arrays", "training", "regression", "spec")
        },
    }
    if selective is not None:  # another class, so that no version takes it for the ensemble alone
        document |= {"class": _SELECTIVE, "selective": {**selective, "class": document["class"]}}
    try:
        document = plain(document)
    except TypeError as error:
        raise SavedModelError(f"What a fit leaves behind must be plain values for a save, got {error}.") from error
    document["sha256"] = document_hash(document)
    content = json.dumps(document, indent=1).encode()
    if len(content) > _LARGEST_DOCUMENT:
        raise SavedModelError(
            f"{DOCUMENT} must not exceed {_LARGEST_DOCUMENT} bytes, got {len(content)}. Use shorter or fewer labels."
        )
    return {document["files"][stem]["file"]: data for stem, data in contents.items()}, content


def _embed(estimator):
    """Return the backbone of a fitted estimator with its weights, if these rebuild it."""
    state = estimator._state
    if state.backbone["architecture"] is None:
        raise SavedModelError(
            f"include_backbone=True requires a backbone that weights alone rebuild, got a {state.backbone['kind']}. "
            f"Save without it, and {_GIVE}."
        )
    backbone = estimator._load_backbone(state.spec, estimator.preprocess_)
    embedded = EmbeddedBackbone(backbone.description, estimator.preprocess_, backbone.arrays(), backbone.files())
    try:
        estimator._load_backbone(embedded, estimator.preprocess_)
    except BackboneError as error:
        raise SavedModelError(
            f"include_backbone=True requires a backbone as its library builds {state.backbone['architecture']!r}, "
            f"got {state.backbone['name']!r}, built with other arguments. Save without it, and {_GIVE}."
        ) from error
    return embedded


def _entry(stem, data):
    digest = hashlib.sha256(data).hexdigest()
    return {"file": f"{stem}-{digest[:16]}.safetensors", "sha256": digest}


def plain(value):
    """Return a value as JSON holds it: the one place where NumPy's scalars and arrays, paths and devices end.

    Raises
    ------
    TypeError
        If there is no such form; the message is a description of the value.
    """
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, str | int | float):  # of a subclass, such as an Enum's, what it holds, not how it is shown
        return json.loads(json.dumps(value))
    if isinstance(value, dict):
        return {_key(name): plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, os.PathLike) or type(value).__name__ == "device":
        return str(value)
    raise TypeError(f"a {type(value).__name__}")


def _key(name):
    if not isinstance(name, str):
        raise TypeError(f"a dict with the key {name!r}")
    return plain(name)


def _plain_parameters(estimator):
    """Return the parameters that JSON can hold, and the names of those that it cannot."""
    kept, left_out = {}, []
    for name, value in estimator.get_params(deep=False).items():
        if isinstance(value, dict):  # JSON would turn keys into strings
            value = {PAIRS: [list(item) for item in value.items()]}
        try:
            kept[name] = plain(value)
        except TypeError:
            left_out.append(name)
    return kept, left_out


def package_versions():
    """Return the versions of skve and of those packages that a model may depend on, as far as they are installed."""
    import importlib.metadata

    import skve

    versions = {"skve": skve.__version__}
    for package in ("torch", "timm", "transformers", "numpy", "scikit-learn"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


# --------------------------------------------------------------------------------------- writing a folder


@contextlib.contextmanager
def _locked(folder):
    """Let one saver at a time write into a folder.

    Nothing stays behind, but for a lock file where folders cannot be locked: another saver may be waiting for it.
    """
    descriptor = None
    if sys.platform != "win32":
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # some file systems of networks lock files only
            os.close(descriptor)
            descriptor = None
    try:
        if descriptor is not None:
            yield
            return
        import filelock

        path = folder / LOCK
        if path.is_symlink():
            raise SavedModelError(f"{path} must not be a link, which a lock would write through. Remove it.")
        with filelock.FileLock(path):
            yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _check_is_free(folder):
    """Raise SavedModelError if a folder holds files and no model of skve's."""
    names = {path.name for path in folder.iterdir()} - {STAGING, LOCK}
    if names and not _files_of(folder / DOCUMENT) and not all(map(_TENSORS.fullmatch, names)):
        raise SavedModelError(
            f"folder must be new, empty or hold a model of skve's, got {str(folder)!r} with {sorted(names)[0]!r} in "
            f"it. Pass another folder."
        )


def _write(folder, tensors, document):
    """Replace the model in a folder: all is prepared aside, tensors come first, the document last.

    What is left of a save that was cut off, and of the older model, is removed by the names in their documents.
    """
    staging = folder / STAGING
    obsolete = _remove_staging(staging) | _files_of(folder / DOCUMENT)
    kept = _files_of(folder / DOCUMENT)
    try:
        staging.mkdir()
        for name, data in {**tensors, DOCUMENT: document}.items():
            _write_new(staging / name, data)
        if kept:
            _write_new(staging / ("old-" + DOCUMENT), (folder / DOCUMENT).read_bytes())
        obsolete |= set(tensors)  # until the document that names them is there
        for name in tensors:
            if name not in kept or (folder / name).read_bytes() != tensors[name]:
                os.replace(staging / name, folder / name)
        os.replace(staging / DOCUMENT, folder / DOCUMENT)
        kept = set(tensors)
    finally:
        for name in obsolete - kept:
            with contextlib.suppress(OSError):  # the next save tries again
                (folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            _remove_staging(staging)


def _write_new(path, data):
    with open(path, "xb") as stream:  # never through a link that somebody has put there
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _remove_staging(staging):
    """Remove what a save that was cut off has prepared, and return the names of the files that it knew."""
    if staging.is_symlink():
        raise SavedModelError(f"{staging} must not be a link. Remove it.")
    if not staging.is_dir():
        return set()
    known = set().union(*(_files_of(path) for path in staging.glob("*" + DOCUMENT)))
    shutil.rmtree(staging)
    return known


def _files_of(document):
    """Return the files of tensors that a document names; none where it is not one of skve's."""
    try:
        entries = _read_json(document)["files"].values()
        return {entry["file"] for entry in entries if _TENSORS.fullmatch(entry["file"])}
    except (OSError, SavedModelError, KeyError, TypeError, AttributeError):
        return set()


# -------------------------------------------------------------------------------------------------- load


def load(folder: str | os.PathLike[str], *, backbone: Any = None) -> BaseSVEClassifier | SelectiveClassifier:
    """Load an estimator that `save` wrote. Nothing in the folder is executed.

    Parameters
    ----------
    folder : str or path
    backbone : str, path, torch.nn.Module, tuple or callable, default=None
        Where the backbone's weights are now, if not where the fit found them: anything that the estimator takes.
        Needed for a model that was fitted on a module, or on a pair `(model, tokenizer)`, and saved without its
        backbone. The weights must be the same. None for a model saved with its backbone takes that one, which
        becomes the parameter `backbone`, so that a later `fit` starts from it.

    Returns
    -------
    estimator : SVEClassifier, SVETextClassifier or SelectiveClassifier
        Fitted.

    Raises
    ------
    ValueError
        If the folder holds no model, a file is missing, truncated or altered, a value in it is not what `save`
        writes, the format is newer than this version of skve reads, or (at the first prediction) the backbone's
        weights are others.

    Examples
    --------
    >>> import skve, tempfile
    >>> from skve.datasets import load_fashion
    >>> data = load_fashion()
    >>> clf = skve.SVEClassifier(image_size=32, max_epochs=1, ensemble="head", random_state=0)
    >>> clf = clf.fit(data.images[:40], data.target[:40])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     clf.save(folder)
    ...     same = skve.load(folder)
    >>> bool((same.predict(data.images[:5]) == clf.predict(data.images[:5])).all())
    True
    """
    folder = pathlib.Path(folder)
    path = folder / DOCUMENT
    if not path.is_file():
        raise SavedModelError(
            f"{folder} holds no skve model: there is no file {path}. Pass the folder that save wrote."
        )
    document, files = _read_whole(folder, path)
    estimator, embedded = _restore(path, document, files)
    described = document["state"]["backbone"]
    if backbone is not None:
        estimator.set_params(backbone=backbone)
        found = estimator._load_backbone(backbone, document["preprocess"]).description["sha256"]
        if found != described["sha256"]:
            raise BackboneError(
                f"backbone must have the weights that the model was fitted on, of SHA-256 "
                f"{shortened(described['sha256'], 13)}, got {shortened(found, 13)}. Pass those."
            )
        spec = backbone
    elif embedded is not None:
        estimator.set_params(backbone=embedded)  # what another fit starts from
        spec = embedded
    else:
        spec = document["parameters"].get("backbone")
    if spec is None:
        raise SavedModelError(
            f"{folder} requires the backbone that its model was fitted on, a {described['kind']!r} "
            f"({described['name']!r}). Pass it: skve.load(folder, backbone=...)."
        )
    estimator._state = dataclasses.replace(estimator._state, spec=spec)
    try:
        resolve_device(estimator.device)
    except ValueError:
        warn(f"device={estimator.device!r} of the fit is not on this machine: 'auto' is used")
        estimator.set_params(device="auto")
    return _wrapped(path, document, estimator)


def _wrapped(path, document, estimator):
    """Return an estimator, or the SelectiveClassifier that was saved with it."""
    if document["class"] != _SELECTIVE:
        return estimator
    from skve.selective import SelectiveClassifier

    try:
        return SelectiveClassifier._of_saved(document["selective"], estimator)
    except (ValueError, KeyError, TypeError) as error:
        raise SavedModelError(f"{path} is damaged: {type(error).__name__}: {error}. Save the model again.") from error


def _restore(path, document, files):
    """Return the estimator of a document and its files, and its embedded backbone or None; check all values."""
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    try:
        tensors = {name: from_bytes(content) for name, content in files.items()}
        estimator = _new_estimator(path, document)
        check_document(document, estimator, tensors)
        state = {**document["state"], **{name: tuple(document["state"][name]) for name in ("layers", "shareable")}}
        estimator._state = FittedState(
            arrays=_in_order(tensors["members"], document),
            training=tensors.get("training", {}),
            regression=tensors.get("regression", {}),
            **state,
        )
        estimator.classes_ = labels_from_json(document["classes"])
        estimator.preprocess_ = document["preprocess"]
        estimator.history_ = document["history"]
        estimator.n_iter_ = document["n_iter"]
        estimator.temperature_ = document["temperature"]
        vars(estimator).update(document["fitted"])
        if NAMES in document["fitted"]:
            estimator.feature_names_in_ = np.array(document["fitted"][NAMES], object)
        if "backbone" not in tensors:
            return estimator, None
        tokenizer = {name: content.tobytes() for name, content in tensors.get("tokenizer", {}).items()}
        return estimator, EmbeddedBackbone(state["backbone"], document["preprocess"], tensors["backbone"], tokenizer)
    except SkveError:
        raise
    except ValueError as error:
        raise SavedModelError(f"{path} is damaged: {error}") from error
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError, SafetensorError) as error:
        raise SavedModelError(f"{path} is damaged: {type(error).__name__}: {error}. Save the model again.") from error


def _new_estimator(path, document):
    """Return an unfitted estimator of the class in the document at `path`, with its parameters."""
    import skve

    own = {name: getattr(skve, name) for name in skve.ESTIMATORS}
    classes = {**_subclasses(own.values()), **own}
    name = document["selective"]["class"] if document["class"] == _SELECTIVE else document["class"]
    if not isinstance(name, str) or name not in classes:
        raise SavedModelError(
            f"{path}: the class must be one of {sorted(own)} or an imported subclass, got {name!r}. "
            f"Upgrade skve, or import the module that defines the class."
        )
    cls = classes[name]
    # What 0.1 predicted in; other defaults have stayed.
    former = {"predict_precision": "float32"} if "predict_precision" in cls._get_param_names() else {}
    given = {
        key: dict(value[PAIRS]) if isinstance(value, dict) else value for key, value in document["parameters"].items()
    }
    return cls(**{**former, **given})


def _subclasses(classes):
    """Return the subclasses that this process has defined or imported, by name."""
    found: dict[str, type] = {}
    for cls in classes:
        found |= {sub.__name__: sub for sub in cls.__subclasses__()} | _subclasses(cls.__subclasses__())
    return found


def _in_order(arrays, document):
    """Return the members' arrays in the order of the fit; safetensors reads them in another one in each process."""
    order = document.get("arrays")
    if order is None:  # saved by 0.1: in the order of the layers at least
        layers = document["state"]["layers"]
        order = sorted(sorted(arrays), key=lambda key: [*layers, key.partition(".")[2]].index(key.partition(".")[2]))
    if set(order) != set(arrays):
        raise ValueError(f"'members' must hold the arrays {order!r}, got {sorted(arrays)}.")
    return {key: arrays[key] for key in order}


# --------------------------------------------------------------------------------------- reading a folder


def _read_whole(folder, path, attempts=10):
    """Return what skve.json says and what its files hold; read again if somebody saves another model meanwhile."""
    for attempt in range(1, attempts + 1):
        document = _read_document(path)
        try:
            return document, {
                name: _read_checked(folder, entry["file"], entry["sha256"])
                for name, entry in document["files"].items()
            }
        except SavedModelError:
            if attempt == attempts or _read_document(path) == document:
                raise
        except (KeyError, TypeError, AttributeError) as error:
            raise SavedModelError(
                f'{path} is damaged: its "files" must name a file and its SHA-256 each. Save the model again.'
            ) from error


def document_hash(document):
    """Return the SHA-256 of what skve.json says, without its own field "sha256" and however it is laid out."""
    content = {name: value for name, value in document.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_json(path):
    """Return what a file of JSON holds."""
    size = path.stat().st_size
    if size > _LARGEST_DOCUMENT:
        raise SavedModelError(f"{path} must not exceed {_LARGEST_DOCUMENT} bytes, got {size}. Use a complete copy.")
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise SavedModelError(f"{path} is damaged: {type(error).__name__}: {error}. Save the model again.") from error


def _read_document(path):
    """Return what a skve.json says, if it is whole and of a format that is known."""
    document = _read_json(path)
    try:
        version = document["format_version"]
        digest = document_hash(document)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SavedModelError(f"{path} is damaged: {type(error).__name__}: {error}. Save the model again.") from error
    if not isinstance(version, int) or version > FORMAT_VERSION:
        versions = document.get("versions")
        saved_by = versions.get("skve") if isinstance(versions, dict) else None
        raise SavedModelError(
            f"{path} must have a format version up to {FORMAT_VERSION}, got {_short(version)}, saved by skve "
            f"{_short(saved_by)}. Upgrade skve."
        )
    if document.get("sha256") != digest:
        raise SavedModelError(
            f"{path} is damaged or altered: its content does not have the SHA-256 that it names. Use a complete "
            f"copy; parameters are changed by set_params on the loaded estimator."
        )
    return document


def _short(value):
    """Show a value of a stranger's file, without control characters and of bounded length."""
    return quoted(str(value), 24)


def _read_checked(folder, file, sha256):
    if pathlib.PurePath(file).name != file:
        raise SavedModelError(
            f"{folder / DOCUMENT} must refer to files in its folder, got {file!r}, which lies outside the folder. "
            f"Do not trust the model, or save it again."
        )
    path = folder / file
    if not path.is_file():
        raise SavedModelError(f"{path} is missing. Use a complete copy of the model.")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise SavedModelError(
            f"{path} is truncated or altered: its SHA-256 is not the one in {DOCUMENT}. Use a complete copy."
        )
    return data
