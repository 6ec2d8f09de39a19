"""Tokenised texts in batches of similar length, ready for the network."""

import numpy as np
import torch

from skve._inputs.pipeline import content_key
from skve._inputs.tokenization import (
    check_tokens_embedded,
    joined,
    listed_choices,
    pad_token,
    tokenise,
    tokenise_choices,
)

_BATCHES_SORTED_TOGETHER = 8  # in training: enough for batches of similar length, few enough for random ones


def batches_of_similar_length(lengths, batch_size, generator, *, mixed=True):
    """Yield the indices of each batch.

    Without a generator, all texts are sorted by length. With one, they are shuffled, sorted within groups of
    a few batches, and the batches shuffled again.

    Parameters
    ----------
    lengths : ndarray of int, shape (n_texts,)
    batch_size : int
    generator : torch.Generator or None
    mixed : bool, default=True
        Whether batches may hold texts of different lengths without a generator; with one, they may always.

    Yields
    ------
    ndarray of int
    """
    if generator is None:
        order = np.argsort(lengths, kind="stable")
        ends = np.flatnonzero(np.diff(lengths[order])) + 1 if not mixed else np.array([], int)
        for part in np.split(order, ends):
            yield from (part[start : start + batch_size] for start in range(0, len(part), batch_size))
        return
    order = torch.randperm(len(lengths), generator=generator).numpy()
    group = batch_size * _BATCHES_SORTED_TOGETHER
    batches: list[np.ndarray] = []
    for start in range(0, len(order), group):
        part = order[start : start + group]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches.extend(part[begin : begin + batch_size] for begin in range(0, len(part), batch_size))
    for index in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[index]


class TextPipeline:
    """Turns texts into the network's batches.

    Parameters
    ----------
    texts : TextSequence
    tokenizer : transformers tokenizer
    preprocess : dict
        See `configure` of the text backbones.
    device : torch.device
    ignores_padding : bool, default=True
        Whether a text's features are the same beside longer texts. If not, predictions are made in batches of equal
        lengths.
    """

    def __init__(self, texts, tokenizer, preprocess, device, *, ignores_padding=True):
        length, side, choices = (preprocess[name] for name in ("max_length", "truncation_side", "choices"))
        mask, remedy = preprocess["mask_token_id"], ""
        if preprocess["label_words"] is not None and mask is None and side == "right":
            remedy = ": head='lm' reads behind the end, which truncation_side='left' keeps"
        scores = isinstance(choices, int)

        def tokenised():
            if scores:
                return tokenise_choices(tokenizer, texts.first, texts.second, max_length=length, side=side)
            return tokenise(tokenizer, texts.first, texts.second, max_length=length, side=side, remedy=remedy)

        self.tokens = texts.computed_once((preprocess["tokenizer_sha256"], length, side), tokenised)
        self.rows, self.device, self._choices, self._mixed = texts.rows, device, choices, ignores_padding
        self.lengths = self.tokens.lengths[self.rows]
        self._pad = pad_token(tokenizer)
        self._check_embedded(tokenizer, preprocess["n_tokens"])
        self._listed = None
        if scores:
            self._check_number_of_choices()
            self._listed = np.arange(choices) < self.tokens.n_choices[:, None]
        elif choices is not None:
            self._listed = texts.computed_once(
                ("choices", *choices), lambda: listed_choices(joined(texts.first, texts.second), choices)
            )
        if mask is not None:
            self._check_masks(joined(texts.first, texts.second), mask, tokenizer.mask_token, length)

    def _check_embedded(self, tokenizer, n_tokens):
        if n_tokens is None:
            return
        check_tokens_embedded(tokenizer, self.tokens.largest, n_tokens, lambda i: f"X[{i}]")
        check_tokens_embedded(tokenizer, [self._pad], n_tokens, lambda i: "the padding")

    def _check_number_of_choices(self):
        too_many = np.flatnonzero(self.tokens.n_choices > self._choices)
        if len(too_many):
            raise ValueError(
                f"X[{too_many[0]}] must have at most {self._choices} choices, as in fit, got "
                f"{self.tokens.n_choices[too_many[0]]}. Fit with a prompt that has as many."
            )

    def _check_masks(self, texts, token, name, length):
        has_one = np.zeros(len(texts), bool)
        has_one[np.repeat(np.arange(len(texts)), self.tokens.lengths)[self.tokens.ids == token]] = True
        without = np.flatnonzero(~has_one)
        if len(without):
            cut, remedy = "", ""
            if name in texts[without[0]]:
                cut = f" after cutting to max_length={length} tokens"
                remedy = " Raise max_length, or choose the side that is cut with truncation_side."
            raise ValueError(
                f"X[{without[0]}] must contain {name}, where head='lm' reads the label word, got none{cut}.{remedy}"
            )

    def check_labels(self, codes, name):
        """Check that each text of `name`, such as "X", lists the choice that is its label, a column of the choices.

        Raises
        ------
        ValueError
            If one does not; the model could never predict it.
        """
        if self._listed is None:
            return
        wrong = np.flatnonzero(~self._listed[self.rows, codes])
        if len(wrong) and isinstance(self._choices, int):
            row = self.rows[wrong[0]]
            raise ValueError(
                f"{name}[{row}] must have the choice that is its label, got the index {codes[wrong[0]]} for "
                f"{self.tokens.n_choices[row]} choices. Change the label."
            )
        if len(wrong):
            word = self._choices[codes[wrong[0]]].strip()
            raise ValueError(
                f"{name}[{self.rows[wrong[0]]}] must list its label {word!r} for multiple_choice=True, got no line "
                f"that begins with {word + '.'!r}. Add one, or change the label."
            )

    def __len__(self):
        return len(self.rows)

    @property
    def impossible(self):
        """Which choices a text does not list, or None without multiple choice."""
        return None if self._listed is None else ~self._listed[self.rows]

    @property
    def same_each_epoch(self):
        """Whether a text's features are the same beside longer texts."""
        return self._mixed

    def content_keys(self):
        """Return a key for the tokens of each text."""
        return [content_key(*parts) for parts in self.tokens.contents(self.rows)]

    @property
    def mean_size(self):
        """Tokens of an average text, or prompt with all choices: what the rows that a layer multiplies grow with."""
        return float(self.tokens.totals[self.rows].mean())

    def size(self, indices):
        """Return the number of tokens, padding included, in the batch of these texts."""
        return self.tokens.size(self.rows[indices])

    def batches(self, batch_size, generator):
        """Yield the indices of each batch of texts of similar length."""
        yield from batches_of_similar_length(self.lengths, batch_size, generator, mixed=self._mixed)

    def load(self, indices):
        """Return the texts at `indices` as a padded batch on the CPU."""
        batch = self.tokens.padded(self.rows[indices], self._pad)
        if self._listed is not None:
            batch["impossible"] = torch.from_numpy(~self._listed[self.rows[indices]])
        return batch

    def load_each(self, batches, ahead):
        """Yield what `load` returns for each batch."""
        yield from map(self.load, batches)

    def prepare(self, raw, generator):
        """Return the network's input on its device; texts are not augmented."""
        return {name: values.to(self.device) for name, values in raw.items()}
