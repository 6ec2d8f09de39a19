"""Folders of safetensors and JSON: round trips, damage, hostility, and crashes half-way."""

import copy
import enum
import hashlib
import importlib.util
import json
import os
import pathlib
import re

import numpy as np
import pytest
import safetensors.numpy
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV

import skve
import skve.exceptions
from skve._backbones import cache
from skve._fitted import saving
from tests.toys import TinyCNN, TinyMLP, same_arrays, toy_classifier, toy_images

LITE = "bundled:efficientnet_lite0"
LABELS = {
    "str": np.array(["shirt", "boot", "bag é"]),
    "int": np.array([-3, 5, 70]),
    "int8": np.array([1, 2, 3], dtype=np.int8),
    "bool": np.array([True, False]),
    "float": np.array([1.0, 2.0, 7.0]),
    "object": np.array(["x", "yy", "zzz"], dtype=object),
}


def lite(**parameters):
    settings = {"image_size": 32, "layers": "last:1", "max_epochs": 1, **parameters}
    return toy_classifier(LITE, **settings)


@pytest.fixture(scope="module")
def fitted(images):
    return lite().fit(*images)


@pytest.fixture
def folder(fitted, tmp_path):
    fitted.save(tmp_path / "model")
    return tmp_path / "model"


def edit(folder, change):
    """Change the parsed `skve.json` of a saved model, and let its hash fit, as somebody with bad intent would."""
    path = folder / "skve.json"
    document = json.loads(path.read_text())
    change(document)
    document["sha256"] = saving.document_hash(document)
    path.write_text(json.dumps(document))


# ------------------------------------------------------------------------------------------ round trips


def test__load__embedded_and_fitted_anew__from_the_embedded_backbone(fitted, images, tmp_path, monkeypatch):
    fitted.save(tmp_path, include_backbone=True)
    monkeypatch.setattr("skve._backbones.sources.importlib.util.find_spec", lambda name: None)
    cache.clear_cache()
    again = clone(skve.load(tmp_path)).fit(*images)
    assert same_arrays(again, fitted)
    assert again.set_params(image_size=48).fit(*images).preprocess_["input_size"] == [3, 48, 48]


@pytest.mark.parametrize("ensemble", ["sve", "single", "deep", "head"])
def test__save_and_load__any_ensemble__same_bits(images, tmp_path, ensemble):
    classifier = lite(ensemble=ensemble, train_bias=True).fit(*images)
    classifier.save(tmp_path)
    loaded = skve.load(tmp_path)
    assert same_arrays(loaded, classifier)
    assert np.array_equal(loaded.predict_proba_members(images[0]), classifier.predict_proba_members(images[0]))
    assert np.array_equal(loaded.score_samples(images[0]), classifier.score_samples(images[0]))
    assert loaded.get_params() == classifier.get_params()
    assert loaded.history_.keys() == classifier.history_.keys()
    assert loaded.history_["loss"] == classifier.history_["loss"]
    assert loaded.preprocess_ == classifier.preprocess_
    assert (loaded.n_iter_, loaded.n_member_parameters_) == (classifier.n_iter_, classifier.n_member_parameters_)


@pytest.mark.parametrize("kind", LABELS)
def test__save_and_load__labels_of_any_kind__same_type_and_values(images, tmp_path, kind):
    X, codes = images
    y = LABELS[kind][codes % len(LABELS[kind])]
    classifier = lite(ensemble="head").fit(X, y)
    classifier.save(tmp_path)
    loaded = skve.load(tmp_path)
    assert loaded.classes_.dtype == classifier.classes_.dtype
    assert [type(label) for label in loaded.classes_.tolist()] == [type(c) for c in classifier.classes_.tolist()]
    assert np.array_equal(loaded.classes_, classifier.classes_)
    predicted = loaded.predict(X)
    assert predicted.dtype == y.dtype
    assert np.array_equal(predicted, classifier.predict(X))


def test__save__folder__only_safetensors_and_json(folder):
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 3
    assert names[0].startswith("members-")
    assert names[0].endswith(".safetensors")
    assert names[1] == "skve.json"
    assert names[2].startswith("training-")
    assert names[2].endswith(".safetensors")
    for path in folder.iterdir():
        data = path.read_bytes()
        assert not data.startswith((b"\x80", b"PK"))  # neither a pickle nor torch's archive of one
    document = json.loads((folder / "skve.json").read_text())
    assert document["format_version"] == 1
    assert document["state"]["backbone"]["name"] == LITE
    assert {"skve", "torch", "timm", "numpy"} <= set(document["versions"])


def test__save__twice__second_model_alone_remains(images, folder):
    other = lite(random_state=1).fit(*images)
    other.save(folder)
    assert len(list(folder.glob("*.safetensors"))) == 2
    assert same_arrays(skve.load(folder), other)


def test__save__into_a_folder_full_of_other_files__refused_and_untouched(fitted, tmp_path):
    (tmp_path / "mine.safetensors").write_bytes(b"mine")
    with pytest.raises(
        skve.exceptions.SavedModelError, match=r"folder must be new, empty .* 'mine.safetensors' in it"
    ):
        fitted.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.safetensors"]


def test__save__over_an_older_model__other_files_stay(images, folder):
    names = [
        "mine.txt",
        "members-0123456789abcdef.safetensors",
        "backbone-x.safetensors",
        "tokenizer-a.safetensors.tmp",
    ]
    for name in names:
        (folder / name).write_bytes(b"mine")
    lite(random_state=1).fit(*images).save(folder)
    assert {path.name for path in folder.iterdir()} >= set(names)
    assert len(list(folder.iterdir())) == len(names) + 3


@pytest.mark.parametrize("n_left", [0, 1, 2])
def test__save__failing_before_or_between_the_files__nothing_is_left(fitted, tmp_path, monkeypatch, n_left):
    calls, original = [], os.replace

    def failing(*args):
        calls.append(args)
        if len(calls) > n_left:
            raise OSError("no space left on device")
        original(*args)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="no space"):
        fitted.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test__save__state_that_json_cannot_hold__refused_before_anything_is_written(images, tmp_path):
    classifier = lite(ensemble="head").fit(*images)
    classifier.history_["model"] = object()
    with pytest.raises(skve.exceptions.SavedModelError, match="must be plain values for a save, got a object"):
        classifier.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


class Colour(enum.StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        ({"a": [np.int64(3), (np.bool_(True), np.str_("x"))]}, {"a": [3, [True, "x"]]}),
        (np.arange(3), [0, 1, 2]),
        (Colour.RED, "red"),
        (pathlib.Path("a"), "a"),
        (torch.device("cpu"), "cpu"),
        (None, None),
    ],
)
def test__plain__any_depth__python_values(value, expected):
    found = saving.plain(value)
    assert found == expected
    assert type(found) is type(expected)
    assert json.loads(json.dumps(found)) == expected


@pytest.mark.parametrize("value", [object(), {3: 1}, {"a": [lambda: 1]}, {1, 2}])
def test__plain__no_form__type_error_describes_the_value(value):
    with pytest.raises(TypeError, match=r"^a (object|dict with the key 3|function|set)$"):
        saving.plain(value)


def test__save__winner_of_a_search_over_numpy_values__saved(images, tmp_path):
    grid = {
        "n_members": np.array([1, 2]),
        "ensemble": ["dropout"],
        "ensemble_params": [{"rate": np.float64(0.1)}],
        "batch_size": [np.int32(8)],
        "label_smoothing": np.linspace(0, 0.1, 1),
    }
    best = GridSearchCV(toy_classifier(max_epochs=1), grid, cv=2).fit(*images).best_estimator_
    with pytest.warns(UserWarning, match="backbone"):
        best.save(tmp_path)
    loaded = skve.load(tmp_path, backbone=TinyMLP())
    assert np.array_equal(loaded.predict_proba(images[0]), best.predict_proba(images[0]))


@pytest.mark.parametrize(("path", "error"), [("", ValueError), (3, TypeError), (None, TypeError)])
def test__save__no_path__named_error(fitted, path, error):
    with pytest.raises(error, match="folder must be a path, got"):
        fitted.save(path)


def test__load__again_and_again__arrays_and_ratios_in_the_order_of_the_fit(images, tmp_path):
    """Safetensors reads in the order of a table whose hashes are drawn anew each time."""
    classifier = toy_classifier(TinyCNN(), train_bias=True).fit(*images)
    with pytest.warns(UserWarning, match="backbone"):
        classifier.save(tmp_path)
    for _ in range(5):
        loaded = skve.load(tmp_path, backbone=TinyCNN())
        assert list(loaded._state.arrays) == list(classifier._state.arrays)
        assert list(loaded.ratios_) == list(classifier.ratios_)
    edit(tmp_path, lambda document: document.pop("arrays"))  # as saved by 0.1
    assert list(skve.load(tmp_path, backbone=TinyCNN()).ratios_) == list(classifier.ratios_)


@pytest.mark.parametrize("name", ["a" * 10**6, ["a"], {"a": 1}, None], ids=["long", "list", "dict", "none"])
def test__load__class_of_a_stranger_that_is_none__short_error_names_the_classes(folder, name):
    edit(folder, lambda document: document.update({"class": name}))
    with pytest.raises(ValueError, match="must be one of") as caught:
        skve.load(folder)
    assert len(str(caught.value)) < 5000


def test__load__files_of_a_stranger_that_are_none__error_says_what_they_must_be(folder):
    edit(folder, lambda document: document.update(files=["members.safetensors"]))
    with pytest.raises(ValueError, match='its "files" must name a file and its SHA-256 each'):
        skve.load(folder)


def test__load__terminal_escapes_of_a_stranger__shown_harmlessly(folder):
    escape = "\x1b]0;owned\x07"
    edit(folder, lambda document: document.update(format_version=9, versions={"skve": escape}))
    with pytest.raises(skve.exceptions.SavedModelError) as caught:
        skve.load(folder)
    assert escape[0] not in str(caught.value)


def test__save__nested_new_folder__created(fitted, tmp_path):
    fitted.save(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "skve.json").is_file()


def test__save__before_fit__not_fitted_error_and_no_folder(tmp_path):
    with pytest.raises(NotFittedError):
        lite().save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test__load__then_fit_again__goes_on_as_a_usual_estimator(images, folder):
    loaded = skve.load(str(folder))
    assert loaded.fit(*images).predict(images[0]).shape == (24,)
    loaded.set_params(warm_start=True).fit(*images)


def test__save_and_load__plain_parameters__kept_with_their_types(images, tmp_path):
    classifier = lite(
        ensemble="head",
        class_weight={0: 1.0, 1: 2.0, 2: 0.5},
        n_members=np.int64(2),
        head_lr=np.float32(0.01),
        layers=["blocks.6.0.conv_pw"],
        image_shape=(16, 16, 3),
        device=torch.device("cpu"),
    )
    classifier.fit(images[0].reshape(24, -1), images[1]).save(tmp_path)
    loaded = skve.load(tmp_path)
    assert loaded.class_weight == {0: 1.0, 1: 2.0, 2: 0.5}
    assert loaded.n_members == 2
    assert tuple(loaded.image_shape) == (16, 16, 3)
    assert torch.device(loaded.device) == torch.device("cpu")
    rows = images[0].reshape(24, -1)
    assert np.array_equal(loaded.predict_proba(rows), classifier.predict_proba(rows))
    assert np.array_equal(loaded.fit(rows, images[1]).predict_proba(rows), classifier.predict_proba(rows))


def test__save__parameters_that_are_no_plain_values__warning_names_them_and_default_comes_back(images, tmp_path):
    classifier = lite(ensemble="head", augment=lambda x: x, random_state=np.random.RandomState(0)).fit(*images)
    with pytest.warns(UserWarning, match=r"not saved, since they are no plain values: \['augment', 'random_state'\]"):
        classifier.save(tmp_path)
    loaded = skve.load(tmp_path)
    assert (loaded.augment, loaded.random_state) == ("light", None)
    assert np.array_equal(loaded.predict_proba(images[0]), classifier.predict_proba(images[0]))


# ------------------------------------------------------------------------------------------- backbones


def test__load__module_backbone__has_to_be_passed(images, tmp_path):
    module = TinyCNN()
    classifier = toy_classifier(module).fit(*images)
    with pytest.warns(UserWarning, match=r"\['backbone'\]"):
        classifier.save(tmp_path)
    with pytest.raises(ValueError, match=r"'module' \('TinyCNN'\)\. Pass it: skve.load\(folder, backbone="):
        skve.load(tmp_path)
    for backbone in (TinyCNN(), TinyCNN):
        loaded = skve.load(tmp_path, backbone=backbone)
        assert loaded.backbone is backbone
        assert np.array_equal(loaded.predict_proba(images[0]), classifier.predict_proba(images[0]))


def test__load__other_weights__value_error(images, tmp_path):
    classifier = toy_classifier(TinyCNN()).fit(*images)
    with pytest.warns(UserWarning, match="not saved"):
        classifier.save(tmp_path)
    with pytest.raises(ValueError, match="backbone must have the weights that the model was fitted on, of SHA-256"):
        skve.load(tmp_path, backbone=TinyCNN(seed=1))
    with pytest.raises(ValueError, match="backbone must have the weights"):
        skve.load(tmp_path, backbone=TinyMLP())


@pytest.mark.parametrize("ensemble", ["sve", "head"])
def test__include_backbone__package_missing_at_load__same_bits(images, tmp_path, monkeypatch, empty_cache, ensemble):
    classifier = lite(ensemble=ensemble).fit(*images)
    classifier.save(tmp_path, include_backbone=True)
    expected = classifier.predict_proba_members(images[0])
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n.startswith("effic") else original(n, *a))
    cache.clear_cache()
    with pytest.raises(ImportError):
        classifier.predict(images[0])
    loaded = skve.load(tmp_path)
    assert np.array_equal(loaded.predict_proba_members(images[0]), expected)
    loaded.save(tmp_path / "again", include_backbone=True)
    assert np.array_equal(skve.load(tmp_path / "again").predict_proba_members(images[0]), expected)


def test__include_backbone__module__value_error_says_what_to_do(images, tmp_path):
    classifier = toy_classifier(TinyCNN()).fit(*images)
    with pytest.raises(ValueError, match=r"include_backbone=True requires .* skve.load\(folder, backbone=module\)"):
        classifier.save(tmp_path / "model", include_backbone=True)
    assert not (tmp_path / "model" / "skve.json").exists()


def test__include_backbone__architecture_with_arguments__loads_or_is_refused_when_saved(images, tmp_path):
    """A folder's config.json may change the architecture, which weights alone do not tell."""
    import timm

    options = {"img_size": 32, "depth": 1}
    model = timm.create_model("test_vit", pretrained=False, num_classes=0, **options)
    timm.models.save_for_hf(model, tmp_path / "vit", model_args=options, safe_serialization=True)
    classifier = toy_classifier(f"local-dir:{tmp_path / 'vit'}", image_size=None, max_epochs=1).fit(*images)
    expected = classifier.predict_proba(images[0])
    try:
        classifier.save(tmp_path / "model", include_backbone=True)
    except ValueError as error:
        assert "include_backbone=True" in str(error)  # noqa: PT017
    else:
        assert np.array_equal(skve.load(tmp_path / "model").predict_proba(images[0]), expected)
    classifier.save(tmp_path / "plain")
    assert np.array_equal(skve.load(tmp_path / "plain").predict_proba(images[0]), expected)


# ------------------------------------------------------------------------------------ damage and malice


def test__load__no_model__value_error_names_the_file(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"holds no skve model: there is no file .*skve\.json"):
            skve.load(folder)


@pytest.mark.parametrize("how", ["truncated", "altered", "missing", "empty"])
def test__load__damaged_tensors__value_error_names_the_file(folder, how):
    path = next(folder.glob("members-*"))
    data = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "altered":
        data[-1] ^= 1
        path.write_bytes(data)
    else:
        path.write_bytes(data[: len(data) // 2] if how == "truncated" else b"")
    with pytest.raises(ValueError, match=rf"{path.name} is (missing|truncated or altered)"):
        skve.load(folder)


def test__load__truncated_json__value_error_names_the_file(folder):
    path = folder / "skve.json"
    whole = path.read_bytes()
    for size in range(0, len(whole) - 1, max(1, len(whole) // 25)):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"skve\.json is damaged"):
            skve.load(folder)


@pytest.mark.parametrize("content", ["[]", "1", "null", '"text"', "{}", '{"format_version": 1}', b"\xff\xfe"])
def test__load__other_json__value_error(folder, content):
    (folder / "skve.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match="is damaged"):
        skve.load(folder)


@pytest.mark.parametrize(
    "key", ["class", "parameters", "files", "classes", "preprocess", "history", "n_iter", "fitted", "state"]
)
def test__load__part_of_the_json_missing_or_of_another_type__value_error(folder, key):
    whole = (folder / "skve.json").read_text()
    edit(folder, lambda document: document.pop(key))
    with pytest.raises(ValueError, match="is damaged"):
        skve.load(folder)
    if key in ("n_iter", "history", "preprocess"):
        return  # values that nothing at load depends on
    (folder / "skve.json").write_text(whole)
    edit(folder, lambda document: document.update({key: 7}))
    with pytest.raises(ValueError, match=r"is damaged|class must be"):
        skve.load(folder)


@pytest.mark.parametrize("version", [2, 99, "1", None, 1.5])
def test__load__newer_or_unknown_format__value_error_says_upgrade(folder, version):
    edit(folder, lambda document: document.update(format_version=version))
    with pytest.raises(ValueError, match=rf"must have a format version up to 1, got '{version}', .* Upgrade skve"):
        skve.load(folder)


def test__load__newer_format_of_any_shape__value_error_says_upgrade(folder):
    (folder / "skve.json").write_text('{"format_version": 99, "versions": "many"}')
    with pytest.raises(ValueError, match=r"saved by skve 'None'. Upgrade skve"):
        skve.load(folder)


def test__load__unknown_class__value_error_lists_the_known_ones(folder):
    edit(folder, lambda document: document.update({"class": "os.system"}))
    with pytest.raises(ValueError, match=r"class must be one of \['SVEClassifier'.*got 'os\.system'"):
        skve.load(folder)


@pytest.mark.parametrize(
    "change",
    [{"class": "os.system"}, {"classes": {"dtype": "str", "values": ["a"]}}, {"fitted": {"predict": 1}}],
    ids=lambda change: next(iter(change)),
)
def test__load__value_that_save_does_not_write__value_error_names_the_folder(folder, change):
    edit(folder, lambda document: document.update(change))
    with pytest.raises(ValueError, match=f"^{re.escape(str(folder))}.*is damaged|class must be|is damaged"):
        skve.load(folder)


@pytest.mark.parametrize("path", ["../secret.safetensors", "sub/secret.safetensors", "/etc/passwd", ".."])
def test__load__file_outside_the_folder__refused(folder, path):
    (folder.parent / "secret.safetensors").write_bytes(next(folder.glob("members-*")).read_bytes())
    edit(folder, lambda document: document["files"]["members"].update(file=path))
    with pytest.raises(ValueError, match=r"outside the folder|is missing"):
        skve.load(folder)


def test__load__another_model_saved_meanwhile__read_again(folder, monkeypatch):
    original, seen = saving._read_checked, []

    def saved_meanwhile(*args):
        if len(seen) < 3:
            seen.append(args)
            edit(folder, lambda document: document.update(n_iter=len(seen) + 10))
            raise skve.exceptions.SavedModelError("its hash differs")
        return original(*args)

    monkeypatch.setattr(saving, "_read_checked", saved_meanwhile)
    assert skve.load(folder).n_iter_ == 13


def test__load__another_model_saved_all_the_time__named_error_in_the_end(folder, monkeypatch):
    seen = []

    def saved_meanwhile(*args):
        seen.append(args)
        edit(folder, lambda document: document.update(n_iter=len(seen) + 10))
        raise skve.exceptions.SavedModelError("its hash differs")

    monkeypatch.setattr(saving, "_read_checked", saved_meanwhile)
    with pytest.raises(ValueError, match="its hash differs"):
        skve.load(folder)
    assert len(seen) == 10


DISHONEST = {
    "state.fingerprints": {},
    "state.layers": ["conv_stem"],
    "state.shareable": ["os.system"],
    "state.normalised": {"bn1": None},
    "state.batch_size": "1",
    "state.n_features": 7,
    "state.n_classes": 10**9,
    "state.ensemble": "pickle",
    "state.positions": {"a": None},
    "state.backbone": {"kind": "bundled"},
    "state.ensemble_params": {"train_batch_norm": True},
    "fitted": {},
    "fitted.predict": 1,
    "fitted._float_scale": 16,
    "preprocess.input_size": [3, 10**9, 10**9],
    "preprocess.interpolation": "fastest",
    "preprocess.std": [0.0, 1.0, 1.0],
    "preprocess.mean": [0.5],
    "classes.dtype": "U99999999",
    "classes.values": [2, 1, 0],
    "parameters.n_members": "four",
    "parameters.backbone": {"pairs": []},
    "temperature": 1e400,
    "n_iter": -1,
}


@pytest.mark.parametrize("entry", DISHONEST)
@pytest.mark.filterwarnings("ignore:device=")
def test__load__value_that_save_never_writes__named_error_at_load_or_first_prediction(folder, images, entry):
    *parts, last = entry.split(".")

    def change(document):
        for part in parts:
            document = document[part]
        document[last] = DISHONEST[entry]

    edit(folder, change)
    names = {"layers": "fingerprints", "predict": "fitted", "dtype": "classes"}
    name = {
        **names,
        "values": "classes",
        "n_classes": "classes",
        "shareable": "got 'os.system'",
        "fingerprints": "fingerprint",
    }.get(last, last)
    with pytest.raises((ValueError, TypeError), match=rf"{name}|members must fit"):
        skve.load(folder).predict(images[0])


@pytest.mark.parametrize("entry", ["labels", "temperature", "mean", "weights' name", "whitespace"])
def test__load__json_altered_without_its_hash__refused_unless_it_says_the_same(folder, fitted, images, entry):
    path = folder / "skve.json"
    document = json.loads(path.read_text())
    if entry == "labels":
        document["classes"]["values"] = [0, 1, 7]
    elif entry == "temperature":
        document["temperature"] = 3.0
    elif entry == "mean":
        document["preprocess"]["mean"][0] += 0.1
    elif entry == "weights' name":
        document["hash"] = document.pop("sha256")
    path.write_text(json.dumps(document, indent=3))
    if entry == "whitespace":
        assert np.array_equal(skve.load(folder).predict_proba(images[0]), fitted.predict_proba(images[0]))
    else:
        with pytest.raises(ValueError, match=r"skve\.json is damaged or altered: .*\. Use a complete copy"):
            skve.load(folder)


def rewrite(folder, change):
    """Change the members' arrays, and let all hashes fit."""
    path = next(folder.glob("members-*"))
    arrays = safetensors.numpy.load_file(path)
    changed = change(arrays)
    data = safetensors.numpy.save(arrays if changed is None else changed)
    path.write_bytes(data)
    edit(folder, lambda document: document["files"]["members"].update(sha256=hashlib.sha256(data).hexdigest()))


ARRAYS = {
    "NaN": lambda arrays: arrays["head.bias"].fill(np.nan),
    "float64": lambda arrays: {key: value.astype(np.float64) for key, value in arrays.items()},
    "no member": lambda arrays: {key: value[:0] for key, value in arrays.items()},
    "members of different number": lambda arrays: arrays | {"head.bias": arrays["head.bias"][:1]},
    "other features": lambda arrays: arrays | {"head.weight": arrays["head.weight"][..., :-1].copy()},
    "another layer": lambda arrays: arrays | {"log_ratios.x": arrays["head.bias"]},
    "no head": lambda arrays: {key: value for key, value in arrays.items() if "head" not in key},
    "scalars": lambda arrays: arrays | {"head.bias": np.float32(0)[None].reshape(())},
    "nothing": lambda arrays: {},
    "overflow": lambda arrays: [value.fill(3e38) for key, value in arrays.items() if "log" in key][:0] or None,
}


@pytest.mark.parametrize("kind", ARRAYS)
def test__load__arrays_that_save_never_writes__named_error_at_load_or_first_prediction(folder, images, kind):
    rewrite(folder, ARRAYS[kind])
    names = "'members' (is not what save writes|must hold the arrays)|members must fit|got NaN from member"
    with pytest.raises(ValueError, match=names):
        skve.load(folder).predict(images[0])


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"9" * 10_000,
        b'{"format_version": 1' + b"0" * 5000 + b"}",
        b"1e999",
        b"NaN",
    ],
    ids=["nested lists", "nested dicts", "huge number", "huge version", "infinity", "NaN"],
)
def test__load__hostile_json__refused(folder, content):
    (folder / "skve.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"skve\.json is damaged"):
        skve.load(folder)


def test__load__json_beyond_the_limit__refused_before_it_is_read(folder):
    with open(folder / "skve.json", "wb") as stream:
        stream.truncate(2**40)  # a file with a hole, which takes no place on the disk
    with pytest.raises(ValueError, match="must not exceed 33554432 bytes, got 1099511627776"):
        skve.load(folder)


@pytest.mark.parametrize("size", [2**62, 2**40, 10**8 + 1])
def test__load__tensors_with_a_huge_header__refused(folder, size):
    path = next(folder.glob("members-*"))
    data = size.to_bytes(8, "little") + path.read_bytes()[8:]
    path.write_bytes(data)
    edit(folder, lambda document: document["files"]["members"].update(sha256=hashlib.sha256(data).hexdigest()))
    with pytest.raises(ValueError, match=r"skve\.json is damaged: SafetensorError"):
        skve.load(folder)


def test__load__links__as_a_hubs_cache_makes_them_or_refused(folder, fitted, images, tmp_path):
    """A link shows only what skve.json knows the hash of."""
    path = next(folder.glob("members-*"))
    path.rename(tmp_path / "blob")
    path.symlink_to(tmp_path / "blob")
    assert np.array_equal(skve.load(folder).predict_proba(images[0]), fitted.predict_proba(images[0]))
    path.unlink()
    (tmp_path / "secret").write_text("password")
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="is truncated or altered"):
        skve.load(folder)


def test__save__link_in_the_way__file_behind_it_untouched(fitted, folder, tmp_path_factory):
    mine = tmp_path_factory.mktemp("mine")
    (mine / "mine").write_text("mine")
    (folder / "skve.json").rename(mine / "skve.json")
    (folder / "skve.json").symlink_to(mine / "skve.json")
    before = (mine / "skve.json").read_bytes()
    lite(random_state=1).fit(*toy_images()).save(folder)
    assert (mine / "skve.json").read_bytes() == before
    assert not (folder / "skve.json").is_symlink()
    (folder / saving.STAGING).symlink_to(mine)
    with pytest.raises(ValueError, match="must not be a link"):
        fitted.save(folder)
    assert (mine / "mine").read_text() == "mine"


def test__load__embedded_architecture_of_a_hub_or_folder__refused(fitted, images, tmp_path):
    fitted.save(tmp_path, include_backbone=True)
    for name in ("hf-hub:somebody/model", "local-dir:/etc", "os.system"):
        edit(tmp_path, lambda document, name=name: document["state"]["backbone"].update(architecture=name))
        cache.clear_cache()
        with pytest.raises(ValueError, match=r"architecture that timm .* knows, got"):
            skve.load(tmp_path).predict(images[0])


def test__load__embedded_weights_of_another_hash__refused_and_not_cached(fitted, images, tmp_path):
    """Otherwise the weights would be found in the cache by whoever asks for those with that hash."""
    fitted.save(tmp_path, include_backbone=True)
    edit(tmp_path, lambda document: document["state"]["backbone"].update(sha256="0" * 64))
    cache.clear_cache()
    with pytest.raises(ValueError, match="must have the weights that its description names"):
        skve.load(tmp_path).predict(images[0])
    assert len(cache._cache) == 0


def test__load__embedded_of_another_architecture_and_the_same_weights__each_its_own_answer(
    fitted, images, tmp_path, empty_cache
):
    """`efficientnet_lite0` pads otherwise than `tf_efficientnet_lite0`; their weights have one hash."""
    fitted.save(tmp_path / "right", include_backbone=True)
    fitted.save(tmp_path / "other", include_backbone=True)
    edit(tmp_path / "other", lambda document: document["state"]["backbone"].update(architecture="efficientnet_lite0"))
    right, other = (skve.load(tmp_path / name) for name in ("right", "other"))
    wanted = fitted.predict_proba(images[0])
    for order in ((other, right), (right, other)):
        cache.clear_cache()
        proba = {loaded: loaded.predict_proba(images[0]) for loaded in order}
        np.testing.assert_array_equal(proba[right], wanted)
        assert not np.allclose(proba[other], wanted)


def test__load__classes_that_do_not_fit_the_heads__value_error(folder):
    edit(folder, lambda document: document["classes"].update(values=[0, 1]))
    with pytest.raises(ValueError, match="is damaged"):
        skve.load(folder)


def test__save__crash_at_any_write__old_or_new_model_loads(images, fitted, folder, monkeypatch):
    """Let the n-th file operation of a save fail, for every n until the save goes through."""
    other, replace = lite(random_state=1).fit(*images), os.replace
    for n in range(1, 20):
        fitted.save(folder)
        calls = []

        def failing(original, calls=calls, n=n):
            def operation(*args, **kwargs):
                calls.append(original)
                if len(calls) == n:
                    raise OSError("no space left on device")
                return original(*args, **kwargs)

            return operation

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing(os.fsync))
            patch.setattr(os, "replace", failing(os.replace))
            patch.setattr(pathlib.Path, "unlink", failing(pathlib.Path.unlink))
            try:
                other.save(folder)
            except OSError:
                loaded = skve.load(folder)
                assert same_arrays(loaded, fitted) or same_arrays(loaded, other)
                if calls[:-1].count(replace) < 2:  # skve.json is not in its place yet
                    assert same_arrays(loaded, fitted)
        if len(calls) < n:
            break
    assert n > 4
    assert same_arrays(skve.load(folder), other)


def test__save__labels_that_json_cannot_hold__value_error(images, tmp_path):
    classifier = lite(ensemble="head").fit(*images)
    classifier.classes_ = np.array([object(), object(), object()])
    with pytest.raises(ValueError, match="must be plain values for a save, got a object"):
        classifier.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test__format_version__constant__first():
    assert saving.FORMAT_VERSION == 1


def test__load__device_of_the_fit_is_missing__predicts_on_what_there_is(tmp_path, images, monkeypatch):
    clf = toy_classifier().fit(*images)
    clf.save(tmp_path)
    edit(tmp_path, lambda document: document["parameters"].update(device="cuda"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.warns(UserWarning, match="cuda"):
        loaded = skve.load(tmp_path, backbone=clf.backbone)
    assert np.array_equal(loaded.predict_proba(images[0]), clf.predict_proba(images[0]))


class OwnClassifier(skve.SVEClassifier):
    """A subclass of a user's."""


def test__load__subclass_that_is_imported__comes_back_as_itself(images, tmp_path):
    own = OwnClassifier(ensemble="head", n_members=1, image_size=32, max_epochs=1, random_state=0).fit(*images)
    own.save(tmp_path)
    loaded = skve.load(tmp_path)
    assert type(loaded) is OwnClassifier
    assert np.array_equal(loaded.predict_proba(images[0]), own.predict_proba(images[0]))


def test__load__subclass_that_nobody_imported__value_error_says_import(images, tmp_path):
    own = OwnClassifier(ensemble="head", n_members=1, image_size=32, max_epochs=1, random_state=0).fit(*images)
    own.save(tmp_path)
    edit(tmp_path, lambda document: document.update({"class": "ElsewhereClassifier"}))
    with pytest.raises(ValueError, match=r"got 'ElsewhereClassifier'.*import the module that defines the class"):
        skve.load(tmp_path)


@pytest.fixture
def no_locked_folders(monkeypatch):
    """As on some file systems of networks."""
    fcntl = pytest.importorskip("fcntl", reason="other systems lock a file anyway")
    flock = fcntl.flock

    def files_only(descriptor, operation):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError("no locks on folders")
        return flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", files_only)


def test__save__folders_cannot_be_locked__a_file_is(fitted, tmp_path, no_locked_folders, monkeypatch):
    import filelock

    held, acquire = [], filelock.FileLock.acquire
    monkeypatch.setattr(
        filelock.FileLock, "acquire", lambda self, *a, **k: (held.append(1), acquire(self, *a, **k))[1]
    )
    n_open = len(os.listdir("/proc/self/fd"))
    fitted.save(tmp_path / "model")
    fitted.save(tmp_path / "model")
    assert len(held) == 2
    assert len(os.listdir("/proc/self/fd")) == n_open
    np.testing.assert_array_equal(list(skve.load(tmp_path / "model").classes_), list(fitted.classes_))


def test__save__folders_cannot_be_locked_and_the_lock_is_a_link__refused(fitted, tmp_path, no_locked_folders):
    fitted.save(tmp_path / "model")
    (tmp_path / "precious").write_text("kept")
    lock = tmp_path / "model" / saving.LOCK
    lock.unlink(missing_ok=True)
    lock.symlink_to(tmp_path / "precious")
    with pytest.raises(ValueError, match="must not be a link, which a lock would write through"):
        fitted.save(tmp_path / "model")
    assert (tmp_path / "precious").read_text() == "kept"


def test__pickle__made_before_normalisations_were_noted__predicts(fitted, images):
    old = copy.deepcopy(fitted)
    state = dict(vars(old._state))
    del state["normalised"]
    restored = object.__new__(type(old._state))
    restored.__setstate__(state)
    old._state = restored
    assert np.allclose(old.predict_proba(images[0]), fitted.predict_proba(images[0]), atol=1e-5)
