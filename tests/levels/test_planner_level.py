"""A level that plans: its random start, when it fits, what acting leaves alone, and that it gets better."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tianshou.data import Batch

from layeredrl.levels import ModelLearningConfig, PlannerLevel
from layeredrl.levels import planner_level as planner_level_module
from layeredrl.models import FitConfig, Model, ProbabilisticEnsemble
from layeredrl.nets import GaussianMixtureMLP
from layeredrl.objective import Objective
from layeredrl.planners import CEM, ICEM, CEMConfig, ICEMConfig
from layeredrl.task import TaskSpec
from layeredrl.world_model import Encoder, WorldModel

E = 3
OBSERVATION, ACTION = spaces.Box(-10.0, 10.0, (2,)), spaces.Box(-1.0, 1.0, (2,))
LEARNING = ModelLearningConfig(
    n_random_steps=12, fit_every=6, first_epochs=4, fit=FitConfig(epochs=2, batch_size=16), replay_size=300
)


def known_reward(state, context, action, next_state):
    return -next_state.square().sum(-1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make(seed=0, learning=LEARNING, reward=known_reward, planner=None, **settings):
    """A level for points in the plane that actions push around."""
    torch.manual_seed(seed)
    task = TaskSpec(OBSERVATION, ACTION, n_envs=E, reward=reward)
    encoder = Encoder(task)
    dynamics = ProbabilisticEnsemble(
        encoder.state_space,
        encoder.context_space,
        ACTION,
        partial(GaussianMixtureMLP, hidden=(16,)),
        **{"n_models": 2, "learning_rate": 1e-2, "create_optimizer": True} | settings,
    )
    if planner is None:
        planner = ICEM(ACTION, ICEMConfig(horizon=3, n_samples=16, n_iterations=2, n_elites=4))
    objective = Objective(encoder.state_space.shape[0], discount=0.9)
    world = WorldModel(encoder, dynamics, task, objective=objective, reward_hidden=(16,))
    return PlannerLevel(world, planner, ACTION, learning=learning, seed=seed)


def push(obs, action):
    """The true dynamics."""
    return obs + 0.3 * action


def observe_random(level, n_steps, seed=0, env_ids=range(E)):
    """Let a level see random transitions of some environments, `n_steps` in each."""
    rng, env_ids = np.random.default_rng(seed), np.array(env_ids)
    for _ in range(n_steps):
        obs, act = rng.normal(size=(len(env_ids), 2)), rng.uniform(-1, 1, (len(env_ids), 2))
        obs_next = push(obs, act)
        done = np.zeros(len(env_ids), bool)
        level.observe(
            Batch(
                obs=obs.astype(np.float32),
                act=act.astype(np.float32),
                rew=-(obs_next**2).sum(-1),
                terminated=done,
                truncated=done,
                obs_next=obs_next.astype(np.float32),
                info=Batch(duration=np.ones(len(env_ids), np.int64)),
            ),
            env_ids,
        )


def act(level, explore=True, seed=0, obs=None, memory=None):
    obs = torch.linspace(-1, 1, 2 * E).view(E, 2) if obs is None else obs
    memory = level.start(len(obs)) if memory is None else memory
    return level.act(obs, None, memory, explore=explore, generator=seeded(seed))


def is_planned(decision):
    return "plan/score" in decision.metrics


def flat(value, prefix=""):
    """The leaves of nested dicts, lists and tuples, by path."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {path: leaf for key, child in items for path, leaf in flat(child, f"{prefix}/{key}").items()}
    return {prefix: value}


def assert_same_state(a, b):
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(value, b[key]) if isinstance(value, torch.Tensor) else value == b[key], key


@pytest.fixture
def fits(monkeypatch):
    """The configurations of all fits of dynamics that happen."""
    configs, original = [], planner_level_module.fit

    def fit(ensemble, data, config, *, generator):
        configs.append(config)
        return original(ensemble, data, config, generator=generator)

    monkeypatch.setattr(planner_level_module, "fit", fit)
    return configs


def test_exploration_is_uniform_until_enough_steps():
    level = make()
    observe_random(level, 4)
    for n in (0, 3, 11):
        level.learn(n)
        decision = act(level, obs=torch.zeros(4000, 2))
        assert not is_planned(decision)
        for key in decision.memory.get_keys():
            assert torch.equal(decision.memory[key], level.start(4000)[key])
        assert (decision.action.abs() <= 1).all()
        torch.testing.assert_close(decision.action.std(0), torch.full((2,), 3**-0.5), rtol=0, atol=0.03)
    level.learn(12)
    assert is_planned(act(level))


def test_without_exploration_it_never_acts_at_random():
    level = make()
    decision = act(level, explore=False)
    assert is_planned(decision)
    assert torch.equal(decision.action, act(level, explore=False).action)
    # The plan is the planner's, on the world model's score, with the same generator.
    generator, obs = seeded(), torch.linspace(-1, 1, 2 * E).view(E, 2)
    plan = level.planner.plan(
        lambda actions: level.world.score(obs, actions, generator=generator), E, level.start(E), generator
    )
    assert torch.equal(decision.action, plan.actions[:, 0])
    assert torch.equal(decision.metrics["plan/score"], plan.score)
    for key in plan.warm_start.get_keys():
        assert torch.equal(decision.memory[key], plan.warm_start[key])


def test_a_fixed_model_plans_at_once():
    level = make(learning=None)
    assert is_planned(act(level, explore=True))
    level.observe(Batch(), np.arange(E))
    assert level.learn(1000) == {}
    assert is_planned(act(level, explore=True))


def test_a_decision_stands_for_one_step():
    level = make()
    for explore in (True, False):
        decision = act(level, explore=explore)
        assert decision.action.shape == (E, 2)
        assert decision.duration.tolist() == [1] * E
    assert level.discount == 0.9


def test_fits_come_when_they_are_due(fits):
    level = make()
    learned = []
    for n in range(E, 40, E):
        observe_random(level, 1, seed=n)
        metrics = level.learn(n)
        if metrics:
            learned.append(n)
            assert metrics["model/transitions"] == n
            assert np.isfinite(metrics["model/loss"])
    assert learned == [12, 18, 24, 30, 36]
    assert [config.epochs for config in fits] == [4, 2, 2, 2, 2]
    assert all(config.batch_size == 16 for config in fits)
    assert int(level.world.dynamics.n_total_env_steps) == 39


def test_nothing_to_fit_means_no_fit(fits):
    level = make()
    assert level.learn(50) == {}
    observe_random(level, 1)
    assert level.learn(51)
    assert [config.epochs for config in fits] == [4]


def test_a_holdout_is_reported():
    learning = ModelLearningConfig(n_random_steps=12, fit=FitConfig(epochs=2, holdout=0.25))
    level = make(learning=learning)
    observe_random(level, 4)
    assert np.isfinite(level.learn(12)["model/holdout_loss"])
    assert not level.world.training
    assert not level.world.dynamics.training


@pytest.mark.parametrize("explore", [True, False])
@pytest.mark.parametrize("reward", [known_reward, None], ids=["known", "learned"])
def test_acting_changes_nothing_that_was_learned(explore, reward):
    level = make(reward=reward)
    observe_random(level, 4)
    level.learn(12)
    before = copy.deepcopy(level.state_dict())
    n_transitions, fitting_state = len(level.replay), level._generator.get_state()
    global_state = torch.random.get_rng_state()
    memory = level.start(E)
    for seed in range(3):
        memory = act(level, explore=explore, seed=seed, memory=memory).memory
    act(level, explore=False, obs=torch.zeros(7, 2))  # in another number of environments
    assert_same_state(before, level.state_dict())
    assert len(level.replay) == n_transitions
    assert torch.equal(fitting_state, level._generator.get_state())
    assert torch.equal(global_state, torch.random.get_rng_state())
    assert not level.world.training


def test_acting_needs_no_gradients():
    assert not act(make(reward=None), explore=False).action.requires_grad


@pytest.mark.parametrize("reward", [known_reward, None], ids=["known", "learned"])
def test_a_state_that_is_restored_gives_the_same_plans(reward, tmp_path):
    level, twin = make(reward=reward), make(seed=1, reward=reward)
    observe_random(level, 4)
    level.learn(12)
    assert not torch.equal(act(level).action, act(twin, explore=False).action)
    torch.save(level.state_dict(), tmp_path / "state")
    twin.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert_same_state(level.state_dict(), twin.state_dict())
    decision, same = act(level), act(twin)
    assert torch.equal(decision.action, same.action)
    assert torch.equal(decision.metrics["plan/score"], same.metrics["plan/score"])


@pytest.mark.parametrize("reward", [known_reward, None], ids=["known", "learned"])
def test_a_state_that_is_restored_learns_on_in_the_same_way(fits, reward):
    level, twin = make(reward=reward), make(seed=1, reward=reward)
    observe_random(level, 4)
    level.learn(12)
    twin.load_state_dict(copy.deepcopy(level.state_dict()))
    observe_random(twin, 4)
    for one in (level, twin):
        one._generator = seeded(5)
        observe_random(one, 2, seed=1)
        assert one.learn(17) == {}  # the schedule is restored too
        assert one.learn(18)
    assert [config.epochs for config in fits] == [4, 2, 2]
    assert_same_state(level.state_dict(), twin.state_dict())


def test_the_same_seed_learns_the_same():
    states = []
    for seed in (0, 0, 1):
        level = make()
        level = PlannerLevel(level.world, level.planner, ACTION, learning=LEARNING, seed=seed)
        observe_random(level, 4)
        level.learn(12)
        states.append(level.state_dict())
    assert_same_state(states[0], states[1])
    with pytest.raises(AssertionError):
        assert_same_state(states[0], states[2])


def closed_loop_return(level, n_steps=8):
    """Mean true return of acting from eight points on a circle."""
    angle = torch.arange(8) * torch.pi / 4
    obs, memory, total = torch.stack([angle.cos(), angle.sin()], -1), level.start(8), torch.zeros(8)
    for t in range(n_steps):
        decision = act(level, explore=False, seed=t, obs=obs, memory=memory)
        obs, memory = push(obs, decision.action), decision.memory
        total -= obs.square().sum(-1)
    return total.mean().item()


@pytest.mark.parametrize("kind", ["icem", "cem"])
@pytest.mark.parametrize("reward", [known_reward, None], ids=["known", "learned"])
def test_learning_improves_acting(reward, kind):
    planner = ICEM(ACTION, ICEMConfig(horizon=3, n_samples=32, n_iterations=2, n_elites=6))
    if kind == "cem":
        planner = CEM(ACTION, CEMConfig(horizon=3, n_samples=32, n_iterations=3, n_elites=6))
    learning = ModelLearningConfig(n_random_steps=300, first_epochs=60, fit=FitConfig(batch_size=32))
    level = make(learning=learning, reward=reward, planner=planner)
    before = closed_loop_return(level)
    observe_random(level, 100)
    metrics = level.learn(300)
    assert ("model/reward_loss" in metrics) is (reward is None)
    if reward is None:
        assert metrics["model/reward_loss"] < 0.05  # in units of the reward's variance
    after = closed_loop_return(level)
    assert after > before
    # Straight to the middle takes four steps: -(0.7^2 + 0.4^2 + 0.1^2); per-dimension bounds make diagonals faster.
    assert after > -1.0


def test_a_learned_reward_is_near_the_true_one():
    learning = ModelLearningConfig(n_random_steps=300, first_epochs=60, fit=FitConfig(batch_size=32))
    level = make(learning=learning, reward=None)
    observe_random(level, 100)
    state, action = torch.randn(200, 2, generator=seeded(1)), 2 * torch.rand(200, 2, generator=seeded(2)) - 1
    columns = (state, torch.zeros(200, 0), action, push(state, action))
    true = known_reward(*columns)

    @torch.no_grad()
    def error():
        return (level.world.reward(*columns) - true).square().mean() / true.var()

    before = error()
    level.learn(300)
    assert error() < 0.1 < before


class OtherModel(Model):
    """Not an ensemble."""

    get_log_prob = get_parameters = learn = loss = predict = rollout = sample = None


def test_only_an_ensemble_with_an_optimizer_can_learn():
    world, planner = make().world, make().planner
    world.dynamics = OtherModel()
    with pytest.raises(TypeError, match=r"OtherModel.*ProbabilisticEnsemble"):
        PlannerLevel(world, planner, ACTION, learning=LEARNING)
    PlannerLevel(world, planner, ACTION)
    with pytest.raises(ValueError, match="create_optimizer"):
        make(create_optimizer=False)


@pytest.mark.parametrize("name", ["n_random_steps", "fit_every", "first_epochs", "replay_size"])
def test_settings_out_of_range_are_named(name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        ModelLearningConfig(**{name: 0})
