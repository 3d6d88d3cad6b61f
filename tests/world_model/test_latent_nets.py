"""Parts of a latent world model, against torch.distributions, dense formulas and members one by one."""

import copy
import math

import pytest
import torch
from torch import distributions as d
from torch import nn

from layeredrl.world_model.latent_nets import (
    Chain,
    LatentCritics,
    LatentPolicy,
    SimNorm,
    TwoHot,
    normed_mlp,
    simplicial,
    symexp,
    symlog,
)


def test_symlog_and_its_inverse():
    x = torch.tensor([-3e4, -1.0, -1e-3, 0.0, 0.5, 1.0, 2e4], dtype=torch.float64)
    torch.testing.assert_close(symexp(symlog(x)), x)
    assert symlog(torch.tensor(math.e - 1)) == pytest.approx(1.0)


def test_simplices_sum_to_one_group_by_group():
    x = torch.randn(3, 2, 12)
    out = SimNorm(4)(x)
    group = x[..., [1, 4, 7, 10]].exp()
    torch.testing.assert_close(out[..., [1, 4, 7, 10]], group / group.sum(-1, keepdim=True))
    with pytest.raises(RuntimeError):
        SimNorm(8)(x)


def dense_two_hot(target, bins):
    """Weights of all bins, by the definition."""
    weights = torch.zeros(len(bins))
    place = symlog(target).clamp(bins[0], bins[-1])
    for i, bin in enumerate(bins):
        weights[i] = (1 - (place - bin).abs() / (bins[1] - bins[0])).clamp(min=0)
    return weights


@pytest.mark.parametrize("target", [-1e9, -3.7, 0.0, 0.013, 1.0, 250.0, 1e9])
def test_two_hot_loss_is_the_cross_entropy_with_the_two_nearest_bins(target):
    scale, logits = TwoHot(21, 5.0), torch.randn(21)
    weights = dense_two_hot(torch.tensor(target), scale.bins)
    expected = -(weights * logits.log_softmax(-1)).sum()
    torch.testing.assert_close(scale.loss(logits, torch.tensor(target)), expected, rtol=1e-4, atol=1e-4)
    decoded = scale.decode(weights.log().clamp(min=-1e4))  # the loss is lowest where the number comes out again
    inside = symexp(symlog(torch.tensor(target)).clamp(-5, 5))
    torch.testing.assert_close(decoded, inside, rtol=1e-4, atol=1e-4)


def test_policy_density_is_that_of_a_squashed_gaussian():
    torch.manual_seed(0)
    policy = LatentPolicy([8, 16], 3, "silu").double()
    nn.init.normal_(policy.net[-1].weight, std=0.3)
    state, noise = torch.randn(5, 8, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    action, log_prob = policy(state, noise)
    mean, spread = policy.net(state).chunk(2, -1)
    normal = d.Normal(mean, (-10 + 6 * (spread.tanh() + 1)).exp())
    squashed = d.TransformedDistribution(normal, d.TanhTransform(cache_size=1))
    torch.testing.assert_close(action, (mean + normal.stddev * noise).tanh())
    expected = squashed.log_prob(squashed.transforms[0](mean + normal.stddev * noise)).sum(-1)
    torch.testing.assert_close(log_prob, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(policy.act(state, noise), action)
    torch.testing.assert_close(policy.act(state), mean.tanh())


def test_some_critics_answer_as_they_do_among_all():
    torch.manual_seed(0)
    critics = LatentCritics([4, 16, 16, 5], 3, "mish", 0.5).eval()
    for parameter in critics.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(7, 4)
    everyone = critics(x)
    torch.testing.assert_close(critics(x, torch.tensor([2, 0])), everyone[[2, 0]])
    changed = copy.deepcopy(critics).double()  # whose parameters are others, and elsewhere in memory
    for parameter in changed.parameters():
        parameter.data.mul_(0.5)
    torch.testing.assert_close(changed(x.double(), torch.tensor([1])), changed(x.double())[[1]])
    assert not torch.allclose(changed(x.double()), everyone.double())
    first = nn.Sequential(*(nn.Identity() for _ in range(9)))
    for i, layer in enumerate(critics.layers.children()):  # the first member alone, as plain modules
        if hasattr(layer, "weight"):
            weight, bias = layer.weight[0], layer.bias[0]
            linear = weight.shape[0] > 1
            first[i] = nn.Linear(*weight.shape) if linear else nn.LayerNorm(weight.shape[-1])
            first[i].weight.data, first[i].bias.data = weight.mT if linear else weight[0], bias[0]
        else:
            first[i] = layer
    torch.testing.assert_close(everyone[0], first(x))


def test_critics_and_other_heads_predict_nothing_at_first():
    x = torch.randn(6, 4)
    assert torch.equal(TwoHot(5).decode(LatentCritics([4, 8, 5], 2, "relu", 0.0)(x)), torch.zeros(2, 6))
    assert torch.equal(normed_mlp([4, 8, 1], "relu", zero=True)(x), torch.zeros(6, 1))


@pytest.mark.parametrize("activation", ["mish", "silu", "relu"])
def test_a_chain_is_the_same_with_and_without_gradients(activation):
    chain, x = Chain(*normed_mlp([4, 8, 6], activation), *simplicial(6, 2)), torch.randn(5, 4)
    expected, before = chain(x), x.clone()
    with torch.no_grad():
        torch.testing.assert_close(chain(x), expected.detach())
    assert torch.equal(x, before)
