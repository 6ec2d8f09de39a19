"""Serve a saved or an exported model over HTTP: class, probabilities, uncertainty, novelty, and "ask a person".

    python examples/serving.py model.onnx          # what clf.export wrote, with model.json beside it
    python examples/serving.py folder              # what clf.save wrote
    curl -X POST localhost:8000/predict -H 'content-type: application/json' -d '{"items": ["I lost my card"]}'

Requires fastapi and uvicorn, for exported models onnxruntime (extra `export`), and tokenizers for texts. The model is
loaded once. A request holds 1 to 64 items: texts, or images as base64. An exported model computes everything in one
call and requires neither skve nor torch; a saved one predicts with skve. Save or export a `SelectiveClassifier`, and
uncertain or foreign items are answered with its abstention, such as "ask a person".
"""

import argparse
import base64
import binascii
import io
import json
import pathlib

import numpy as np
from PIL import Image, UnidentifiedImageError

MOST_ITEMS = 64
LONGEST = 10_000_000  # characters of one item


class Saved:
    """A model that `save` wrote.

    Parameters
    ----------
    model : SVEClassifier, SVETextClassifier or SelectiveClassifier
        From `skve.load`.
    """

    def __init__(self, model):
        self.model = model
        self.ensemble = getattr(model, "estimator_", model)
        self.ensemble = getattr(self.ensemble, "estimator", self.ensemble)  # in a FrozenEstimator
        self.reads_images = type(self.ensemble).__name__ == "SVEClassifier"
        self.abstention = getattr(model, "abstention", None)
        self.classes = self.ensemble.classes_.tolist()

    def __call__(self, items):
        """Return the outputs by name, as an exported graph does, and which items are answered."""
        uncertainty, proba = self.ensemble.predict_uncertainty(items, return_proba=True)
        outputs = {name: getattr(uncertainty, name) for name in ("total", "aleatoric", "epistemic", "novelty")}
        if hasattr(self.model, "answers"):
            answered = self.model.answers(items, uncertainty=uncertainty, proba=proba)
        else:
            answered = np.ones(len(items), bool)
        return outputs | {"proba": proba}, answered


class Exported:
    """A model that `export` wrote.

    Parameters
    ----------
    path : path
        The .onnx file, with its .json beside it.
    n_threads : int, default=1
        Threads of one prediction; requests run beside one another.
    """

    def __init__(self, path, n_threads=1):
        import onnxruntime

        self.settings = json.loads(pathlib.Path(path).with_suffix(".json").read_text("utf-8"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.names = [value.name for value in self.session.get_outputs()]
        self.reads_images = "images" in self.settings["inputs"]
        self.classes, self.thresholds = self.settings["classes"], self.settings["thresholds"]
        self.abstention = self.thresholds.get("abstention")
        if not self.reads_images:
            from tokenizers import Tokenizer

            read = self.settings["tokenizer"]
            self.tokenizer = Tokenizer.from_str(json.dumps(read["definition"]))
            self.tokenizer.enable_truncation(read["max_length"], direction=read["truncation_side"])
            self.tokenizer.enable_padding(pad_id=read["pad_token_id"])

    def __call__(self, items):
        """Return the outputs by name, and which items are answered."""
        if self.reads_images:  # images of one size are a batch
            parts = [self._run({"images": np.asarray(image)[None]}) for image in items]
            axes = {name: int(name == "member_proba") for name in self.names}
            outputs = {name: np.concatenate([part[name] for part in parts], axes[name]) for name in self.names}
        else:
            encoded = self.tokenizer.encode_batch(list(items))
            fields = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
            tokens = {name: np.array([getattr(one, field) for one in encoded]) for name, field in fields.items()}
            outputs = self._run({name: tokens[name] for name in self.settings["inputs"]})
        return outputs, self._answered(outputs)

    def _run(self, inputs):
        return dict(zip(self.names, self.session.run(None, inputs), strict=True))

    def _answered(self, outputs):
        answered = np.ones(len(outputs["proba"]), bool)
        if "threshold" in self.thresholds:
            answered &= self._scores(outputs) <= self.thresholds["threshold"]
            if self.thresholds["max_novelty"] is not None:
                answered &= outputs["novelty"] <= self.thresholds["max_novelty"]
        return answered

    def _scores(self, outputs):
        measure, proba = self.thresholds["uncertainty"], outputs["proba"]
        if measure == "confidence":
            return 1 - proba.max(axis=1)
        if measure == "total" and self.thresholds["computed_from"] == "proba":
            return -(proba * np.log(np.maximum(proba, 1e-38))).sum(axis=1)
        return outputs[measure]


def load(path):
    """Load a model from a folder of `save` or a file of `export`."""
    if pathlib.Path(path).is_dir():
        import skve

        return Saved(skve.load(path))
    return Exported(path)


def read_image(text):
    """Return the image that a base64 text holds; ValueError if there is none."""
    try:
        return Image.open(io.BytesIO(base64.b64decode(text, validate=True))).convert("RGB")
    except (binascii.Error, UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"not an image in base64: {error}") from error


def create_app(predict):
    """Return the web application around a model.

    Parameters
    ----------
    predict : Saved or Exported
    """
    from typing import Annotated

    from fastapi import FastAPI, HTTPException
    from pydantic import BaseModel, Field

    class Request(BaseModel):
        items: list[Annotated[str, Field(max_length=LONGEST)]] = Field(min_length=1, max_length=MOST_ITEMS)

    app = FastAPI(title="skve")

    @app.get("/health")
    def health():
        return {"classes": predict.classes, "items": "images" if predict.reads_images else "texts"}

    @app.post("/predict")  # not async: the network computes in a thread, and other requests go on
    def answer(request: Request):
        try:
            items = [read_image(text) for text in request.items] if predict.reads_images else request.items
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        outputs, answered = predict(items)
        return {
            "answers": [
                {
                    "answer": predict.classes[proba.argmax()] if sure else predict.abstention,
                    "answered": bool(sure),
                    "probabilities": dict(zip(map(str, predict.classes), proba.tolist(), strict=True)),
                    **{name: float(outputs[name][i]) for name in ("total", "aleatoric", "epistemic", "novelty")},
                }
                for i, (proba, sure) in enumerate(zip(np.asarray(outputs["proba"], float), answered, strict=True))
            ]
        }

    return app


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a folder of save, or a file of export")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    import uvicorn

    uvicorn.run(create_app(load(arguments.model)), host=arguments.host, port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
