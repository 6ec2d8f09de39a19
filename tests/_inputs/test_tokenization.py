"""Texts to tokens and batches: once, in order, of similar length, without threads."""

import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
import torch

from skve._inputs import text_pipeline, tokenization
from skve._inputs.text_pipeline import TextPipeline, batches_of_similar_length
from skve._inputs.texts import TextSequence, check_texts
from skve._inputs.tokenization import listed_choices, tokenise, tokenise_choices, word_tokens
from skve.testing import make_toy_tokenizer

pytest.importorskip("transformers")

TEXTS = ["a fine day", "", "what a bore, really", "ok"]


def pipeline(X, tokenizer=None, **preprocess):
    tokenizer = tokenizer or make_toy_tokenizer()
    options = {"max_length": 40, "truncation_side": "right", "choices": None, "label_words": None}
    preprocess = {
        **options,
        "mask_token_id": None,
        "n_tokens": None,
        "tokenizer_sha256": tokenization.tokenizer_hash(tokenizer),
        **preprocess,
    }
    texts = X if isinstance(X, TextSequence) else check_texts(X)
    return TextPipeline(texts, tokenizer, preprocess, torch.device("cpu"))


@pytest.mark.parametrize("pairs", [False, True])
def test__load__rows_in_any_order__what_the_tokenizer_gives(pairs):
    tokenizer = make_toy_tokenizer()
    X = list(zip(TEXTS, TEXTS[::-1], strict=True)) if pairs else TEXTS
    rows = np.array([2, 0, 1])
    batch = pipeline(X, tokenizer).load(rows)
    chosen = [X[i] for i in rows]
    texts = list(zip(*chosen, strict=True)) if pairs else [chosen]
    wanted = tokenizer(*[list(part) for part in texts], padding=True, return_tensors="pt", return_token_type_ids=True)
    for name, values in batch.items():
        assert torch.equal(values, wanted[name]), name


def test__load__part_of_the_texts__tokenised_once_with_all(monkeypatch):
    calls = []
    original = text_pipeline.tokenise
    monkeypatch.setattr(
        text_pipeline, "tokenise", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs)
    )
    texts, tokenizer = check_texts(TEXTS), make_toy_tokenizer()
    whole = pipeline(texts, tokenizer)
    part = pipeline(texts.take(np.array([2, 3])), tokenizer)
    assert calls == [1]
    assert torch.equal(part.load(np.array([0, 1]))["input_ids"], whole.load(np.array([2, 3]))["input_ids"])
    assert len(part) == 2
    assert part.mean_size == whole.lengths[2:].mean()
    assert part.size(np.array([0, 1])) == 2 * whole.lengths[2:].max()


@pytest.mark.parametrize("side", ["left", "right"])
def test__tokenise__longer_than_max_length__cut_with_one_warning(side):
    tokenizer = make_toy_tokenizer()
    texts = ["abcdefgh", "abcd", "abcde", "a"]  # 10, 6, 7 and 3 tokens
    with pytest.warns(UserWarning, match=rf"2 of 4 texts are longer than max_length=6 tokens .* {side}") as caught:
        tokens = tokenise(tokenizer, texts, None, max_length=6, side=side)
    assert len(caught) == 1
    assert tokens.lengths.tolist() == [6, 6, 6, 3]
    kept = "efgh" if side == "left" else "abcd"
    assert tokenizer.decode(tokens.ids[:6]).replace(" ", "") == f"[CLS]{kept}[SEP]"
    assert tokenizer.truncation_side == "right"


def test__tokenise__exactly_max_length__no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokens = tokenise(make_toy_tokenizer(), ["abcd"], None, max_length=6, side="right")
    assert tokens.lengths.tolist() == [6]


@pytest.mark.parametrize("encoder", [False, True])
@pytest.mark.parametrize("pad", [False, True])
def test__tokenise__empty_text__special_tokens_or_one_start_token(encoder, pad):
    tokenizer = make_toy_tokenizer(encoder=encoder, pad=pad)
    tokens = tokenise(tokenizer, [""], None, max_length=8, side="right")
    names = ["[CLS]", "[SEP]"] if encoder else ["[BOS]"]
    assert tokenizer.convert_ids_to_tokens(tokens.ids.tolist()) == names


def test__pad_token__tokenizer_without_one__end_of_text():
    tokenizer = make_toy_tokenizer(encoder=False, pad=False)
    assert tokenizer.pad_token_id is None
    batch = pipeline(["abc", "a"], tokenizer).load(np.array([0, 1]))
    assert batch["input_ids"][1].tolist()[1:] == [tokenizer.eos_token_id] * 2
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert tokenizer.pad_token_id is None


def test__tokenise__thousands_of_texts__each_as_alone():
    tokenizer = make_toy_tokenizer()
    texts = [f"number {i}" for i in range(2100)]
    tokens = tokenise(tokenizer, texts, None, max_length=20, side="right")
    ends = np.cumsum(tokens.lengths)
    for i in (0, 999, 1000, 2099):
        assert tokens.ids[ends[i] - tokens.lengths[i] : ends[i]].tolist() == tokenizer(texts[i])["input_ids"]


@pytest.mark.parametrize(("second", "n_special", "minimum"), [(None, 2, 3), (["xyz"], 3, 5)])
def test__tokenise__max_length_below_the_special_tokens__value_error(second, n_special, minimum):
    for length in range(1, minimum):
        with pytest.raises(ValueError, match=rf"at least {minimum}, got {length}. .* {n_special} special"):
            tokenise(make_toy_tokenizer(), ["abcdefghij"], second, max_length=length, side="right")
    with pytest.warns(UserWarning, match="were cut"):
        tokens = tokenise(make_toy_tokenizer(), ["abcdefghij"], second, max_length=minimum, side="right")
    assert tokens.lengths.tolist() == [minimum]


def test__tokenise__pairs_without_separator__joined_by_a_line_break():
    tokenizer = make_toy_tokenizer(encoder=False)
    one, two = (tokenise(tokenizer, *pair, max_length=9, side="right") for pair in ((["ab"], ["c"]), (["a"], ["bc"])))
    assert one.ids.tolist() == tokenizer("ab\nc")["input_ids"]
    assert two.ids.tolist() == tokenizer("a\nbc")["input_ids"]


def test__tokenise__warning__at_the_line_outside_skve():
    with pytest.warns(UserWarning, match="were cut") as caught:
        pipeline(["abcdefgh"], max_length=6)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(("side", "has_remedy"), [("right", True), ("left", False)])
def test__warning__label_word_read_behind_the_end__left_truncation_advised(side, has_remedy):
    with pytest.warns(UserWarning, match="were cut") as caught:
        pipeline(["abcdefgh"], max_length=6, truncation_side=side, label_words=[" a", " b"])
    assert ("truncation_side='left' keeps" in str(caught[0].message)) == has_remedy


# ------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("n", [1, 7, 64, 101])
def test__batches__any_number__every_text_once_in_full_batches(n, seed):
    lengths = np.random.default_rng(0).integers(1, 50, n)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    batches = list(batches_of_similar_length(lengths, 8, generator))
    assert sorted(np.concatenate(batches).tolist()) == list(range(n))
    assert len(batches) == -(-n // 8)
    assert sorted(map(len, batches), reverse=True)[: n // 8] == [8] * (n // 8)


def test__batches__random_order__new_each_time_and_little_padding():
    lengths = np.random.default_rng(0).integers(1, 100, 640)
    generator = torch.Generator().manual_seed(0)
    first, second = (list(batches_of_similar_length(lengths, 16, generator)) for _ in range(2))
    assert {tuple(sorted(batch)) for batch in first} != {tuple(sorted(batch)) for batch in second}

    def padded(batches):
        return sum(lengths[batch].max() * len(batch) for batch in batches) / lengths.sum()

    shuffled = np.random.default_rng(1).permutation(640).reshape(-1, 16)
    assert padded(first) < 1.2 < 1.7 < padded(shuffled)
    means = np.array([lengths[batch].mean() for batch in first])
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.3  # batches come in random order


# --------------------------------------------------------------------------------------- label words


def test__word_tokens__first_tokens__read():
    tokenizer = make_toy_tokenizer(encoder=False)
    assert tokenizer.convert_ids_to_tokens(word_tokens(tokenizer, [" great", "bad"])) == ["Ġg", "b"]


def test__word_tokens__same_first_token__value_error():
    with pytest.raises(ValueError, match=r"' good' and ' great', which begin with the same token 'Ġg'"):
        word_tokens(make_toy_tokenizer(encoder=False), [" good", " bad", " great"])


def test__word_tokens__empty_word__value_error():
    with pytest.raises(ValueError, match="got '', which has none"):
        word_tokens(make_toy_tokenizer(), ["a", ""])


def test__listed_choices__lettered_lines__found():
    texts = ["Q\nA. one\nB. two\nAnswer:", "Q\n(A) one\n (C) two", "A: x\nB) y\nnot C."]
    listed = listed_choices(texts, [" A", " B", " C"])
    assert listed.tolist() == [[True, True, False], [True, False, True], [True, True, False]]


def test__listed_choices__none__named_by_index():
    with pytest.raises(ValueError, match=r"X\[1\] must list its choices .*, as lines that begin with 'A\.'"):
        listed_choices(["A. x", "no choices"], [" A", " B"])


def test__mask_token__missing__named_by_index():
    token = make_toy_tokenizer().mask_token_id
    assert len(pipeline(["a [MASK]", "[MASK] b"], mask_token_id=token)) == 2
    with pytest.raises(ValueError, match=r"X\[1\] must contain \[MASK\]"):
        pipeline(["a [MASK]", "b"], mask_token_id=token)


@pytest.mark.filterwarnings("ignore:.*were cut")
def test__mask_token__cut_away__said_with_remedy():
    token = make_toy_tokenizer().mask_token_id
    with pytest.raises(
        ValueError, match=r"X\[1\] must contain \[MASK\].* after cutting to max_length=6 .* truncation_side"
    ):
        pipeline(["a [MASK]", "a long one [MASK]"], mask_token_id=token, max_length=6)


def test__choices__in_the_second_texts__found():
    pairs = [("Question", "A. x\nB. y"), ("A. x", "B. y")]
    batch = pipeline(pairs, choices=[" A", " B", " C"]).load(np.array([0, 1]))
    assert batch["impossible"].tolist() == [[False, False, True]] * 2


# ---------------------------------------------------------------------------------------- processes


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test__tokenise__process_forks_later__no_warning_and_environment_as_before():
    script = """
        import os
        from skve.testing import make_toy_tokenizer
        from skve._inputs.tokenization import tokenise
        before = dict(os.environ)
        tokenise(make_toy_tokenizer(), ["some text"] * 3000, None, max_length=8, side="right")
        assert dict(os.environ) == before
        child = os.fork()
        if child == 0:
            make_toy_tokenizer()(["some text"] * 100)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert "fork" not in done.stderr


def test__tokenizer_hash__vocabulary_or_splitting_changed__another():
    hashes = {tokenization.tokenizer_hash(make_toy_tokenizer(encoder=encoder)) for encoder in (True, False)}
    changed = make_toy_tokenizer()
    changed.add_tokens(["fox"])
    hashes.add(tokenization.tokenizer_hash(changed))
    assert len(hashes) == 3
    assert tokenization.tokenizer_hash(make_toy_tokenizer()) in hashes


def test__tokenizer_hash__same_tokenizer_again__vocabulary_read_once_until_it_changes(monkeypatch):
    calls = []
    tokenizer = make_toy_tokenizer()
    original = type(tokenizer).get_vocab
    monkeypatch.setattr(type(tokenizer), "get_vocab", lambda self: calls.append(1) or original(self))
    first = tokenization.tokenizer_hash(tokenizer)
    assert tokenization.tokenizer_hash(tokenizer) == first
    assert len(calls) == 1
    tokenizer.add_tokens(["unused"])
    assert tokenization.tokenizer_hash(tokenizer) != first


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("encoder", [True, False])
@pytest.mark.parametrize("text", ["the quick brown fox, ", "no-space", "\u4e2d\u6587", "a b\n"])
def test__tokenise__long_text__tokens_of_the_whole_from_a_part(side, encoder, text, monkeypatch):
    tokenizer = make_toy_tokenizer(encoder=encoder)
    texts = [text * 3000, "short", "x" + text * 4000 + "y"]
    lengths = []
    original = tokenization._bounded
    monkeypatch.setattr(tokenization, "_bounded", lambda *args: lengths.append(len(part := original(*args))) or part)
    monkeypatch.setattr(tokenization, "_PART", 512)
    with pytest.warns(UserWarning, match="2 of 3 texts are longer"):
        part = tokenise(tokenizer, texts, None, max_length=16, side=side)
    assert max(lengths) < 5000
    monkeypatch.setattr(tokenization, "_bounded", lambda tokenizer, text, *args: text)
    with pytest.warns(UserWarning, match="2 of 3 texts are longer"):
        whole = tokenise(tokenizer, texts, None, max_length=16, side=side)
    assert np.array_equal(part.ids, whole.ids)
    assert np.array_equal(part.lengths, whole.lengths)


def test__tokenise__text_of_few_tokens_in_many_characters__refused_by_index(monkeypatch):
    monkeypatch.setattr(tokenization, "_LARGEST_PART", 2**12)
    monkeypatch.setattr(tokenization, "_PART", 2**8)
    sizes = []

    def of_one_token(text, **options):  # as WordPiece is for a word of a million letters
        sizes.append(len(text))
        return {"input_ids": [0]}

    with pytest.raises(ValueError, match=r"X\[1\] must have 17 tokens within 4096 characters or be shorter"):
        tokenization._bounded(of_one_token, "a" * 2**20, 17, "right", "X[1]")
    assert max(sizes) <= 4096


# ---------------------------------------------------------------------------------- prompts with choices


def tokens_of_choices(prompts, choices, *, encoder=False, max_length=64, side="right"):
    tokenizer = make_toy_tokenizer(encoder=encoder)
    return tokenizer, tokenise_choices(tokenizer, prompts, choices, max_length=max_length, side=side)


def sequences_of(tokens):
    ends = np.cumsum(tokens.sequences.lengths)
    return [ids.tolist() for ids in np.split(tokens.sequences.ids, ends[:-1])]


@pytest.mark.parametrize(
    ("prompt", "choice", "whole", "scored"),
    [
        ("to be", "or not", "to be or not", " or not"),
        ("to be ", "or", "to be or", " or"),  # the space belongs to the first letter's token
        ("to be\n", "or", "to be\nor", "or"),
        ("to be", " or", "to be or", " or"),
        ("to be", "\tor", "to be\tor", "\tor"),
    ],
)
def test__tokenise_choices__prompt_and_choice__as_one_text_split_at_the_prompt(prompt, choice, whole, scored):
    tokenizer, tokens = tokens_of_choices([prompt], [[choice, "so"]])
    ids = sequences_of(tokens)[0]
    assert ids == tokenizer(whole)["input_ids"]
    assert tokenizer.decode(ids[-tokens.n_scored[0] :]) == scored


def test__tokenise_choices__special_tokens__in_front_kept_and_behind_left_out():
    tokenizer, tokens = tokens_of_choices(["to", ""], [["be", "so"], ["or", "not"]], encoder=True)
    first, _, third, _ = sequences_of(tokens)
    assert first == tokenizer("to be")["input_ids"][:-1]
    assert third == tokenizer("or")["input_ids"][:-1]
    assert tokens.n_scored.tolist() == [2, 2, 2, 3]


def test__tokenise_choices__empty_prompt_without_special_tokens__a_start_token():
    tokenizer, tokens = tokens_of_choices([""], [["or", "not"]])
    assert sequences_of(tokens)[0] == [tokenizer.bos_token_id, *tokenizer("or")["input_ids"]]


@pytest.mark.parametrize("encoder", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test__tokenise_choices__too_long__prompt_cut_alike_for_all_choices_with_one_warning(side, encoder):
    prompts, choices = ["abcdefgh", "ab"], [["xy", "uvwxyz"], ["x", "y"]]
    with pytest.warns(UserWarning, match=f"1 of 2 prompts are, .* tokens and were cut on the {side}") as caught:
        tokenizer, tokens = tokens_of_choices(prompts, choices, encoder=encoder, max_length=10, side=side)
    assert len(caught) == 1
    n_kept = 4 - encoder  # beside a special token
    kept = "abcdefgh"[:n_kept] if side == "right" else "abcdefgh"[-n_kept:]
    found = [tokenizer.decode(ids[int(encoder) :]) for ids in sequences_of(tokens)]
    assert found == [f"{kept} xy", f"{kept} uvwxyz", "ab x", "ab y"]
    assert tokens.sequences.lengths.max() == 10


def test__tokenise_choices__no_room_for_the_prompt__named():
    with pytest.raises(ValueError, match=r"max_length must leave room .* all of X\[0\]\[1\]\[1\], got 4 .* 6 tokens"):
        tokens_of_choices(["ab"], [["x", "uvwxyz"]], max_length=4)


def test__tokenise_choices__long_prompt__from_a_part(monkeypatch):
    monkeypatch.setattr(tokenization, "_PART", 64)
    prompt, choices = ("to be or not " * 200).strip(), [["so", "be it"]]
    for side in ("left", "right"):
        with pytest.warns(UserWarning, match="1 of 1 prompts"):
            tokenizer, tokens = tokens_of_choices([prompt], choices, max_length=12, side=side)
        whole = tokenizer(prompt)["input_ids"]
        for ids, n_scored in zip(sequences_of(tokens), tokens.n_scored, strict=True):
            own = ids[:-n_scored]
            assert own == (whole[: len(own)] if side == "right" else whole[len(whole) - len(own) :])


def test__load__prompts_with_choices__sequences_scored_places_and_impossible_classes():
    prompts, choices = ["to", "to be"], [["be", "so", "or not"], ["or", "x"]]
    tokenizer, tokens = tokens_of_choices(prompts, choices)
    own = pipeline(TextSequence(prompts, choices), tokenizer, choices=4)
    batch = own.load(np.array([1, 0]))
    assert batch["input_ids"].shape == (2, 3, 7)
    expected = sequences_of(tokens)
    for row, places in enumerate([[3, 4, 3], [0, 1, 2]]):
        for column, place in enumerate(places):
            mask = batch["attention_mask"][row, column].bool()
            assert batch["input_ids"][row, column][mask].tolist() == expected[place]
    assert batch["scored"].tolist() == [
        [[4, 5, -1, -1, -1], [4, -1, -1, -1, -1], [-1] * 5],
        [[2, 3, -1, -1, -1], [2, 3, -1, -1, -1], [2, 3, 4, 5, 6]],
    ]
    assert batch["impossible"].tolist() == [[False, False, True, True], [False, False, False, True]]
    assert own.size(np.array([0, 1])) == 2 * 3 * 7
    assert own.mean_size == np.mean([4 + 4 + 7, 6 + 5])
    one, other = own.content_keys()
    assert one != other
    assert pipeline(TextSequence(prompts[::-1], choices[::-1]), tokenizer, choices=3).content_keys() == [other, one]


def test__pipeline__more_choices_than_in_fit__named():
    with pytest.raises(ValueError, match=r"X\[1\] must have at most 2 choices, as in fit, got 3\. Fit with a prompt"):
        pipeline(TextSequence(["a", "b"], [["x", "y"], ["x", "y", "z"]]), choices=2)
