"""Fitted estimators as folders of safetensors and JSON, and back."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re

import numpy as np

from skve._backbones.backbone import EmbeddedBackbone
from skve._fitted.saved_schema import FITTED, check_document
from skve._fitted.state import FittedState
from skve._inputs.labels import labels_from_json, labels_to_json
from skve._runtime.device import resolve_device
from skve._runtime.warnings import warn

FORMAT_VERSION = 1
GIVE = "pass it to skve.load(folder, backbone=module), for texts as backbone=(model, tokenizer)"
LOCK = ".skve.lock"
# All but skve.json.
_OURS = re.compile(r"(members|training|backbone|tokenizer)-\w+\.safetensors(\.tmp)?|skve\.json\.tmp")
PAIRS = "pairs"  # marks a dict in the parameters, as a list of its items
_LARGEST_DOCUMENT = 256 * 1024**2  # bytes


def save(estimator, folder, *, include_backbone):
    """Write a fitted estimator; see `BaseSVEClassifier.save`.

    Files of tensors are named after their content and `skve.json`, which refers to them, is replaced last and
    at once: whenever the writing stops, the folder holds a whole model, the old one or the new. Savers into one
    folder wait for one another, so that none takes the other's files for leftovers.
    """
    import filelock

    folder = pathlib.Path(folder)
    if folder.is_file():
        raise ValueError(f"{folder} is a file; a model is saved as a folder: pass one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / LOCK):
            _save(estimator, folder, include_backbone)
    except OSError as error:
        raise type(error)(
            error.errno,
            f"the model was not saved in {folder}, and an older one there is whole: {error.strerror or error}",
            error.filename,
        ) from error


def _save(estimator, folder, include_backbone):
    from safetensors.numpy import save as to_bytes

    state = estimator._state
    include_backbone = include_backbone or isinstance(state.spec, EmbeddedBackbone)  # it has no other place
    files = {"members": _write_named(folder, "members", to_bytes(_contiguous(state.arrays)))}
    if state.training:
        files["training"] = _write_named(folder, "training", to_bytes(_contiguous(state.training)))
    if include_backbone:
        if state.backbone["architecture"] is None:
            raise ValueError(
                f"include_backbone=True: a backbone given as a {state.backbone['kind']} cannot be rebuilt from "
                f"weights alone; save without it and {GIVE}"
            )
        backbone = estimator._load_backbone(state.spec, estimator.preprocess_)
        embedded = EmbeddedBackbone(backbone.description, estimator.preprocess_, backbone.arrays(), backbone.files())
        _check_rebuilds(estimator, embedded)
        files["backbone"] = _write_named(folder, "backbone", to_bytes(_contiguous(embedded.arrays)))
        if embedded.files:  # a tokenizer's
            packed = {name: np.frombuffer(content, np.uint8) for name, content in embedded.files.items()}
            files["tokenizer"] = _write_named(folder, "tokenizer", to_bytes(packed))
    parameters, left_out = _plain_parameters(estimator)
    if include_backbone and "backbone" in left_out:
        left_out.remove("backbone")
    if left_out:
        hint = f"; {GIVE}" if "backbone" in left_out else ""
        warn(f"not saved, since they are no plain values: {left_out}{hint}")
    document = {
        "format_version": FORMAT_VERSION,
        "class": type(estimator).__name__,
        "versions": _versions(),
        "parameters": parameters,
        "files": files,
        "classes": labels_to_json(estimator.classes_),
        "preprocess": estimator.preprocess_,
        "history": estimator.history_,
        "n_iter": estimator.n_iter_,
        "temperature": estimator.temperature_,
        "fitted": {name: _plain(value) for name, value in vars(estimator).items() if name in FITTED},
        "state": {
            field.name: getattr(state, field.name)
            for field in dataclasses.fields(state)
            if field.name not in ("arrays", "training", "spec")
        },
    }
    try:
        document["sha256"] = document_hash(document)
    except TypeError as error:
        raise ValueError(f"the estimator cannot be saved as JSON: {error}") from error
    _replace(folder / "skve.json", json.dumps(document, indent=1).encode())
    kept = {entry["file"] for entry in files.values()}
    for old in list(folder.iterdir()):
        if _OURS.fullmatch(old.name) and old.name not in kept:
            with contextlib.suppress(OSError):  # the model is saved; the next save takes it away
                old.unlink()


def load(folder, *, backbone=None):
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
    estimator : SVEClassifier or SVETextClassifier
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
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    folder = pathlib.Path(folder)
    path = folder / "skve.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no skve model: there is no file {path}; pass the folder that save wrote")
    try:
        document, files = _read_whole(folder, path)
        tensors = {name: from_bytes(content) for name, content in files.items()}
        estimator = _rebuild(document, tensors, backbone)
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError, SafetensorError) as error:
        if str(error).startswith("backbone="):
            raise
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}; save the model again") from error
    except ValueError as error:
        if str(folder) in str(error) or str(error).startswith("backbone="):
            raise
        raise ValueError(f"{folder}: {error}") from error
    return estimator


def _read_whole(folder, path, attempts=10):
    """Return what skve.json says and what its files hold; read again if somebody saves another model meanwhile."""
    for attempt in range(1, attempts + 1):
        document = _read_document(path)
        try:
            return document, {
                name: _read_checked(folder, entry["file"], entry["sha256"])
                for name, entry in document["files"].items()
            }
        except ValueError:
            if attempt == attempts or _read_document(path) == document:
                raise


def document_hash(document):
    """Return the SHA-256 of what skve.json says, without its own field "sha256" and however it is laid out."""
    content = json.loads(json.dumps({name: value for name, value in document.items() if name != "sha256"}))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_document(path):
    """Return what a skve.json says, if it is whole and of a format that is known."""
    if path.stat().st_size > _LARGEST_DOCUMENT:
        raise ValueError(
            f"{path} has {path.stat().st_size} bytes, more than the limit of {_LARGEST_DOCUMENT}; take a whole copy"
        )
    try:
        document = json.loads(path.read_text("utf-8"))
        version = document["format_version"]
        digest = document_hash(document)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}; save the model again") from error
    if not isinstance(version, int) or version > FORMAT_VERSION:
        versions = document.get("versions")
        saved_by = versions.get("skve") if isinstance(versions, dict) else None
        raise ValueError(
            f"{path} has format version {version}; this skve reads up to {FORMAT_VERSION}: upgrade skve "
            f"(the model was saved by skve {saved_by!s:.20})"
        )
    if document.get("sha256") != digest:
        raise ValueError(
            f"{path} is damaged or altered: its content does not have the SHA-256 that it names; take a whole copy. "
            f"(Parameters are changed by set_params on the loaded estimator)"
        )
    return document


def _subclasses(classes):
    """Return the subclasses that this process has defined or imported, by name."""
    found: dict[str, type] = {}
    for cls in classes:
        found |= {sub.__name__: sub for sub in cls.__subclasses__()} | _subclasses(cls.__subclasses__())
    return found


def _rebuild(document, tensors, backbone):
    import skve

    own = {name: getattr(skve, name) for name in skve.ESTIMATORS}
    classes = {**_subclasses(own.values()), **own}
    if document["class"] not in classes:
        raise ValueError(
            f"the model is a {document['class']!r}; this skve knows {sorted(own)}: upgrade skve, or import the "
            f"module that defines the class"
        )
    parameters = {
        name: dict(value[PAIRS]) if isinstance(value, dict) else value
        for name, value in document["parameters"].items()
    }
    estimator = classes[document["class"]](**parameters)
    check_document(document, estimator, tensors)
    if backbone is not None:
        estimator.set_params(backbone=backbone)
        found = estimator._load_backbone(backbone, document["preprocess"]).description["sha256"]
        if found != document["state"]["backbone"]["sha256"]:
            raise ValueError(
                f"backbone={type(backbone).__name__}: its weights are not those that the model was fitted on "
                f"(SHA-256 {found[:12]}..., wanted {document['state']['backbone']['sha256'][:12]}...); pass those"
            )
    described = dict(document["state"])
    described["layers"] = tuple(described["layers"])
    described["shareable"] = tuple(described["shareable"])
    spec = backbone if backbone is not None else document["parameters"].get("backbone")
    if backbone is None and "backbone" in tensors:
        files = {name: content.tobytes() for name, content in tensors.get("tokenizer", {}).items()}
        spec = EmbeddedBackbone(described["backbone"], document["preprocess"], tensors["backbone"], files)
        estimator.set_params(backbone=spec)  # what another fit starts from
    elif spec is None:
        raise ValueError(
            f"the model was fitted on a {described['backbone']['kind']} ({described['backbone']['name']}); "
            f"pass it: skve.load(folder, backbone=...)"
        )
    try:
        resolve_device(estimator.get_params()["device"])
    except ValueError:
        warn(f"device={estimator.device!r} of the fit is not on this machine: 'auto' is used")
        estimator.set_params(device="auto")
    training = tensors.get("training", {})
    estimator._state = FittedState(arrays=tensors["members"], training=training, spec=spec, **described)
    estimator.classes_ = labels_from_json(document["classes"])
    estimator.preprocess_ = document["preprocess"]
    estimator.history_ = document["history"]
    estimator.n_iter_ = document["n_iter"]
    estimator.temperature_ = document["temperature"]
    for name, value in document["fitted"].items():
        setattr(estimator, name, np.array(value, object) if isinstance(value, list) else value)
    return estimator


def _check_rebuilds(estimator, embedded):
    try:
        estimator._load_backbone(embedded, estimator.preprocess_)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"include_backbone=True: {embedded.description['name']!r} was built with arguments of its own, weights "
            f"do not fit {embedded.description['architecture']!r} as its library builds it; save without it"
        ) from error


def _contiguous(arrays):
    return {name: np.ascontiguousarray(value) for name, value in arrays.items()}


def _plain_parameters(estimator):
    """Return the parameters that JSON can hold, and the names of those that it cannot."""
    plain, left_out = {}, []
    for name, value in estimator.get_params(deep=False).items():
        value = _plain(value)
        value = str(value) if isinstance(value, os.PathLike) or type(value).__name__ == "device" else value
        if isinstance(value, dict):  # JSON would turn keys into strings
            value = {PAIRS: [[_plain(key), _plain(item)] for key, item in value.items()]}
        try:
            json.dumps(value)
            plain[name] = value
        except TypeError:
            left_out.append(name)
    return plain, left_out


def _plain(value):
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _versions():
    import importlib.metadata

    import skve

    versions = {"skve": skve.__version__}
    for package in ("torch", "timm", "transformers", "numpy", "scikit-learn"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _write_named(folder, stem, data):
    digest = hashlib.sha256(data).hexdigest()
    file = f"{stem}-{digest[:16]}.safetensors"
    _replace(folder / file, data)
    return {"file": file, "sha256": digest}


def _replace(path, data):
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as stream:  # never through a link that somebody has put there
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _read_checked(folder, file, sha256):
    if pathlib.PurePath(file).name != file:
        raise ValueError(
            f"{folder}/skve.json refers to {file!r} outside the folder; do not trust the model, or save it again"
        )
    path = folder / file
    if not path.is_file():
        raise ValueError(f"{path} is missing; take a whole copy of the model")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(
            f"{path} is truncated or altered: its SHA-256 is not the one in skve.json; take a whole copy"
        )
    return data
