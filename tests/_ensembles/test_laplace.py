"""The Laplace approximation against the exact Hessian, and how its spread follows data and prior."""

import numpy as np
import pytest
import torch

from skve._ensembles.laplace import Laplace, Posterior, _best_precision
from skve.testing import ToyClassifier
from tests._training.test_solve import make_data, make_problem


def exact_covariance(problem, mode, precision):
    """Invert the Hessian of the loss, by automatic differentiation, plus the prior's."""

    def loss(flat):
        return problem.weights @ problem.losses(flat.reshape(mode.shape))

    hessian = torch.autograd.functional.hessian(loss, mode.flatten())
    return torch.linalg.inv(hessian + precision * torch.eye(len(hessian)))


def covariance(problem, mode, precision):
    standard = torch.eye(mode.numel(), dtype=torch.float64).reshape(-1, *mode.shape)
    root = Posterior(problem, problem.weights, mode).noise(standard, precision).flatten(1)
    return root.T @ root


def test__posterior__equal_probabilities__inverse_of_the_exact_hessian():
    """Where all samples have the same probabilities, the Hessian is a Kronecker product."""
    features, _ = make_data(n_features=4)
    weights = np.random.default_rng(0).uniform(0.5, 2, 60)
    problem = make_problem(features, np.full((60, 3), 1 / 3), weights)
    mode = problem.optimum(problem.weights, 1.0)
    for precision in (0.1, 10.0):
        torch.testing.assert_close(
            covariance(problem, mode, precision), exact_covariance(problem, mode, precision), rtol=1e-4, atol=1e-6
        )


def test__posterior__any_problem__variance_of_the_logits_near_the_exact_one():
    problem = make_problem(*make_data(200, 3))
    mode = problem.optimum(problem.weights, 0.1)
    inputs = torch.cat([problem.coordinates, torch.ones(200, 1)], 1)
    # A constant in all logits changes nothing.
    contrast = torch.kron(torch.tensor([[1.0, -1, 0]]).double(), inputs)
    found, exact = (
        torch.einsum("ni,ij,nj->n", contrast, each(problem, mode, 10.0), contrast)
        for each in (covariance, exact_covariance)
    )
    assert 0.5 < float(found.mean() / exact.mean()) < 2
    assert np.corrcoef(found, exact)[0, 1] > 0.7


def test__sample__directions_without_data__variance_of_the_prior():
    features, targets = make_data(6, 200)
    problem = make_problem(features, targets)
    posterior = Posterior(problem, problem.weights, problem.optimum(problem.weights, 1.0))
    generator = torch.Generator().manual_seed(0)
    weights = torch.stack([posterior.sample(generator, 4.0)[0] for _ in range(20)])
    unseen = weights - weights @ problem.directions.T @ problem.directions
    assert float(unseen.square().sum() / (20 * 3 * (200 - 5))) == pytest.approx(1 / 4, rel=0.05)


def test__sample__training_samples__not_moved_by_directions_without_data():
    features, targets = make_data(6, 200)
    problem = make_problem(features, targets)
    posterior = Posterior(problem, problem.weights, problem.optimum(problem.weights, 1.0))
    weight, bias = posterior.sample(torch.Generator().manual_seed(0), 1.0)
    standard = torch.randn(posterior.mode.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = problem.logits(posterior.mode + posterior.noise(standard, 1.0))
    torch.testing.assert_close(torch.as_tensor(features) @ weight.T + bias, expected, rtol=1e-6, atol=1e-6)


def test__fit__more_data__less_spread():
    X, y = make_data(60, 4)
    spread = []
    for times in (1, 20):
        clf = ToyClassifier(
            ensemble="laplace", n_members=16, ensemble_params={"prior_precision": 1.0}, random_state=0
        )
        clf.fit(np.tile(X, (times, 1)), np.tile(y, times))
        spread.append(clf.predict_uncertainty(X).epistemic.mean())
    assert spread[1] < 0.3 * spread[0]


def test__fit__higher_prior_precision__less_spread():
    X, y = make_data(60, 4)
    spread = []
    for precision in (0.1, 100.0):
        params = {"prior_precision": precision}
        clf = ToyClassifier(ensemble="laplace", n_members=16, ensemble_params=params, random_state=0).fit(X, y)
        spread.append(clf.predict_uncertainty(X).epistemic.mean())
    assert spread[1] < 0.3 * spread[0]


def test__best_precision__lowest_out_of_fold_loss__not_worse_than_the_mode_alone():
    problem = make_problem(*make_data(60, 30))
    strength = problem.best_strength()
    precision = _best_precision(problem, strength)
    n_draws, alone, pooled = 200, 0.0, 0.0
    for rows in problem.folds():
        weights = problem.without(rows)
        posterior = Posterior(problem, weights, problem.optimum(weights, strength))
        standard = torch.randn(n_draws, *posterior.mode.shape, generator=torch.Generator().manual_seed(5)).double()
        draws = posterior.mode + posterior.noise(standard, precision)
        logits = torch.stack([problem.logits(draw, rows) for draw in draws])
        log_proba = problem.likelihood.pooled_log_proba(logits)
        pooled += float(problem.likelihood.nll(log_proba, problem.targets[rows]).sum())
        alone += float(problem.losses(posterior.mode, rows).sum())
    assert pooled < alone + 0.5  # nats of 60 samples


@pytest.mark.parametrize("precision", [0, -1.0, "much"])
def test__prior_precision__not_positive__value_error(precision):
    with pytest.raises(ValueError, match="'prior_precision' parameter"):
        ToyClassifier(ensemble="laplace", ensemble_params={"prior_precision": precision}).fit(np.eye(3), [0, 1, 2])


def test__laplace__options__no_ways_to_differ():
    assert set(Laplace.takes) == {"prior_precision"}
