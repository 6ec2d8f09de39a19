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

    @property
    def totals(self):
        """Number of tokens of each text."""
        return self.lengths

    @property
    def largest(self):
        """Largest id of each text."""
        return np.maximum.reduceat(self.ids, self._ends - self.lengths)

    def size(self, rows):
        """Return the number of tokens, padding included, in the batch of the texts `rows`."""
        return int(self.lengths[rows].max()) * len(rows)

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


@dataclasses.dataclass(frozen=True)
class ChoiceTokens:
    """Token ids of prompts, each followed by each of its choices.

    Attributes
    ----------
    sequences : Tokens
        Of all choices of the first prompt, of those of the second, and so on.
    n_scored : ndarray of int64, shape (n_sequences,)
        Number of tokens of the choice, the last ones of a sequence.
    n_choices : ndarray of int64, shape (n_prompts,)
    """

    sequences: Tokens
    n_scored: np.ndarray
    n_choices: np.ndarray
    _starts: np.ndarray = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "_starts", np.cumsum(self.n_choices) - self.n_choices)

    @property
    def lengths(self):
        """Number of tokens of the longest sequence of each prompt."""
        return np.maximum.reduceat(self.sequences.lengths, self._starts)

    @property
    def totals(self):
        """Number of tokens of all sequences of each prompt."""
        return np.add.reduceat(self.sequences.lengths, self._starts)

    @property
    def largest(self):
        """Largest id of each prompt and its choices."""
        return np.maximum.reduceat(self.sequences.largest, self._starts)

    def size(self, rows):
        """Return the number of tokens, padding included, in the batch of the prompts `rows`."""
        return self.sequences.size(self._places(rows)[0].ravel())

    def contents(self, rows):
        """Yield the ids, and how many of them are scored, of each sequence of the prompts `rows` as bytes."""
        for start, n in zip(self._starts[rows], self.n_choices[rows], strict=True):
            own = np.arange(start, start + n)
            yield [part for parts in self.sequences.contents(own) for part in parts] + [self.n_scored[own].tobytes()]

    def padded(self, rows, pad):
        """Return prompts `rows` as a batch: what `Tokens.padded` has, (n, n_listed, n_tokens), and `scored`.

        `scored`, of shape (n, n_listed, n_scored), has the places of the choices' tokens, and -1 behind them. Prompts
        with fewer than the `n_listed` choices of another one repeat their first, of which nothing is scored.
        """
        places, is_listed = self._places(rows)
        batch = self.sequences.padded(places.ravel(), pad)
        batch = {name: values.unflatten(0, places.shape) for name, values in batch.items()}
        n_scored = np.where(is_listed, self.n_scored[places], 0)[..., None]
        steps = np.arange(n_scored.max())
        scored = np.where(steps < n_scored, self.sequences.lengths[places][..., None] - n_scored + steps, -1)
        return {**batch, "scored": torch.from_numpy(scored)}

    def _places(self, rows):
        """Return the places (n, n_listed) of the sequences of prompts, and which of them are choices of theirs."""
        n_choices = self.n_choices[rows][:, None]
        order = np.arange(n_choices.max())
        is_listed = order < n_choices
        return self._starts[rows][:, None] + np.where(is_listed, order, 0), is_listed


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
    ids = [tokens or [_start_token(tokenizer)] for tokens in ids]
    types = [tokens or [0] for tokens in types]
    return Tokens(
        np.concatenate([np.asarray(tokens, np.int32) for tokens in ids]),
        np.concatenate([np.asarray(tokens, np.int8) for tokens in types]) if types else None,
        np.array([len(tokens) for tokens in ids]),
    )


def tokenise_choices(tokenizer, prompts, choices, *, max_length, side):
    """Tokenise prompts with each of their choices behind them; prompts that are too long are cut, with one warning.

    A space stands between prompt and choice where neither has white space there. A choice has those tokens of the two
    together that the prompt alone has not got, so that tokens which reach over its end belong to the choice.

    Parameters
    ----------
    tokenizer : transformers tokenizer
    prompts : list of str
    choices : list of list of str
    max_length : int
        Largest number of tokens of a prompt with its longest choice.
    side : {"left", "right"}
        Where tokens of prompts are cut off.

    Returns
    -------
    ChoiceTokens

    Raises
    ------
    ValueError
        If `max_length` leaves no room for a token of the prompt.
    """
    ids, n_scored, n_cut = [], [], 0
    start_token = _start_token(tokenizer)
    with _lock, _in_this_thread():
        n_before, n_behind = _special_ends(tokenizer)
        for start in range(0, len(prompts), _AT_ONCE):
            own = choices[start : start + _AT_ONCE]
            parts = [
                _bounded(tokenizer, prompt, max_length + 1, side, f"X[{index}][0]")
                for index, prompt in enumerate(prompts[start : start + _AT_ONCE], start)
            ]
            whole = [_followed(part, choice) for part, each in zip(parts, own, strict=True) for choice in each]
            alone = [tokens[: len(tokens) - n_behind] for tokens in _ids(tokenizer, parts)]
            together = iter([tokens[: len(tokens) - n_behind] for tokens in _ids(tokenizer, whole)])
            for index, (before, each) in enumerate(zip(alone, own, strict=True), start):
                split = [_split(before, next(together), start_token) for _ in each]
                excess, longest = max((len(one) + len(two) - max_length, n) for n, (one, two) in enumerate(split))
                if excess >= min(len(prompt) for prompt, _ in split):
                    raise ValueError(
                        f"max_length must leave room for a token of the prompt and all of X[{index}][1][{longest}], "
                        f"got {max_length} for a choice of {len(split[longest][1])} tokens. Raise it, or shorten the "
                        f"choice."
                    )
                if excess > 0:
                    split = [(_cut_tokens(prompt, excess, n_before, side), choice) for prompt, choice in split]
                n_cut += excess > 0
                for place, (prompt, choice) in enumerate(split):
                    if not choice:
                        raise ValueError(
                            f"X[{index}][1][{place}] must have a token in this backbone's vocabulary, got "
                            f"{each[place]!r}, which has none."
                        )
                    ids.append(prompt + choice)
                    n_scored.append(len(choice))
    if n_cut:
        remedy = ": head='likelihood' scores what follows the end of a prompt, which truncation_side='left' keeps"
        warn(
            f"{n_cut} of {len(prompts)} prompts are, with their longest choice, longer than max_length={max_length} "
            f"tokens and were cut on the {side}. Raise max_length, or choose the side with "
            f"truncation_side{remedy if side == 'right' else ''}."
        )
    sequences = Tokens(
        np.concatenate([np.asarray(tokens, np.int32) for tokens in ids]), None, np.array([len(one) for one in ids])
    )
    return ChoiceTokens(sequences, np.array(n_scored), np.array([len(each) for each in choices]))


def _ids(tokenizer, texts):
    return tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]


def _special_ends(tokenizer):
    """Return how many tokens a tokenizer puts in front of a text, and how many behind it."""
    probe = "a"
    plain = tokenizer(probe, add_special_tokens=False)["input_ids"]
    whole = tokenizer(probe)["input_ids"]
    n_special = len(whole) - len(plain)
    n_before = next((n for n in range(n_special + 1) if whole[n : n + len(plain)] == plain), n_special)
    return n_before, n_special - n_before


def _followed(prompt, choice):
    space = "" if not prompt or prompt[-1].isspace() or choice[0].isspace() else " "
    return f"{prompt}{space}{choice}"


def _split(alone, together, start_token):
    """Split the tokens of a prompt with its choice into those of the prompt, one or more, and those of the choice."""
    pairs = enumerate(zip(alone, together, strict=False))
    n_prompt = next((n for n, (one, other) in pairs if one != other), min(len(alone), len(together)))
    return together[:n_prompt] or [start_token], together[n_prompt:]


def _cut_tokens(prompt, excess, n_before, side):
    """Return a prompt without `excess` of its tokens; those in front of the text stay where the rest does."""
    if side == "right" or excess + n_before >= len(prompt):
        return prompt[: len(prompt) - excess]
    return prompt[:n_before] + prompt[n_before + excess :]


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


def _start_token(tokenizer):
    """Return the id that stands for a text without tokens."""
    return _first_of(tokenizer, "bos_token_id", "cls_token_id", "eos_token_id", "pad_token_id")


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
