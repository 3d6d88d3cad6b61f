"""Open-loop rollouts: a plain loop in Python, closed forms, noise, propagation and divergence."""

import numpy as np
import pytest
import torch

from layeredrl.models.nets import GaussianMixtureMLP
from layeredrl.models.rollout import hold
from tests.models import reference
from tests.models.networks import (
    ConstantNet,
    DriftNet,
    ExplodingNet,
    LinearNet,
    Recorder,
    SequentialNet,
    random_values,
)
from tests.models.reference import A, C, K, M, S, box, inputs, linear_nets, make_batch, make_model

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def plan(n: int, horizon: int, seed: int = 100, context_dim: int = C):
    """Initial state, context and a sequence of actions."""
    state, context, _ = inputs(n, seed=seed, context_dim=context_dim)
    return state, context, random_values(seed + 7, n, horizon, A).clamp(-1, 1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("gradients", "predict_delta", "context_dim"), [(True, True, C), (False, False, C), (False, True, 0)]
)
def test_deterministic_rollout_is_the_plain_loop(gradients, predict_delta, context_dim):
    nets = linear_nets(context_dim=context_dim)
    spaces = {"context_space": box(context_dim)}
    model = make_model(nets, predict_delta=predict_delta, n_particles_per_model=3, **spaces)
    state, context, actions = plan(4, 6, context_dim=context_dim)
    with torch.set_grad_enabled(gradients):
        result = model.rollout(state, context, actions, deterministic=True)
    states, terms = reference.rollout(nets, state, context, actions, delta=predict_delta)
    for particle in range(3):
        torch.testing.assert_close(result.state[:, :, particle].double(), states, **CLOSE)
        torch.testing.assert_close(result.term_prob[:, :, particle].double(), terms, **CLOSE)
    assert torch.equal(result.state[..., 0, :], state[:, None, None].expand(-1, M, 3, -1))
    assert not result.diverged.any()
    torch.testing.assert_close(result.state_mean.double(), states, **CLOSE)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("n_particles", [1, 4])
def test_statistics_are_those_of_the_states(n_particles, deterministic):
    model = make_model(n_particles_per_model=n_particles)
    result = model.rollout(*plan(4, 5), deterministic, generator=seeded())
    state = result.state.detach().double().numpy()
    mean, var = state.mean(2), state.var(2)
    for key, expected in {
        "state_mean": mean,
        "state_var": var,
        "state_epistemic_var": mean.var(1),
        "state_aleatoric_var": var.mean(1),
    }.items():
        np.testing.assert_allclose(result[key].detach().numpy(), expected, rtol=1e-3, atol=1e-6, err_msg=key)


def test_variances_survive_a_large_offset():
    model = make_model([DriftNet(0.01 * m, std=0.05) for m in range(M)], n_modes=1, n_particles_per_model=20)
    state, context, actions = plan(4, 3)
    result = model.rollout(state + 1000, context, 0 * actions, generator=seeded())
    state = result.state.detach().double().numpy()
    mean, var = state.mean(2), state.var(2)
    np.testing.assert_allclose(result.state_aleatoric_var.detach(), var.mean(1), rtol=0.05, atol=1e-8)
    np.testing.assert_allclose(result.state_epistemic_var.detach()[:, 1:], mean.var(1)[:, 1:], rtol=0.2)


@pytest.mark.parametrize(("n_models", "n_particles", "gradients"), [(3, 3, True), (7, 1, False)])
@pytest.mark.parametrize("kind", ["linear", "mixture_mlp"])
def test_identical_members_have_no_epistemic_variance_at_all(kind, n_models, n_particles, gradients):
    nets = {
        "linear": LinearNet(S, C, A, K),
        "mixture_mlp": GaussianMixtureMLP(box(S), box(C), box(A), K, hidden=(16, 16)),
    }
    model = make_model([nets[kind]] * n_models, n_particles_per_model=n_particles)
    for n_rows in (3, 5, 6, 8):  # with and without a rest when split into a processor's vectors
        with torch.set_grad_enabled(gradients):
            result = model.rollout(*plan(n_rows, 6), generator=seeded())
        assert (result.state == result.state[:, :1]).all()
        assert (result.state_epistemic_var == 0).all()
        assert (result.state[:, :, :, 1:].std(0) > 0).all()  # rows differ, so something was drawn


def test_particles_draw_the_same_noise_in_every_member():
    drifts = torch.arange(float(M))
    model = make_model([DriftNet(float(d)) for d in drifts], n_modes=1, n_particles_per_model=4)
    state, context, actions = plan(3, 5)
    moves = model.rollout(state, context, actions, generator=seeded()).state.detach().diff(dim=-2)
    noise = moves - drifts[:, None, None, None] - actions.sum(-1)[:, None, None, :, None]
    torch.testing.assert_close(noise, noise[:, :1].expand_as(noise), rtol=0, atol=1e-4)


def test_noise_is_standard_and_independent():
    model = make_model([DriftNet(std=0.3)], n_modes=1, n_particles_per_model=4000)
    state, context, actions = plan(3, 2)
    with torch.no_grad():
        moves = model.rollout(state, context, actions, generator=seeded()).state.diff(dim=-2)
    noise = (moves - actions.sum(-1)[:, None, None, :, None]) / 0.3
    variables = noise[:, 0].permute(0, 2, 3, 1).flatten(0, 2)  # row, step and dimension by particle
    assert variables.mean(1).abs().max() < 0.08
    assert (variables.std(1) - 1).abs().max() < 0.06
    assert variables.corrcoef().fill_diagonal_(0).abs().max() < 0.08
    assert abs(variables.pow(4).mean().item() - 3) < 0.15


def test_particles_follow_the_mixture_of_their_member():
    nets = linear_nets()
    model = make_model(nets, n_particles_per_model=5_000)
    state, context, actions = plan(2, 1)
    with torch.no_grad():
        result = model.rollout(state, context, actions, generator=seeded())
    for m, net in enumerate(nets):
        parts, _ = reference.mixture([net], state, context, actions[:, 0])
        delta = (result.state[:, m, :, 1] - state[:, None]).double()
        torch.testing.assert_close(delta.mean(1), parts.mean.detach(), rtol=0, atol=0.08)
        torch.testing.assert_close(delta.var(1), parts.variance.detach(), rtol=0.15, atol=0)
        own = parts.log_prob(delta.transpose(0, 1)).mean(0).detach()
        drawn = parts.log_prob(parts.sample((5_000,))).mean(0).detach()
        torch.testing.assert_close(own, drawn, rtol=0, atol=0.12)


def test_noise_does_not_depend_on_the_actions():
    model = make_model([DriftNet(std=0.3)] * 2, n_modes=1, n_particles_per_model=3)
    state, context, actions = plan(4, 5)
    other = random_values(50, 4, 5, A)
    first = model.rollout(state, context, actions, generator=seeded()).state
    second = model.rollout(state, context, other, generator=seeded()).state
    shift = (other - actions).sum(-1).cumsum(1)[:, None, None, :, None]
    torch.testing.assert_close(second[..., 1:, :], first[..., 1:, :] + shift, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("propagation", ["tsinf", "ts1"])
def test_generator_makes_rollouts_reproducible(propagation):
    model = make_model(n_particles_per_model=2, propagation=propagation)
    before = torch.get_rng_state()
    generator = seeded(3)
    first, second = (model.rollout(*plan(4, 5), generator=generator).state for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, model.rollout(*plan(4, 5), generator=seeded(3)).state)
    assert not torch.equal(first, second)
    torch.manual_seed(4)
    first = model.rollout(*plan(4, 5)).state
    torch.manual_seed(4)
    assert torch.equal(first, model.rollout(*plan(4, 5)).state)


@pytest.mark.parametrize("kind", ["mixture_mlp", "layer_norm"])
def test_rows_do_not_depend_on_how_many_there_are(kind):
    if kind == "mixture_mlp":
        factory = Recorder(lambda *args: GaussianMixtureMLP(*args, hidden=(16, 16)))
        nets = [factory(box(S), box(C), box(A), K) for _ in range(M)]
    else:
        nets = [SequentialNet(S, C, A, K, kind=kind) for _ in range(M)]
    model = make_model(nets)
    state, context, actions = plan(2, 4)
    states, terms = reference.rollout(nets, state, context, actions)
    for copies in (1, 10, 200):
        with torch.no_grad():
            many = (x.repeat(copies, *[1] * (x.ndim - 1)) for x in (state, context, actions))
            result = model.rollout(*many, deterministic=True)
        expected = states.repeat(copies, 1, 1, 1)
        torch.testing.assert_close(result.state[:, :, 0].double(), expected, **CLOSE)
        torch.testing.assert_close(result.term_prob[:, :, 0].double(), terms.repeat(copies, 1, 1), **CLOSE)


def test_normalized_targets_scale_mean_and_noise():
    nets = [ConstantNet(torch.full((1, S), 0.5), torch.full((1, S), 0.2))]
    model = make_model(nets, n_modes=1, normalize_targets=True, n_particles_per_model=5_000).train()
    batch = make_batch(500, scale=3.0)
    model.loss(batch)
    model.eval()
    scale = (batch.state_next - batch.state).std(0, correction=0)
    state, context, actions = plan(2, 1)
    with torch.no_grad():
        moves = model.rollout(state, context, actions, generator=seeded()).state.diff(dim=-2)[:, 0, :, 0]
    torch.testing.assert_close(moves.mean(1), (0.5 * scale).expand(2, S), rtol=0.04, atol=0)
    torch.testing.assert_close(moves.std(1), (0.2 * scale).expand(2, S), rtol=0.06, atol=0)


def opposite_drifts(**settings):
    nets = [DriftNet(1.0, std=1e-6), DriftNet(-1.0, std=1e-6)]
    return make_model(nets, n_modes=1, n_particles_per_model=8, **settings)


def test_ts1_shuffles_particles_over_members_at_every_step():
    state, context, actions = plan(5, 6)
    result = opposite_drifts(propagation="ts1").rollout(state, context, 0 * actions, generator=seeded())
    assert result.state.shape == (5, 2, 8, 7, S)
    assert {"state", "state_mean", "term_prob", "diverged"} <= set(result.get_keys())
    assert not {"state_epistemic_var", "state_aleatoric_var"} & set(result.get_keys())
    moves = result.state.detach().diff(dim=-2)
    torch.testing.assert_close(moves.abs(), torch.ones_like(moves), **CLOSE)
    ups = moves.flatten(1, 2)[..., 0] > 0  # row, particle, step
    assert (ups.sum(1) == 8).all()  # a permutation: every member moves its share
    assert (ups.all(-1) | (~ups).all(-1)).float().mean() < 0.3  # hardly any particle keeps its member
    patterns = {tuple(ups[b, :, t].tolist()) for b in range(5) for t in range(6)}
    assert len(patterns) > 20  # rows and steps are shuffled each on its own


def test_expectation_has_no_noise():
    model = make_model(linear_nets(1), propagation="expectation", n_particles_per_model=2)
    result = model.rollout(*plan(4, 5), generator=seeded(0))
    assert torch.equal(result.state, model.rollout(*plan(4, 5), generator=seeded(1)).state)
    torch.testing.assert_close(result.state, model.rollout(*plan(4, 5), deterministic=True).state)


def test_the_likeliest_mode_of_each_member_is_followed():
    nets = linear_nets(M)
    model = make_model(nets, propagation="mode", n_particles_per_model=2)
    start, context, actions = plan(6, 5)
    result = model.rollout(start, context, actions, generator=seeded(0))
    chosen = set()
    for m, net in enumerate(nets):
        for b in range(6):
            state = start[b]
            for t in range(5):
                with torch.no_grad():
                    (mean, _), weights, _ = net(state[None], context[b, None], actions[b, t, None])
                mode = int(weights[0].argmax())
                chosen.add((m, mode))
                state = state + mean[0, mode]
                torch.testing.assert_close(result.state[b, m, :, t + 1], state.expand(2, S), **CLOSE)
    assert len(chosen) > M  # not always the same one
    assert {"state_epistemic_var", "state_aleatoric_var"} <= set(result.get_keys())
    mean = model.rollout(start, context, actions, deterministic=True)
    torch.testing.assert_close(
        mean.state, make_model(nets).rollout(start, context, actions, True).state[:, :, :1].expand_as(mean.state)
    )


@pytest.mark.parametrize(
    ("deterministic", "bad"), [(True, float("inf")), (False, float("-inf")), (False, float("nan"))]
)
def test_a_state_that_leaves_the_finite_range_is_held(deterministic, bad):
    model = make_model([ExplodingNet(2.5, bad), ExplodingNet(99.0, bad)], n_modes=1, n_particles_per_model=2)
    state = torch.zeros(2, S)
    state[1, 0] = -50.0  # the second row stays far from the limit
    actions = torch.zeros(2, 6, A, requires_grad=True)
    result = model.rollout(state, torch.zeros(2, C), actions, deterministic, generator=seeded())
    walk = torch.tensor([0.0, 1, 2, 3, 4, 5, 6])
    torch.testing.assert_close(result.state[0, 0, :, :, 0], walk.clamp(max=3).expand(2, 7), **CLOSE)
    torch.testing.assert_close(result.state[0, 1, :, :, 0], walk.expand(2, 7), **CLOSE)
    torch.testing.assert_close(result.state[1, ..., 0], (walk - 50).expand(2, 2, 7), **CLOSE)
    expected = torch.zeros(2, 2, 2, 6, dtype=torch.bool)
    expected[0, 0, :, 3:] = True
    assert torch.equal(result.diverged, expected)
    for key in result.get_keys():
        assert torch.isfinite(result[key]).all(), key
    (gradient,) = torch.autograd.grad(result.state[1].sum(), actions)
    assert torch.isfinite(gradient[1]).all()


def test_particles_stay_where_they_last_were_finite():
    """With the termination probability of the step that they last took; of the first one if they took none."""
    horizon = 3
    states = torch.arange(horizon + 1.0).view(-1, 1, 1, 1).expand(-1, 1, horizon + 1, 2).clone()
    for particle in range(horizon):  # the last one stays finite
        states[particle + 1, 0, particle, 1] = torch.nan
    held, term_probs, diverged = hold(states, torch.arange(3.0).view(-1, 1, 1).expand(-1, 1, horizon + 1))
    for particle in range(horizon + 1):
        assert held[:, 0, particle, 0].tolist() == [min(t, particle) for t in range(horizon + 1)]
        assert term_probs[:, 0, particle].tolist() == [min(t, particle) for t in range(horizon)]
        assert diverged[:, 0, particle].tolist() == [t >= particle for t in range(horizon)]


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("n_modes", [1, K])
def test_gradients_through_a_rollout(n_modes, deterministic):
    model = make_model(linear_nets(2, n_modes), n_modes=n_modes).double()
    state, context, actions = (x.double() for x in plan(2, 2))

    def states(state, actions):
        result = model.rollout(state, context, actions, deterministic, generator=seeded())
        return result.state, result.term_prob, result.state_epistemic_var

    assert states(state, actions)[0].dtype == torch.float64
    assert torch.autograd.gradcheck(states, (state.requires_grad_(), actions.requires_grad_()))


@pytest.mark.parametrize("propagation", ["tsinf", "ts1"])
def test_rows_of_a_group_draw_the_same_noise(propagation):
    model = make_model(n_particles_per_model=3, propagation=propagation)
    rows = [x.expand(8, *x.shape[1:]) for x in plan(1, 4)]
    result = model.rollout(*rows, generator=seeded(), n_alike=5).state  # the second group is cut short
    for group in (result[:5], result[5:]):
        torch.testing.assert_close(group, group[:1].expand_as(group), rtol=1e-5, atol=1e-5)
    assert (result[0, ..., 1:, :] != result[5, ..., 1:, :]).any(-1).all()
    # What is drawn does not depend on how many are compared.
    fewer = model.rollout(*(x[:5] for x in rows), generator=seeded(), n_alike=5).state
    more = model.rollout(*(x[:1].expand(23, *x.shape[1:]) for x in rows), generator=seeded(), n_alike=23).state
    torch.testing.assert_close(more[:5], fewer, rtol=1e-5, atol=1e-5)
    own = model.rollout(*rows, generator=seeded()).state
    assert (own[0, ..., 1:, :] != own[1, ..., 1:, :]).any(-1).all()


@pytest.mark.parametrize("propagation", ["tsinf", "ts1", "expectation", "mode"])
@pytest.mark.parametrize("n_alike", [1, 2])
def test_a_rollout_of_no_rows_has_no_rows(propagation, n_alike):
    model = make_model(n_particles_per_model=2, propagation=propagation)
    result = model.rollout(torch.zeros(0, S), torch.zeros(0, C), torch.zeros(0, 5, A), n_alike=n_alike)
    assert result.state.shape == (0, model.n_models, 2, 6, S)
    assert result.term_prob.shape == result.diverged.shape == (0, model.n_models, 2, 5)
    assert result.state_mean.shape == (0, model.n_models, 6, S)


@pytest.mark.parametrize("lead", [(0,), (0, 3), (3, 0)])
def test_predictions_and_densities_of_no_rows_have_no_rows(lead):
    model, (state, context, action) = make_model(), inputs(*lead)
    for log_prob, term_prob, info in (
        model.get_log_prob(state, context, action, state),
        model.get_prob(state, context, action, state),
    ):
        assert log_prob.shape == term_prob.shape == lead
        assert info["means"].shape == (*lead, model.n_models, S)
    assert model.get_member_log_prob(0, state, context, action, state)[2].shape == (*lead, S)
    assert model.predict(state, context, action)[0].shape == (*lead, model.n_models, K, S)
    assert model.sample(state, context, action).shape == (*lead, S)
