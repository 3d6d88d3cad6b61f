"""A level that plans: its random start, when it fits, what acting leaves alone, and that it gets better."""

import copy
from dataclasses import replace
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tianshou.data import Batch

from agents.pets import PETS
from layeredrl.collector import Collector
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import ExplorationConfig, PlannerLevel
from layeredrl.levels import planner_level as planner_level_module
from layeredrl.models import FitConfig, Model, ProbabilisticEnsemble
from layeredrl.models.nets import GaussianMixtureMLP
from layeredrl.planners import (
    CEM,
    ICEM,
    MPPI,
    CEMConfig,
    ICEMConfig,
    MPPIConfig,
    Plan,
    Planner,
    PlanningError,
    RandomShooting,
    RandomShootingConfig,
)
from layeredrl.randomness import seed_from
from layeredrl.task import TaskSpec
from layeredrl.world_model import Encoder, GridSupport, ModelLearningConfig, Objective, Oracle, WorldModel

E = 3
OBSERVATION, ACTION = spaces.Box(-10.0, 10.0, (2,)), spaces.Box(-1.0, 1.0, (2,))
LEARNING = ModelLearningConfig(
    n_random_steps=12, fit_every=6, first_epochs=4, fit=FitConfig(epochs=2, batch_size=16), replay_size=300
)


def known_reward(state, context, action, next_state):
    return -next_state.square().sum(-1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make(
    seed=0,
    learning=LEARNING,
    reward=known_reward,
    planner=None,
    duration=1,
    exploration=None,
    common_noise=False,
    **settings,
):
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
    objective = Objective(encoder.state_dim, discount=0.9)
    world = WorldModel(encoder, dynamics, task, objective=objective, reward_hidden=(16,))
    return PlannerLevel(
        world,
        planner,
        ACTION,
        duration=duration,
        exploration=exploration,
        common_noise=common_noise,
        learning=learning,
        seed=seed,
    )


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
    memory = level.initial_memory(len(obs)) if memory is None else memory
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
            assert torch.equal(decision.memory[key], level.initial_memory(4000)[key])
        assert (decision.action.abs() <= 1).all()
        torch.testing.assert_close(decision.action.std(0), torch.full((2,), 3**-0.5), rtol=0, atol=0.03)
    level.learn(12)
    assert is_planned(act(level))


@pytest.mark.parametrize("common_noise", [False, True])
def test_without_exploration_it_never_acts_at_random(common_noise):
    level = make(common_noise=common_noise)
    decision = act(level, explore=False)
    assert is_planned(decision)
    assert torch.equal(decision.action, act(level, explore=False).action)
    # The plan is the planner's, on the world model's score, with the same generator.
    generator, obs = seeded(), torch.linspace(-1, 1, 2 * E).view(E, 2)
    start = seed_from(generator)

    def score(candidates):
        if not common_noise:
            return level.world.score(obs, candidates, generator=generator)
        return level.world.score(obs, candidates, generator=seeded(start), common_noise=True)

    plan = level.planner.plan(score, E, level.initial_memory(E), generator)
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
    memory = level.initial_memory(E)
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
    obs, memory, total = torch.stack([angle.cos(), angle.sin()], -1), level.initial_memory(8), torch.zeros(8)
    for t in range(n_steps):
        decision = act(level, explore=False, seed=t, obs=obs, memory=memory)
        obs, memory = push(obs, decision.action), decision.memory
        total -= obs.square().sum(-1)
    return total.mean().item()


@pytest.mark.parametrize(("reward", "kind"), [(known_reward, "cem"), (None, "icem")], ids=["known", "learned"])
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


# ------------------------------------------------------------------ what it tells of its plans


def test_a_report_is_that_of_a_plain_loop():
    level = make(reward=None, n_models=3, n_particles_per_model=4)
    level.world.objective.uncertainty_weight = 0.5  # a penalty is no part of the return
    generator, obs = seeded(), torch.linspace(-1, 1, 2 * E).view(E, 2)
    plan = level.plan(obs, level.initial_memory(E), generator)
    with torch.no_grad():
        result = level.world.rollout(obs, plan.actions, generator=generator)
    returns = np.zeros((E, 3, 4))
    for i, m, p in np.ndindex(E, 3, 4):
        alive = 1.0
        for t in range(3):
            returns[i, m, p] += 0.9**t * alive * float(result.reward[i, m, p, t])
            alive *= 1 - float(result.term_prob[i, m, p, t])
    decision = act(level, explore=False, obs=obs)
    assert torch.equal(decision.action, plan.actions[:, 0])
    assert decision.forecast_steps == 3
    np.testing.assert_allclose(decision.forecast, returns.mean((1, 2)), rtol=1e-5)
    expected = {
        "plan/return_std": [np.std(rows) for rows in returns],
        "plan/return_std_between_members": returns.mean(2).std(1),
        "plan/score": plan.score,
    }
    for name, values in expected.items():
        np.testing.assert_allclose(decision.metrics[name], values, rtol=1e-4, err_msg=name)


class Rehearsed(Planner):
    """Goes through given best scores (iterations, E), whatever they are scored for."""

    def __init__(self, best_scores, horizon=1):
        super().__init__(ACTION, horizon)
        self.best_scores = torch.tensor(best_scores)

    def initial_warm_start(self, n_envs, device):
        return Batch()

    def _plan(self, score, n_envs, warm_start, generator, proposals):
        return Plan(torch.zeros(n_envs, self.horizon, 2), self.best_scores[-1], Batch(), self.best_scores)


def test_it_has_converged_when_nearly_all_is_gained():
    columns = {(0, 0, 0): 1, (0, 0.5, 1): 3, (-10, -0.1, 0): 2, (-10, -0.11, 0): 3, (5, 4, 3): 1, (-np.inf, 0, 1): 2}
    level = make(planner=Rehearsed(np.array(list(columns), np.float32).T), learning=None)
    decision = act(level, obs=torch.zeros(len(columns), 2))
    assert decision.metrics["plan/iterations_to_converge"].tolist() == list(columns.values())


def test_every_environment_reports_once_per_horizon():
    """Environments reset at different times; the horizon is three."""
    level = make(learning=None)
    agent = Hierarchy([level], level.world.task)
    carry, ages, lengths = agent.initial_carry(E, seed=0), np.zeros(E, int), np.array([2, 5, 100])
    obs = np.zeros((E, 2), np.float32)
    for _ in range(12):
        agent.act(obs, carry, explore=True)
        due, told = ages % 3 == 0, carry.last_metrics()
        assert len(told) == (4 if due.any() else 0)
        for name, values in told.items():
            np.testing.assert_array_equal(np.isfinite(values), due, err_msg=name)
        ages += 1
        done = ages == lengths
        step = Batch(rew=np.zeros(E), terminated=done, truncated=np.zeros(E, bool), obs_next=obs)
        agent.observe(step, np.arange(E), carry, learn=False)
        ages[done] = 0


def test_forecasts_are_given_where_something_is_reported():
    level = make(learning=None)
    memory = level.initial_memory(E)
    memory.until_report[:] = torch.tensor([0, 2, 1])
    due = [[True, False, False], [False, False, True], [False, True, False], [True, False, False]]
    for t, expected in enumerate(due):
        decision = act(level, memory=memory, seed=t)
        memory = decision.memory
        assert decision.forecast.isfinite().tolist() == expected
        for values in decision.metrics.values():
            assert values.isfinite().tolist() == expected


def test_reports_begin_with_the_first_plan():
    level = make()
    memory = level.initial_memory(E)
    for _ in range(4):
        decision = act(level, memory=memory)
        memory = decision.memory
        assert decision.forecast is None
    level.learn(12)
    assert act(level, memory=memory).forecast.isfinite().all()


def test_a_world_that_holds_actions_is_learned_by_others():
    level = make()
    level.world.repeat = 3
    with pytest.raises(ValueError, match="repeat is 3, expected 1"):
        PlannerLevel(level.world, level.planner, ACTION, learning=LEARNING)
    PlannerLevel(level.world, level.planner, ACTION)


# ------------------------------------------------------------------ slower time scales, plans mixed with random actions


def test_actions_of_several_steps_have_a_discount_and_a_forecast_of_as_many():
    level = make(learning=None, duration=4)
    decision = act(level)
    np.testing.assert_array_equal(decision.duration, 4)
    assert decision.forecast_steps == 3 * 4
    assert level.discount**4 == pytest.approx(0.9)  # the objective's, for a step of the model


def test_what_the_end_of_an_episode_cut_short_is_not_learned_from(monkeypatch):
    fitted = []
    fit = planner_level_module.fit

    def keep(model, transitions, *args, **kwargs):
        fitted.append(transitions)
        return fit(model, transitions, *args, **kwargs)

    monkeypatch.setattr(planner_level_module, "fit", keep)
    level = make(duration=3)
    rows = {"obs": np.zeros((E, 2), np.float32), "act": np.zeros((E, 2), np.float32), "rew": np.zeros(E)}
    ends = {"whole": ([3, 3, 3], 0, 0), "cut": ([1, 2, 2], 0, 1), "over": ([2, 1, 1], 1, 0)}
    for value, (duration, terminated, truncated) in enumerate(ends.values()):
        level.observe(
            Batch(
                **rows,
                obs_next=np.full((E, 2), value, np.float32),
                terminated=np.full(E, bool(terminated)),
                truncated=np.full(E, bool(truncated)),
                info=Batch(duration=np.array(duration)),
            ),
            np.arange(E),
        )
    level.learn(12)
    (data,) = fitted
    assert sorted(data.state_next[:, 0].tolist()) == [0.0] * E + [2.0] * E


def test_plans_and_random_actions_alternate_in_each_environment():
    level = make(learning=None, exploration=ExplorationConfig(to_random=0.2, to_plan=0.4))
    n, n_steps = 60, 100
    obs, memory, generator = torch.zeros(n, 2), level.initial_memory(n), seeded(0)
    modes = []
    for _ in range(n_steps):
        decision = level.act(obs, None, memory, explore=True, generator=generator)
        memory = decision.memory
        modes.append(memory.random.clone())
        assert decision.forecast is None
    modes = torch.stack(modes).float()
    before, after = modes[:-1].flatten(), modes[1:].flatten()
    assert after[before == 0].mean() == pytest.approx(0.2, abs=0.03)
    assert 1 - after[before == 1].mean() == pytest.approx(0.4, abs=0.04)


def test_environments_that_plan_do_as_if_they_were_alone_and_others_forget_their_plans():
    class Counting(RandomShooting):
        """Its warm start counts plans; its plan is that number."""

        def initial_warm_start(self, n_envs, device):
            return Batch(n=torch.zeros(n_envs, device=device))

        def _plan(self, score, n_envs, warm_start, generator, proposals):
            actions = (warm_start.n / 100).view(-1, 1, 1).expand(n_envs, self.horizon, 2).clone()
            zeros = torch.zeros(n_envs)
            return Plan(actions, zeros, Batch(n=warm_start.n + 1), torch.zeros(1, n_envs))

    planner = Counting(ACTION, RandomShootingConfig(horizon=2, n_samples=2))
    level = make(learning=None, planner=planner, exploration=ExplorationConfig(to_random=0.3, to_plan=0.5))
    n = 40
    memory, generator, expected, seen = level.initial_memory(n), seeded(1), torch.zeros(n), torch.zeros(2)
    for _ in range(30):
        decision = level.act(torch.zeros(n, 2), None, memory, explore=True, generator=generator)
        memory = decision.memory
        planned = ~memory.random
        torch.testing.assert_close(decision.action[planned], (expected[planned] / 100)[:, None].expand(-1, 2))
        expected = torch.where(planned, expected + 1, 0)
        torch.testing.assert_close(memory.n, expected)
        seen += torch.tensor([planned.any(), memory.random.any()])
    assert (seen > 10).all()
    # Without exploration everybody plans.
    decision = level.act(torch.zeros(n, 2), None, memory, explore=False, generator=generator)
    torch.testing.assert_close(decision.memory.n, expected + 1)


@pytest.mark.parametrize("kind", ["icem", "cem", "mppi", "random_shooting"])
def test_a_share_of_the_candidates_is_tried_while_exploring(kind):
    """And plans of either kind go on from those of the other."""
    planner = {
        "icem": ICEM(ACTION, ICEMConfig(horizon=3, n_samples=20, n_iterations=1, n_elites=4, reuse_fraction=0.0)),
        "cem": CEM(ACTION, CEMConfig(horizon=3, n_samples=20, n_iterations=1, n_elites=4)),
        "mppi": MPPI(ACTION, MPPIConfig(horizon=3, n_samples=20, n_iterations=1)),
        "random_shooting": RandomShooting(ACTION, RandomShootingConfig(horizon=3, n_samples=20)),
    }[kind]
    level, tried = make(learning=None, planner=planner, exploration=ExplorationConfig(effort=0.4)), []
    score = level.world.score
    level.world.score = lambda obs, candidates, **rest: (
        tried.append(candidates.shape[1]) or score(obs, candidates, **rest)
    )
    memory = level.initial_memory(E)
    for explore in (True, False, True):
        memory = level.act(torch.zeros(E, 2), None, memory, explore=explore, generator=seeded()).memory
    assert tried[0] == tried[2]
    assert tried[1] - tried[0] == 12
    assert make(learning=None, planner=planner.lighter(0.01)).planner.config.n_samples == (4 if "cem" in kind else 1)


def test_a_planner_without_candidates_cannot_try_fewer():
    class Still(RandomShooting):
        def __init__(self):
            super().__init__(ACTION, RandomShootingConfig(horizon=2, n_samples=2))
            del self.config

    with pytest.raises(TypeError, match="Still has no config with n_samples, expected one to plan with fewer"):
        make(learning=None, planner=Still(), exploration=ExplorationConfig(effort=0.5))
    with pytest.raises(ValueError, match="effort is 0"):
        ExplorationConfig(effort=0)


def test_the_support_counts_only_without_exploration():
    asked = []

    class Asking(GridSupport):
        def forward(self, state):
            asked.append(True)
            return super().forward(state)

    level = make(learning=None)
    level.world.objective.support, level.world.objective.support_weight = Asking((0,), 1.0), 1.0
    level.act(torch.zeros(E, 2), None, level.initial_memory(E), explore=True, generator=seeded())
    n_reports = len(asked)  # of what the plan is worth, which says all
    asked.clear()
    level.act(torch.zeros(E, 2), None, level.initial_memory(E), explore=False, generator=seeded())
    assert len(asked) > n_reports


# ------------------------------------------------------------------ when no plan has a finite score

UNIT = spaces.Box(-1.0, 1.0, (1,))
PLANNERS = {
    "icem": ICEM(UNIT, ICEMConfig(horizon=5, n_samples=8, n_iterations=2, n_elites=2)),
    "cem": CEM(UNIT, CEMConfig(horizon=5, n_samples=8, n_iterations=2, n_elites=2)),
    "mppi": MPPI(UNIT, MPPIConfig(horizon=5, n_samples=8)),
    "random_shooting": RandomShooting(UNIT, RandomShootingConfig(horizon=5, n_samples=8)),
}


def plan_with(planner, next_state, reward=lambda state, context, action, after: after[..., 0], obs=((0, 0), (-9, 0))):
    """Plan where the truth is known."""
    task = TaskSpec(OBSERVATION, UNIT, reward=reward)
    encoder = Encoder(task)
    oracle = Oracle.from_step(encoder.state_space, encoder.context_space, UNIT, next_state)
    level = PlannerLevel(WorldModel(encoder, oracle, task), PLANNERS[planner], UNIT)
    return level.plan(torch.tensor(obs, dtype=torch.float32), level.initial_memory(len(obs)), seeded())


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("last", range(5))
def test_a_model_that_diverges_is_caught_at_its_step(planner, last):
    def count(state, context, action):
        return torch.where(state[..., :1] >= last, torch.inf, state + 1)

    with pytest.raises(PlanningError, match=rf"environments 0: the model's states .* at step {last} of 5$") as error:
        plan_with(planner, count)
    assert error.value.env_ids == [0]
    assert error.value.plan.actions.shape == (2, 5, 1)


@pytest.mark.parametrize("planner", ["cem", "mppi", "random_shooting"])  # iCEM tries its mean, which is fine here
def test_the_reason_is_that_of_what_was_tried(planner):
    """All candidates diverge; their mean, which none of them is, would not."""

    def burst(state, context, action):
        return torch.where(action.abs() > 1e-9, torch.nan, state)

    with pytest.raises(PlanningError, match=r"environments 0, 1: the model's states leave .* at step 0 of 5$"):
        plan_with(planner, burst)


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rewards_that_are_not_finite_are_told_from_states(planner, bad):
    def reward(state, context, action, after):
        return torch.where(after[..., 0] >= 3, bad, after[..., 0])

    with pytest.raises(PlanningError, match=r"environments 0: the model's states are finite, its rewards"):
        plan_with(planner, lambda state, context, action: state + 1, reward)


@pytest.mark.parametrize("planner", PLANNERS)
def test_observations_that_are_not_finite_are_told_from_the_model(planner):
    with pytest.raises(PlanningError, match=r"environments 1: the observations are not finite$"):
        plan_with(planner, lambda state, context, action: state + action, obs=[(0, 0), (0, np.nan)])


# ------------------------------------------------------------------ PETS with choices

EFFECTS = torch.tensor([[0.5, -0.5, 0.0, 0.0], [0.3, -0.6, 0.6, 0.0]])
"""Of each choice, without any order, on either number of the state."""


class Switches(gym.Env):
    """Each choice moves one number of the state; to be near zero pays."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def __init__(self, action_space):
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state, self.n_steps = self.np_random.normal(size=2).astype(np.float32), 0
        return self.state, {}

    def step(self, action):
        assert self.action_space.contains(action)
        action = np.atleast_1d(action)
        effects = np.zeros(2, np.float32)
        for i, choice in enumerate(action):
            effects[i] = EFFECTS[i, choice]
        self.state, self.n_steps = self.state + effects, self.n_steps + 1
        return self.state, float(-np.abs(self.state).sum()), False, self.n_steps == 7, {}


def make_pets(action_space, **settings):
    """A small PETS, whose reward is to be learned."""
    torch.manual_seed(0)
    task = TaskSpec(Switches.observation_space, action_space, n_envs=2)
    return replace(PETS.preset("debug"), **settings).build(task, torch.device("cpu"), seed=0)


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiDiscrete([2, 4])], ids=["discrete", "multi"])
@pytest.mark.parametrize("planner", ["icem", "cem"])
def test_pets_learns_what_choices_do(space, planner, monkeypatch):
    data, original = [], planner_level_module.fit

    def fit(ensemble, transitions, config, *, generator):
        data.append(transitions)
        return original(ensemble, transitions, config, generator=generator)

    monkeypatch.setattr(planner_level_module, "fit", fit)
    agent = make_pets(space, planner=planner, cem=CEMConfig(horizon=5, n_samples=12, n_iterations=2, n_elites=4))
    env = SyncVectorEnv([partial(Switches, space)] * 2, autoreset_mode=AutoresetMode.DISABLED)
    collector, learned = Collector(env, agent, seed=0), []
    for _ in range(31):
        collector.step(explore=True)
        learned.append(agent.learn(collector.n_total_env_steps))
    assert [metrics["model/transitions"] for metrics in learned if metrics] == [20, 40, 60]
    assert all(np.isfinite(list(metrics.values())).all() for metrics in learned)
    assert all("model/reward_loss" in metrics for metrics in learned if metrics)
    assert np.isfinite(collector.take_metrics()["plan/achieved_return"])
    rows = agent.levels[0].replay.all()
    assert len(rows) == 62
    assert rows.act.dtype == np.int64
    assert {tuple(row) for row in rows.act} >= set(np.ndindex(*np.atleast_1d(getattr(space, "nvec", 3))))
    taken, modelled = torch.as_tensor(rows.act), data[-1].act
    for i in range(taken.shape[1]):  # what was chosen is what the environment did
        np.testing.assert_allclose(rows.obs_next[:, i] - rows.obs[:, i], EFFECTS[i, rows.act[:, i]], atol=1e-6)
    effects = data[-1].state_next - data[-1].state
    if isinstance(space, spaces.Discrete):
        assert modelled.shape == (60, 1)
        torch.testing.assert_close(EFFECTS[0, modelled[:, 0]], effects[:, 0])
        return
    assert modelled.shape == (60, 6)
    assert set(modelled.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(modelled[:, :2] @ EFFECTS[0, :2], effects[:, 0])
    torch.testing.assert_close(modelled[:, 2:] @ EFFECTS[1], effects[:, 1])


def test_several_choices_reach_the_dynamics_as_features(monkeypatch):
    space = spaces.MultiDiscrete([2, 4])
    world = make_pets(space).levels[0].world
    seen, rollout = [], world.dynamics.rollout

    def look(state, context, actions, **settings):
        seen.append(actions)
        return rollout(state, context, actions, **settings)

    monkeypatch.setattr(world.dynamics, "rollout", look)
    choices = torch.tensor([[[0, 3], [1, 0]]])
    with torch.no_grad():
        result = world.rollout(torch.zeros(1, 2), choices, generator=seeded())
    assert seen[0].tolist() == [[[1, 0, 0, 0, 0, 1], [0, 1, 1, 0, 0, 0]]]
    assert result.returns.isfinite().all()


@pytest.mark.parametrize("space", [UNIT, spaces.MultiDiscrete([2, 4])], ids=["box", "multi"])
def test_the_weight_of_uncertainty_changes_plans(space):
    def actions(weight):
        agent = make_pets(space, uncertainty_weight=weight)
        obs = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
        return agent.act(obs, agent.initial_carry(50, seed=0), explore=False)

    np.testing.assert_array_equal(actions(0.0), actions(0.0))
    careful, bold = actions(100.0), actions(-100.0)
    assert not np.array_equal(careful, actions(0.0))
    assert not np.array_equal(careful, bold)
    with pytest.raises(ValueError, match=r"uncertainty_weight is 1\.0, but the dynamics has one member"):
        make_pets(space, uncertainty_weight=1.0, model=replace(PETS.preset("debug").model, n_models=1))


@pytest.mark.parametrize("weight", [2.0, -2.0])
def test_disagreement_is_shunned_or_sought(weight):
    """Members agree but on what the second action does."""
    level = make(learning=None, reward=lambda s, c, a, n: torch.zeros_like(s[..., 0]))

    def rollout(state, context, actions, **settings):
        positions = torch.cat([state[:, None], state[:, None] + actions.cumsum(1)], 1)
        states = positions[:, None, None].repeat(1, 2, 1, 1, 1)
        states[:, 1, ..., 1] *= -1
        flags = torch.zeros(*states.shape[:3], actions.shape[1])
        return Batch(state=states, term_prob=flags, diverged=flags.bool())

    level.world.dynamics.rollout = rollout
    level.world.objective.uncertainty_weight = weight
    plan = level.plan(torch.zeros(64, 2), level.initial_memory(64), seeded())
    distance = plan.actions[..., 1].cumsum(1).abs().mean()
    assert (distance < 0.3) if weight > 0 else (distance > 0.8)
