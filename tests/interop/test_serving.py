"""examples/serving.py, started on the loopback address and queried over HTTP."""

import base64
import contextlib
import io
import runpy
import threading
import time

import numpy as np
import pytest
from PIL import Image

import skve
from skve import SVETextClassifier
from skve.testing import make_toy_text_backbone
from tests.toys import TinyCNN, toy_classifier, toy_images

uvicorn = pytest.importorskip("uvicorn", reason="the example serves with uvicorn")
httpx = pytest.importorskip("httpx", reason="the test queries with httpx")
pytest.importorskip("fastapi", reason="the example is written with fastapi")
pytest.importorskip("onnxruntime", reason="the example runs exported models in onnxruntime")

SERVING = runpy.run_path("examples/serving.py")
TEXTS, ANSWERS = ["to be", "or not", "to be so", "or not so to be or"] * 3, ["yes", "no"] * 6
IMAGES, LABELS = toy_images(per_class=4)


@contextlib.contextmanager
def serving(predict):
    """Serve a model in a thread; give a client that knows the address."""
    config = uvicorn.Config(SERVING["create_app"](predict), host="127.0.0.1", port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(timeout=30)


@pytest.fixture(scope="module")
def texts():
    """A selective classifier of texts that abstains from about half of them, and from foreign ones."""
    backbone = make_toy_text_backbone()
    ensemble = SVETextClassifier(
        backbone, n_members=2, max_steps=6, device="cpu", random_state=0, predict_precision="float32"
    ).fit(TEXTS, ANSWERS)
    selective = skve.SelectiveClassifier(ensemble, coverage=0.5, prefit=True, abstention="ask a person")
    return selective.fit(TEXTS, ANSWERS)


def assert_answers(answers, model, items):
    """Assert that the answers are what the model predicts."""
    assert [one["answer"] for one in answers] == model.predict(items).tolist()
    uncertainty = skve.predict_uncertainty(model, items)
    proba = [list(one["probabilities"].values()) for one in answers]
    np.testing.assert_allclose(proba, model.predict_proba(items), atol=1e-4)
    for name in ("total", "aleatoric", "epistemic", "novelty"):
        np.testing.assert_allclose([one[name] for one in answers], getattr(uncertainty, name), atol=1e-4)


def test__serving__exported_texts__answers_over_http(texts, tmp_path):
    texts.export(tmp_path / "model.onnx")
    items = TEXTS[:4] + ["be or so"]
    with serving(SERVING["load"](tmp_path / "model.onnx")) as client:
        assert client.get("/health").json() == {"classes": ["no", "yes"], "items": "texts"}
        together = client.post("/predict", json={"items": items}).json()["answers"]
        alone = [client.post("/predict", json={"items": [item]}).json()["answers"][0] for item in items]
    assert_answers(together, texts, items)
    assert_answers(alone, texts, items)
    assert {one["answered"] for one in together} == {True, False}
    assert {one["answer"] for one in together} - {"yes", "no"} == {"ask a person"}


@pytest.mark.parametrize("parameters", [{}, {"uncertainty": "epistemic"}, {"max_novelty": 0.9}])
def test__serving__saved_selective_model__abstains_where_it_does(parameters):
    backbone = make_toy_text_backbone()
    clf = SVETextClassifier(
        backbone, n_members=2, max_steps=20, member_lr=0.1, calibrate="temperature", device="cpu", random_state=0
    ).fit(TEXTS, ANSWERS)
    assert clf.temperature_ != 1
    selective = skve.SelectiveClassifier(clf, coverage=0.5, prefit=True, abstention="?", **parameters)
    selective.fit(TEXTS, ANSWERS)
    outputs, answered = SERVING["Saved"](selective)(TEXTS)
    np.testing.assert_array_equal(answered, selective.answers(TEXTS))
    np.testing.assert_array_equal(outputs["proba"], selective.predict_proba(TEXTS))


def test__serving__saved_images__answers_over_http(tmp_path):
    backbone = TinyCNN()
    toy_classifier(backbone).fit(IMAGES, LABELS).distill(IMAGES).save(tmp_path / "model")
    student = skve.load(tmp_path / "model", backbone=backbone)

    def encoded(image):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        return base64.b64encode(stream.getvalue()).decode()

    with serving(SERVING["Saved"](student)) as client:
        answers = client.post("/predict", json={"items": [encoded(image) for image in IMAGES[:3]]}).json()["answers"]
        broken = client.post("/predict", json={"items": ["AAAA"]})
    assert_answers(answers, student, IMAGES[:3])
    assert broken.status_code == 422
    assert "not an image" in broken.json()["detail"]


@pytest.mark.parametrize("body", [{}, {"items": []}, {"items": ["to be"] * 65}, {"items": [3]}])
def test__serving__bad_request__refused_and_the_next_one_answered(texts, body):
    with serving(SERVING["Saved"](texts)) as client:
        assert client.post("/predict", json=body).status_code == 422
        assert client.post("/predict", json={"items": ["to be"]}).status_code == 200
