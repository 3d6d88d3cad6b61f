"""WorldModel against plain loops, with known dynamics; and planning with the true dynamics."""

from functools import partial

import numpy as np
import pytest
import torch
from gymnasium import spaces

import envs  # noqa: F401  registers the tasks
from layeredrl.collector import Collector
from layeredrl.environments import make_task, make_vector_env
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import PlannerLevel
from layeredrl.models import ProbabilisticEnsemble
from layeredrl.models.nets import GaussianMixtureMLP
from layeredrl.planners import ICEM, ICEMConfig
from layeredrl.task import TaskSpec
from layeredrl.world_model import Encoder, ModelLearningConfig, Objective, Oracle, WorldModel, WorldModelLearner
from tests.models.networks import ExplodingNet, Members

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
E, N, H, A, S, C = 2, 5, 7, 2, 4, 1
ACTIONS = spaces.Box(-1.0, 1.0, (A,), np.float32)
# The goal lies between the parts of the state, so that taking the first or the last entries fails.
OBSERVATIONS = spaces.Dict(
    [
        ("achieved_goal", spaces.Box(-np.inf, np.inf, (1,), np.float32)),
        ("desired_goal", spaces.Box(-np.inf, np.inf, (C,), np.float32)),
        ("observation", spaces.Box(-np.inf, np.inf, (3,), np.float32)),
    ]
)
STATE, GOAL = [0, 2, 3, 4], [1]
LOW, HIGH = np.array([-3.0, 0.0], np.float32), np.array([5.0, 0.5], np.float32)


def move(state, context, action):
    """Dynamics in agents' actions."""
    return 0.9 * state + 0.3 * state.roll(1, -1).sin() + 0.2 * action.repeat_interleave(2, -1)


def reward(state, context, action, next_state):
    """Reward that depends on all four arguments."""
    return state[..., 0] + 2 * context[..., 0] * next_state[..., 1] - 0.3 * action[..., 0] + 0.7 * action[..., 1]


def ends_maybe(state, context, action, next_state):
    """Probability of termination."""
    return torch.sigmoid(next_state[..., 2] - 0.2 * action[..., 0] + context[..., 0] - 1)


def ends_surely(state, context, action, next_state):
    return next_state[..., 2] < -0.4


def make_world(dynamics=move, *, discount=1.0, **known):
    task = TaskSpec(OBSERVATIONS, ACTIONS, action_low=LOW, action_high=HIGH, **known)
    encoder, model = Encoder(task), dynamics
    if not isinstance(dynamics, torch.nn.Module):
        model = Oracle.from_step(encoder.state_space, encoder.context_space, ACTIONS, dynamics)
    objective = Objective(encoder.state_dim, discount=discount)
    return WorldModel(encoder, model, task, objective=objective).eval()


def make_inputs(seed=0):
    """Observations (E, 5) and candidates (E, N, H, A)."""
    generator = torch.Generator().manual_seed(seed)
    obs = torch.randn(E, S + C, generator=generator)
    return obs, torch.rand(E, N, H, A, generator=generator) * 2 - 1


def plain_score(world, obs, actions, reward_function):
    """Scores, one number after the other."""
    scores = torch.empty(E, N)
    for e in range(E):
        for n in range(N):
            state, goal = obs[e, STATE], obs[e, GOAL]
            total, alive = 0.0, 1.0
            for t in range(H):
                action = actions[e, n, t]
                force = torch.as_tensor(LOW) + (action + 1) / 2 * torch.as_tensor(HIGH - LOW)
                after = move(state, goal, action)
                total += alive * world.objective.discount**t * float(reward_function(state, goal, force, action, after))
                if world.task.termination is not None:
                    alive *= 1 - float(world.task.termination(state, goal, force, after))
                state = after
            scores[e, n] = total
    return scores


def known(state, goal, force, action, after):
    return reward(state, goal, force, after)


def test_the_goal_is_context_and_the_rest_is_state():
    task = TaskSpec(OBSERVATIONS, ACTIONS)
    encoder = Encoder(task)
    obs = torch.arange(10.0).view(2, 5)
    state, context = encoder(obs)
    assert torch.equal(state, obs[:, STATE])
    assert torch.equal(context, obs[:, GOAL])
    assert (encoder.state_space.shape, encoder.context_space.shape) == ((S,), (C,))
    state, context = encoder(obs.view(2, 1, 5).expand(2, 3, 5))
    assert (state.shape, context.shape) == ((2, 3, S), (2, 3, C))
    without = Encoder(TaskSpec(spaces.Box(-1.0, 1.0, (3,)), ACTIONS))
    state, context = without(obs[:, :3])
    assert torch.equal(state, obs[:, :3])
    assert context.shape == (2, 0)
    assert not encoder.state_dict()


def test_the_state_may_be_some_parts_of_the_observation():
    box = spaces.Box(-1.0, 1.0, (2,))
    task = TaskSpec(spaces.Dict(achieved_goal=box, desired_goal=box, observation=box), ACTIONS)
    obs = torch.arange(6.0)
    state, context = Encoder(task, ("observation",))(obs)
    assert (state.tolist(), context.tolist()) == ([4.0, 5.0], [2.0, 3.0])
    for parts in (("desired_goal",), ("speed",), ()):
        with pytest.raises(ValueError, match=r"parts is \[.*\], expected some of achieved_goal, observation"):
            Encoder(task, parts)


@pytest.mark.parametrize("discount", [1.0, 0.9])
@pytest.mark.parametrize("termination", [None, ends_maybe, ends_surely])
def test_scores_are_those_of_a_plain_loop(termination, discount):
    world = make_world(discount=discount, reward=reward, termination=termination)
    assert world.reward_net is None
    obs, actions = make_inputs()
    scores = world.score(obs, actions)
    torch.testing.assert_close(scores, plain_score(world, obs, actions, known), **CLOSE)
    if termination is not None:  # it changes scores by different amounts
        change = scores - make_world(discount=discount, reward=reward).score(obs, actions)
        assert change.std() > 0.01


def test_an_unknown_reward_is_learned():
    torch.manual_seed(0)
    world = make_world(discount=0.9, termination=ends_maybe)
    assert world.reward_net is not None
    world.reward_net.fit_scales(torch.randn(50, 2 * S + C + A), 10 + 3 * torch.randn(50))
    obs, actions = make_inputs()

    def learned(state, goal, force, action, after):
        return world.reward_net(state, goal, action, after)

    with torch.no_grad():
        torch.testing.assert_close(world.score(obs, actions), plain_score(world, obs, actions, learned), **CLOSE)
    # The probability of termination is not learned here: the oracle's is zero.
    assert not make_world(reward=reward).rollout(obs, actions[:, 0]).term_prob.any()


def test_rollouts_of_an_ensemble_particle_by_particle():
    torch.manual_seed(0)
    task = TaskSpec(OBSERVATIONS, ACTIONS, reward=reward)
    encoder = Encoder(task)
    net = partial(GaussianMixtureMLP, hidden=(8,))
    model = ProbabilisticEnsemble(
        encoder.state_space, encoder.context_space, ACTIONS, net, n_models=3, n_particles_per_model=2
    )
    world = make_world(model, reward=reward, discount=0.9)
    obs, actions = make_inputs()
    with torch.no_grad():
        rows = obs.repeat_interleave(N, 0)
        result = world.rollout(rows, actions.flatten(0, 1), generator=torch.Generator().manual_seed(1), n_alike=N)
        scores = world.score(obs, actions, generator=torch.Generator().manual_seed(1), common_noise=True)
        own = world.score(obs, actions[:, :1].expand_as(actions), generator=torch.Generator().manual_seed(1))
        same = world.score(
            obs, actions[:, :1].expand_as(actions), generator=torch.Generator().manual_seed(1), common_noise=True
        )
    # The candidates of an environment meet the same noise; environments do not.
    assert torch.equal(same, scores[:, :1].expand_as(same))
    assert (own[:, 0] != own[:, 1]).all()
    equal = obs[:1].expand_as(obs), actions[:1].expand_as(actions)
    first = world.score(*equal, generator=torch.Generator(), common_noise=True)
    assert (first[0] != first[1]).all()
    assert result.reward.shape == result.alive.shape == result.term_prob.shape == (E * N, 3, 2, H)
    expected = torch.zeros(E * N)
    for b, m, p in np.ndindex(E * N, 3, 2):
        states, alive = result.state[b, m, p], 1.0
        for t in range(H):
            taken = world.task.to_env_units(actions[b // N, b % N, t])
            value = reward(states[t], rows[b, GOAL], taken, states[t + 1])
            torch.testing.assert_close(result.reward[b, m, p, t], value, **CLOSE)
            assert float(result.alive[b, m, p, t]) == pytest.approx(alive, rel=1e-4)
            expected[b] += alive * 0.9**t * value / 6
            alive *= 1 - float(result.term_prob[b, m, p, t])
    assert result.term_prob.std() > 0.01
    torch.testing.assert_close(scores.flatten(), expected, **CLOSE)


@pytest.mark.parametrize("repeat", [1, 3])
def test_actions_are_repeated(repeat):
    task = TaskSpec(OBSERVATIONS, ACTIONS, action_low=LOW, action_high=HIGH, reward=reward, termination=ends_maybe)
    encoder = Encoder(task)
    model = Oracle.from_step(encoder.state_space, encoder.context_space, ACTIONS, move)
    world = WorldModel(encoder, model, task, objective=Objective(S, discount=0.9), repeat=repeat).eval()
    obs, actions = make_inputs()
    result = world.rollout(obs, actions[:, 0])
    assert result.state.shape == (E, 1, 1, H * repeat + 1, S)
    assert result.reward.shape == result.alive.shape == (E, 1, 1, H * repeat)
    scores = world.score(obs, actions)
    for e, n in np.ndindex(E, N):
        state, goal, total, alive, t = obs[e, STATE], obs[e, GOAL], 0.0, 1.0, 0
        for action in actions[e, n]:
            force = task.to_env_units(action)
            for _ in range(repeat):
                after = move(state, goal, action)
                total += alive * 0.9**t * float(reward(state, goal, force, after))
                alive *= 1 - float(ends_maybe(state, goal, force, after))
                state, t = after, t + 1
                if n == 0:
                    torch.testing.assert_close(result.state[e, 0, 0, t], state, **CLOSE)
        assert float(scores[e, n]) == pytest.approx(total, rel=1e-4, abs=1e-5)


def test_discrete_actions_are_repeated():
    choices, box = spaces.Discrete(3), spaces.Box(-1.0, 1.0, (1,))
    task = TaskSpec(box, choices, reward=lambda state, context, action, after: after[..., 0])
    encoder = Encoder(task)
    model = Oracle.from_step(
        encoder.state_space, encoder.context_space, choices, lambda state, context, action: 2 * state + action
    )
    result = WorldModel(encoder, model, task, repeat=2).rollout(torch.zeros(1, 1), torch.tensor([[[1], [2]]]))
    assert result.state.flatten().tolist() == [0, 1, 3, 8, 18]
    assert result.returns.item() == 1 + 3 + 8 + 18


@pytest.mark.parametrize(("repeat", "error"), [(0, ValueError), (1.5, TypeError)])
def test_repeat_is_a_positive_integer(repeat, error):
    task = TaskSpec(OBSERVATIONS, ACTIONS, reward=reward)
    encoder = Encoder(task)
    model = Oracle.from_step(encoder.state_space, encoder.context_space, ACTIONS, move)
    with pytest.raises(error, match=f"repeat is {repeat}"):
        WorldModel(encoder, model, task, repeat=repeat)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_diverging_candidate_scores_minus_infinity(bad):
    def explode(state, context, action):
        return torch.where(action[..., :1] > 2 / 3, bad, move(state, context, action))

    obs, actions = make_inputs()
    actions = actions * 0.6
    actions[1, 3, H - 1] = 0.9
    scores = make_world(explode, reward=lambda s, c, a, n: -(s[..., 0] ** 2)).score(obs, actions)
    assert scores[1, 3] == -torch.inf
    assert scores.isfinite().sum() == E * N - 1


def test_one_diverging_particle_is_enough():
    nets = [ExplodingNet(limit) for limit in (1e9, 2.5, 1e9)]
    model = ProbabilisticEnsemble(
        spaces.Box(-9.0, 9.0, (S,)), spaces.Box(-1.0, 1.0, (C,)), ACTIONS, Members(nets), n_models=3
    ).eval()
    world = make_world(model, reward=reward)
    actions = torch.zeros(E, N, H, A)
    actions[:, 2:] = -1.0  # keeps the first dimension below the limit
    with torch.no_grad():
        scores = world.score(torch.zeros(E, S + C), actions, generator=torch.Generator().manual_seed(0))
    assert (scores == -torch.inf).tolist() == [[True, True, False, False, False]] * E


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_reward_scores_minus_infinity(bad):
    def broken(state, context, action, next_state):
        return torch.where(action[..., 0] > 4.5, bad, state[..., 0])

    obs, actions = make_inputs()
    actions = actions * 0.5
    actions[0, 1, 3] = 1.0
    scores = make_world(reward=broken).score(obs, actions)
    assert scores[0, 1] == -torch.inf
    assert scores.isfinite().sum() == E * N - 1


@pytest.mark.parametrize("name", ["reward", "termination"])
@pytest.mark.parametrize(
    ("wrong", "shape"),
    [(lambda x: x[..., None], r"10, 1, 1, 7, 1"), (lambda x: x.sum(), ""), (lambda x: x[0], "1, 1, 7")],
)
def test_functions_of_wrong_shape_are_refused(wrong, shape, name):
    functions = {"reward": reward, "termination": ends_maybe}
    right = functions[name]
    functions[name] = lambda *inputs: wrong(right(*inputs))
    with pytest.raises(ValueError, match=rf"{name} function returned shape \({shape}.*expected \(10, 1, 1, 7\)"):
        make_world(**functions).score(*make_inputs())


@pytest.mark.parametrize(
    ("scale", "message"), [(3.0, r"returned 0 to 3, .* in \[0, 1\]"), (-1.0, "returned -1 to -?0, ")]
)
def test_a_known_termination_that_is_no_probability_is_refused(scale, message):
    world = make_world(reward=reward, termination=lambda s, c, a, n: scale * (n[..., 2] < -0.4).float())
    obs, actions = make_inputs()
    with pytest.raises(ValueError, match=message):
        world.score(obs, actions)


def cartpole_agent(n_envs):
    task = make_task("ContinuousCartPole-v0", n_envs)
    encoder = Encoder(task)
    world = WorldModel(encoder, Oracle.from_task(task, encoder), task)
    icem = ICEM(task.action_space, ICEMConfig(horizon=12, n_samples=48, n_iterations=2, n_elites=8))
    return Hierarchy([PlannerLevel(world, icem, task.action_space)], task)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_pets_with_true_dynamics_balances_from_the_first_episode(seed):
    agent = cartpole_agent(2)
    collector = Collector(make_vector_env("ContinuousCartPole-v0", 2, max_episode_steps=80), agent, seed=seed)
    episodes = []
    for _ in range(80):
        assert not episodes
        episodes = collector.step(explore=True)
        assert agent.learn(collector.n_total_env_steps) == {}
    assert [episode.episode_return for episode in episodes] == [80.0] * 2
    assert collector.take_metrics()["plan/achieved_return"] == 12.0


def test_only_an_ensemble_can_learn():
    task = make_task("ContinuousCartPole-v0")
    encoder = Encoder(task)
    world = WorldModel(encoder, Oracle.from_task(task, encoder), task)
    with pytest.raises(TypeError, match=r"dynamics is Oracle, expected a ProbabilisticEnsemble"):
        WorldModelLearner(world, ModelLearningConfig())


@pytest.mark.parametrize(("n_envs", "n_candidates"), [(0, 3), (2, 0), (0, 0)])
@pytest.mark.parametrize("common_noise", [True, False])
def test_no_candidates_have_no_scores(n_envs, n_candidates, common_noise):
    task = TaskSpec(OBSERVATIONS, ACTIONS, action_low=LOW, action_high=HIGH)
    encoder = Encoder(task)
    net = partial(GaussianMixtureMLP, hidden=(8,))
    model = ProbabilisticEnsemble(encoder.state_space, encoder.context_space, ACTIONS, net, n_models=2)
    for world in (make_world(reward=reward), WorldModel(encoder, model, task).eval()):
        obs, actions = torch.zeros(n_envs, S + C), torch.zeros(n_envs, n_candidates, H, A)
        assert world.score(obs, actions, common_noise=common_noise).shape == (n_envs, n_candidates)
