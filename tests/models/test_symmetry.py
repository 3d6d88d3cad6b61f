"""The symmetry-breaking start: closed forms of the blend of a random linear map and the learned network."""

import pytest
import torch
from torch.distributions import Independent, Normal

from tests.models import reference
from tests.models.networks import LinearNet, SequentialNet, TableNet, random_values
from tests.models.reference import A, C, K, M, S, box, inputs, linear_nets, make_batch, make_model

D, FACTOR = 1000, 1.7
SETTINGS = {"symmetry_breaking_start": True, "sb_start_duration": D, "sb_start_factor": FACTOR}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
BLENDS = [(0, 0.0), (D // 2, 0.0), (5 * D // 8, 0.25), (D, 1.0), (3 * D, 1.0)]


def at(n: int, **settings):
    model = make_model(**(SETTINGS | settings))
    model.set_n_total_env_steps(n)
    return model


def random_map(model) -> torch.Tensor:
    """The (S, A) matrix of the map, factor included, read off the predictions for unit actions at n = 0."""
    state, context = torch.zeros(A, S), torch.zeros(A, C)
    model.set_n_total_env_steps(0)
    return model.predict(state, context, torch.eye(A))[0][:, 0, 0].T.detach()


def blend(model, nets, c: float, state, context, action):
    """The blended change in state: means and stds (B, M, K, S), weights (B, M, K), termination (B, M)."""
    move = (action @ random_map(model).T).double()[:, None, None]
    parts = [reference.outputs(net, state, context, action) for net in nets]
    mean, std, weights, term = (torch.stack(x, 1).detach() for x in zip(*parts, strict=True))
    mean, std = (1 - c) * move + c * mean, (1 - c) * 0.3 + c * std
    return mean, std, (1 - c) / K + c * weights, c * term


def test_the_map_is_linear_in_the_action_with_orthonormal_columns():
    model = at(0)
    matrix = random_map(model)
    assert matrix.shape == (S, A)
    torch.testing.assert_close(matrix.T @ matrix, FACTOR**2 * torch.eye(A), **CLOSE)
    state, context, action = inputs(6)
    mean, weights, std, term_prob = model.predict(state, context, action)
    expected = (state + action @ matrix.T)[:, None, None].expand(6, M, K, S)
    torch.testing.assert_close(mean, expected, **CLOSE)
    torch.testing.assert_close(std, torch.full_like(std, 0.3))
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / K))
    assert (term_prob == 0).all()


@pytest.mark.parametrize("size", [1, 2])
def test_the_map_may_have_as_many_actions_as_states(size):
    spaces = {"state_space": box(size), "action_space": box(size)}
    nets = [SequentialNet(size, C, size, K, kind="none") for _ in range(2)]
    model = make_model(nets, **spaces, **SETTINGS)
    matrix = model.predict(torch.zeros(size, size), torch.zeros(size, C), torch.eye(size))[0][:, 0, 0]
    torch.testing.assert_close(matrix.T @ matrix, FACTOR**2 * torch.eye(size), **CLOSE)


@pytest.mark.parametrize(("n", "c"), BLENDS)
def test_predict_blends_in_closed_form(n, c):
    nets = linear_nets()
    model = at(n, nets=nets)
    state, context, action = inputs(6)
    mean, weights, std, term_prob = (x.double() for x in model.predict(state, context, action))
    expected = blend(model, nets, c, state, context, action)
    torch.testing.assert_close(mean - state[:, None, None], expected[0], **CLOSE)
    torch.testing.assert_close(std, expected[1], **CLOSE)
    torch.testing.assert_close(weights, expected[2], **CLOSE)
    torch.testing.assert_close(term_prob, expected[3].mean(1), **CLOSE)


@pytest.mark.parametrize(("n", "c"), BLENDS)
def test_density_blends_in_closed_form(n, c):
    nets = linear_nets()
    model = at(n, nets=nets)
    state, context, action = inputs(6)
    next_state = state + 0.5 * random_values(0, 6, S)
    density, term_prob, info = model.get_log_prob(state, context, action, next_state)
    members = [model.get_member_log_prob(m, state, context, action, next_state) for m in range(M)]
    prob = model.get_prob(state, context, action, next_state)[0]
    mean, std, weights, term = blend(model, nets, c, state, context, action)
    parts = Independent(Normal(mean, std), 1).log_prob((next_state - state).double()[:, None, None])
    own = (weights.log() + parts).logsumexp(-1)
    expected = own.logsumexp(-1) - torch.tensor(float(M)).log()
    torch.testing.assert_close(density.double(), expected, **CLOSE)
    torch.testing.assert_close(prob, expected.exp(), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(term_prob.double(), term.mean(1), **CLOSE)
    centres = (weights.unsqueeze(-1) * mean).sum(-2)
    torch.testing.assert_close(info["means"].double(), centres, **CLOSE)
    for m, member in enumerate(members):
        torch.testing.assert_close(member[0].double(), own[:, m], **CLOSE)
        torch.testing.assert_close(member[1].double(), term[:, m], **CLOSE)
        torch.testing.assert_close(member[2].double(), centres[:, m], **CLOSE)


@pytest.mark.parametrize(("n", "c"), BLENDS)
def test_rollout_blends_in_closed_form(n, c):
    nets = linear_nets(2)
    model = at(n, nets=nets, n_particles_per_model=2)
    state, context, _ = inputs(4)
    actions = random_values(5, 4, 3, A).clamp(-1, 1)
    result = model.rollout(state, context, actions, deterministic=True)
    current = state.double()[:, None].expand(-1, 2, -1)
    for t in range(3):
        parts = [blend(model, nets[m : m + 1], c, current[:, m], context, actions[:, t]) for m in range(2)]
        mean, _, weights, term = (torch.cat(x, 1) for x in zip(*parts, strict=True))
        current = current + (weights.unsqueeze(-1) * mean).sum(-2)
        for particle in range(2):
            torch.testing.assert_close(result.state[:, :, particle, t + 1].double(), current, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(result.term_prob[:, :, particle, t].double(), term, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("n", [0, 3 * D // 4])
def test_loss_mode_bypasses_the_start(n):
    model, learned = at(n), make_model()
    state, context, action = inputs(6)
    next_state = state + 0.1
    got = model.get_log_prob(state, context, action, next_state, loss_mode=True)
    wanted = learned.get_log_prob(state, context, action, next_state)
    torch.testing.assert_close(got[:2], wanted[:2])
    torch.testing.assert_close(got[2]["means"], wanted[2]["means"])
    got = model.get_member_log_prob(1, state, context, action, next_state, loss_mode=True)
    torch.testing.assert_close(got, learned.get_member_log_prob(1, state, context, action, next_state))
    actions = action[:, None].expand(-1, 3, -1)
    got = model.rollout(state, context, actions, True, True)
    wanted = learned.rollout(state, context, actions, True)
    torch.testing.assert_close(got.state, wanted.state)
    torch.testing.assert_close(got.term_prob, wanted.term_prob)


@pytest.mark.parametrize("n", [0, 3 * D // 4])
def test_the_loss_never_uses_the_start(n):
    nets, batch = linear_nets(), make_batch(8)
    expected = reference.loss(nets, batch)
    torch.testing.assert_close(at(n, nets=nets).loss(batch).double(), expected, rtol=1e-5, atol=1e-4)


def test_learning_trains_the_network_but_not_the_map():
    model = at(0, create_optimizer=True, learning_rate=0.01)
    before = random_map(model)
    frozen = model.predict(*inputs(4))[0].detach()
    model.train().learn([make_batch(8, seed=i) for i in range(5)])
    model.eval()
    torch.testing.assert_close(random_map(model), before)
    torch.testing.assert_close(model.predict(*inputs(4))[0], frozen)
    model.set_n_total_env_steps(D)
    trained = model.predict(*inputs(4))[0]
    assert not torch.allclose(trained, make_model().predict(*inputs(4))[0])


def test_samples_and_stochastic_rollouts_at_the_start():
    model = at(0, n_particles_per_model=4_000)
    matrix = random_map(model)
    state, context, action = inputs(1)
    many = [x.expand(20_000, -1) for x in (state, context, action)]
    with torch.no_grad():
        samples = model.sample(*many, generator=torch.Generator().manual_seed(0)) - state
        generator = torch.Generator().manual_seed(0)
        result = model.rollout(state, context, action[:, None], generator=generator)
    particles = (result.state[0, :, :, 1] - state).flatten(0, 1)
    for drawn in (samples, particles):
        torch.testing.assert_close(drawn.mean(0), (action @ matrix.T)[0], rtol=0, atol=0.02)
        torch.testing.assert_close(drawn.std(0), torch.full((S,), 0.3), rtol=0.03, atol=0)
    assert (result.term_prob == 0).all()
    assert (result.state_epistemic_var == 0).all()


def test_target_normalisation_scales_the_map_too():
    model = at(0, normalize_targets=True)
    before = random_map(model)
    batch = make_batch(400)
    batch.state_next = batch.state + torch.tensor([0.1, 1.0, 5.0, 20.0]) * random_values(0, 400, S)
    model.train().loss(batch)
    model.eval()
    scale = (batch.state_next - batch.state).std(0, correction=0)
    torch.testing.assert_close(random_map(model), scale[:, None] * before, rtol=5e-3, atol=1e-6)
    std = model.predict(*inputs(3))[2]
    torch.testing.assert_close(std, (0.3 * scale).expand_as(std), rtol=5e-3, atol=0)


def test_without_deltas_the_map_gives_the_next_state():
    model = at(0, predict_delta=False)
    state, context, action = inputs(6)
    expected = action @ random_map(model).T
    mean = model.predict(state, context, action)[0]
    torch.testing.assert_close(mean, expected[:, None, None].expand_as(mean), **CLOSE)


def test_the_map_is_random_and_reproducible():
    maps = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        maps.append(random_map(at(0)))
    assert torch.equal(maps[0], maps[1])
    assert not torch.allclose(maps[0], maps[2])


def test_map_and_step_count_are_saved():
    torch.manual_seed(0)
    model = at(3 * D // 4)
    torch.manual_seed(1)
    other = at(0)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.predict(*inputs(4)), model.predict(*inputs(4)))
    torch.testing.assert_close(random_map(other), random_map(model))


def test_the_step_count_takes_effect_at_once_without_gradients_too():
    model, learned = at(0), make_model()
    state, context, action = inputs(4)
    with torch.no_grad():
        start = model.rollout(state, context, action[:, None], deterministic=True).state
        model.set_n_total_env_steps(D)
        end = model.rollout(state, context, action[:, None], deterministic=True).state
        wanted = learned.rollout(state, context, action[:, None], deterministic=True).state
    assert not torch.allclose(start, end)
    torch.testing.assert_close(end, wanted)


def test_discrete_actions_are_refused():
    with pytest.raises((ValueError, TypeError), match="action_space"):
        make_model([TableNet(S, 3)], n_modes=1, action_space=reference.discrete(3), **SETTINGS)


def test_more_actions_than_states_are_refused():
    with pytest.raises((ValueError, TypeError), match="action"):
        make_model([LinearNet(S, C, S + 1, K)], action_space=box(S + 1), **SETTINGS)


def test_a_transform_comes_after_the_map():
    model = at(0)
    before, transform = random_map(model), random_values(0, S, S)
    model.symmetry.set_transform(transform)
    torch.testing.assert_close(random_map(model), transform @ before, **CLOSE)
    with pytest.raises(ValueError, match="transform has shape"):
        model.symmetry.set_transform(random_values(0, S, S - 1))
