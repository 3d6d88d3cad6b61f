"""A level that plans: random actions, failed plans, reports, learning, and resuming."""

import copy
import warnings
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
from layeredrl.levels import ExplorationConfig, PlannerLevel, PlanningError
from layeredrl.levels.exploration import RandomActions
from layeredrl.models import FitConfig
from layeredrl.planners import (
    CEM,
    ICEM,
    MPPI,
    CEMConfig,
    ICEMConfig,
    MPPIConfig,
    Plan,
    Planner,
    RandomShooting,
    RandomShootingConfig,
)
from layeredrl.randomness import seed_from
from layeredrl.storage import Checkpoints
from layeredrl.task import TaskSpec
from layeredrl.world_model import (
    Encoder,
    GridSupport,
    ModelLearningConfig,
    OnlineLearningConfig,
    Oracle,
    WorldModel,
    WorldModelLearner,
)
from tests.recording import leaves
from tests.world_model.points import ACTION, OBSERVATION, E, known_reward, make_world, push, random_rows

LEARNING = ModelLearningConfig(
    n_random_steps=12, fit_every=6, first_epochs=4, fit=FitConfig(epochs=2, batch_size=16), replay_size=300
)
REWARDS = pytest.mark.parametrize("reward", [known_reward, None], ids=["known", "learned"])
START = torch.linspace(-1, 1, 2 * E).view(E, 2)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make(seed=0, learning=LEARNING, planner=None, *, reward=known_reward, world=None, **settings):
    """A level for points in the plane; without `learning` its model is fixed."""
    world = make_world(seed, reward=reward) if world is None else world
    if planner is None:
        planner = ICEM(ACTION, ICEMConfig(horizon=3, n_samples=16, n_iterations=2, n_elites=4))
    learner = None if learning is None else WorldModelLearner(world, learning, seed=seed)
    return PlannerLevel(world, planner, ACTION, learner=learner, seed=seed, **settings)


def observe_random(level, n_steps, seed=0):
    for row in random_rows(n_steps, seed):
        level.observe(row, np.arange(E))


def act(level, explore=True, seed=0, obs=START, memory=None):
    memory = level.initial_memory(len(obs)) if memory is None else memory
    return level.act(obs, None, memory, explore=explore, generator=seeded(seed))


def is_planned(decision):
    return "plan/score" in decision.metrics


# ------------------------------------------------------------------ acting


def test_exploration_is_random_until_enough_steps():
    level = make()
    observe_random(level, 4)
    for n in (0, 11):
        level.learn(n)
        decision = act(level, obs=torch.zeros(2000, 2))
        assert not is_planned(decision)
        assert decision.forecast is None
        assert leaves(dict(decision.memory)) == leaves(dict(level.initial_memory(2000)))
        assert (decision.action.abs() <= 1).all()
        torch.testing.assert_close(decision.action.std(0), torch.full((2,), 3**-0.5), rtol=0, atol=0.04)
    assert is_planned(act(level, explore=False))
    level.learn(12)
    assert act(level).forecast.isfinite().all()


@pytest.mark.parametrize("common_noise", [False, True])
def test_a_decision_is_the_planner_s_on_the_score_of_the_world(common_noise):
    level = make(common_noise=common_noise)
    decision = act(level, explore=False)
    assert torch.equal(decision.action, act(level, explore=False).action)
    assert not decision.action.requires_grad
    generator = seeded()
    start = seed_from(generator)

    def score(candidates):
        if not common_noise:
            return level.world.score(START, candidates, generator=generator)
        return level.world.score(START, candidates, generator=seeded(start), common_noise=True)

    plan = level.planner.plan(score, E, level.planner.initial_warm_start(E, level.device), generator)
    assert torch.equal(decision.action, plan.actions[:, 0])
    assert torch.equal(decision.metrics["plan/score"], plan.score)
    for key in plan.warm_start.get_keys():
        assert torch.equal(decision.memory.warm_start[key], plan.warm_start[key])


def test_an_action_of_several_steps_has_a_discount_and_a_forecast_of_as_many():
    for duration in (1, 4):
        level = make(learning=None, duration=duration)
        decision = act(level)
        assert decision.duration.tolist() == [duration] * E
        assert decision.forecast_steps == 3 * duration
        assert level.discount**duration == pytest.approx(0.9)  # the objective's, for a step of the model


@REWARDS
def test_acting_changes_nothing_that_was_learned(reward):
    level = make(reward=reward)
    observe_random(level, 4)
    level.learn(12)
    before, n_transitions = leaves(copy.deepcopy(level.state_dict())), len(level.replay)
    global_state, memory = torch.random.get_rng_state(), level.initial_memory(E)
    for explore in (True, False, True):
        memory = act(level, explore=explore, memory=memory).memory
    act(level, explore=False, obs=torch.zeros(7, 2))  # in another number of environments
    assert leaves(level.state_dict()) == before
    assert len(level.replay) == n_transitions
    assert torch.equal(global_state, torch.random.get_rng_state())
    assert not level.world.training


def test_plans_and_random_actions_alternate_in_each_environment():
    class Counting(RandomShooting):
        """Its warm start counts plans; its plan is that number."""

        def initial_warm_start(self, n_envs, device):
            return Batch(n=torch.zeros(n_envs, device=device))

        def _plan(self, score, n_envs, warm_start, generator, proposals):
            actions = (warm_start.n / 100).view(-1, 1, 1).expand(n_envs, self.horizon, 2).clone()
            return Plan(actions, torch.zeros(n_envs), Batch(n=warm_start.n + 1), torch.zeros(1, n_envs))

    planner = Counting(ACTION, RandomShootingConfig(horizon=2, n_samples=2))
    level = make(learning=None, planner=planner, exploration=ExplorationConfig(to_random=0.2, to_plan=0.4))
    n, generator = 100, seeded(1)
    obs, memory, expected, modes = torch.zeros(n, 2), level.initial_memory(n), torch.zeros(n), []
    for _ in range(60):
        decision = level.act(obs, None, memory, explore=True, generator=generator)
        memory = decision.memory
        planned = ~memory.random
        modes.append(memory.random)
        assert decision.forecast is None
        torch.testing.assert_close(decision.action[planned], (expected[planned] / 100)[:, None].expand(-1, 2))
        expected = torch.where(planned, expected + 1, 0)  # random actions end the warm start
        assert torch.equal(memory.warm_start.n, expected)
    modes = torch.stack(modes).float()
    before, after = modes[:-1].flatten(), modes[1:].flatten()
    assert after[before == 0].mean() == pytest.approx(0.2, abs=0.03)
    assert 1 - after[before == 1].mean() == pytest.approx(0.4, abs=0.04)
    decision = level.act(obs, None, memory, explore=False, generator=generator)  # plans everywhere
    assert torch.equal(decision.memory.warm_start.n, expected + 1)


PLANNERS = {
    "icem": ICEM(ACTION, ICEMConfig(horizon=3, n_samples=20, n_iterations=1, n_elites=4, reuse_fraction=0.0)),
    "cem": CEM(ACTION, CEMConfig(horizon=3, n_samples=20, n_iterations=1, n_elites=4)),
    "mppi": MPPI(ACTION, MPPIConfig(horizon=3, n_samples=20, n_iterations=1)),
    "random_shooting": RandomShooting(ACTION, RandomShootingConfig(horizon=3, n_samples=20)),
}


@pytest.mark.parametrize("kind", PLANNERS)
def test_exploration_uses_a_share_of_the_candidates(kind):
    """Plans of either kind continue those of the other."""
    level, tried = make(learning=None, planner=PLANNERS[kind], exploration=ExplorationConfig(effort=0.4)), []
    score, memory = level.world.score_from, level.initial_memory(E)
    level.world.score_from = lambda state, context, candidates, **rest: (
        tried.append(candidates.shape[1]) or score(state, context, candidates, **rest)
    )
    for explore in (True, False, True):
        memory = act(level, explore=explore, memory=memory).memory
    assert tried[0] == tried[2] == tried[1] - 12
    assert PLANNERS[kind].lighter(0.01).config.n_samples == (4 if "cem" in kind else 1)


def test_the_support_counts_only_without_exploration():
    class Counted(GridSupport):
        def forward(self, state):
            calls.append(state)
            return super().forward(state)

    calls, counts, level = [], [], make(learning=None)
    level.world.objective.support, level.world.objective.support_weight = Counted((0,), 1.0), 1.0
    for explore in (True, False):
        calls.clear()
        act(level, explore=explore)
        counts.append(len(calls))
    assert counts[0] < counts[1]  # a report uses it in both cases


@pytest.mark.parametrize("weight", [2.0, -2.0])
def test_disagreement_of_the_members_is_avoided_or_sought(weight):
    """Members agree except about the second action."""
    level = make(learning=None, reward=lambda s, c, a, n: torch.zeros_like(s[..., 0]))

    def rollout(state, context, actions, **settings):
        positions = torch.cat([state[:, None], state[:, None] + actions.cumsum(1)], 1)
        states = positions[:, None, None].repeat(1, 2, 1, 1, 1)
        states[:, 1, ..., 1] *= -1
        flags = torch.zeros(*states.shape[:3], actions.shape[1])
        return Batch(state=states, term_prob=flags, diverged=flags.bool())

    level.world.dynamics.rollout = rollout
    level.world.objective.uncertainty_weight = weight
    plan = level.plan(torch.zeros(64, 2), level.initial_memory(64), seeded(), exploring=True)
    distance = plan.actions[..., 1].cumsum(1).abs().mean()
    assert (distance < 0.3) if weight > 0 else (distance > 0.8)


# ------------------------------------------------------------------ plans without a finite score

FAILING = torch.tensor([False, True, False])
"""Environments in which the score of all candidates is not finite."""


def failing(level, rows=FAILING):
    """Let all candidates of some environments fail."""
    score = level.world.score_from
    level.world.score_from = lambda *args, **rest: score(*args, **rest).masked_fill(rows[:, None], torch.nan)
    return level


@pytest.mark.parametrize("kind", PLANNERS)
def test_random_actions_replace_failed_plans_and_leave_the_others(kind):
    level = make(planner=PLANNERS[kind])
    level.n_total_env_steps = 12
    fine = act(level)
    failing(level)
    with pytest.warns(RuntimeWarning, match=r"no candidate .* in the environments 1: .*; random actions replace these"):
        decision = act(level)
    assert torch.equal(decision.action[~FAILING], fine.action[~FAILING])
    assert not torch.equal(decision.action[FAILING], fine.action[FAILING])
    assert (decision.action.abs() <= 1).all()
    initial = level.planner.initial_warm_start(E, level.device)
    for key, value in decision.memory.warm_start.items():
        assert torch.equal(value[~FAILING], fine.memory.warm_start[key][~FAILING])
        assert torch.equal(value[FAILING], initial[key][FAILING])
    assert decision.metrics["plan/score"].isfinite().tolist() == [True, False, True]
    assert decision.metrics["plan/iterations_to_converge"].isfinite().tolist() == [True, False, True]
    assert decision.forecast.isfinite().all()  # of the actions that are taken, also of random ones
    assert level.planner.plan(lambda x: level.world.score(START, x), E, initial, seeded()).found.tolist() == [
        True,
        False,
        True,
    ]


def test_too_many_failed_plans_between_two_fits_are_an_error():
    level = failing(make(learning=replace(LEARNING, max_failed_plans=2)))
    observe_random(level, 4)
    level.learn(12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for _ in range(2):
            act(level)
            act(level, explore=False)  # does not count
        assert level.n_failed_plans == 2
        with pytest.raises(PlanningError, match="no candidate had a finite score in the environments 1"):
            act(level)
        level.learn(18)  # a fit begins the count anew
        assert level.n_failed_plans == 0
        act(level)
        other = make(seed=1)
        other.load_state_dict(level.state_dict())
    assert other.n_failed_plans == 1


def test_a_fixed_model_must_not_fail():
    level = failing(make(learning=None))
    for explore in (True, False):
        with pytest.raises(PlanningError, match="in the environments 1"):
            act(level, explore=explore)
    with pytest.raises(PlanningError, match="in the environments 1"):
        level.plan(START, level.initial_memory(E), seeded())


UNIT = spaces.Box(-1.0, 1.0, (1,))


def plan_with(
    next_state, reward=lambda state, context, action, after: after[..., 0], kind="icem", obs=((0, 0), (-9, 0))
):
    """Plan five steps with given dynamics."""
    planner = {
        "icem": ICEM(UNIT, ICEMConfig(horizon=5, n_samples=8, n_iterations=2, n_elites=2)),
        "random_shooting": RandomShooting(UNIT, RandomShootingConfig(horizon=5, n_samples=8)),
    }[kind]
    task = TaskSpec(OBSERVATION, UNIT, reward=reward)
    encoder = Encoder(task)
    oracle = Oracle.from_step(encoder.state_space, encoder.context_space, UNIT, next_state)
    level = PlannerLevel(WorldModel(encoder, oracle, task), planner, UNIT)
    return level.plan(torch.tensor(obs, dtype=torch.float32), level.initial_memory(len(obs)), seeded())


def diverging(last):
    def next_state(state, context, action):
        return torch.where(state[..., :1] >= last, torch.inf, state + 1)

    return {"next_state": next_state}


def unbounded_reward(bad):
    def reward(state, context, action, after):
        return torch.where(after[..., 0] >= 3, bad, after[..., 0])

    return {"next_state": lambda state, context, action: state + 1, "reward": reward}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *((diverging(last), rf"0: the model's states .* at step {last} of 5$") for last in (0, 2, 4)),
        (diverging(3) | {"kind": "random_shooting"}, r"0: the model's states .* at step 3 of 5$"),
        (  # all candidates diverge; their mean, which none of them is, would not
            {
                "kind": "random_shooting",
                "next_state": lambda state, context, action: torch.where(action.abs() > 1e-9, torch.nan, state),
            },
            r"0, 1: the model's states leave .* at step 0 of 5$",
        ),
        *((unbounded_reward(bad), "0: the model's states are finite, its rewards") for bad in (np.nan, np.inf)),
        (
            {"next_state": lambda state, context, action: state + action, "obs": [(0, 0), (0, np.nan)]},
            r"1: the observations are not finite$",
        ),
    ],
)
def test_the_error_names_the_reason_of_a_failed_plan(settings, message):
    with pytest.raises(PlanningError, match=f"no candidate had a finite score in the environments {message}"):
        plan_with(**settings)


# ------------------------------------------------------------------ reports of plans


def test_a_report_is_that_of_a_plain_loop():
    world = make_world(reward=None, n_models=3, n_particles_per_model=4)
    level, generator = make(world=world), seeded()
    level.world.objective.uncertainty_weight = 0.5  # a penalty is no part of the return
    plan = level.plan(START, level.initial_memory(E), generator)
    with torch.no_grad():
        result = level.world.rollout(START, plan.actions, generator=generator)
    returns = np.zeros((E, 3, 4))
    for i, m, p in np.ndindex(E, 3, 4):
        alive = 1.0
        for t in range(3):
            returns[i, m, p] += 0.9**t * alive * float(result.reward[i, m, p, t])
            alive *= 1 - float(result.term_prob[i, m, p, t])
    decision = act(level, explore=False)
    np.testing.assert_allclose(decision.forecast, returns.mean((1, 2)), rtol=1e-5)
    expected = {
        "plan/return_std": [np.std(rows) for rows in returns],
        "plan/return_std_between_members": returns.mean(2).std(1),
        "plan/score": plan.score,
    }
    for name, values in expected.items():
        np.testing.assert_allclose(decision.metrics[name], values, rtol=1e-4, err_msg=name)


class Rehearsed(Planner):
    """Returns given best scores (iterations, E)."""

    def __init__(self, best_scores):
        super().__init__(ACTION, 1)
        self.best_scores = torch.tensor(best_scores)

    def initial_warm_start(self, n_envs, device):
        return Batch()

    def _plan(self, score, n_envs, warm_start, generator, proposals):
        return Plan(torch.zeros(n_envs, self.horizon, 2), self.best_scores[-1], Batch(), self.best_scores)


def test_a_search_has_converged_when_nearly_all_is_gained():
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
        due, metrics = ages % 3 == 0, carry.last_metrics()
        assert len(metrics) == (4 if due.any() else 0)
        for name, values in metrics.items():
            np.testing.assert_array_equal(np.isfinite(values), due, err_msg=name)
        np.testing.assert_array_equal(carry.levels[0].forecasts.remaining, 3 - ages % 3)
        ages += 1
        done = ages == lengths
        step = Batch(rew=np.zeros(E), terminated=done, truncated=np.zeros(E, bool), obs_next=obs)
        agent.observe(step, np.arange(E), carry, learn=False)
        ages[done] = 0


# ------------------------------------------------------------------ learning


def test_it_learns_from_its_transitions_when_a_fit_is_due():
    level, learned = make(), {}
    assert level.learn(12) == {}  # there are no transitions yet
    for n in range(15, 31, 3):
        observe_random(level, 1, seed=n)
        learned[n] = level.learn(n).get("model/transitions")
        assert int(level.world.dynamics.n_total_env_steps) == n
    assert learned == {15: 3, 18: None, 21: 9, 24: None, 27: 15, 30: None}


def test_a_fixed_model_does_not_learn():
    level = make(learning=None)
    assert is_planned(act(level, explore=True))
    level.observe(Batch(), np.arange(E))
    assert level.replay is None
    assert level.learn(1000) == {}
    assert level.state_dict() == {"n_total_env_steps": 1000, "n_failed_plans": 0}


def test_actions_that_the_end_of_an_episode_cut_short_are_not_learned_from(monkeypatch):
    level, fitted = make(duration=3), []
    monkeypatch.setattr(level.learner, "fit", lambda data: fitted.append(data) or {})
    rows = {"obs": np.zeros((E, 2), np.float32), "act": np.zeros((E, 2), np.float32), "rew": np.arange(E)}
    for value, (duration, terminated, truncated) in enumerate(
        [([3, 3, 3], 0, 0), ([1, 2, 2], 0, 1), ([2, 1, 1], 1, 0)]
    ):
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
    (transitions,) = fitted
    data = transitions.take(torch.arange(len(transitions)))
    assert sorted(data.obs_next[:, 0].tolist()) == [0.0] * E + [2.0] * E
    assert torch.equal(data.terminated, data.obs_next[:, 0] == 2)
    assert torch.equal(data.last, data.terminated)
    assert (data.rew.dtype, sorted(data.rew.tolist())) == (torch.float32, [0, 0, 1, 1, 2, 2])


def closed_loop_return(level, n_steps=8):
    """Mean true return of acting from eight points on a circle."""
    angle = torch.arange(8) * torch.pi / 4
    obs, memory, total = torch.stack([angle.cos(), angle.sin()], -1), level.initial_memory(8), torch.zeros(8)
    for t in range(n_steps):
        decision = act(level, explore=False, seed=t, obs=obs, memory=memory)
        obs, memory = push(obs, decision.action), decision.memory
        total -= obs.square().sum(-1)
    return total.mean().item()


@pytest.mark.parametrize("reward", [pytest.param(known_reward, marks=pytest.mark.slow), None], ids=["known", "learned"])
def test_learning_improves_acting(reward):
    planner = ICEM(ACTION, ICEMConfig(horizon=3, n_samples=32, n_iterations=2, n_elites=6))
    learning = ModelLearningConfig(
        n_random_steps=300, first_epochs=25, fit=FitConfig(batch_size=32), reward_learning_rate=5e-3
    )
    level = make(learning=learning, reward=reward, planner=planner)
    before = closed_loop_return(level)
    observe_random(level, 100)
    level.learn(300)
    after = closed_loop_return(level)
    # Straight to the middle brings -(0.7^2 + 0.4^2 + 0.1^2), and standing still -8.
    assert after > max(before, -2.0)


@REWARDS
def test_a_level_resumes_its_plans_and_its_learning(reward, tmp_path):
    level, other = make(reward=reward), make(seed=1, reward=reward)
    observe_random(level, 4)
    level.learn(12)
    assert not torch.equal(act(level).action, act(other, explore=False).action)
    Checkpoints(tmp_path).save({"level": level.state_dict(), "replay": level.replay.state_dict()}, 12)
    state = Checkpoints(tmp_path).load()
    other.load_state_dict(state["level"])
    other.replay.load_state_dict(state["replay"])
    decisions = [act(one) for one in (level, other)]
    assert torch.equal(decisions[0].action, decisions[1].action)
    assert torch.equal(decisions[0].metrics["plan/score"], decisions[1].metrics["plan/score"])
    reports = []
    for one in (level, other):
        observe_random(one, 2, seed=1)
        reports.append([one.learn(n) for n in (17, 18)])
    assert reports[0] == reports[1]
    assert [bool(report) for report in reports[0]] == [False, True]
    assert leaves(level.state_dict()) == leaves(other.state_dict())


@pytest.mark.parametrize("kind", ["icem", "random_shooting"])
def test_acting_resumes_with_its_warm_starts(kind, tmp_path):
    """Random shooting has none."""
    exploration = ExplorationConfig(to_random=0.3, to_plan=0.5)
    level = make(learning=None, planner=PLANNERS[kind], exploration=exploration)
    agent, zeros = Hierarchy([level], level.world.task), np.zeros(E, bool)

    def go(carry):
        actions = []
        for _ in range(4):
            actions.append(agent.act(START.numpy(), carry, explore=True))
            step = Batch(rew=np.ones(E), terminated=zeros, truncated=zeros, obs_next=START.numpy())
            agent.observe(step, np.arange(E), carry, learn=False)
        return actions

    carry, other = (agent.initial_carry(E, seed) for seed in (0, 9))
    go(carry)
    Checkpoints(tmp_path).save({"carry": carry.state_dict()}, 0)
    other.load_state_dict(Checkpoints(tmp_path).load()["carry"])
    np.testing.assert_array_equal(go(carry), go(other))
    assert leaves(carry.state_dict()) == leaves(other.state_dict())


def test_a_learner_that_does_not_fit_is_refused():
    level = make()
    for learner, error, message in (
        (WorldModelLearner(make_world(), LEARNING), ValueError, "world model is another one, expected that of the"),
        (
            WorldModelLearner(level.world, OnlineLearningConfig()),
            TypeError,
            "the learner's config is OnlineLearningConfig, expected a ModelLearningConfig",
        ),
    ):
        with pytest.raises(error, match=message):
            PlannerLevel(level.world, level.planner, ACTION, learner=learner)
    level.world.repeat = 3
    with pytest.raises(ValueError, match="repeat is 3, expected 1"):
        PlannerLevel(level.world, level.planner, ACTION, learner=level.learner)
    PlannerLevel(level.world, level.planner, ACTION)  # learned elsewhere


@pytest.mark.parametrize("mixed", [False, True])
def test_random_actions_persist_at_their_bounds(mixed):
    some = {"to_random": 0.5, "to_plan": 0.0} if mixed else {"n_random_steps": 1000}
    level = make(learning=None, exploration=ExplorationConfig(persistence=0.75, **some))
    memory, obs = level.initial_memory(500), torch.zeros(500, 2)
    generator, taken, kept = torch.Generator().manual_seed(0), [], []
    for _ in range(12):
        decision = level.act(obs, None, memory, explore=True, generator=generator)
        kept.append((decision.action == memory.held).all(1))
        taken.append(decision.action)
        memory = decision.memory
    at_random = memory.random if mixed else torch.ones(500, dtype=torch.bool)
    assert not kept[0].any()
    assert ((taken[-1] == ACTION.low[0]) | (taken[-1] == ACTION.high[0]))[at_random].all()
    # A new action of two dimensions is the same as the last one by chance in one case of four.
    share = kept[-1][at_random].float().mean()
    assert abs(share - (0.75 + 0.25 / 4)) < 4 * (0.19 * 0.81 / 500) ** 0.5
    assert torch.equal(level.initial_memory(3).held.isnan(), torch.ones(3, 2, dtype=torch.bool))
    planned = level.act(obs, None, memory, explore=False, generator=generator)
    assert planned.memory.held.isnan().all()


def test_spaces_and_settings_that_do_not_fit_are_named():
    level, other = make(), RandomShooting(UNIT, RandomShootingConfig(horizon=2, n_samples=2))
    with pytest.raises(ValueError, match=r"the planner's action space is Box.*\(1,\).*, expected Box.*\(2,\)"):
        PlannerLevel(level.world, other, ACTION)
    with pytest.raises(ValueError, match=r"the world model's action space is Box.*\(2,\).*, expected Box.*\(1,\)"):
        PlannerLevel(level.world, other, UNIT)
    with pytest.raises(ValueError, match="duration is 0"):
        make(duration=0)
    with pytest.raises(TypeError, match="Rehearsed has no config with n_samples, expected one to plan with fewer"):
        make(learning=None, planner=Rehearsed([[0.0]]), exploration=ExplorationConfig(effort=0.5))
    with pytest.raises(TypeError, match=r"persistence is 0\.5, expected 0 for the action space Discrete"):
        RandomActions(gym.spaces.Discrete(2), 0.5, torch.device("cpu"))
    for name, value in (
        ("effort", 0),
        ("to_random", 1.1),
        ("to_plan", -0.1),
        ("persistence", 1.1),
        ("n_random_steps", -1),
    ):
        with pytest.raises(ValueError, match=f"{name} is {value}"):
            ExplorationConfig(**{name: value})


# ------------------------------------------------------------------ PETS with choices

EFFECTS = torch.tensor([[0.5, -0.5, 0.0, 0.0], [0.3, -0.6, 0.6, 0.0]])
"""Effect of each choice on either number of the state."""


class Switches(gym.Env):
    """Each choice moves one number of the state; the reward is highest near zero."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def __init__(self, action_space):
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state, self.n_steps = self.np_random.normal(size=2).astype(np.float32), 0
        return self.state, {}

    def step(self, action):
        assert self.action_space.contains(action)
        effects = np.zeros(2, np.float32)
        for i, choice in enumerate(np.atleast_1d(action)):
            effects[i] = EFFECTS[i, choice]
        self.state, self.n_steps = self.state + effects, self.n_steps + 1
        return self.state, float(-np.abs(self.state).sum()), False, self.n_steps == 7, {}


@pytest.mark.parametrize(
    ("space", "planner"),
    [(spaces.Discrete(3), "icem"), (spaces.MultiDiscrete([2, 4]), "cem")],
    ids=["discrete", "multi"],
)
def test_pets_learns_the_effects_of_choices(space, planner, monkeypatch):
    torch.manual_seed(0)
    task = TaskSpec(Switches.observation_space, space, n_envs=2)
    cem = CEMConfig(horizon=5, n_samples=12, n_iterations=2, n_elites=4)
    chosen = replace(PETS.preset("debug").planner, kind=planner, cem=cem)
    recipe = PETS.preset("debug", planner=chosen)
    agent = recipe.build(task, torch.device("cpu"), seed=0)
    level, modelled = agent.levels[0], []
    rows_of = level.learner._rows

    def rows(data):
        found = rows_of(data)
        if found.state.ndim == 2:  # those of statistics, which are all; batches have the members first
            modelled.append(found)
        return found

    monkeypatch.setattr(level.learner, "_rows", rows)
    env = SyncVectorEnv([partial(Switches, space)] * 2, autoreset_mode=AutoresetMode.DISABLED)
    collector, learned = Collector(env, agent, seed=0), []
    for _ in range(31):
        collector.step(explore=True)
        learned.append(agent.learn(collector.n_total_env_steps))
    assert [metrics["model/transitions"] for metrics in learned if metrics] == [20, 40, 60]
    assert all("model/reward_loss" in metrics for metrics in learned if metrics)
    assert all(np.isfinite(list(metrics.values())).all() for metrics in learned)
    assert np.isfinite(collector.take_metrics()["plan/achieved_return"])
    stored = level.replay.all()
    assert stored.act.dtype == np.int64
    assert {tuple(row) for row in stored.act} >= set(np.ndindex(*np.atleast_1d(getattr(space, "nvec", 3))))
    for i in range(stored.act.shape[1]):  # the stored choices are those that moved the environment
        change = stored.obs_next[:, i] - stored.obs[:, i]
        np.testing.assert_allclose(change, EFFECTS[i, stored.act[:, i]], atol=1e-6)
    act, effects = modelled[-1].act, modelled[-1].state_next - modelled[-1].state
    if isinstance(space, spaces.Discrete):
        assert act.shape == (60, 1)
        torch.testing.assert_close(EFFECTS[0, act[:, 0]], effects[:, 0])
        return
    assert act.shape == (60, 6)  # one-hot features
    torch.testing.assert_close(act[:, :2] @ EFFECTS[0, :2], effects[:, 0])
    torch.testing.assert_close(act[:, 2:] @ EFFECTS[1], effects[:, 1])
    seen, world = [], level.world
    rollout = world.dynamics.rollout
    monkeypatch.setattr(world.dynamics, "rollout", lambda s, c, a, **rest: seen.append(a) or rollout(s, c, a, **rest))
    with torch.no_grad():
        world.rollout(torch.zeros(1, 2), torch.tensor([[[0, 3], [1, 0]]]), generator=seeded())
    assert seen[0].tolist() == [[[1, 0, 0, 0, 0, 1], [0, 1, 1, 0, 0, 0]]]
