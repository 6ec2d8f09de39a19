"""A bank's assistant that answers when it is sure and hands over to a person when it is not.

Fits a singular value ensemble of a small sentence encoder (all-MiniLM-L6-v2, from a package on PyPI: no network is
needed) on 25 kinds of questions, 5 examples each, and compares it with logistic regression on the features of the
same encoder. Half of the test questions set how unsure the assistant may be; the other half is mixed with questions
that it has no answer to. Two numbers decide about each question: the entropy says whether the answer may be wrong,
the novelty whether the question is foreign. Takes about two minutes on two cores.
"""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import GridSearchCV, train_test_split

from skve import SelectiveClassifier, SVETextClassifier
from skve.datasets import load_intents
from skve.metrics import ood_auroc
from skve.uncertainty import entropy

data = load_intents()
X_train, _, y_train, _ = train_test_split(
    data.texts, data.target, train_size=5 * len(data.target_names), stratify=data.target, random_state=0
)
X_calibrate, X_test, y_calibrate, y_test = train_test_split(
    data.texts_test, data.target_test, test_size=0.5, stratify=data.target_test, random_state=0
)
X_foreign = data.texts_ood[: len(X_test)]
clf = SVETextClassifier(n_members=4, layers="last:3", random_state=0, verbose=1).fit(X_train, y_train)

# What one would use instead: logistic regression on the features of the encoder as it came.
regression = GridSearchCV(
    LogisticRegression(max_iter=1000), {"C": np.logspace(-1, 3, 5)}, scoring="neg_log_loss", cv=5
).fit(clf.transform(X_train), y_train)

proba = clf.predict_proba(X_test)
known, foreign = clf.predict_uncertainty(X_test), clf.predict_uncertainty(X_foreign)
proba_regression, proba_foreign = (regression.predict_proba(clf.transform(X)) for X in (X_test, X_foreign))
print(f"\n{len(X_test)} test questions, {len(X_foreign)} foreign questions")
print(f"\n{'':20} accuracy    NLL   foreign questions found (AUROC) by entropy, by novelty")
for name, p, by_entropy, by_novelty in (
    ("logistic regression", proba_regression, (entropy(proba_regression), entropy(proba_foreign)), None),
    ("ensemble", proba, (known.total, foreign.total), (known.novelty, foreign.novelty)),
):
    accuracy, nll = accuracy_score(y_test, clf.classes_[p.argmax(axis=1)]), log_loss(y_test, p)
    found = "" if by_novelty is None else f"{ood_auroc(*by_novelty):12.3f}"
    print(f"{name:20} {accuracy:8.1%} {nll:6.3f} {ood_auroc(*by_entropy):42.3f}{found}")

# Answer if the entropy is low enough for 95 % right answers, and if 95 % of the training questions are as foreign.
assistant = SelectiveClassifier(clf, accuracy=0.95, max_novelty=0.95, prefit=True, abstention="(a person)")
assistant.fit(X_calibrate, y_calibrate)
limit = assistant.threshold_
print("\nanswers              of the questions that it should know    of the others    right among")
print("                             answered         right           handed over    all answers")
for rule, is_answered in {
    "everything": lambda u: np.ones(len(u), bool),
    f"if total <= {limit:.2f}": lambda u: u.total <= limit,
    "if novelty <= 0.95": lambda u: u.novelty <= 0.95,
    "if both": lambda u: (u.total <= limit) & (u.novelty <= 0.95),
}.items():
    answered, wrongly = is_answered(known), is_answered(foreign)
    right = (known.prediction == y_test) & answered
    print(
        f"{rule:20} {answered.mean():16.1%} {right.sum() / answered.sum():13.1%} {1 - wrongly.mean():21.1%} "
        f"{right.sum() / (answered.sum() + wrongly.sum()):14.1%}"
    )

questions = X_test[:3] + X_foreign[:3]
print()
for question, answer in zip(questions, assistant.predict(questions), strict=True):
    print(f"{answer:24} {question!r}")
