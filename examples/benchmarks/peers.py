"""Other libraries beside skve, on one data set: seconds of a fit and of a prediction, NLL, accuracy.

    pip install peft laplace-torch torch-uncertainty
    python examples/benchmarks/peers.py emotion.jsonl.gz --csv docs/data/peers.csv

all-MiniLM-L6-v2, mean pooling, few texts a class, batches of 32, float32 for all. PEFT and torch-uncertainty bring
layers and no training, so that they share a loop here: AdamW with a cosine schedule, 160 steps as skve's default, a
linear head.

* skve: four members with the defaults of texts, and logistic regression (`ensemble="head"`, one member).
* PEFT: LoRA of rank 8 on all linear layers of the blocks, one member; four take four times as long.
* laplace-torch: a linear head on features of the frozen backbone, fitted with a decay of 1e-3, and its Kronecker
  approximation with the prior precision of the largest marginal likelihood.
* torch-uncertainty: BatchEnsemble of four with `BatchLinear` in the blocks, which here is given tokens as rows, the
  pretrained weights (`from_linear` draws new ones) and factors from N(1, 0.1). `PackedLinear` has weights of other
  shapes, so that pretrained ones cannot be kept; the packed and batched models of the library start untrained.

A library that is not installed is left out. The file has lines of JSON with "split", "text" and "label".
"""

import argparse
import copy
import importlib.util
import math
import pathlib
import time

import numpy as np
import torch
from _common import Table, machine, read_jsonl, require_idle
from sklearn.metrics import log_loss
from torch import nn

from skve import SVETextClassifier
from skve._backbones.from_transformers import load_text_backbone

N_MEMBERS, BATCH = 4, 32
N_STEPS, RATE, HEAD_RATE, HEAD_DECAY = 160, 1e-3, 1e-2, 3.0  # of the heads, skve's defaults for texts


def load(path, per_class, n_test):
    rows = read_jsonl(path)
    texts, labels = [row["text"] for row in rows], np.array([str(row["label"]) for row in rows])
    splits = np.array([row["split"] for row in rows])
    order = np.random.default_rng(0).permutation(len(texts))
    train = order[splits[order] == "train"]
    train = np.concatenate([train[labels[train] == label][:per_class] for label in np.unique(labels)])
    test = order[splits[order] == "test"][:n_test]
    return [texts[i] for i in train], labels[train], [texts[i] for i in test], labels[test]


class Pooled(nn.Module):
    """A backbone with a linear head on the mean over tokens."""

    def __init__(self, module, n_classes):
        super().__init__()
        self.body, self.head = module, nn.Linear(module.config.hidden_size, n_classes)

    def features(self, inputs):
        hidden = self.body(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1).float()
        return (hidden * mask).sum(1) / mask.sum(1)

    def forward(self, inputs):
        return self.head(self.features(inputs))


class Rows(nn.Module):
    """A layer that takes rows, applied to tokens."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, inputs):
        return self.layer(inputs.flatten(0, -2)).unflatten(0, inputs.shape[:-1])


class Texts:
    """Batches of tokenised texts."""

    def __init__(self, tokenizer, texts):
        self.tokenizer, self.texts = tokenizer, texts

    def __len__(self):
        return len(self.texts)

    def batch(self, rows):
        chosen = [self.texts[row] for row in rows]
        return dict(self.tokenizer(chosen, padding=True, truncation=True, max_length=128, return_tensors="pt"))


def train(model, texts, y, copies=1):
    """Train what needs a gradient; the batch is repeated for `copies` members, one behind another."""
    own = [p for name, p in model.named_parameters() if p.requires_grad and not name.startswith("head.")]
    groups = [{"params": own, "lr": RATE, "weight_decay": 0.0}]
    groups.append({"params": model.head.parameters(), "lr": HEAD_RATE, "weight_decay": HEAD_DECAY})
    optimizer = torch.optim.AdamW(groups, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5 * (1 + math.cos(math.pi * t / N_STEPS)))
    generator, done = torch.Generator().manual_seed(0), 0
    while done < N_STEPS:
        for rows in torch.randperm(len(texts), generator=generator).split(BATCH):
            targets = y[rows].repeat(copies)
            loss = nn.functional.cross_entropy(model(repeated(texts.batch(rows.tolist()), copies)), targets)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(own, 1.0)
            optimizer.step()
            schedule.step()
            done += 1
            if done == N_STEPS:
                break


def repeated(inputs, copies):
    return {name: tensor.repeat(copies, 1) for name, tensor in inputs.items()} if copies > 1 else inputs


def predict(model, texts, copies=1):
    """Return the mean of the members' probabilities."""
    proba = []
    with torch.no_grad():
        for start in range(0, len(texts), BATCH):
            rows = range(start, min(start + BATCH, len(texts)))
            logits = model(repeated(texts.batch(rows), copies))
            proba.append(logits.softmax(-1).reshape(copies, len(rows), -1).mean(0))
    return torch.cat(proba).double().numpy()


def by_skve(ensemble, n_members):
    def run(body, tokenizer, X, y, X_test, clock):
        parameters = {"precision": "float32", "predict_precision": "float32", "device": "cpu", "random_state": 0}
        clf = SVETextClassifier(ensemble=ensemble, n_members=n_members, **parameters)
        clock(lambda: clf.fit(X, y))
        return clock(lambda: clf.predict_proba(X_test))

    return run


def by_peft(body, tokenizer, X, y, X_test, clock):
    from peft import LoraConfig, get_peft_model

    model = Pooled(body, len(set(y.tolist())))
    config = LoraConfig(r=8, lora_alpha=8, lora_dropout=0.0, target_modules=["query", "key", "value", "dense"])
    model.body = get_peft_model(body, config)
    clock(lambda: train(model, Texts(tokenizer, X), y))
    return clock(lambda: predict(model, Texts(tokenizer, X_test)))


def by_laplace(body, tokenizer, X, y, X_test, clock):
    from laplace import Laplace
    from torch.utils.data import DataLoader, TensorDataset

    model = Pooled(body, len(set(y.tolist())))

    def features(texts):
        texts = Texts(tokenizer, texts)
        with torch.no_grad():
            return torch.cat(
                [
                    model.features(texts.batch(rows))
                    for rows in np.array_split(range(len(texts)), -(-len(texts) // BATCH))
                ]
            )

    def fit():
        values = features(X)
        optimizer = torch.optim.LBFGS(model.head.parameters(), max_iter=500, line_search_fn="strong_wolfe")

        def closure():
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model.head(values), y)
            loss = loss + 1e-3 * model.head.weight.square().sum() / 2
            loss.backward()
            return loss

        optimizer.step(closure)
        posterior = Laplace(nn.Sequential(model.head), "classification", "all", "kron")
        posterior.fit(DataLoader(TensorDataset(values, y), batch_size=BATCH))
        posterior.optimize_prior_precision(method="marglik")
        return posterior

    posterior = clock(fit)
    return clock(lambda: posterior(features(X_test), link_approx="probit")).double().detach().numpy()


def by_torch_uncertainty(body, tokenizer, X, y, X_test, clock):
    from torch_uncertainty.layers import BatchLinear

    model = Pooled(body, len(set(y.tolist())))
    for name, layer in list(body.encoder.named_modules()):
        if isinstance(layer, nn.Linear):
            batched = BatchLinear.from_linear(layer, num_estimators=N_MEMBERS)
            with torch.no_grad():
                batched.linear.weight.copy_(layer.weight)
                batched.bias.copy_(layer.bias.expand_as(batched.bias))
                for factors in (batched.r_group, batched.s_group):
                    factors.normal_(1.0, 0.1)
            body.encoder.set_submodule(name, Rows(batched))
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(name.endswith(("r_group", "s_group")))
    clock(lambda: train(model, Texts(tokenizer, X), y, N_MEMBERS))
    return clock(lambda: predict(model, Texts(tokenizer, X_test), N_MEMBERS))


ROWS = {  # name -> (package, members, run)
    "skve, sve": ("skve", N_MEMBERS, by_skve("sve", N_MEMBERS)),
    "skve, head": ("skve", 1, by_skve("head", 1)),
    "PEFT, LoRA": ("peft", 1, by_peft),
    "laplace-torch, last layer": ("laplace", 1, by_laplace),
    "torch-uncertainty, BatchEnsemble": ("torch_uncertainty", N_MEMBERS, by_torch_uncertainty),
}


def main(options):
    require_idle(options.force)
    torch.set_num_threads(options.threads)
    print(machine())
    X, labels, X_test, y_test = load(options.file, options.per_class, options.test)
    classes, codes = np.unique(labels, return_inverse=True)
    y, table = torch.from_numpy(codes), Table(options.csv, ("data", "what"))
    backbone = load_text_backbone("bundled:all-MiniLM-L6-v2")
    for name, (package, n_members, run) in ROWS.items():
        cell = {"data": options.file.name, "what": name}
        if cell in table or importlib.util.find_spec(package) is None:
            continue
        torch.manual_seed(0)
        seconds = []

        def clock(function, seconds=seconds):
            start = time.perf_counter()
            result = function()
            seconds.append(time.perf_counter() - start)
            return result

        body = copy.deepcopy(backbone.module).requires_grad_(False)
        proba = run(body, backbone.tokenizer, X, y, X_test, clock)
        row = {**cell, "members": n_members, "fit_seconds": seconds[0], "predict_seconds": seconds[1]}
        row |= {"nll": log_loss(y_test, proba, labels=classes)}
        row |= {"accuracy": float(np.mean(classes[proba.argmax(1)] == y_test)), "threads": options.threads}
        table.add(row)
        print({key: f"{value:.3f}" if isinstance(value, float) else value for key, value in row.items()}, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--csv", type=pathlib.Path, required=True)
    parser.add_argument("--per-class", type=int, default=10)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--force", action="store_true", help="run on a busy machine; the figures mean nothing then")
    main(parser.parse_args())
