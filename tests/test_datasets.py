"""The data that ships with the package, and images from class folders."""

import importlib.resources
import os
import pathlib
import warnings

import numpy as np
import pytest
from PIL import Image

from skve.datasets import load_fashion, load_image_folder, load_intents
from tests.toys import toy_classifier


def test__load_intents__sizes__as_documented():
    data = load_intents()
    names, counts = np.unique(data.target, return_counts=True)
    assert names.tolist() == data.target_names.tolist()
    assert set(counts) == {60}
    assert set(np.unique(data.target_test, return_counts=True)[1]) == {30}
    assert (len(data.texts), len(data.texts_test), len(data.texts_ood)) == (1500, 750, 500)
    assert not set(data.texts) & set(data.texts_test)
    assert all(text.strip() == text and text for text in [*data.texts, *data.texts_test, *data.texts_ood])


def test__load_intents__licence__attribution_and_size():
    folder = importlib.resources.files("skve") / "data" / "intents"
    text = (folder / "LICENSE").read_text("utf-8")
    assert "creativecommons.org/licenses/by/3.0" in text
    assert "Larson" in text
    assert "CC BY" in text
    assert "CLINC150" in load_intents().DESCR
    assert len((folder / "intents.csv").read_bytes()) < 300_000


# ---------------------------------------------------------------------------------------- class folders


def make(folder, *names):
    """Write small images under the names, and an empty file where the name has another extension."""
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".gif"):
            Image.new("RGB", (16, 16), (20 * index, 0, 0)).save(path)
        else:
            path.touch()


def names_of(folder, **options):
    """What is found, relative to the folder, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths, labels = load_image_folder(folder, **options)
    return [pathlib.Path(path).relative_to(folder).as_posix() for path in paths.tolist()], labels.tolist()


def test__load_image_folder__class_folders__sorted_paths_and_their_labels(tmp_path):
    make(tmp_path, "dog/b.jpg", "cat/2.png", "cat/10.png", "dog/a.JPEG", "Ärger/x y.gif")
    names, labels = names_of(tmp_path)
    assert names == ["cat/10.png", "cat/2.png", "dog/a.JPEG", "dog/b.jpg", "Ärger/x y.gif"]
    assert labels == ["cat", "cat", "dog", "dog", "Ärger"]
    for path in (tmp_path, str(tmp_path)):
        paths, labels = load_image_folder(path)
        assert paths.dtype.kind == labels.dtype.kind == "U"
        assert paths[labels == "dog"].shape == (2,)


def test__load_image_folder__hidden_and_other_files__skipped(tmp_path):
    make(tmp_path, "a/1.png", "a/._1.png", "a/notes.txt", "a/Thumbs.db", "a/.cache/2.png", ".git/3.png", "b/4.png")
    make(tmp_path, "readme.md", "a/run.eps")
    message = r"3 files are left out, such as 'a/Thumbs\.db': .*\['\.db', '\.eps', '\.txt'\]"
    with pytest.warns(UserWarning, match=message):
        paths, labels = load_image_folder(tmp_path)
    assert [os.path.relpath(path, tmp_path) for path in paths] == ["a/1.png", "b/4.png"]
    assert labels.tolist() == ["a", "b"]
    assert names_of(tmp_path, extensions=[".png"]) == (["a/1.png", "b/4.png"], ["a", "b"])


def test__load_image_folder__broken_link__named(tmp_path):
    make(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "b/2.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.warns(UserWarning, match=r"1 file is left out, such as 'b/2\.png'"):
        assert len(load_image_folder(tmp_path)[0]) == 2


def test__load_image_folder__extension_of_a_registered_plugin__listed(tmp_path, monkeypatch):
    make(tmp_path, "a/1.png", "b/1.ours")
    with pytest.warns(UserWarning, match="left out"):
        assert len(load_image_folder(tmp_path)[0]) == 1
    reader = type("Reader", (), {"__module__": "another_package"})
    monkeypatch.setitem(Image.OPEN, "OURS", (reader, None))
    monkeypatch.setitem(Image.EXTENSION, ".ours", "OURS")
    assert names_of(tmp_path) == (["a/1.png", "b/1.ours"], ["a", "b"])


@pytest.mark.parametrize(("load", "items"), [(load_fashion, "images"), (load_intents, "texts")])
def test__load__as_scikit_learn__data_target_and_frame(load, items):
    whole = load()
    X, y = load(return_X_y=True)
    assert np.array_equal(X, whole.data)
    assert np.array_equal(y, whole.target)
    assert np.array_equal(np.reshape(X, np.shape(whole[items])), whole[items])
    frame = load(as_frame=True)
    assert frame.data.columns.tolist() == whole.feature_names
    assert frame.frame.columns.tolist() == [*whole.feature_names, "target"]
    assert np.array_equal(frame.frame.iloc[:, :-1].to_numpy().squeeze(), np.asarray(X))
    X, y = load(return_X_y=True, as_frame=True)
    assert X.equals(frame.data)
    assert y.equals(frame.target)


def test__load_image_folder__nested_folders__belong_to_the_class_above(tmp_path):
    make(tmp_path, "a/2019/1.png", "a/2020/x/1.png", "a/1.png", "b/2019/1.png")
    assert names_of(tmp_path) == (
        ["a/1.png", "a/2019/1.png", "a/2020/x/1.png", "b/2019/1.png"],
        ["a", "a", "a", "b"],
    )


def test__load_image_folder__links__followed_and_circles_ended(tmp_path):
    make(tmp_path, "elsewhere/1.png", "elsewhere/2.png", "data/a/3.png", "data/b/4.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "c")
    os.symlink(tmp_path / "elsewhere" / "1.png", tmp_path / "data" / "a" / "0.png")
    os.symlink(tmp_path / "data" / "b", tmp_path / "data" / "b" / "again")
    assert names_of(tmp_path / "data") == (
        ["a/0.png", "a/3.png", "b/4.png", "c/1.png", "c/2.png"],
        ["a", "a", "b", "c", "c"],
    )


@pytest.mark.parametrize("extensions", [["png"], [".PNG"], (".png",), np.array([".png"])])
def test__load_image_folder__extensions__only_those(tmp_path, extensions):
    make(tmp_path, "a/1.png", "a/2.jpg", "b/3.PNG")
    assert names_of(tmp_path, extensions=extensions) == (["a/1.png", "b/3.PNG"], ["a", "b"])


@pytest.mark.parametrize("extensions", [".png", [1], ["."], [None], 5, b".png"])
def test__load_image_folder__extensions_of_another_kind__type_error(tmp_path, extensions):
    with pytest.raises(TypeError, match=r"extensions must be a list of strings, as in \['\.jpg'"):
        load_image_folder(tmp_path, extensions=extensions)


@pytest.mark.parametrize("path", [None, b"x", 5, ["x"]])
def test__load_image_folder__path_of_another_kind__type_error(path):
    with pytest.raises(TypeError, match=r"^path must be a folder as a str or pathlib\.Path, got .* of type \w+"):
        load_image_folder(path)


def test__load_image_folder__empty_class__warning_names_it(tmp_path):
    make(tmp_path, "a/1.png", "b/2.png", "empty/notes.txt")
    with pytest.warns(UserWarning, match=r"The folders \['empty'\] have no image .*Remove them"):
        labels = load_image_folder(tmp_path)[1]
    assert labels.tolist() == ["a", "b"]


def test__load_image_folder__images_beside_the_classes__warning_names_one(tmp_path):
    make(tmp_path, "a/1.png", "b/2.png", "3.png", "4.png", "notes.txt")
    with pytest.warns(UserWarning, match=r"2 images, such as '3\.png', lie outside .*Move them"):
        assert len(load_image_folder(tmp_path)[0]) == 2


def test__load_image_folder__parts_of_a_data_set__warning_says_which_folder_to_pass(tmp_path):
    make(tmp_path, "train/a/1.png", "test/a/2.png")
    with pytest.warns(UserWarning, match=r"named \['test', 'train'\]\. Pass one of them as path"):
        load_image_folder(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"must contain images in class folders, as in path/CLASS/image.jpg, .*, which contains no folder\."),
        (["1.png"], r"contains no folder\. Images that lie in it, as '1\.png', belong to no class"),
        (["a/notes.txt", "b/c/x.eps"], r"whose folders \(a, b\) contain none\. .*extensions .*\.jpg, .*\.png"),
    ],
)
def test__load_image_folder__no_images__value_error_says_what_is_required(tmp_path, names, message):
    make(tmp_path, *names)
    with pytest.raises(ValueError, match=message):
        load_image_folder(tmp_path)


def test__load_image_folder__no_folder__value_error_says_what_is_wanted(tmp_path):
    make(tmp_path, "1.png")
    with pytest.raises(ValueError, match=r"path must be a folder .*, got '.*nowhere', which does not exist"):
        load_image_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"path must be a folder .*, got '.*1\.png', which is a file"):
        load_image_folder(tmp_path / "1.png")


def test__load_image_folder__then_fit__classes_are_the_folders(tmp_path):
    make(tmp_path, *[f"{name}/{index}.png" for name in ("cat", "dog") for index in range(6)])
    paths, labels = load_image_folder(tmp_path)
    classifier = toy_classifier(max_epochs=1).fit(paths, labels)
    assert classifier.classes_.tolist() == ["cat", "dog"]
    assert classifier.predict(paths).shape == (12,)
