"""What the sweeps over families of image and text models share: an ensemble, and what holds for every backbone."""

import copy

import torch

from skve import _ensembles
from skve._backbones import decomposition, layer_selection, trace
from skve._backbones import network as network_module


def ensemble_of(backbone, batch, size, *, n_members=1, training, n_positions, init_scale=0.2):
    """An ensemble of singular values that adapts all layers which the features depend on."""
    sites, _ = layer_selection.find_sites(backbone.module)
    traced = trace.trace(backbone, [site.parameter for site in sites], batch, size)
    sites = [site for site in sites if site.parameter in traced.used]
    rule = _ensembles.SingularValues(backbone, sites, init_scale=init_scale, train_bias=False)
    traced = trace.trace(backbone, rule.changed, batch, size)
    head = _ensembles.Head.on(backbone, traced.n_features, 2)
    members = []
    for index in range(n_members):
        generator = torch.Generator().manual_seed(index)
        members.append({**head.new_member(generator, "cpu"), **rule.new_member(generator)})
    return _ensembles.Ensemble(rule, head, members, traced, n_positions, training=training)


def check_zero_log_ratios_give_the_plain_output(backbone, batch, size):
    """Bit for bit, in the folded form, or to rounding where convolutions take over normalisations."""
    ensemble = ensemble_of(backbone, batch, size, training=False, n_positions=10**6, init_scale=0.0)
    with torch.no_grad():
        ensemble.install(0)
        got, expected = ensemble.network.features(batch), backbone.features(backbone.module, batch)
    if ensemble.network.folded:
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max().clamp_min(1)))
    else:
        assert torch.equal(got, expected)


def check_changed_ratios_give_the_rebuilt_weights(backbone, batch, size, *, training, n_positions):
    """A member's features are those of a copy of the module whose weights are `U diag(sigma * ratio) V^T`."""
    ensemble = ensemble_of(backbone, batch, size, training=training, n_positions=n_positions)
    rebuilt = copy.deepcopy(backbone.module)
    with torch.no_grad():
        for site in ensemble.rule.sites:
            weight = rebuilt.get_parameter(site.parameter)
            factors = backbone.factors(site)
            ratios = torch.exp(ensemble.member(0)["log_ratios." + site.layer])
            matrix = (factors.U * (factors.sigma * ratios)) @ factors.Vt
            weight.copy_(decomposition.from_matrix(matrix, site.kind, weight.shape))
        ensemble.install(0)
        got, wanted = ensemble.network.features(batch), backbone.features(rebuilt, batch)
        plain = backbone.features(backbone.module, batch)
    scale = float(wanted.abs().max().clamp_min(1))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5 * scale)
    assert not torch.allclose(got, plain, atol=1e-3 * scale)


def check_every_ratio_gets_a_gradient(ensemble, batch):
    """Of every adapted layer, nine ratios in ten and more: single ones may be zero by rounding."""
    ensemble(batch).square().sum().backward()
    ratios = {key: value for key, value in ensemble.member(0).items() if key.startswith("log_ratios.")}
    assert ratios
    for key, log_ratios in ratios.items():
        assert (log_ratios.grad != 0).float().mean() > 0.9, key


def check_members_in_one_pass_are_as_one_by_one(backbone, batch, size):
    """What a GPU does with several members."""
    ensemble = ensemble_of(backbone, batch, size, n_members=3, training=True, n_positions=size)
    with torch.no_grad():
        alone = ensemble(batch)
        ensemble.network.new_batch()
        together = ensemble.chunk_logits(batch, range(3))
    scale = float(alone.abs().max().clamp_min(1))
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5 * scale)


def check_fine_tuned_members_are_modules_of_their_own(backbone, batch):
    """Members of a deep ensemble, taking turns, compute what whole modules with their weights compute, and train."""
    rule = _ensembles.FullFineTuning(backbone, [], init_scale=0.0, train_bias=False)
    network = network_module.Network(backbone)
    rule.prepare(network, None, 1, training=True)
    members = []
    for scale in (0.8, 1.1):
        member = {key: value * scale for key, value in rule.new_member(None).items()}
        members.append({key: value.requires_grad_() for key, value in member.items()})
    for _ in range(2):
        for member in members:
            rule.install(network, member)
            features = network.features(batch)
            rebuilt = copy.deepcopy(backbone.module).train().eval()  # forgets what it computed of other weights
            with torch.no_grad():
                for name in rule.changed:
                    rebuilt.get_parameter(name).copy_(member["weights." + name])
                wanted = backbone.features(rebuilt, batch)
            scale = float(wanted.abs().max().clamp_min(1))
            torch.testing.assert_close(features.detach(), wanted, rtol=1e-4, atol=1e-5 * scale)
            features.square().sum().backward()
