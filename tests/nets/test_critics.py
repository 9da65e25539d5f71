import copy
import itertools
import math

import pytest
import torch
from torch import nn

from benchmarks.ensemble import gradients, one_by_one
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.nets.critics import CriticEnsemble, HLGauss, aggregate
from diffpolicy_rl.nets.mlp import ACTIVATIONS

E, F, A, D = 3, 5, 2, 2


def build(**settings):
    """E = 3, F = 5, actions (2, 2), hidden (8, 8); normalisers drawn too, in float64."""
    critic = CriticEnsemble(F, (A, D), heads=E, **({"hidden": (8, 8)} | settings)).double()
    for name, parameter in critic.named_parameters():
        if "weight" in name or "bias" in name:
            nn.init.normal_(parameter, std=0.5)
    return critic


@pytest.mark.parametrize(("activation", "layer_norm"), list(itertools.product(ACTIVATIONS, (True, False))))
@pytest.mark.parametrize("hidden", [(8,), (8, 6, 4)])
def test_equals_separate_networks(activation, layer_norm, hidden):
    critic = build(activation=activation, layer_norm=layer_norm, hidden=hidden)
    networks = one_by_one(critic)
    kinds = [type(part) for part in networks[0]]
    block = [nn.Linear, *([nn.LayerNorm] if layer_norm else []), ACTIVATIONS[activation]]
    assert kinds == [*(block * len(hidden)), nn.Linear]

    features, weights = torch.randn(7, F).double(), torch.randn(E, 7).double()
    action = torch.randn(7, A, D, dtype=torch.float64, requires_grad=True)
    values, joined = critic(features, action), torch.cat([features, action.flatten(1)], dim=1)
    theirs = torch.stack([network(joined).squeeze(1) for network in networks])
    torch.testing.assert_close(values, theirs)
    assert values.std() > 0.05
    sums = (values * weights).sum(), (theirs * weights).sum()
    ours, expected = (torch.autograd.grad(total, action, retain_graph=True)[0] for total in sums)
    torch.testing.assert_close(ours, expected)
    for ours, expected in gradients(critic, sums[0], networks, sums[1]):
        torch.testing.assert_close(ours, expected)
        assert expected.any()


def test_candidates_share_the_context_of_their_observation():
    critic, features, candidates = build(), torch.randn(4, F).double(), torch.randn(6, 4, A, D).double()
    context = critic.context(features)
    values = critic.values(context, candidates)
    assert values.shape == (E, 6, 4)
    for candidate, of_one in zip(candidates, values.unbind(1), strict=True):
        torch.testing.assert_close(of_one, critic(features, candidate))
    torch.testing.assert_close(critic(features.expand(6, 4, F), candidates), values)
    torch.testing.assert_close(critic(features[0], candidates[:, 0]), values[:, :, 0])
    torch.testing.assert_close(critic(features, candidates[0, 0])[:, 0], values[:, 0, 0])
    assert critic(features[0], candidates[0, 0]).shape == (E,)
    assert critic(features[:0], candidates[0, :0]).shape == (E, 0)


def test_each_head_starts_as_a_network_by_itself():
    critic = CriticEnsemble(20, (4, 3), heads=5, hidden=(200, 100))
    bounds = {"first": 1 / math.sqrt(32), "trunk.2": 1 / math.sqrt(200), "trunk.5": 1 / math.sqrt(100)}
    for name, bound in bounds.items():
        layer = critic.get_submodule(name)
        for head in layer.weight:
            assert bound * 0.9 < head.abs().max() <= bound
            assert head.mean().abs() < bound / 5
        assert not torch.equal(layer.weight[0], layer.weight[1])
        assert layer.bias.abs().max() <= bound
        assert layer.bias.unique().numel() == layer.bias.numel()
    assert (critic.trunk[0].weight == 1).all()
    assert not critic.trunk[0].bias.any()


def test_scalar_loss_is_the_squared_error_per_head():
    critic, features, action = build(), torch.randn(4, F).double(), torch.randn(4, A, D).double()
    target = torch.randn(4, dtype=torch.float64, requires_grad=True)
    loss = critic.loss(features, action, target)
    torch.testing.assert_close(loss, (critic(features, action) - target) ** 2)
    loss.sum().backward()
    assert target.grad is None


def test_distributional_values_learn_their_targets():
    critic = CriticEnsemble(F, (A, D), heads=E, hidden=(64, 64), readout=HLGauss(-2, 2, bins=21))
    features, action = torch.randn(256, F), torch.rand(256, A, D)
    target = torch.tanh(features[:, 0]) + action[:, 0, 0] - 0.5
    optimizer = torch.optim.Adam(critic.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss = critic.loss(features, action, target)
        assert loss.shape == (E, 256)
        loss.mean().backward()
        optimizer.step()
    assert (critic(features, action) - target).square().mean() < 0.02 * target.var()


@pytest.mark.parametrize("settings", [{"heads": 0}, {"hidden": ()}])
def test_critics_without_a_head_or_a_layer_are_refused(settings):
    with pytest.raises(UserError, match="a critic needs a head and a hidden layer"):
        CriticEnsemble(F, (A, D), **settings)
    with pytest.raises(UserError, match="no activation 'rellu'; did you mean 'relu'"):
        CriticEnsemble(F, (A, D), activation="rellu")


def test_rules_by_hand():
    values = torch.tensor([[1.0, 8.0], [3.0, 2.0], [8.0, 5.0]])
    assert aggregate(values, "min").tolist() == [1, 2]
    assert aggregate(values, "mean").tolist() == [4, 5]
    stds = torch.tensor([26 / 3, 6.0]).sqrt()  # squared deviations 9 + 1 + 16 and 9 + 9 + 0
    torch.testing.assert_close(aggregate(values, "pessimistic", rho=2.0), torch.tensor([4.0, 5.0]) - 2 * stds)
    assert aggregate(values[:1], "pessimistic").tolist() == [1, 8]
    assert aggregate(values, "subset_min", subset=3).tolist() == [1, 2]


def test_subsets_are_pairs_drawn_evenly_from_the_callers_stream():
    values = torch.tensor([[0.0, 3.0], [1.0, 2.0], [2.0, 1.0], [3.0, 0.0]])
    generator, before = torch.Generator().manual_seed(0), torch.get_rng_state()
    drawn = [tuple(aggregate(values, "subset_min", generator=generator).tolist()) for _ in range(1200)]
    assert torch.equal(torch.get_rng_state(), before)
    # heads i < j give (i, 3 - j): the same pair of heads in both columns, and never one head twice
    pairs = {(i, 3 - j) for i, j in itertools.combinations(range(4), 2)}
    assert set(drawn) == pairs
    assert all(150 < drawn.count(pair) < 250 for pair in pairs)
    generator.manual_seed(0)
    assert tuple(aggregate(values, "subset_min", generator=generator).tolist()) == drawn[0]


@pytest.mark.parametrize("subset", [0, 4])
def test_subsets_that_cannot_be_drawn_are_refused(subset):
    with pytest.raises(UserError, match=f"subset={subset} must be between 1 and the number of heads, 3"):
        aggregate(torch.zeros(3, 2), "subset_min", subset=subset)


def test_histogram_by_hand():
    readout = HLGauss(0, 3, bins=3, sigma_ratio=0.5)  # bins [0, 1], [1, 2], [2, 3]; sigma 1/2

    def normal(z):
        return (1 + math.erf(z / math.sqrt(2))) / 2

    def histogram(y):
        masses = [normal((edge + 1 - y) / 0.5) - normal((edge - y) / 0.5) for edge in range(3)]
        return [mass / sum(masses) for mass in masses]

    target = torch.tensor([0.2, 1.5, 2.9], dtype=torch.float64)
    expected = torch.tensor([histogram(y) for y in (0.2, 1.5, 2.9)], dtype=torch.float64)
    torch.testing.assert_close(readout.project(target), expected)
    logits = torch.tensor([[0.3, -1.0, 0.5]], dtype=torch.float64)
    log_probs = logits - logits.exp().sum().log()
    torch.testing.assert_close(readout.loss(logits, target), -(expected * log_probs).sum(1))
    torch.testing.assert_close(readout.mean(logits), log_probs.exp() @ torch.tensor([0.5, 1.5, 2.5]).double())
    outside = readout.project(torch.tensor([-7.0, 40.0]))
    torch.testing.assert_close(outside, readout.project(torch.tensor([0.0, 3.0])))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projected_targets_keep_their_value(dtype):
    readout = HLGauss(-100, 0, bins=128)
    target = torch.linspace(-97, -3, 500, dtype=dtype)
    probabilities = readout.project(target)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(500, dtype=dtype))
    kept = readout.mean(probabilities.log().clamp(min=-1e4))
    assert (kept - target).abs().max() < 0.02 * 100 / 128  # fifty times finer than a bin


def test_histogram_loss_is_least_at_the_projected_target():
    readout, target = HLGauss(-1, 1, bins=11), torch.tensor([0.3])
    logits = readout.project(target).log().requires_grad_()
    readout.loss(logits, target).sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros(1, 11), atol=1e-6, rtol=0)
    assert readout.loss(torch.zeros(1, 11), target).item() == pytest.approx(math.log(11), rel=1e-5)


@pytest.mark.parametrize("settings", [(1.0, 1.0), (0.0, 1.0, 1), (0.0, 1.0, 5, 0.0)])
def test_impossible_histograms_are_refused(settings):
    with pytest.raises(UserError, match="a histogram of values needs low < high"):
        HLGauss(*settings)


def test_some_heads_alone_are_as_among_all():
    critic = CriticEnsemble(5, (2, 3), heads=4, hidden=(16, 16))
    features, action, heads = torch.randn(6, 5), torch.randn(7, 6, 2, 3), torch.tensor([3, 1])
    torch.testing.assert_close(critic.some(heads, features, action), critic(features, action)[heads])


def test_frozen_view_is_what_its_heads_have_become_and_takes_no_gradient():
    critic, features = CriticEnsemble(3, (1, 2), heads=3, hidden=(8, 8)), torch.randn(5, 3)
    action = torch.randn(5, 1, 2, requires_grad=True)
    critic.frozen_view(slice(1, 3))
    moved = copy.deepcopy(critic).double()  # views of the original, and of what it was, are not the copy's
    for now, dtype in ((critic, torch.float), (moved, torch.double)):
        with torch.no_grad():
            for parameter in now.parameters():
                parameter.add_(torch.randn_like(parameter))
        values = now.frozen_view(slice(1, 3))(features.to(dtype), action.to(dtype))
        torch.testing.assert_close(values, now(features.to(dtype), action.to(dtype))[1:])
        values.sum().backward()
        assert action.grad.abs().sum() > 0
        assert all(parameter.grad is None for parameter in now.parameters())
