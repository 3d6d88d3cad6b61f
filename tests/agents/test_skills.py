"""Agents of skills: settings reach their parts, transitions are stored per time scale, three levels stack."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tianshou.data import Batch

import envs  # noqa: F401  registers the mazes
from agents.dads import DADSAgent
from agents.diayn import DIAYNAgent
from agents.splates import SPlaTESAgent
from agents.splates_goals import SPlaTESOverGoalsAgent
from layeredrl.collector import Collector
from layeredrl.environments import make_task, make_vector_env
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import ExplorationConfig, PlannerLevel, PolicyLearningConfig, RandomLevel
from layeredrl.off_policy import SACConfig
from layeredrl.planners import ICEM, MPPI, ICEMConfig, MPPIConfig, PlannerConfig
from layeredrl.skills import DADS, DIAYN, ModelBasedSkills, SkillLevel, SkillModelConfig, SPlaTES
from layeredrl.world_model import NeighbourSupport
from tests.recording import stored

CPU = torch.device("cpu")
MAZE = "Maze2D-Simple-v0"
TASK = make_task(MAZE, n_envs=2)
DEBUG = {kind.__name__: kind.preset("debug") for kind in (SPlaTESAgent, DADSAgent, DIAYNAgent)}
CONTINUOUS = pytest.mark.parametrize("config", [DEBUG["SPlaTESAgent"], DEBUG["DADSAgent"]], ids=["splates", "dads"])


MPPI_OF_THREE = PlannerConfig("mppi", mppi=MPPIConfig(horizon=3, n_samples=8, n_iterations=2))
BY_MPPI = replace(DEBUG["SPlaTESAgent"], planner=MPPI_OF_THREE)


def build(config, task=TASK):
    torch.manual_seed(0)
    agent = config.build(task, CPU, seed=0)
    return agent, *agent.levels


def run(agent, n_steps=40):
    """Latest metrics by name."""
    env, metrics = make_vector_env(MAZE, 2), {}
    collector = Collector(env, agent, seed=0)
    for _ in range(n_steps):
        collector.step(explore=True)
        metrics |= agent.learn(collector.n_total_env_steps)
        metrics |= collector.take_metrics()
    env.close()
    return metrics


@pytest.mark.parametrize("preset", ["demo", "debug"])
@pytest.mark.parametrize("kind", [SPlaTESAgent, DADSAgent, DIAYNAgent, SPlaTESOverGoalsAgent])
def test_presets_fit_a_maze(kind, preset):
    agent, above, policy, *_ = build(kind.preset(preset))
    assert isinstance(agent, Hierarchy)
    assert isinstance(above, RandomLevel if kind is DIAYNAgent else PlannerLevel)
    assert isinstance(policy, SkillLevel)
    assert above.action_space == policy.method.space
    assert above.duration == policy.method.duration == kind.preset(preset).duration
    carry = agent.initial_carry(2, 0)
    action = agent.act(np.ones((2, TASK.observation_dim), np.float32), carry, explore=False)
    assert action.shape == (2, 2)
    assert (np.abs(action) <= 1).all()


@pytest.mark.parametrize("kind", [SPlaTESAgent, DADSAgent])
def test_policies_of_the_ant_presets_do_not_observe_its_position(kind):
    plane = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    parts = {"achieved_goal": plane, "desired_goal": plane, "observation": spaces.Box(-np.inf, np.inf, (27,))}
    task = replace(TASK, observation_space=spaces.Dict(parts))
    _, planner, policy = build(kind.preset("ant"), task)
    command = Batch(
        action=torch.zeros(1, 2), obs=torch.zeros(1, 31), elapsed=torch.tensor([5]), remaining=torch.tensor([15])
    )
    obs = torch.arange(31.0)[None]
    seen = policy.inputs(obs, command)
    assert seen.tolist() == [[*range(4, 31), 0, 2, 0, 0, 0.25]]  # displacement, skill, elapsed share
    assert torch.equal(planner.world.encode(obs)[0], obs[:, :2])


SETTINGS = {
    "skill_dim": 1,
    "duration": 7,
    "skills": SkillModelConfig(n_priors=9, std=0.7),
    "exploration": ExplorationConfig(to_random=0.4, n_random_steps=50),
    "support_weight": 1.5,
    "support_cell": 0.5,
    "support_visits": 2,
    "calm_skills": 0.75,
    "fresh_skills": 0.25,
}


@CONTINUOUS
def test_settings_reach_the_parts(config):
    config = replace(config, **SETTINGS, model=replace(config.model, n_models=3, frequencies=(1.0, 2.0, 5.0)))
    _, planner, policy = build(config)
    method, world = policy.method, planner.world
    assert isinstance(method, SPlaTES if isinstance(config, SPlaTESAgent) else DADS)
    assert method.world is world
    assert (method.duration, planner.duration) == (7, 7)
    assert (policy.calm_skills, policy.fresh_skills) == (0.75, 0.25)
    assert planner.action_space == policy.command_space == spaces.Box(-1.0, 1.0, (1,), np.float32)
    assert method.config == SETTINGS["skills"]
    assert planner.exploration == SETTINGS["exploration"]
    assert (world.objective.support_weight, world.objective.support.cell) == (1.5, 0.5)
    assert world.repeat == (1 if isinstance(config, SPlaTESAgent) else 7)
    assert world.dynamics.n_models == 3
    first = world.dynamics.network.linear_weights()[0]
    assert 2 + 2 * 3 * 2 + 2 + 1 in first.shape  # state, waves, goal, skill
    state, goal = torch.tensor([[1.0, 1.0]]), torch.tensor([[4.0, 5.0]])
    reward = world.reward(state, goal, torch.zeros(1, 1), torch.tensor([[4.0, 1.0]]))
    steps = 7 if isinstance(config, SPlaTESAgent) else 1
    assert reward.item() == pytest.approx(-steps * 4.0 / (10 * 2**0.5), rel=1e-5)
    assert world.objective.support is not None
    assert build(replace(config, support_weight=0.0))[1].world.objective.support is None


@CONTINUOUS
def test_the_support_may_look_at_neighbours(config):
    _, planner, _ = build(replace(config, support_weight=1.5, support="neighbours"))
    support = planner.world.objective.support
    assert isinstance(support, NeighbourSupport)
    assert support.dims == (0, 1)
    assert support.radius == float("inf")
    support.fit(torch.rand(50, 2, generator=torch.Generator().manual_seed(0)))
    assert support.radius < 1
    assert build(replace(config, support="neighbours"))[1].world.objective.support is None  # it has no weight


def test_settings_of_splates_reach_its_method():
    _, _, policy = build(replace(DEBUG["SPlaTESAgent"], reward="end", sb_start_duration=500))
    assert policy.method.form == "end"
    assert policy.method.dynamics.symmetry.duration == 500
    _, _, policy = build(DEBUG["SPlaTESAgent"])
    assert policy.method.form == "difference"
    assert policy.method.dynamics.symmetry is None


def test_settings_of_diayn_reach_its_method():
    config = replace(DEBUG["DIAYNAgent"], n_skills=6, duration=9, state=("achieved_goal",))
    _, above, policy = build(config)
    assert isinstance(policy.method, DIAYN)
    assert (above.duration, policy.method.duration, policy.method.n_skills) == (9, 9, 6)
    assert above.action_space == spaces.Discrete(6)
    assert policy.method.encoder.state_dim == 2
    assert build(DEBUG["DIAYNAgent"])[2].method.encoder.state_dim == 4


@pytest.mark.parametrize("config", DEBUG.values(), ids=DEBUG)
def test_tasks_with_choices_are_refused(config):
    task = replace(TASK, action_space=spaces.Discrete(3), action_low=None, action_high=None)
    with pytest.raises(ValueError, match=r"Discrete\(3\), expected a flat Box"):
        config.build(task, CPU, seed=0)


@pytest.mark.parametrize(
    ("kind", "setting", "message"),
    [
        (SPlaTESAgent, {"skill_dim": 0}, "skill_dim is 0, expected at least 1"),
        (DADSAgent, {"n_skills": -1}, "n_skills is -1"),
        (SPlaTESAgent, {"duration": 0}, "duration is 0"),
        (DADSAgent, {"fresh_skills": 1.5}, "fresh_skills is 1.5"),
        (SPlaTESAgent, {"support_weight": -1.0}, "support_weight is -1.0"),
        (DADSAgent, {"support": "cell"}, "support is 'cell', expected one of cells, neighbours"),
        (DIAYNAgent, {"n_skills": 0}, "n_skills is 0"),
        (DIAYNAgent, {"duration": 0}, "duration is 0"),
    ],
)
def test_settings_out_of_range_are_named(kind, setting, message):
    with pytest.raises(ValueError, match=message):
        kind(**setting)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"state": ("speed",)}, r"parts is \['speed'\], expected some of achieved_goal"),
        ({"reward": "sum"}, "form is 'sum', expected one of difference, end"),
        ({"n_skills": 3, "sb_start_duration": 9}, "symmetry_breaking_start needs a Box"),
        ({"skill_dim": 3, "sb_start_duration": 9}, "at most as many action as state dimensions, got 3 > 2"),
    ],
)
def test_settings_that_do_not_fit_the_task_are_refused(setting, message):
    with pytest.raises((TypeError, ValueError), match=message):
        build(replace(DEBUG["SPlaTESAgent"], **setting))


@pytest.mark.parametrize(
    ("config", "n_skills"),
    [(BY_MPPI, 0), (DEBUG["SPlaTESAgent"], 4), (DEBUG["DADSAgent"], 4)],
    ids=["splates, mppi", "splates, choices", "dads, choices"],
)
def test_planner_and_policy_store_transitions_and_the_model_learns(config, n_skills):
    skills = replace(config.skills, updates_per_segment=2.0)
    policy = replace(config.policy, updates_per_transition=0.25)
    agent, planner, policy = build(replace(config, n_skills=n_skills, skills=skills, policy=policy))
    assert type(planner.planner) is (MPPI if config is BY_MPPI else ICEM)
    before = [parameter.detach().clone() for parameter in planner.world.dynamics.get_parameters()]
    rows: list[np.ndarray] = []
    observe = planner.observe
    planner.observe = lambda transitions, env_ids: (
        rows.extend(transitions.info.duration) or observe(transitions, env_ids)
    )
    metrics = run(agent)
    assert rows == [4] * 20  # the duration of a skill, whatever the time scale of the model
    assert isinstance(policy.method, ModelBasedSkills)
    assert policy.n_updates > 10
    assert policy.method.learner.n_updates == int(2.0 * (80 - policy.method.learner._first) / 4) > 20
    after = planner.world.dynamics.get_parameters()
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True) if b.numel() > 64)
    assert {"model/loss", "skill/information", "policy/reward", "policy/critic1_loss", "plan/score"} <= metrics.keys()
    assert all(np.isfinite(value) for value in metrics.values())
    for i in range(2):
        below = stored(policy.replay, i)
        np.testing.assert_array_equal(below.info.command.elapsed, np.tile([0, 1, 2, 3], 10))
        skills = below.info.command.action
        np.testing.assert_array_equal(skills, np.repeat(skills[::4], 4, 0))
        assert skills.shape == (40, 1 if n_skills else 2)
        if n_skills:
            assert {0, 1, 2, 3} >= set(skills[:, 0].tolist()) > {skills[0, 0]}
        else:
            assert len(np.unique(skills, axis=0)) == 10


@CONTINUOUS
def test_plans_begin_after_the_random_steps(config):
    policy = replace(config.policy, updates_per_transition=0.1)
    agent, planner, _ = build(replace(config, exploration=ExplorationConfig(n_random_steps=40), policy=policy))
    decided: list[tuple[int, bool]] = []
    act = planner.act

    def recorded(*args, **kwargs):
        decision = act(*args, **kwargs)
        decided.append((planner.n_total_env_steps, "plan/score" in decision.metrics))
        return decision

    planner.act = recorded
    run(agent, 30)
    assert [n for n, _ in decided] == list(range(0, 60, 8))
    # Plans are reported once per horizon, which is three skills.
    assert [planned for n, planned in decided if n < 40] == [False] * 5
    assert [planned for n, planned in decided if n >= 40] == [True, False, False]


def test_diayn_learns_without_a_model():
    learning = replace(DEBUG["DIAYNAgent"].policy, updates_per_transition=0.25)
    agent, _, policy = build(replace(DEBUG["DIAYNAgent"], policy=learning))
    before = [parameter.detach().clone() for parameter in policy.method.discriminator.parameters()]
    metrics = run(agent)
    assert policy.n_updates > 10
    after = policy.method.discriminator.parameters()
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert np.isfinite(metrics["policy/reward"])
    for i in range(2):
        skills = stored(policy.replay, i).info.command.action
        np.testing.assert_array_equal(skills, np.repeat(skills[::5], 5, 0))
        assert len(np.unique(skills)) == 3


def test_a_planner_over_skills_over_goals():
    """Skills of eight steps, goals of three: the last goal of each skill lasts two."""
    config = SPlaTESOverGoalsAgent(
        duration=8,
        goal_duration=3,
        model=DEBUG["SPlaTESAgent"].model,
        skills=SkillModelConfig(n_first=40, batch_size=16, n_priors=4, refresh_every=40, report_every=20),
        planner=PlannerConfig(icem=ICEMConfig(horizon=3, n_samples=8, n_iterations=2, n_elites=3)),
        exploration=ExplorationConfig(to_random=0.2, to_plan=0.5, n_random_steps=60),
        sac=SACConfig(hidden=(16,)),
        policy=PolicyLearningConfig(n_random_steps=40, updates_per_transition=0.25, batch_size=16, report_every=20),
    )
    config = replace(config, goal_policy=config.policy)
    agent, _, skills, policy = build(config)
    before = [[p.detach().clone() for p in level.algorithm.policy.actor.parameters()] for level in (skills, policy)]
    metrics = run(agent, 72)
    for old, level in zip(before, (skills, policy), strict=True):
        new = level.algorithm.policy.actor.parameters()
        assert all(not torch.equal(a, b) for a, b in zip(old, new, strict=True))
    assert skills.method.learner.n_updates == int(2 * (144 - skills.method.learner._first) / 8) > 15
    below = {f"skills/{name}" for name in ("model/loss", "skill/information", "policy/reward")}
    names = {"plan/score", "goals/policy/reward", *below}
    assert names <= metrics.keys()
    assert all(np.isfinite(value) for value in metrics.values())
    for i in range(2):
        upper, lower = stored(skills.replay, i), stored(policy.replay, i)
        np.testing.assert_array_equal(upper.info.duration, np.tile([3, 3, 2], 9))
        np.testing.assert_array_equal(upper.info.command.elapsed, np.tile([0, 3, 6], 9))
        np.testing.assert_array_equal(upper.info.command.remaining, np.tile([8, 5, 2], 9))
        assert len(lower) == 72
        np.testing.assert_array_equal(lower.info.command.action, np.repeat(upper.act, upper.info.duration, 0))
        np.testing.assert_array_equal(lower.info.command.elapsed, np.tile([0, 1, 2, 0, 1, 2, 0, 1], 9))
        np.testing.assert_array_equal(upper.obs, lower.obs[np.flatnonzero(lower.info.command.elapsed == 0)])
    found = skills.method.segments(skills.replay, 500, skills.log_prob)
    whole = {tuple(x) for i in range(2) for x in stored(skills.replay, i).obs_next[2::3].tolist()}
    assert {tuple(x) for x in found.obs_next.tolist()} <= whole
    assert len(found.obs) > 400
