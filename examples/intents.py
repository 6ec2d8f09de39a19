"""A bank's assistant that answers when it is sure and hands over to a person when it is not.

Fits a singular value ensemble of a small sentence encoder (all-MiniLM-L6-v2, from a package on PyPI: no network is
needed) on 25 kinds of questions, 20 examples each. Half of the test questions set how unsure the assistant may be;
on the other half, mixed with questions that it has no answer to, the table shows what it gets right. Takes about
two minutes on two cores.
"""

import numpy as np
from sklearn.model_selection import train_test_split

from skve import SVETextClassifier
from skve.datasets import load_intents

data = load_intents()
X_train, _, y_train, _ = train_test_split(
    data.texts, data.target, train_size=20 * len(data.target_names), stratify=data.target, random_state=0
)
X_calibrate, X_test, y_calibrate, y_test = train_test_split(
    data.texts_test, data.target_test, test_size=0.5, stratify=data.target_test, random_state=0
)
clf = SVETextClassifier(n_members=4, random_state=0, verbose=1).fit(X_train, y_train)

# How unsure an answer may be: as unsure as the surest 95 %, 90 %, ... of questions that are known to be in scope.
known = clf.predict_uncertainty(X_calibrate).total
questions = X_test + data.texts_ood[: len(X_test)]
answers = clf.predict(questions)
unsure = clf.predict_uncertainty(questions).total
in_scope = np.arange(len(questions)) < len(y_test)
right = np.zeros(len(questions), bool)
right[in_scope] = answers[in_scope] == y_test

print(f"\n{in_scope.sum()} questions that the assistant should know, {(~in_scope).sum()} that it cannot answer")
print("\nanswers    of the questions that it should know    of the others    right among")
print("if surer            answered         right           handed over    all answers")
print("than")
for share in (1.0, 0.95, 0.9, 0.8, 0.7):
    limit = np.quantile(known, share) if share < 1 else np.inf
    answered = unsure <= limit
    print(
        f"{limit:6.2f} nats  {answered[in_scope].mean():14.1%} {right[answered & in_scope].mean():13.1%}"
        f" {1 - answered[~in_scope].mean():21.1%} {right[answered].mean():14.1%}"
    )

limit = np.quantile(known, 0.9)
print("\nhanded over to a person, every 60th:")
for index in np.flatnonzero(unsure > limit)[::60]:
    scope = "should know" if in_scope[index] else "cannot answer"
    print(f"  {unsure[index]:.2f} nats  ({scope})  {questions[index]!r}  best guess: {answers[index]}")
print("\nanswered all the same, though it cannot:")
for index in np.flatnonzero((unsure <= limit) & ~in_scope)[:3]:
    print(f"  {unsure[index]:.2f} nats  {questions[index]!r}  taken for: {answers[index]}")
