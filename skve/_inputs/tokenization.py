"""Texts to token ids, once and in the calling process, and token ids to batches of similar length."""

import contextlib
import dataclasses
import hashlib
import os
import re
import weakref

import numpy as np
import torch

from skve._runtime.locks import new_lock
from skve._runtime.warnings import warn

_lock = new_lock()  # tokenizers keep truncation settings inside, and may serve several threads
_hashes: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # tokenizer -> (what it gave, its hash)
_AT_ONCE = 1000  # texts that one call of the tokenizer gets
_PART = 2**13  # characters: what is shorter than twice as many is tokenised as a whole
_LARGEST_PART = 2**21
_SPACE = re.compile(r"\s")
_PROBES = ("The quick brown Fox: 3.14 x 2,000!", "Ünïcödé 中文 🙂", "don't re-tokenise\n\tTHIS", "")


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token ids of texts, one after another.

    Attributes
    ----------
    ids : ndarray of int32, shape (n_tokens,)
    types : ndarray of int8, shape (n_tokens,), or None
        Which sentence of a pair a token belongs to, for backbones that use it.
    lengths : ndarray of int64, shape (n_texts,)
    """

    ids: np.ndarray
    types: np.ndarray | None
    lengths: np.ndarray
    _ends: np.ndarray = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "_ends", np.cumsum(self.lengths))  # a cached_property has a lock of its own

    def contents(self, rows):
        """Yield the ids, and the types if there are any, of each of the texts `rows` as bytes."""
        arrays = [self.ids] if self.types is None else [self.ids, self.types]
        for end, length in zip(self._ends[rows], self.lengths[rows], strict=True):
            yield [array[end - length : end].tobytes() for array in arrays]

    def padded(self, rows, pad):
        """Return texts `rows` as a batch: `input_ids`, `attention_mask` and perhaps `token_type_ids`, int64.

        Padding stands on the right whatever the tokenizer prefers: there it changes neither the positions of
        the tokens nor, in causal backbones, what they see.
        """
        lengths = self.lengths[rows]
        mask = np.arange(lengths.max()) < lengths[:, None]
        ends = self._ends[rows]
        at = np.concatenate([np.arange(end - n, end) for end, n in zip(ends, lengths, strict=True)])
        batch = {"input_ids": np.full(mask.shape, pad, np.int64), "attention_mask": mask.astype(np.int64)}
        batch["input_ids"][mask] = self.ids[at]
        if self.types is not None:
            batch["token_type_ids"] = np.zeros(mask.shape, np.int64)
            batch["token_type_ids"][mask] = self.types[at]
        return {name: torch.from_numpy(values) for name, values in batch.items()}


def joined(first, second):
    """Return sentence pairs as single texts of two lines or more, and single texts as they are."""
    return first if second is None else [f"{one}\n{two}" for one, two in zip(first, second, strict=True)]


def tokenise(tokenizer, first, second, *, max_length, side, remedy=""):
    """Tokenise texts or sentence pairs, cut to `max_length` tokens, with one warning if any was longer.

    Pairs are joined by a line break if the tokenizer, as that of most decoders, puts nothing between them. A text
    without any token (an empty one, where the tokenizer adds no special tokens) becomes one token: the start, end
    or padding token.

    Parameters
    ----------
    tokenizer : transformers tokenizer
    first : list of str
    second : list of str or None
    max_length : int
    side : {"left", "right"}
        Where tokens are cut off.
    remedy : str
        What else the warning is to say.

    Returns
    -------
    Tokens

    Raises
    ------
    ValueError
        If `max_length` leaves no room for the texts beside the special tokens.
    """
    n_special = tokenizer.num_special_tokens_to_add(pair=second is not None)
    if second is not None and n_special == tokenizer.num_special_tokens_to_add(pair=False):
        first, second = joined(first, second), None
    n_texts = 1 if second is None else 2
    if max_length < n_special + n_texts:
        raise ValueError(
            f"max_length must be at least {n_special + n_texts}, got {max_length}. This backbone's tokenizer adds "
            f"{n_special} special tokens to {'a text' if second is None else 'a pair of texts'}."
        )
    ids, types, n_cut = [], [], 0
    with _lock, _in_this_thread(), _truncation_side(tokenizer, side):
        for start in range(0, len(first), _AT_ONCE):
            stop = start + _AT_ONCE
            texts = tuple(
                None
                if part is None
                else [
                    _bounded(tokenizer, text, max_length + 1, side, f"X[{index}]")
                    for index, text in enumerate(part[start:stop], start)
                ]
                for part in (first, second)
            )
            encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=False)
            ids.extend(encoded["input_ids"])
            types.extend(encoded.get("token_type_ids", []))
            full = [i for i, tokens in enumerate(encoded["input_ids"]) if len(tokens) == max_length]
            if full:  # cut or just as long: one more token says which
                long = [[part[i] for i in full] if part is not None else None for part in texts]
                longer = tokenizer(*long, truncation=True, max_length=max_length + 1)["input_ids"]
                n_cut += sum(len(tokens) > max_length for tokens in longer)
    if n_cut:
        warn(
            f"{n_cut} of {len(first)} texts are longer than max_length={max_length} tokens and were cut on the "
            f"{side}. Raise max_length, or choose the side with truncation_side{remedy}."
        )
    start_token = _first_of(tokenizer, "bos_token_id", "cls_token_id", "eos_token_id", "pad_token_id")
    ids = [tokens or [start_token] for tokens in ids]
    types = [tokens or [0] for tokens in types]
    return Tokens(
        np.concatenate([np.asarray(tokens, np.int32) for tokens in ids]),
        np.concatenate([np.asarray(tokens, np.int8) for tokens in types]) if types else None,
        np.array([len(tokens) for tokens in ids]),
    )


def _bounded(tokenizer, text, n_tokens, side, where):
    """Return the part of a long text that its first or last `n_tokens` tokens come from.

    A tokenizer takes 400 times the memory of a text before it cuts the tokens. Those near the end of a part may
    differ from those of the whole text: a part is long enough if one of twice its length has the same ones.

    Raises
    ------
    ValueError
        If so long a part has fewer tokens that the memory is in danger.
    """
    size, kept = max(_PART, 16 * n_tokens), None
    limit = max(_LARGEST_PART, 4 * size)
    while len(text) > 2 * size:
        if size > limit:
            raise ValueError(
                f"{where} must have {n_tokens} tokens within {limit} characters or be shorter, got a text of "
                f"{len(text)} characters. Split it at white space, or cut it."
            )
        part = _cut(text, size, side)
        ids = tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
        found = ids[:n_tokens] if side == "right" else ids[-n_tokens:]
        if len(found) == n_tokens and found == kept:
            return part
        size, kept = 2 * size, found
    return text


def _cut(text, size, side):
    """Return about `size` characters of the beginning of a text, or of its end, cut at a space if one is near."""
    if side == "right":
        space = _SPACE.search(text, size, size + _PART)
        return text[: space.start() if space else size]
    start = max(0, len(text) - size - _PART)
    space = _SPACE.search(text, start, len(text) - size)
    return text[space.start() if space else len(text) - size :]


def pad_token(tokenizer):
    """Return the id that fills batches up: the padding token, or the end-of-text token where there is none."""
    return _first_of(tokenizer, "pad_token_id", "eos_token_id", "bos_token_id")


def _first_of(tokenizer, *names):
    return next((value for name in names if (value := getattr(tokenizer, name, None)) is not None), 0)


@contextlib.contextmanager
def _in_this_thread():
    """Keep Hugging Face's tokenizers from starting threads: a later fork of the process would warn of them."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ.setdefault(name, "false")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _truncation_side(tokenizer, side):
    before = tokenizer.truncation_side
    tokenizer.truncation_side = side
    try:
        yield
    finally:
        tokenizer.truncation_side = before


def tokenizer_hash(tokenizer):
    """Return a hash of a tokenizer's vocabulary and of how it splits a few probes."""
    with _lock, _in_this_thread():
        state = (len(tokenizer), [tokenizer(probe)["input_ids"] for probe in _PROBES])
        if tokenizer not in _hashes or _hashes[tokenizer][0] != state:  # large vocabularies take a while
            vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
            content = repr((state[1], vocabulary)).encode("utf-8", "surrogatepass")
            _hashes[tokenizer] = (state, hashlib.sha256(content).hexdigest())
        return _hashes[tokenizer][1]


def check_tokens_embedded(tokenizer, tokens, n_tokens, where):
    """Check that a backbone that embeds `n_tokens` tokens knows all of `tokens`; `where(i)` names the i-th.

    A larger vocabulary is no error by itself: some tokenizers have tokens for what their models do not read.
    """
    unknown = np.flatnonzero(np.asarray(tokens) >= n_tokens)
    if len(unknown):
        token = int(tokens[unknown[0]])
        raise ValueError(
            f"{where(unknown[0])} must have tokens that the backbone embeds, of which it has {n_tokens}, got "
            f"{tokenizer.convert_ids_to_tokens(token)!r}, number {token}. Call "
            f"model.resize_token_embeddings(len(tokenizer)) first."
        )


def word_tokens(tokenizer, words):
    """Return the first token of each label word.

    Raises
    ------
    ValueError
        If a word has no token, or two words begin with the same one.
    """
    with _lock, _in_this_thread():
        split = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    seen: dict[int, str] = {}
    for word, tokens in zip(words, split, strict=True):
        if not tokens:
            raise ValueError(
                f"label_words must have a token each in this backbone's vocabulary, got {word!r}, which has none."
            )
        if tokens[0] in seen:
            raise ValueError(
                f"label_words must begin with different tokens, of which only the first is read, got "
                f"{seen[tokens[0]]!r} and {word!r}, which begin with the same token "
                f"{tokenizer.convert_ids_to_tokens(tokens[0])!r}. Choose others."
            )
        seen[tokens[0]] = word
    return [tokens[0] for tokens in split]


def listed_choices(texts, words):
    """Say which lettered choices each text lists: lines that begin with the word and `.`, `)` or `:`.

    Parameters
    ----------
    texts : list of str
    words : list of str
        One for each class, such as " A".

    Returns
    -------
    listed : ndarray of bool, shape (n_texts, n_words)

    Raises
    ------
    ValueError
        If a text lists no choice.
    """
    patterns = [re.compile(rf"^\s*\(?{re.escape(word.strip())}[.):]", re.MULTILINE) for word in words]
    listed = np.array([[bool(pattern.search(text)) for pattern in patterns] for text in texts])
    empty = np.flatnonzero(~listed.any(1))
    if len(empty):
        raise ValueError(
            f"X[{empty[0]}] must list its choices for multiple_choice=True, as lines that begin with "
            f"{words[0].strip() + '.'!r}, {words[1].strip() + '.'!r} and so on, got a text that lists no choice."
        )
    return listed
