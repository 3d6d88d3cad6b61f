"""get_log_prob, get_member_log_prob, get_prob, predict and sample against torch.distributions."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal

from tests.models import reference
from tests.models.networks import ConstantNet, LinearNet, random_values
from tests.models.reference import A, C, K, M, S, box, inputs, linear_nets, make_batch, make_model

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize("leading", [(), (3, 1, 2)])
def test_log_prob_is_the_mixture_over_members_and_modes(leading):
    nets = linear_nets()
    state, context, action = inputs(*leading)
    next_state = state + random_values(0, *leading, S)
    density, term_prob, info = make_model(nets).get_log_prob(state, context, action, next_state)
    assert density.shape == term_prob.shape == leading
    expected = reference.log_prob(nets, state, context, action, next_state)
    torch.testing.assert_close(density.double(), expected, **CLOSE)
    expected = reference.term_prob(nets, state, context, action)
    torch.testing.assert_close(term_prob.double(), expected, **CLOSE)
    means = reference.mixture(nets, state, context, action)[1]
    assert info["means"].shape == (*leading, M, S)
    torch.testing.assert_close(info["means"].double(), means, **CLOSE)


@pytest.mark.parametrize("leading", [(), (3, 2)])
def test_member_log_prob_is_the_mixture_of_one_member(leading):
    member = M - 1
    nets = linear_nets()
    state, context, action = inputs(*leading)
    next_state = state + random_values(0, *leading, S)
    result = make_model(nets).get_member_log_prob(member, state, context, action, next_state)
    expected = reference.log_prob([nets[member]], state, context, action, next_state)
    torch.testing.assert_close(result[0].double(), expected, **CLOSE)
    expected = reference.term_prob([nets[member]], state, context, action)
    torch.testing.assert_close(result[1].double(), expected, **CLOSE)
    expected = reference.mixture([nets[member]], state, context, action)[1].squeeze(-2)
    torch.testing.assert_close(result[2].double(), expected, **CLOSE)


def test_equal_sizes_do_not_broadcast_into_each_other():
    nets = [LinearNet(2, 2, 2, 2, seed=10 * i) for i in range(2)]
    model = make_model(nets, state_space=box(2), context_space=box(2), action_space=box(2))
    state, context, action, next_state = (random_values(i, 2, 2) for i in range(4))
    expected = reference.log_prob(nets, state, context, action, next_state)
    density, _, info = model.get_log_prob(state, context, action, next_state)
    torch.testing.assert_close(density.double(), expected, **CLOSE)
    expected = reference.mixture(nets, state, context, action)[1]
    torch.testing.assert_close(info["means"].double(), expected, **CLOSE)


def test_log_prob_and_gradient_are_accurate_far_from_the_mean():
    nets = [ConstantNet(random_values(i, K, S), 0.1 * torch.ones(K, S)) for i in range(M)]
    state, context, action = torch.zeros(3, S), torch.zeros(3, C), torch.zeros(3, A)
    next_state = 1e3 * (1 + random_values(9, 3, S).abs())
    next_state.requires_grad_()
    density = make_model(nets).get_log_prob(state, context, action, next_state)[0]
    expected = reference.log_prob(nets, state, context, action, next_state)
    torch.testing.assert_close(density.double(), expected, rtol=1e-5, atol=1e-3)
    (gradient,) = torch.autograd.grad(density.sum(), next_state)
    (wanted,) = torch.autograd.grad(expected.sum(), next_state)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", [(S,), (), (6, 1)])
def test_given_std_replaces_the_learned_one(shape):
    nets = linear_nets()
    model = make_model(nets)
    state, context, action = inputs(6)
    next_state = state + random_values(0, 6, S)
    std = 0.1 + random_values(3, *shape).abs()
    expected = reference.log_prob(nets, state, context, action, next_state, std=std)
    density = model.get_log_prob(state, context, action, next_state, std)[0]
    torch.testing.assert_close(density.double(), expected, **CLOSE)
    expected = reference.log_prob(nets[:1], state, context, action, next_state, std=std)
    density = model.get_member_log_prob(0, state, context, action, next_state, std)[0]
    torch.testing.assert_close(density.double(), expected, **CLOSE)


@pytest.mark.parametrize("predict_delta", [True, False])
def test_transform_acts_on_means_and_target_in_the_predicted_space(predict_delta):
    nets = linear_nets()
    model = make_model(nets, predict_delta=predict_delta)
    transform = nn.Linear(S, S)
    with torch.no_grad():
        transform.weight.copy_(random_values(0, S, S))
        transform.bias.copy_(random_values(1, S))
    state, context, action = inputs(2, 3)
    next_state, std = state + random_values(2, 2, 3, S), torch.full((S,), 0.5)
    density, *_ = model.get_log_prob(state, context, action, next_state, std, False, transform)
    expected = reference.log_prob(
        nets, state, context, action, next_state, std=std, transform=transform, delta=predict_delta
    )
    torch.testing.assert_close(density.double(), expected, **CLOSE)
    density, _, mean = model.get_member_log_prob(2, state, context, action, next_state, std, False, transform)
    expected = reference.log_prob(
        nets[2:3], state, context, action, next_state, std=std, transform=transform, delta=predict_delta
    )
    torch.testing.assert_close(density.double(), expected, **CLOSE)
    expected = reference.mixture(nets[2:3], state, context, action, transform=transform)[1].squeeze(-2)
    torch.testing.assert_close(mean.double(), expected, **CLOSE)


@pytest.mark.parametrize("width", [20, 100])
def test_prob_stays_finite(width):
    # Log densities of about 166 and 829: beyond the range of float32, and of float64.
    model = make_model(
        [ConstantNet(torch.zeros(1, width), torch.tensor(1e-4))],
        n_modes=1,
        state_space=box(width),
        action_space=box(1),
    )
    state = torch.zeros(2, width)
    prob, *_ = model.get_prob(state, torch.zeros(2, C), torch.zeros(2, 1), state)
    assert torch.isfinite(prob).all()
    assert (prob > 1e60).all()


def test_predict_with_a_given_std():
    model = make_model()
    state, context, action = inputs(6)
    given = torch.tensor([0.1, 0.2, 0.3, 0.4])
    mean, weights, std, term_prob = model.predict(state, context, action, given)
    assert torch.equal(std, given.expand(6, M, K, S))
    learned = model.predict(state, context, action)
    for got, wanted in zip((mean, weights, term_prob), (learned[0], learned[1], learned[3]), strict=True):
        torch.testing.assert_close(got, wanted)


def test_absolute_dims_are_predicted_as_the_next_value():
    nets = linear_nets()
    model = make_model(nets, absolute_dims=(0, 2))
    state, context, action = inputs(6)
    offset = state * torch.tensor([0.0, 1.0, 0.0, 1.0])
    expected = torch.stack([reference.outputs(net, state, context, action)[0] for net in nets], 1)
    mean = model.predict(state, context, action)[0]
    torch.testing.assert_close(mean.double(), expected + offset[:, None, None].double(), **CLOSE)
    next_state = random_values(0, 6, S)
    target = next_state - offset
    density, _, info = model.get_log_prob(state, context, action, next_state)
    expected = reference.log_prob(nets, state, context, action, target, delta=False)
    torch.testing.assert_close(density.double(), expected, **CLOSE)
    expected = reference.mixture(nets, state, context, action)[1]
    torch.testing.assert_close(info["means"].double(), expected, **CLOSE)
    expected = expected + offset[:, None].double()
    got = model.rollout(state, context, action[:, None], deterministic=True).state[:, :, 0, 1]
    torch.testing.assert_close(got.double(), expected, **CLOSE)


def normalized_model(nets, **settings):
    """A model whose running standard deviation is that of a batch, and that deviation."""
    model = make_model(nets, normalize_targets=True, **settings).train()
    batch = make_batch(400)
    batch.state_next = batch.state + torch.tensor([0.01, 1.0, 3.0, 100.0]) * (batch.state_next - batch.state)
    model.loss(batch)
    return model.eval(), (batch.state_next - batch.state).std(0, correction=0)


def test_density_of_the_state_itself_when_targets_are_normalized():
    nets = linear_nets()
    model, scale = normalized_model(nets)
    state, context, action = inputs(6)
    next_state = state + scale * random_values(0, 6, S)
    units = scale.double().log().sum()  # a density per unit of state, not per normalised unit
    parts, means = reference.mixture(nets, state, context, action)
    expected = parts.log_prob(((next_state - state) / scale).double()) - units
    density, _, info = model.get_log_prob(state, context, action, next_state)
    torch.testing.assert_close(density.double(), expected, rtol=5e-3, atol=2e-2)
    torch.testing.assert_close(info["means"].double(), means * scale, rtol=5e-3, atol=1e-6)
    std = 0.3 * scale
    density, *_ = model.get_log_prob(state, context, action, next_state, std)
    parts, _ = reference.mixture(nets, state, context, action, std=torch.full((S,), 0.3))
    expected = parts.log_prob(((next_state - state) / scale).double()) - units
    torch.testing.assert_close(density.double(), expected, rtol=2e-2, atol=5e-2)


def test_transform_sees_the_change_in_state_in_its_own_units():
    nets = [ConstantNet(0.5 * torch.ones(1, S), torch.ones(1, S))]
    model, scale = normalized_model(nets, n_modes=1)
    whiten = nn.Linear(S, S, bias=False)
    with torch.no_grad():
        whiten.weight.copy_(torch.diag(1 / scale))
    state, context, action = inputs(6)
    std, noise = torch.full((S,), 0.4), random_values(0, 6, S)
    density, *_ = model.get_log_prob(state, context, action, state + scale * noise, std=std, transform=whiten)
    expected = Independent(Normal(torch.full((S,), 0.5), std), 1).log_prob(noise)
    torch.testing.assert_close(density, expected, rtol=2e-2, atol=2e-2)


def test_sample_has_the_moments_of_the_whole_mixture():
    n = 20_000
    nets = linear_nets()
    model = make_model(nets)
    row = inputs(1)
    with torch.no_grad():
        samples = model.sample(*(x.expand(n, -1) for x in row), generator=torch.Generator().manual_seed(0))
    delta = (samples - row[0]).double()
    parts, _ = reference.mixture(nets, *row)
    components = parts.component_distribution.base_dist
    weights = parts.mixture_distribution.probs[0].detach()
    mean = (weights[:, None] * components.mean[0]).sum(0).detach()
    second = torch.diag_embed(components.variance[0]) + components.mean[0, :, :, None] * components.mean[0, :, None]
    cov = (weights[:, None, None] * second).sum(0).detach() - mean[:, None] * mean
    error = 5 * cov.diagonal().sqrt() / math.sqrt(n)
    assert ((delta.mean(0) - mean).abs() < error).all()
    torch.testing.assert_close(delta.T.cov(), cov, rtol=0.06, atol=0.05)
    # The same spread of log densities as samples of the reference: not only the first two moments fit.
    own, drawn = parts.log_prob(delta[:, None])[:, 0], parts.log_prob(parts.sample((n,)))[:, 0]
    torch.testing.assert_close(own.mean(), drawn.mean(), rtol=0, atol=0.07)
    torch.testing.assert_close(own.std(), drawn.std(), rtol=0.06, atol=0)


def test_sample_picks_member_and_mode_with_their_probabilities():
    n = 20_000
    weights = [torch.tensor([0.1, 0.9]), torch.tensor([0.5, 0.5]), torch.tensor([0.7, 0.3])]
    centres = [torch.tensor([[20.0 * m] * S, [20.0 * m + 10] * S]) for m in range(3)]
    model = make_model([ConstantNet(c, torch.full((2, S), 0.5), w) for c, w in zip(centres, weights, strict=True)])
    zeros = [torch.zeros(n, width) for width in (S, C, A)]
    samples = model.sample(*zeros, generator=torch.Generator().manual_seed(0)).detach()
    nearest = (samples / 10).round().long()
    assert (nearest == nearest[:, :1]).all()  # all dimensions in the same component
    frequency = nearest[:, 0].bincount(minlength=6) / n
    expected = torch.cat(weights) / 3
    assert ((frequency - expected).abs() < 5 * (expected / n).sqrt()).all()
    noise = samples - 10 * nearest
    torch.testing.assert_close(noise.std(0), torch.full((S,), 0.5), rtol=0.04, atol=0)
    assert noise.T.corrcoef().fill_diagonal_(0).abs().max() < 0.04
    assert torch.corrcoef(torch.stack([noise[1:, 0], noise[:-1, 0]]))[0, 1].abs() < 0.04


def test_sample_is_reproducible_and_leaves_the_global_generator_alone():
    model = make_model()
    row = inputs(6)
    before = torch.get_rng_state()
    generator = torch.Generator().manual_seed(3)
    first, second = (model.sample(*row, generator=generator) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, model.sample(*row, generator=torch.Generator().manual_seed(3)))
    assert not torch.equal(first, second)
    torch.manual_seed(4)
    first = model.sample(*row)
    torch.manual_seed(4)
    assert torch.equal(first, model.sample(*row))


def test_gradients_of_the_log_density():
    model = make_model(linear_nets(2), symmetry_breaking_start=True, sb_start_duration=100).double()
    model.set_n_total_env_steps(75)
    state, context, action = (x.double().requires_grad_() for x in inputs(2))
    next_state = (state + 0.3).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda *args: model.get_log_prob(*args)[:2], (state, context, action, next_state))
