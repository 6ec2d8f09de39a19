"""Toy backbones, a toy classifier and checks, for testing what is built on skve without pretrained weights."""

from skve.testing.image_checks import check_image_estimator
from skve.testing.text_checks import check_text_estimator, make_toy_text_backbone, make_toy_tokenizer
from skve.testing.toys import ToyClassifier, make_toy_backbone, make_toy_image_backbone

__all__ = [
    "ToyClassifier",
    "check_image_estimator",
    "check_text_estimator",
    "make_toy_backbone",
    "make_toy_image_backbone",
    "make_toy_text_backbone",
    "make_toy_tokenizer",
]
