"""SVETextClassifier: singular value ensembles of pretrained text models."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils._param_validation import StrOptions

from skve._backbones import from_transformers
from skve._base import COUNT, BaseSVEClassifier, inherit_parameter_docs
from skve._inputs.containers import check_column_names, plain_str
from skve._inputs.exported import exported_texts
from skve._inputs.text_pipeline import TextPipeline
from skve._inputs.texts import check_choices, check_texts
from skve._runtime.wording import listed

if TYPE_CHECKING:
    import torch


@inherit_parameter_docs
class SVETextClassifier(BaseSVEClassifier):
    """Text classifier that estimates its uncertainty: a singular value ensemble of one pretrained language model.

    The backbone's weights are decomposed once. Each member trains only their singular values, parametrized as
    `sigma * exp(delta)`, and a head. The method is that of arXiv 2601.22068. Requires the extra `text`.

    X is a list, tuple, array or Series of strings, or a DataFrame with one column of them; for sentence pairs a
    list of tuples `(first, second)` or a DataFrame with two columns. Texts may be empty. If the tokenizer puts no
    separator between the texts of a pair, as those of most decoders, they are joined by a line break. With
    `head="likelihood"`, X is a list of tuples `(prompt, choices)` or a DataFrame with two such columns, and y has the
    index of the right choice.

    Parameters
    ----------
    backbone : str, path, tuple or callable, default="bundled:all-MiniLM-L6-v2"
        A Hugging Face name (`"bert-base-uncased"`) of an encoder, a decoder or T5, a folder that
        `save_pretrained` wrote, a `.gguf` file, `"bundled:all-MiniLM-L6-v2"` (works offline, requires the extra
        `offline`), a pair `(model, tokenizer)` (copied, never changed), or a callable that returns such a pair. A
        tokenizer without a padding token pads with its end-of-text token.
    member_lr : float, default=None
        Learning rate of each member's backbone parameters. None: 5e-5 for fine-tunes, 1e-4 for `"lora"`, 3e-3 for
        `"batch"` and `"bias"`, else 1e-2.
    head_lr : float, default=None
        Learning rate of the heads. None: 1e-2 with `head="linear"`, else 1e-5.
    head_weight_decay : float, default=None
        Decoupled weight decay of the heads. None: 0.03 / `head_lr` with `head="linear"`, that is 3 by
        default, else 0.0. Heads that stay small leave the task to the backbone's features, which helps most where
        labels are few.
    batch_size : int, default=32
        Number of samples in a batch, in training and in prediction. Batches hold texts of similar length.
    max_length : int, default=None
        Largest number of tokens of a text, special tokens included. Longer texts are truncated, with a warning.
        None takes 256, or the backbone's largest number of positions if that is less.
    truncation_side : {"left", "right"}, default="right"
        Side on which longer texts are truncated. Decoders with `head="lm"` and `"likelihood"` read after the end of a
        text or prompt: `"left"` keeps the end.
    pooling : {"auto", "mean", "cls", "last"}, default="auto"
        How the features of a text's tokens become one vector for `head="linear"`: their mean, those of the first
        token, or those of the last token before the padding. `"auto"` takes the last for decoders, else the mean.
    head : {"linear", "lm", "likelihood"}, default="linear"
        `"linear"`: a new linear head for each member. `"lm"`: the pretrained language-model head, whose logits of the
        first token of each class's label word are used, for few examples and multiple choice. They are read after
        the last token of decoders, so that a text is a prompt such as `"Great film! It was"`, and at the mask token
        of encoders. Each member owns a copy of the label words' rows. `"likelihood"`: multiple choice by the texts of
        the choices. The logit of a choice is the mean log-likelihood of its tokens after the prompt, by the
        pretrained language-model head of a decoder, which all members share; what each member owns is a linear map of
        the choices' logits, which starts as the identity.
    label_words : array-like of str or dict, default=None
        With `head="lm"`, the word of each class as it continues the text, usually with a leading space: in the
        order of the sorted classes, or a dict from class to word. None uses a space and the name of the class.
    multiple_choice : bool, default=False
        With `head="lm"`, whether each text lists its choices, on lines that begin with the label word and `.`, `)`
        or `:`. Classes that a text does not list have probability 0 and cannot be its label in `fit`. With
        `head="likelihood"` every prompt has choices, whatever this says.
    backbone_dtype : {"float32", "bfloat16", "int8", "int4"}, default="float32"
        Type of the frozen weights. `"bfloat16"` halves their memory. `"int8"` and `"int4"` keep those of linear
        layers in a quarter and in a seventh of it: members then train and predict beside the quantised weights,
        which they adapt along the leading singular directions. `fit` raises an error for ensembles
        that train all weights, such as "deep".
    activation_checkpointing : bool, default=False
        Whether training recomputes the activations of each block instead of storing them. This takes less memory
        and about a third more time.
    precision : {"auto", "float32", "bfloat16", "float16"}, default="auto"
        Arithmetic of the backbone in training. `"auto"` uses bfloat16 where the processor supports it and it is
        faster, else float32. `"float16"`, for GPUs without bfloat16, scales each member's loss and skips the steps of
        a member whose gradient overflows. Heads and losses are always float32 or better.

    Attributes
    ----------
    float_layers_ : list of str
        Only with `backbone_dtype="int8"` or `"int4"`: the modules whose matrices stay float32, such as embeddings.
    preprocess_ : dict
        Settings with which texts are prepared: `"max_length"`, `"truncation_side"`, `"pooling"`, `"label_words"`,
        `"choices"` (the label words of multiple choice, the largest number of choices of a prompt, or None),
        `"mask_token_id"` (of the token at which the label word is read, or None), `"n_tokens"` (number of tokens that
        the backbone embeds), `"tokenizer_sha256"`, `"dtype"` of the frozen weights, and `"softcap"` of the
        language-model head's logits, or None.

    See Also
    --------
    skve.SVEClassifier : The same for images.
    skve.load : Load a saved estimator.
    skve.predict_uncertainty : Uncertainty of an estimator in a pipeline or a search.

    Examples
    --------
    >>> from skve import SVETextClassifier
    >>> texts = ["a joy to watch", "what a waste of time", "wonderful", "I left early", "moving and funny", "dull"]
    >>> labels = ["good", "bad", "good", "bad", "good", "bad"]
    >>> clf = SVETextClassifier(n_members=2, layers="last:1", max_steps=20, random_state=0).fit(texts, labels)
    >>> clf.predict_proba(["a wonderful evening", "dreadful"]).shape
    (2, 2)
    >>> clf.predict_uncertainty(["a wonderful evening"]).epistemic.shape
    (1,)
    """

    max_length: int | None
    truncation_side: str
    pooling: str
    head: str
    label_words: Sequence[str] | Mapping[Any, str] | None
    multiple_choice: bool
    backbone_dtype: str
    activation_checkpointing: bool
    _paired: bool | str
    _learned = {"_paired": [False, True, "choices"]}
    _check_preprocess = staticmethod(from_transformers.check_preprocess)

    _parameter_constraints: dict = {
        **BaseSVEClassifier._parameter_constraints,
        "max_length": [COUNT, None],
        "truncation_side": [StrOptions({"left", "right"})],
        "pooling": [StrOptions({"auto", "mean", "cls", "last"})],
        "head": [StrOptions({"linear", "lm", "likelihood"})],
        "label_words": ["array-like", dict, None],
        "multiple_choice": ["boolean"],
        "backbone_dtype": [StrOptions(set(from_transformers.DTYPES))],
        "activation_checkpointing": ["boolean"],
    }
    _kind_of_inputs = "text"

    def __init__(
        self,
        backbone: Any = "bundled:all-MiniLM-L6-v2",
        *,
        ensemble: str = "sve",
        ensemble_params: dict[str, Any] | None = None,
        n_members: int = 4,
        layers: str | Sequence[str] = "all",
        init_scale: float = 0.01,
        train_bias: bool = False,
        member_lr: float | None = None,
        head_lr: float | None = None,
        weight_decay: float = 0.0,
        head_weight_decay: float | None = None,
        max_epochs: int | None = None,
        max_steps: int | None = None,
        batch_size: int = 32,
        schedule: str = "cosine",
        warmup: float = 0.1,
        grad_clip: float | None = 1.0,
        label_smoothing: float = 0.0,
        class_weight: dict[Any, float] | str | None = None,
        validation_fraction: float = 0.1,
        early_stopping: bool = False,
        n_iter_no_change: int = 5,
        calibrate: str | None = "auto",
        max_length: int | None = None,
        truncation_side: str = "right",
        pooling: str = "auto",
        head: str = "linear",
        label_words: Sequence[str] | Mapping[Any, str] | None = None,
        multiple_choice: bool = False,
        backbone_dtype: str = "float32",
        activation_checkpointing: bool = False,
        precision: str = "auto",
        predict_precision: str = "auto",
        device: str | torch.device | list[str] = "auto",
        n_jobs: int | None = None,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
        callbacks: Sequence[Any] | None = None,
        features: str = "backbone",
    ) -> None:
        self._store_parameters(locals())

    def _check_inputs(self, X, *, reset):
        check_column_names(self, X, reset=reset)
        if (self.head == "likelihood") if reset else (self._paired == "choices"):
            texts = check_choices(X)
        else:
            texts = check_texts(X, paired=None if reset else self._paired)
        if reset:
            self._paired = texts.paired
        return texts

    def _find_classes(self, items, y):
        if items.paired is True and [str(label) for label in y] in (items.first, items.second):
            raise ValueError(
                "No text of a pair may be its label, got pairs of which one text each is that of y. A table of two "
                "columns is read as pairs: pass the column of texts only, such as table['text']."
            )
        if items.paired != "choices":
            return super()._find_classes(items, y)
        n_choices = max(map(len, items.second))
        if y.dtype.kind not in "iu" or not ((y >= 0) & (y < n_choices)).all():
            wrong = next(label for label in y.tolist() if type(label) is not int or not 0 <= label < n_choices)
            raise ValueError(
                f"y must have the index of the right choice of each prompt for head='likelihood', an integer from 0 "
                f"to {n_choices - 1}, got {wrong!r}."
            )
        return np.arange(n_choices)

    def _load_backbone(self, spec, preprocess=None, classes=None):
        if preprocess is not None:
            head = "lm" if preprocess["label_words"] is not None else "linear"
            if isinstance(preprocess["choices"], int):
                head = "likelihood"
            backbone = from_transformers.load_text_backbone(spec, head=head, dtype=preprocess["dtype"])
            if backbone.preprocess["tokenizer_sha256"] != preprocess["tokenizer_sha256"]:
                raise ValueError(
                    f"The tokenizer of the backbone {backbone.description['name']!r} must be the one of the fit, got "
                    f"another. Restore it, or fit again."
                )
            return from_transformers.reconfigure(backbone, preprocess)
        words = self._words(classes)
        choices = words if self.multiple_choice else None
        if self.head == "likelihood":
            choices = self._n_choices(classes)
        return from_transformers.configure(
            from_transformers.load_text_backbone(spec, head=self.head, dtype=self.backbone_dtype),
            pooling=self.pooling,
            max_length=self.max_length,
            truncation_side=self.truncation_side,
            label_words=words,
            choices=choices,
        )

    def _outline(self, length, n_classes):
        scores = self.head == "likelihood"
        shape = (self.batch_size, n_classes, length) if scores else (self.batch_size, length)
        outline = from_transformers.outline(
            self.backbone,
            shape,
            head=self.head,
            dtype=self.backbone_dtype,
            pooling=self.pooling,
            n_choices=n_classes if scores else None,
        )
        return *outline, math.prod(shape)

    @staticmethod
    def _n_choices(classes):
        """Return the largest number of choices of a prompt, whose indices are the classes."""
        if classes.tolist() != list(range(len(classes))):
            raise ValueError(
                f"classes must be the indices of the choices for head='likelihood', from 0 to one less than their "
                f"largest number, got {listed(classes.tolist(), form=repr)}."
            )
        return len(classes)

    def _words(self, classes):
        """Return the label word of each class, or None where none is read."""
        if self.head != "lm":
            if self.label_words is not None or (self.multiple_choice and self.head == "linear"):
                raise ValueError(
                    f"label_words and multiple_choice require head='lm', got head={self.head!r}. Set head='lm'."
                )
            return None
        words = self.label_words
        if words is None:
            return [f" {label}" for label in classes.tolist()]
        if isinstance(words, Mapping):
            missing = [label for label in classes.tolist() if label not in words]
            if missing:
                raise ValueError(
                    f"label_words must have a word for each class, got none for {listed(missing, form=repr)}."
                )
            words = [words[label] for label in classes.tolist()]
        if len(words) != len(classes):
            raise ValueError(
                f"label_words must have one word for each of the {len(classes)} classes "
                f"({listed(classes.tolist(), form=repr)}), got {len(words)}."
            )
        if not all(isinstance(word, str) for word in words):
            raise TypeError(f"label_words must be strings, got {list(words)!r}.")
        return [plain_str(word) for word in words]

    def _make_pipeline(self, items, backbone, device, *, training):
        return TextPipeline(
            items, backbone.tokenizer, backbone.preprocess, device, ignores_padding=backbone.ignores_padding
        )

    def _exported_inputs(self, backbone, *, resize):
        return exported_texts(backbone, len(self.classes_))

    def _defaults(self):
        defaults = super()._defaults()
        if self.head != "linear":  # heads start as what the language model reads, from which they hardly move
            return dataclasses.replace(defaults, head_lr=1e-5, head_weight_decay=0.0)
        return defaults

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags
