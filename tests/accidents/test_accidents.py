"""Ctrl-C, kill -9, full disks, forks, threads, other processes: what is left works and is right."""

import contextlib
import errno
import gc
import io
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading

import joblib
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.model_selection import GridSearchCV

import skve
from skve import _ensembles, vision
from skve._backbones import backbone as backbone_module
from skve._backbones import cache, decomposition
from skve._fitted import prediction, predictor, saving
from skve._fitted import state as state_module
from skve._runtime import locks
from skve._training import build, loop, step
from tests.toys import TinyCNN, TinyMLP, same_arrays, toy_classifier

ROOT = pathlib.Path(__file__).parents[2]

# ------------------------------------------------------------------------------------------------ Ctrl-C

PLACES = {
    "reading inputs": (vision, "check_images"),
    "loading the backbone": (backbone_module, "freeze"),
    "decomposition": (decomposition, "decompose"),
    "trace": (build, "trace"),
    "first batch": (_ensembles.Ensemble, "chunk_logits"),
    "between gradient and step": (step.Step, "clip"),
    "optimizer": (torch.optim.AdamW, "step"),
    "what the epoch leaves": (loop, "_stacked_ratios"),
    "the fitted state": (state_module.FittedState, "fitted"),
}


@contextlib.contextmanager
def interrupt(target, name, call=1):
    """Press Ctrl-C, as a signal, in the `call`-th call."""
    original, calls = getattr(target, name), []

    def pressed(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, name, pressed)
        yield
    assert len(calls) >= call


def locks_are_free():
    """Say whether another thread gets all locks."""
    got = []

    def take():
        for lock in list(locks._locks):
            got.append(lock.acquire(timeout=1))
            lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return len(got) > 1 and all(got)


@pytest.mark.parametrize("place", PLACES)
def test__ctrl_c__anywhere_in_a_first_fit__as_before_and_the_next_fit_is_right(images, empty_cache, place):
    expected = toy_classifier(TinyCNN()).fit(*images)
    cache.clear_cache()
    classifier = toy_classifier(TinyCNN())
    before = dict(vars(classifier))
    with pytest.raises(KeyboardInterrupt), interrupt(*PLACES[place]):
        classifier.fit(*images)
    assert vars(classifier) == before
    assert locks_are_free()
    assert same_arrays(classifier.fit(*images), expected)


@pytest.mark.parametrize("place", PLACES)
def test__ctrl_c__anywhere_in_a_second_fit__old_state_or_last_complete_epoch(images, place):
    settings = {"max_epochs": 3, "schedule": "constant", "warmup": 0.0}
    first = toy_classifier(**settings, random_state=5).fit(*images)
    state, epochs = first._state, [toy_classifier(**settings | {"max_epochs": n}).fit(*images) for n in (1, 2, 3)]
    calls = {"first batch": 9, "between gradient and step": 4, "optimizer": 4, "what the epoch leaves": 2}.get(
        place, 1
    )
    if place in ("loading the backbone", "decomposition"):
        cache.clear_cache()
    with pytest.raises(KeyboardInterrupt), interrupt(*PLACES[place], call=calls):
        first.set_params(random_state=0).fit(*images)
    if first._state is not state:
        assert same_arrays(first, epochs[first.n_iter_ - 1])
        assert len(first.history_["loss"]) == len(first.history_["gradient_norm"]["fc1"]) == first.n_iter_
    assert (first._state is state) == (calls == 1)
    assert first.predict_proba(images[0]).shape == (24, 3)


def test__ctrl_c__at_the_end_of_an_epoch__is_not_taken_for_a_callback_that_stops(images):
    """Callbacks of skorch raise KeyboardInterrupt themselves to end a training."""
    classifier = toy_classifier(max_epochs=5)
    with pytest.raises(KeyboardInterrupt), interrupt(loop, "_stacked_ratios", call=2):
        classifier.fit(*images)
    assert classifier.n_iter_ == 1


@pytest.mark.parametrize(
    "place",
    [
        (prediction, "_predict_block"),
        (_ensembles.Ensemble, "member_logits"),
        (predictor.Predictor, "__init__"),
        (predictor, "keep_predictor"),
    ],
)
def test__ctrl_c__in_a_prediction__the_next_one_is_right(images, place):
    classifier = toy_classifier().fit(*images)
    expected = classifier.predict_proba(images[0])
    cache.clear_cache()
    with pytest.raises(KeyboardInterrupt), interrupt(*place):
        classifier.predict_proba(images[0])
    assert locks_are_free()
    assert np.array_equal(classifier.predict_proba(images[0]), expected)


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test__ctrl_c__in_a_save__old_model_whole_and_the_next_save_works(saved, name):
    old, new, folder = saved
    with pytest.raises(KeyboardInterrupt), interrupt(os, name):
        new.save(folder)
    assert same_arrays(skve.load(folder, backbone=TinyMLP()), old)
    new.save(folder)
    assert same_arrays(skve.load(folder, backbone=TinyMLP()), new)
    assert len(list(folder.iterdir())) == 3


def test__ctrl_c__in_a_grid_search__stops_and_the_next_one_is_right(images):
    def search():
        return GridSearchCV(toy_classifier(max_epochs=1), {"n_members": [1, 2]}, cv=2)

    expected = search().fit(*images).cv_results_["mean_test_score"]
    with pytest.raises(KeyboardInterrupt), interrupt(step.Step, "clip", call=3):
        search().fit(*images)
    assert np.array_equal(search().fit(*images).cv_results_["mean_test_score"], expected)


def run(script, *, timeout=120, **kwargs):
    """Run a script with the tests' modules in a process of its own."""
    code = "from tests.toys import *\nimport os, signal, sys, threading, time, skve, numpy as np, torch\n"
    return subprocess.Popen(
        [sys.executable, "-c", code + textwrap.dedent(script)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


def finish(process, timeout=120):
    try:
        return process.communicate(timeout=timeout)
    finally:
        process.kill()


def test__ctrl_c__signal_to_a_process_that_fits__last_epoch_is_kept():
    process = run(
        """
        from skorch.callbacks import Callback
        class Tell(Callback):
            def on_epoch_end(self, net, **kwargs):
                print("epoch", len(net.history), flush=True)
        clf = toy_classifier(max_epochs=100000, callbacks=[Tell()])
        X, y = toy_images()
        try:
            clf.fit(X, y)
        except KeyboardInterrupt:
            print("kept", clf.n_iter_ >= 2, clf.predict(X).shape, flush=True)
        """
    )
    while process.stdout.readline() != "epoch 3\n":
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGINT)
    out, err = finish(process)
    assert out.splitlines()[-1:] == ["kept True (24,)"], err


@pytest.mark.slow
def test__ctrl_c__signal_to_a_grid_search_with_two_jobs__ends():
    process = run(
        """
        from sklearn.model_selection import GridSearchCV
        X, y = toy_images()
        print("started", flush=True)
        try:
            search = GridSearchCV(toy_classifier(max_epochs=100000), {"n_members": [1, 2]}, cv=2, n_jobs=2)
            search.fit(X, y)
        except KeyboardInterrupt:
            print("stopped", toy_classifier().fit(X, y).predict(X).shape, flush=True)
        """,
        start_new_session=True,
    )
    assert process.stdout.readline() == "started\n"
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=20)
    os.killpg(process.pid, signal.SIGINT)
    out, err = finish(process)
    assert "stopped (24,)" in out, err


# --------------------------------------------------------------------------------- kill -9 and full disks


@pytest.fixture
def saved(images, tmp_path):
    """Two fitted classifiers, and the folder in which the first one is saved."""
    old, new = (toy_classifier(random_state=seed, max_epochs=1).fit(*images) for seed in (0, 1))
    with pytest.warns(UserWarning, match="not saved"):
        old.save(tmp_path / "model")
    return old, new, tmp_path / "model"


pytestmark = pytest.mark.filterwarnings("ignore:not saved, since they are no plain values")
OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.open", "os.listdir", "os.scandir", "os.truncate"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test__kill__at_any_file_operation_of_a_save__old_or_new_model_is_whole(saved):
    """The audit hook of the interpreter tells each operation on files; the forked child ends at the n-th."""
    old, new, folder = saved
    outcomes = []
    for n in range(1, 60):
        old.save(folder)
        child = os.fork()
        if child == 0:
            left = [n]

            def hook(event, args, left=left):
                if event in OPERATIONS and str(args[0]).startswith(str(folder)):
                    left[0] -= 1
                    if left[0] == 0:
                        os._exit(9)

            sys.addaudithook(hook)
            new.save(folder)
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found = skve.load(folder, backbone=TinyMLP())
        outcomes.append("new" if same_arrays(found, new) else "old")
        assert outcomes[-1] == "new" or same_arrays(found, old)
        if ended == 0:
            break
    assert ended == 0
    assert len(outcomes) > 5
    assert outcomes == sorted(outcomes, reverse=True)  # old ... old new ... new
    assert outcomes[0] == "old"
    assert len(list(folder.iterdir())) == 3  # what the dead left behind is gone


class FullDisk(io.RawIOBase):
    """A file that takes the first `size` bytes."""

    def __init__(self, stream, size):
        self.stream, self.left = stream, size

    def writable(self):
        return True

    def fileno(self):
        return self.stream.fileno()

    def write(self, data):
        if len(data) > self.left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.stream.name)
        self.left -= len(data)
        return self.stream.write(data)

    def close(self):
        self.stream.close()
        super().close()


@pytest.mark.parametrize("full_at", [1, 2, 3])
def test__save__disk_full_at_any_write__named_error_old_model_whole_and_nothing_left(saved, monkeypatch, full_at):
    old, new, folder = saved
    opened = []

    def full(path, mode="r", *args, **kwargs):
        stream = open(path, mode, *args, **kwargs)  # noqa: SIM115 - the caller closes it
        if set("wx") & set(mode):
            opened.append(path)
            if len(opened) == full_at:
                return FullDisk(stream, 100)
        return stream

    before = sorted(path.name for path in folder.iterdir())
    monkeypatch.setattr(saving, "open", full, raising=False)
    with pytest.raises(OSError, match=r"The model was not saved in .*, and an older one there is whole") as caught:
        new.save(folder)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert same_arrays(skve.load(folder, backbone=TinyMLP()), old)
    assert sorted(path.name for path in folder.iterdir()) == before
    new.save(folder)
    assert same_arrays(skve.load(folder, backbone=TinyMLP()), new)
    assert len(list(folder.iterdir())) == 3


def test__save__folder_cannot_be_made__named_error(saved, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="The model was not saved in"):
        saved[0].save(tmp_path / "file" / "model")


# ---------------------------------------------------------------------------- threads, processes, forks


@pytest.mark.parametrize("backbone", [TinyCNN(), "bundled:efficientnet_lite0"], ids=["toy", "bundled"])
def test__predict__eight_threads_on_one_estimator__bits_of_serial_calls(images, empty_cache, backbone):
    bundled = isinstance(backbone, str)
    settings = {"image_size": 32, "layers": "last:1", "max_epochs": 1} if bundled else {}
    classifier = toy_classifier(backbone, **settings, batch_size=5).fit(*images)
    parts = [images[0][start : start + 12] for start in range(8)]
    serial = [classifier.predict_proba_members(part) for part in parts]
    cache.clear_cache()  # so that the threads also build at once
    results, barrier = [None] * 8, threading.Barrier(8)

    def work(index):
        barrier.wait()
        results[index] = [classifier.predict_proba_members(parts[index]) for _ in range(2)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(
        np.array_equal(result, expected) for pair, expected in zip(results, serial, strict=True) for result in pair
    )


def test__two_processes__one_folder_saved_and_loaded_at_once__always_a_whole_model(saved):
    old, new, folder = saved
    joblib.dump(new, folder.parent / "new.joblib")
    process = run(
        f"""
        import joblib, warnings
        warnings.simplefilter("ignore")
        new = joblib.load({str(folder.parent / "new.joblib")!r})
        print("ready", flush=True)
        for _ in range(8):
            new.save({str(folder)!r})
            found = skve.load({str(folder)!r}, backbone=TinyMLP())
        print("done")
        """
    )
    assert process.stdout.readline() == "ready\n"
    seen = set()
    while process.poll() is None:
        old.save(folder)
        found = skve.load(folder, backbone=TinyMLP())
        assert same_arrays(found, old) or same_arrays(found, new)
        seen.add(same_arrays(found, new))
    out, err = finish(process)
    assert out == "done\n", err


@pytest.mark.slow
def test__two_processes__one_local_folder_of_weights__same_members(images, tmp_path):
    import timm
    from timm.models import save_for_hf

    save_for_hf(timm.create_model("test_vit", num_classes=0), tmp_path / "weights", model_config={"num_classes": 0})
    script = f"""
        X, y = toy_images()
        clf = toy_classifier("local-dir:{tmp_path / "weights"}", image_size=None, layers="last:1", max_epochs=1)
        print(float(clf.fit(X[:6], y[:6]).predict_proba(X[:2])[0, 0]))
    """
    processes = [run(script) for _ in range(2)]
    outs = [finish(process) for process in processes]
    assert outs[0][0], outs[0][1]
    assert outs[0][0] == outs[1][0]


FORK = """
X, y = toy_images()
torch.set_num_threads(2)
rows = torch.randn(2000, 500)
for _ in range(20):
    (rows @ rows.T).exp().sum()  # OpenMP's threads are there now
clf = toy_classifier(TinyCNN()).fit(X, y)
expected = clf.predict_proba(X)
from skve._backbones import cache
from skve._runtime import locks
held, release = threading.Event(), threading.Event()
def hold():
    with contextlib.ExitStack() as stack:
        for lock in list(locks._locks):
            stack.enter_context(lock)
        held.set()
        release.wait()
import contextlib
thread = threading.Thread(target=hold)
thread.start()
held.wait()
child = os.fork()
if child == 0:
    same = np.allclose(clf.predict_proba(X), expected, atol=1e-6)
    cache.clear_cache()
    fitted = toy_classifier(TinyCNN()).fit(X, y)
    (rows @ rows.T).exp().sum()
    close = np.allclose(fitted.predict_proba(X), expected, atol=1e-3)
    print("child", same, close, torch.get_num_threads(), flush=True)
    os._exit(0)
for _ in range(600):
    if os.waitpid(child, os.WNOHANG)[0]:
        break
    time.sleep(0.1)
else:
    os.kill(child, 9)
    print("the child hangs")
release.set()
thread.join()
print("parent", np.array_equal(clf.predict_proba(X), expected), torch.get_num_threads())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test__fork__after_a_fit_with_threads_and_held_locks__child_predicts_and_fits():
    out, err = finish(run(FORK))
    assert out.splitlines() == ["child True True 1", "parent True 2"], err


# ------------------------------------------------------------------------------------------- many fits


def living():
    """Count tensors, threads and open files of this process."""
    gc.collect()
    tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    return tensors, threading.active_count(), files


@pytest.mark.parametrize("fresh", [lambda: TinyCNN(), lambda: TinyCNN, lambda: lambda: TinyCNN()])
def test__twenty_fits__tensors_threads_and_files__as_many_as_after_the_third(images, empty_cache, tmp_path, fresh):
    path, counts = tmp_path / "image.png", []
    Image.fromarray(images[0][0]).save(path)
    for seed in range(20):
        classifier = toy_classifier(fresh(), random_state=seed, max_epochs=1, n_members=1)
        classifier.fit(*images).predict([str(path)])
        del classifier
        if seed in (2, 19):
            counts.append(living())
    assert counts[1] == counts[0]


def test__twenty_fits__other_weights_each__cache_stays_within_its_bound(images, empty_cache, monkeypatch):
    monkeypatch.setenv(cache.LIMIT, "400000")
    counts = []
    for seed in range(20):
        toy_classifier(TinyMLP(seed), max_epochs=1, n_members=1).fit(*images)
        if seed in (8, 19):
            counts.append(living())
        assert sum(backbone.nbytes for backbone in cache._cache.values()) <= 4 * 10**5
    assert counts[1] == counts[0]
