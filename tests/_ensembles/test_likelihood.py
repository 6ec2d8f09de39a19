"""What logits mean: probabilities, hard and soft targets, losses of members and of their pool, temperatures."""

import numpy as np
import torch
import torch.nn.functional as F

from skve._ensembles import Likelihood

LIKELIHOOD = Likelihood(4)
LOGITS = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
CODES = torch.tensor([0, 3, 2, 2, 1])
SOFT = torch.softmax(torch.randn(5, 4, generator=torch.Generator().manual_seed(1)), -1)


def test__losses__one_hot_targets__as_class_indices():
    one_hot = F.one_hot(CODES, 4).float()
    for smoothing in (0.0, 0.1):
        hard, soft = (LIKELIHOOD.losses(LOGITS, targets, smoothing) for targets in (CODES, one_hot))
        torch.testing.assert_close(soft, hard)
    log_proba = LIKELIHOOD.pooled_log_proba(LOGITS)
    torch.testing.assert_close(LIKELIHOOD.nll(log_proba, one_hot.double()), LIKELIHOOD.nll(log_proba, CODES))


def test__losses__soft_targets__cross_entropy_by_its_definition():
    expected = -(SOFT * torch.log_softmax(LOGITS, -1)).sum(-1)
    torch.testing.assert_close(LIKELIHOOD.losses(LOGITS, SOFT), expected)


def test__joint_losses__hard_and_soft_targets__gradient_of_the_pooled_loss():
    for targets in (CODES, SOFT):
        logits = LOGITS.clone().requires_grad_()
        pooled = torch.softmax(logits, -1).mean(0).log()
        expected = 3 * LIKELIHOOD.nll(pooled, targets)
        (wanted,) = torch.autograd.grad(expected.sum(), logits)
        log_proba = torch.log_softmax(LOGITS, -1)
        losses = torch.cat([LIKELIHOOD.joint_losses(logits[[m]], targets, log_proba, [m]) for m in range(3)])
        (got,) = torch.autograd.grad(losses.sum(), logits)
        torch.testing.assert_close(got, wanted)
        torch.testing.assert_close(losses.sum(0), expected)


def test__targets__indices_and_probabilities__kept_apart():
    assert LIKELIHOOD.targets(np.array([1, 0], np.int32)).dtype == torch.int64
    assert LIKELIHOOD.targets(np.full((2, 4), 0.25)).dtype == torch.float32


def test__logits__impossible_classes__probability_zero():
    impossible = torch.tensor([True, False, False, False])
    proba = LIKELIHOOD.proba(LIKELIHOOD.logits(LOGITS, impossible))
    assert (proba[..., 0] == 0).all()
    assert Likelihood(4, softcap=0.1).logits(100 * LOGITS).abs().max() <= 0.1


def test__temper__impossible_classes__stay_zero():
    proba = LIKELIHOOD.temper(np.array([[0.9, 0.1, 0.0], [0.5, 0.0, 0.5]]), 4.0)
    assert (proba == 0).tolist() == [[False, False, True], [False, True, False]]
    np.testing.assert_allclose(proba[0, 0] / proba[0, 1], 9**0.25, rtol=1e-9)
