"""The oracle against plain loops over known dynamics."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tianshou.data import Batch
from torch.distributions import Normal

from layeredrl.models import ProbabilisticEnsemble
from layeredrl.task import TaskSpec
from layeredrl.world_model import Encoder, Oracle, WorldModel
from tests.models.networks import DriftNet, Members

B, H, S, C, A = 5, 4, 3, 2, 2
STATES, CONTEXTS = spaces.Box(-np.inf, np.inf, (S,)), spaces.Box(-np.inf, np.inf, (C,))
ACTIONS, CHOICES = spaces.Box(-1.0, 1.0, (A,)), spaces.Discrete(3)
LOW, HIGH = np.array([-3.0, 0.0], np.float32), np.array([5.0, 0.5], np.float32)


def move(state, context, action):
    """Dynamics that depend on all three arguments."""
    return 0.9 * state + 0.1 * state.roll(1, -1).sin() + context[..., :1] + action.sum(-1, keepdim=True) * state.cos()


def simulate(state, context, actions):
    states = [state]
    for t in range(actions.shape[1]):
        states.append(move(states[-1], context, actions[:, t]))
    return torch.stack(states, 1)


def ends(state, context, action, next_state):
    """Probability of termination that depends on all four arguments."""
    return torch.sigmoid(next_state[..., 0] - 0.5 * state[..., 1] + context[..., 1] + action[..., 0])


def make(action_space=ACTIONS, **kwargs):
    return Oracle(STATES, CONTEXTS, action_space, simulate, **kwargs)


def inputs(*lead, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*lead, width, generator=generator).to(dtype) for width in (S, C)]


def action_sequences(action_space=ACTIONS, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    if isinstance(action_space, spaces.Discrete):
        return torch.randint(3, (B, H, 1), generator=generator)
    return (torch.rand(B, H, A, generator=generator) * 2 - 1).to(dtype)


@pytest.mark.parametrize(
    ("by_steps", "action_space", "dtype"),
    [(False, ACTIONS, torch.float32), (True, ACTIONS, torch.float64), (True, CHOICES, torch.float32)],
)
def test_rollouts_are_those_of_a_plain_loop(by_steps, action_space, dtype):
    make_it, function = (Oracle.from_step, move) if by_steps else (Oracle, simulate)
    oracle = make_it(STATES, CONTEXTS, action_space, function, n_models=3, n_particles_per_model=2, termination=ends)
    (state, context), actions = inputs(B, dtype=dtype), action_sequences(action_space, dtype)
    before = [x.clone() for x in (state, context, actions)]
    result = oracle.rollout(state, context, actions)
    assert all(torch.equal(x, y) for x, y in zip(before, (state, context, actions), strict=True))
    assert result.state.shape == (B, 3, 2, H + 1, S)
    assert result.term_prob.shape == result.diverged.shape == (B, 3, 2, H)
    assert result.state.dtype == result.term_prob.dtype == dtype
    for b, m, p in np.ndindex(B, 3, 2):
        current = state[b]
        for t in range(H):
            torch.testing.assert_close(result.state[b, m, p, t], current)
            after = move(current, context[b], actions[b, t])
            term_prob = ends(current, context[b], actions[b, t], after)
            torch.testing.assert_close(result.term_prob[b, m, p, t], term_prob)
            current = after
        torch.testing.assert_close(result.state[b, m, p, H], current)
    assert not result.diverged.any()


def test_keys_and_shapes_are_those_of_an_ensemble():
    ensemble = ProbabilisticEnsemble(STATES, CONTEXTS, ACTIONS, Members([DriftNet()] * 3), 3, n_particles_per_model=2)
    (state, context), actions = inputs(B), action_sequences()
    for statistics in (True, False):
        expected, found = (
            m.rollout(state, context, actions, statistics=statistics)
            for m in (ensemble, make(n_models=3, n_particles_per_model=2))
        )
        assert {k: (x.shape, x.dtype) for k, x in found.items()} == {k: (x.shape, x.dtype) for k, x in expected.items()}


def test_an_oracle_has_no_uncertainty():
    (state, context), actions = inputs(B), action_sequences()
    oracle = make(n_models=2, n_particles_per_model=3)
    result = oracle.rollout(state, context, actions, generator=torch.Generator().manual_seed(0))
    for key in ("state_var", "state_epistemic_var", "state_aleatoric_var", "term_prob", "diverged"):
        assert not result[key].any()
    assert torch.equal(result.state_mean, result.state[:, :, 0])
    assert torch.equal(result.state, oracle.rollout(state, context, actions, deterministic=True).state)
    assert torch.equal(result.state[:, :1, :1], make().rollout(state, context, actions).state)


@pytest.mark.parametrize("bad", [float("nan"), -float("inf")])
def test_diverging_trajectories_keep_their_last_finite_state(bad):
    def explode(state, context, action):
        return torch.where(action[..., :1] > 1.5, bad, move(state, context, action))

    (state, context), actions = inputs(B), action_sequences()
    actions[1, 2], actions[3, 0] = 2.0, 2.0
    oracle = Oracle.from_step(STATES, CONTEXTS, ACTIONS, explode, n_models=2, termination=ends)
    result = oracle.rollout(state, context, actions)
    expected = torch.zeros(B, H, dtype=torch.bool)
    expected[1, 2:] = expected[3, :] = True
    assert torch.equal(result.diverged[:, 1, 0], expected)
    assert result.state.isfinite().all()
    assert result.term_prob.isfinite().all()
    assert torch.equal(result.state[1, 0, 0, 3:], result.state[1, 0, 0, 2].expand(H - 2, S))
    assert torch.equal(result.state[3, 0, 0], state[3].expand(H + 1, S))
    others = [0, 2, 4]
    fine = simulate(state[others], context[others], actions[others])
    assert torch.equal(result.state[others, 0, 0], fine)


def test_gradients_flow_through_the_simulation():
    (state, context), actions = inputs(B), action_sequences()
    actions.requires_grad_()
    make().rollout(state, context, actions).state[..., -1, :].sum().backward()
    assert actions.grad.abs().gt(0).all()


@pytest.mark.parametrize("lead", [(7,), (2, 3), ()])
def test_one_step(lead):
    oracle = make(n_models=2, termination=ends, std=0.1)
    (state, context), action = inputs(*lead), torch.full((*lead, A), 0.3)
    after = move(state, context, action)
    mean, weights, std, term_prob = oracle.predict(state, context, action)
    assert mean.shape == std.shape == (*lead, 2, 1, S)
    torch.testing.assert_close(mean, after[..., None, None, :].expand_as(mean))
    assert torch.equal(std, torch.full_like(std, 0.1))
    assert torch.equal(weights, torch.ones(*lead, 2, 1))
    torch.testing.assert_close(term_prob, ends(state, context, action, after))
    given = torch.tensor([0.1, 0.2, 0.3])
    assert torch.equal(oracle.predict(state, context, action, given)[2], given.expand_as(std))

    observed = after + 0.05
    log_prob, term_prob, info = oracle.get_log_prob(state, context, action, observed)
    torch.testing.assert_close(log_prob, Normal(after, 0.1).log_prob(observed).sum(-1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(term_prob, ends(state, context, action, after))
    torch.testing.assert_close(info["means"], after[..., None, :].expand(*lead, 2, S))
    prob = oracle.get_prob(state, context, action, observed)[0]
    torch.testing.assert_close(prob, log_prob.double().exp())


def test_samples_have_the_given_standard_deviation():
    oracle = make(std=0.01)
    (state, context), action = inputs(5000), torch.zeros(5000, A)
    first, again = (oracle.sample(state, context, action, generator=torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(first, again)
    error = first - move(state, context, action)
    torch.testing.assert_close(error.std(0), torch.full((S,), 0.01), rtol=0.05, atol=0)
    assert error.mean(0).abs().max() < 6e-4


def test_an_oracle_does_not_learn():
    oracle = make()
    assert list(oracle.get_parameters()) == []
    with pytest.raises(NotImplementedError, match="nothing to learn"):
        oracle.learn([Batch()])
    oracle.set_n_total_env_steps(7)
    other = make()
    other.load_state_dict(oracle.state_dict())
    assert int(other.n_total_env_steps) == 7


def first_entry(state, context, action, next_state):
    return next_state[..., 0]


def of_task(observations=STATES, actions=ACTIONS, **known):
    task = TaskSpec(observations, actions, action_low=LOW, action_high=HIGH, **known)
    return task, Encoder(task)


def test_a_tasks_dynamics_takes_the_environments_actions():
    goal = spaces.Dict(desired_goal=CONTEXTS, observation=STATES)
    task, encoder = of_task(goal, dynamics=move, termination=ends, reward=first_entry)
    (state, context), actions = inputs(B), action_sequences()
    forces = torch.as_tensor(LOW) + (actions + 1) / 2 * torch.as_tensor(HIGH - LOW)
    expected = make(termination=ends).rollout(state, context, forces)
    for oracle in (Oracle.from_task(task, encoder), Oracle.from_task(task, encoder, simulate)):
        result = oracle.rollout(state, context, actions)
        torch.testing.assert_close(result.state, expected.state)
        torch.testing.assert_close(result.term_prob, expected.term_prob)
        world = WorldModel(encoder, oracle, task).rollout(torch.cat([context, state], -1), actions)
        torch.testing.assert_close(world.term_prob, expected.term_prob)
        torch.testing.assert_close(world.reward, expected.state[..., 1:, 0])
        for again in (copy.deepcopy(oracle), pickle.loads(pickle.dumps(oracle))):
            assert torch.equal(again.rollout(state, context, actions).state, result.state)


def test_integer_actions_stay_integers():
    def count(state, context, action):
        assert action.dtype == torch.int64
        return state + action

    task = TaskSpec(STATES, CHOICES, dynamics=count)
    actions = action_sequences(CHOICES)
    oracle = Oracle.from_task(task, Encoder(task))
    state = inputs(B)[0]
    result = oracle.rollout(state, state[:, :0], actions)
    torch.testing.assert_close(result.state[:, 0, 0, -1], state + actions.sum(1))


def test_a_task_without_dynamics_is_refused():
    task, encoder = of_task()
    with pytest.raises(ValueError, match=r"dynamics is None.*no dynamics_function.*pass simulate"):
        Oracle.from_task(task, encoder)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (
            lambda s, c, a: simulate(s, c, a)[:, 1:],
            ValueError,
            r"simulate returned shape \(5, 4, 3\), expected \(5, 5, 3\)",
        ),
        (lambda s, c, a: simulate(s, c, a)[..., :2], ValueError, r"shape \(5, 5, 2\), expected \(5, 5, 3\)"),
        (
            lambda s, c, a: simulate(s, c, a).double(),
            TypeError,
            r"returned torch.float64 on cpu, expected the state's torch.float32",
        ),
        (lambda s, c, a: simulate(s, c, a).numpy(), TypeError, "returned ndarray, expected a torch.Tensor"),
    ],
)
def test_simulations_of_the_wrong_kind(wrong, error, message):
    oracle = Oracle(STATES, CONTEXTS, ACTIONS, wrong)
    with pytest.raises(error, match=message):
        oracle.rollout(*inputs(B), action_sequences())


def test_functions_of_one_step_and_terminations_of_the_wrong_kind():
    (state, context), actions = inputs(B), action_sequences()
    oracle = Oracle.from_step(STATES, CONTEXTS, ACTIONS, lambda s, c, a: s[..., :1])
    with pytest.raises(ValueError, match=r"function of one step returned shape \(5, 1\), expected \(5, 3\)"):
        oracle.rollout(state, context, actions)
    oracle = make(termination=lambda s, c, a, n: n > 0)
    with pytest.raises(ValueError, match=r"termination returned shape \(4, 1, 5, 3\), expected \(4, 1, 5\)"):
        oracle.rollout(state, context, actions)
    with pytest.raises(ValueError, match=r"termination returned shape \(5, 3\), expected \(5,\)"):
        oracle.predict(state, context, actions[:, 0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"initial_state": torch.zeros(B, S + 1)}, ValueError, r"initial_state has shape \(5, 4\), expected \(B, 3\)"),
        (
            {"initial_state": torch.zeros(B, S).long()},
            TypeError,
            "initial_state has dtype torch.int64, expected a floating",
        ),
        ({"initial_state": np.zeros((B, S))}, TypeError, "initial_state is ndarray"),
        ({"context": torch.zeros(B + 1, C)}, ValueError, r"context has shape \(6, 2\)"),
        ({"context": torch.zeros(B, C).double()}, TypeError, "context has dtype torch.float64, expected torch.float32"),
        ({"actions": torch.zeros(B, A)}, ValueError, r"actions has shape \(5, 2\), expected \(B, H, 2\)"),
        ({"actions": torch.zeros(B, 0, A)}, ValueError, r"actions has shape \(5, 0, 2\), expected \(5, H, 2\)"),
        ({"actions": torch.zeros(B + 1, H, A)}, ValueError, r"actions has shape \(6, 4, 2\), expected \(5, H, 2\)"),
    ],
)
def test_wrong_inputs_are_named(change, error, message):
    state, context = inputs(B)
    arguments = {"initial_state": state, "context": context, "actions": action_sequences(), **change}
    with pytest.raises(error, match=message):
        make().rollout(**arguments)


def test_wrong_settings_are_named():
    for std in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="std is"):
            make(std=std)
    with pytest.raises(TypeError, match="simulate is int, expected a function"):
        Oracle(STATES, CONTEXTS, ACTIONS, 3)
    with pytest.raises(TypeError, match="action_space is MultiBinary"):
        make(spaces.MultiBinary(2))
    (state, context), action = inputs(B), torch.zeros(B, A)
    with pytest.raises(ValueError, match=r"std has shape \(2,\), expected it to broadcast to \(5, 1, 1, 3\)"):
        make().predict(state, context, action, torch.ones(2))
