"""The folder of decompositions: what is read instead of computed, and what a bad folder does."""

import os
import threading

import pytest
import torch
from safetensors.torch import save_file

from skve._backbones import cache, decomposition, decomposition_folder
from tests.toys import TinyMLP, toy_classifier

WEIGHT = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(decomposition_folder.FOLDER, str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def computed(monkeypatch):
    """How often a weight is decomposed."""
    calls, original = [], decomposition.decompose

    def counted(*args):
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(decomposition, "decompose", counted)
    return calls


def decompose(weight=WEIGHT, kind="linear"):
    return decomposition_folder.decompose_once(weight, kind)


def same(one, other):
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("U", "sigma", "Vt"))


def test__no_variable__nothing_written(tmp_path, monkeypatch, computed):
    monkeypatch.delenv(decomposition_folder.FOLDER, raising=False)
    monkeypatch.chdir(tmp_path)
    decompose()
    decompose()
    assert len(computed) == 2
    assert list(tmp_path.iterdir()) == []


def test__second_time__read_bit_for_bit(folder, computed):
    first = decompose()
    assert same(decompose(), first)
    assert len(computed) == 1
    assert [path.suffix for path in folder.iterdir()] == [".safetensors"]


def test__other_weight_or_kind__not_mixed_up(folder, computed):
    square = WEIGHT[:, :6].contiguous()
    for weight, kind in [(WEIGHT, "linear"), (WEIGHT + 1e-6, "linear"), (square, "linear"), (square, "transposed")]:
        decompose(weight, kind)
    assert len(computed) == len(list(folder.iterdir())) == 4


def test__fits__of_another_process__decompose_nothing(folder, computed, images, empty_cache):
    first = toy_classifier(TinyMLP(), max_epochs=1).fit(*images)
    n_computed = len(computed)
    cache.clear_cache()  # as in a new process
    second = toy_classifier(TinyMLP(), max_epochs=1).fit(*images)
    assert len(computed) == n_computed == 2
    assert (first.predict_proba(images[0]) == second.predict_proba(images[0])).all()


def damaged(path, how):
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[:-7])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "altered":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif how == "other tensors":
        save_file({"U": torch.zeros(2)}, path)
    else:
        save_file({"U": torch.zeros(6, 6), "sigma": torch.zeros(6), "Vt": torch.zeros(6, 8)}, path)


@pytest.mark.parametrize("how", ["cut", "empty", "altered", "other tensors", "other shapes"])
def test__damaged_file__computed_and_written_again(folder, computed, how):
    first = decompose()
    (path,) = folder.iterdir()
    damaged(path, how)
    assert same(decompose(), first)
    assert same(decompose(), first)
    assert len(computed) == 2
    assert list(folder.iterdir()) == [path]


def test__folder_is_a_file__warning_and_the_factors(tmp_path, monkeypatch, computed):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(decomposition_folder.FOLDER, str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="SKVE_DECOMPOSITIONS must be a folder that can be written to"):
        decompose()
    assert len(computed) == 1


def test__read_only_folder__read_all_the_same_and_a_warning_for_what_is_new(folder, monkeypatch, computed):
    first = decompose()

    def refused(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(decomposition_folder.tempfile, "mkstemp", refused)
    assert same(decompose(), first)
    assert len(computed) == 1
    with pytest.warns(UserWarning, match=r"that can be written to, got .*: \[Errno 13\] Permission denied"):
        decompose(WEIGHT + 1)
    assert len(list(folder.iterdir())) == 1


def test__folder_of_two_versions__each_reads_its_own(folder, monkeypatch, computed):
    first = decompose()
    with monkeypatch.context() as other:
        other.setattr(decomposition_folder, "_VERSION", "another")
        decompose()
        decompose()
    assert len(computed) == len(list(folder.iterdir())) == 2
    assert same(decompose(), first)
    assert len(computed) == 2


def test__disk_full__warning_and_nothing_left(folder, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(UserWarning, match="No space left"):
        decompose()
    assert list(folder.iterdir()) == []


def test__several_at_once__all_the_same_and_one_file(folder):
    results = [None] * 4

    def work(index):
        results[index] = decompose()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(result, results[0]) for result in results)
    assert len(list(folder.iterdir())) == 1
