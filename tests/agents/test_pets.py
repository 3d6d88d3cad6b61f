import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents.guidance import GuidanceConfig
from agents.loop import LOOP
from agents.pets import PETS
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import PlannerLevel, PolicyLearningConfig
from layeredrl.models import ProbabilisticEnsemble
from layeredrl.models.config import EnsembleConfig
from layeredrl.models.deterministic import DeterministicEnsemble
from layeredrl.planners import (
    CEM,
    ICEM,
    MPPI,
    CEMConfig,
    ICEMConfig,
    MPPIConfig,
    PlannerConfig,
    RandomShooting,
    RandomShootingConfig,
)
from layeredrl.task import StateDims, TaskSpec
from layeredrl.world_model import ModelLearningConfig

CPU = torch.device("cpu")
TASK = TaskSpec(
    observation_space=spaces.Dict(
        desired_goal=spaces.Box(-1, 1, (2,), np.float64),
        observation=spaces.Box(-np.inf, np.inf, (3,), np.float64),
    ),
    action_space=spaces.Box(-1.0, 1.0, (2,), np.float32),
    n_envs=3,
)
SMALL = PETS(
    model=EnsembleConfig(n_models=2, hidden=(8,)),
    planner=PlannerConfig(
        icem=ICEMConfig(horizon=4, n_samples=6, n_iterations=1, n_elites=2),
        cem=CEMConfig(horizon=5, n_samples=6, n_iterations=1, n_elites=2),
        mppi=MPPIConfig(horizon=3, n_samples=6),
        random_shooting=RandomShootingConfig(horizon=2, n_samples=6),
    ),
)
PLANNERS = {"icem": (ICEM, 4), "cem": (CEM, 5), "mppi": (MPPI, 3), "random_shooting": (RandomShooting, 2)}


def _level(agent: Hierarchy) -> PlannerLevel:
    (level,) = agent.levels
    assert isinstance(level, PlannerLevel)
    return level


def _actions(agent: Hierarchy, seed: int = 0) -> np.ndarray:
    observations = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
    return agent.act(observations, agent.initial_carry(3, seed), explore=False)


def test_settings_reach_the_parts() -> None:
    model = EnsembleConfig(
        n_models=3, n_particles_per_model=2, n_modes=2, hidden=(7, 6), learning_rate=0.02, normalize_targets=False
    )
    learning = ModelLearningConfig(n_random_steps=11)
    level = _level(replace(SMALL, model=model, learning=learning, discount=0.9).build(TASK, CPU, seed=0))
    dynamics = level.world.dynamics
    assert isinstance(dynamics, ProbabilisticEnsemble)
    assert (dynamics.n_models, dynamics.n_particles_per_model, dynamics.n_modes) == (3, 2, 2)
    assert {7, 6} <= {size for parameter in dynamics.get_parameters() for size in parameter.shape}
    assert dynamics.optimizer is not None
    assert dynamics.optimizer.param_groups[0]["lr"] == 0.02
    assert level.learner.config is learning
    assert level.world.objective.discount == level.discount == 0.9
    assert level.world.encoder.state_space.shape == (3,)
    assert level.world.encoder.context_space.shape == (2,)
    assert level.action_space == TASK.action_space


@pytest.mark.parametrize(("name", "dtype"), [("float32", None), ("bfloat16", torch.bfloat16), ("auto", "auto")])
def test_the_type_of_rollouts_reaches_the_ensemble(name: str, dtype: torch.dtype | str | None) -> None:
    model = replace(SMALL.model, rollout_dtype=name)
    dynamics = _level(replace(SMALL, model=model).build(TASK, CPU, seed=0)).world.dynamics
    assert isinstance(dynamics, ProbabilisticEnsemble)
    assert dynamics.rollout_dtype == dtype
    assert EnsembleConfig().rollout_dtype == "float32"


@pytest.mark.parametrize("name", PLANNERS)
def test_every_planner_can_be_chosen(name: str) -> None:
    planner = _level(replace(SMALL, planner=replace(SMALL.planner, kind=name)).build(TASK, CPU, seed=0)).planner
    kind, horizon = PLANNERS[name]
    assert type(planner) is kind
    assert planner.horizon == horizon


def test_actions_follow_the_seeds_and_keep_the_bounds() -> None:
    torch.manual_seed(5)
    first = SMALL.build(TASK, CPU, seed=0)
    torch.manual_seed(5)
    again = SMALL.build(TASK, CPU, seed=0)
    other = SMALL.build(TASK, CPU, seed=0)  # draws different networks
    actions = _actions(first)
    assert actions.shape == (3, 2)
    assert (np.abs(actions) <= 1).all()
    np.testing.assert_array_equal(actions, _actions(again))
    assert not np.array_equal(actions, _actions(first, seed=1))
    assert not np.array_equal(_actions(first), _actions(other))


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiDiscrete([2, 4])])
def test_discrete_actions_are_planned(space: spaces.Space) -> None:
    actions = _actions(SMALL.build(replace(TASK, action_space=space), CPU, seed=0))
    assert actions.dtype == np.int64
    assert actions.shape == (3, *(space.shape or (1,)))
    assert (actions >= 0).all()
    assert (actions < getattr(space, "nvec", getattr(space, "n", None))).all()


@pytest.mark.parametrize("name", [name for name in PETS.presets if name != "paper"])  # "cartpole-paper" again
def test_every_preset_builds_and_plans(name: str) -> None:
    agent = PETS.preset(name).build(TASK, CPU, seed=0)
    if not name.endswith("paper"):  # slow
        assert _actions(agent).shape == (3, 2)


@pytest.mark.parametrize("task", ["cartpole", "reacher", "pusher", "halfcheetah"])
def test_presets_for_the_tasks_of_the_paper(task: str) -> None:
    paper, fast = PETS.preset(f"{task}-paper"), PETS.preset(f"{task}-fast")
    # planning horizon, candidates, elites, hidden layers, weight decays, learning rate, steps of an episode, episodes
    horizon, n_samples, n_elites, hidden, decays, learning_rate, n_steps, n_episodes = {
        "cartpole": (25, 400, 40, (500,) * 3, (1e-4, 2.5e-4, 2.5e-4, 5e-4), 1e-3, 200, 51),
        "reacher": (25, 400, 40, (200,) * 4, (2.5e-4, 5e-4, 5e-4, 5e-4, 7.5e-4), 7.5e-4, 150, 101),
        "pusher": (25, 500, 50, (200,) * 3, (2.5e-4, 5e-4, 5e-4, 7.5e-4), 1e-3, 150, 101),
        "halfcheetah": (30, 500, 50, (200,) * 4, (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4), 1e-3, 1000, 301),
    }[task]
    factor = {"cartpole": 4, "reacher": 17, "pusher": 20, "halfcheetah": 18}[task] / 2
    assert paper.planner.kind == "cem"
    assert paper.planner.cem == CEMConfig(horizon, n_samples, 5, n_elites, 0.1, stop_variance=0.001, execute="mean")
    assert (paper.model.hidden, paper.model.learning_rate) == (hidden, learning_rate)
    assert paper.model.weight_decay == pytest.approx([factor * decay for decay in decays])
    assert paper.model.bound_penalty == pytest.approx(factor * 0.01 / 5)
    assert (paper.model.n_models, paper.model.n_particles_per_model) == (5, 4)
    assert not paper.model.normalize_targets
    assert (paper.learning.n_random_steps, paper.learning.fit_every) == (n_steps, n_steps)
    assert (paper.learning.first_epochs, paper.learning.fit.epochs, paper.learning.fit.batch_size) == (5, 5, 32)
    assert PETS.trainers[f"{task}-paper"].n_total_env_steps == n_steps * n_episodes
    assert (fast.planner.kind, fast.model.rollout_dtype, fast.learning.n_random_steps) == ("icem", "auto", n_steps)
    assert PETS.trainers[f"{task}-fast"].n_total_env_steps <= n_steps * n_episodes
    assert PETS.trainers.keys() <= PETS.presets.keys()
    assert PETS.preset("paper") == PETS.preset("cartpole-paper")


@pytest.mark.parametrize(("task", "beta_nll"), [("reacher", 0.0), ("pusher", 0.5), ("halfcheetah", 0.5)])
def test_beta_nll_reaches_the_ensemble(task: str, beta_nll: float) -> None:
    dynamics = _level(PETS.preset(f"{task}-fast").build(TASK, CPU, seed=0)).world.dynamics
    assert isinstance(dynamics, ProbabilisticEnsemble)
    assert dynamics.beta_nll == beta_nll


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (PETS, {"discount": 1.1}, "discount is 1.1"),
        (PETS, {"discount": float("nan")}, "discount is nan"),
        (EnsembleConfig, {"hidden": (8, 0)}, "hidden is (8, 0)"),
        (EnsembleConfig, {"beta_nll": 2.0}, "beta_nll is 2.0"),
        (EnsembleConfig, {"beta_nll": 0.5, "n_modes": 2}, "beta_nll is 0.5 with n_modes 2"),
    ],
)
def test_settings_are_checked_before_anything_is_built(cls: type, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        cls(**settings)


def test_weight_decay_has_a_value_for_every_layer() -> None:
    decay = (1e-4, 1e-3)
    replace(SMALL, model=EnsembleConfig(hidden=(8,), weight_decay=decay)).build(TASK, CPU, seed=0)
    with pytest.raises(ValueError, match="weight_decay has 2 values, expected one for each of 3"):
        replace(SMALL, model=EnsembleConfig(hidden=(8, 8), weight_decay=decay)).build(TASK, CPU, seed=0)


def test_special_dimensions_of_a_task_reach_the_networks() -> None:
    # The flat observation has the goal first, the state's dimensions are 2 to 4.
    dims = StateDims(angle=(3,), unseen=(2,), absolute=(2, 4))
    dynamics = _level(SMALL.build(replace(TASK, dims=dims), CPU, seed=0)).world.dynamics
    assert isinstance(dynamics, ProbabilisticEnsemble)
    assert dynamics.is_delta.tolist() == [0, 1, 0]
    assert dynamics.network.linear_weights()[0].shape[1] == 1 + 2 + 2 + 2  # raw, sine and cosine, context, action
    state, context, action = torch.randn(4, 3), torch.randn(4, 2), torch.randn(4, 2)
    moved = state + torch.tensor([5.0, 2 * torch.pi, 0.0])
    change = dynamics.predict(moved, context, action)[0] - dynamics.predict(state, context, action)[0]
    torch.testing.assert_close(change, torch.tensor([0.0, 2 * torch.pi, 0.0]).expand_as(change), rtol=1e-4, atol=1e-4)


ABLATIONS = {
    "PE-TS1": {"propagation": "ts1"},
    "PE-TSinf": {},
    "PE-E": {"propagation": "expectation"},
    "P-TSinf": {"n_models": 1, "n_particles_per_model": 4},
    "P-E": {"n_models": 1, "propagation": "expectation"},
    "DE-TS1": {"deterministic": True, "propagation": "ts1"},
    "DE-TSinf": {"deterministic": True},
    "DE-E": {"deterministic": True, "propagation": "expectation"},
    "D-E": {"deterministic": True, "n_models": 1, "propagation": "expectation"},
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_of_the_paper(name: str) -> None:
    config = replace(SMALL, model=replace(SMALL.model, n_particles_per_model=2))
    agent = replace(config, model=replace(config.model, **ABLATIONS[name])).build(TASK, CPU, seed=0)
    assert _actions(agent).shape == (3, 2)
    dynamics = _level(agent).world.dynamics
    assert isinstance(dynamics, ProbabilisticEnsemble)
    assert isinstance(dynamics, DeterministicEnsemble) == name.startswith("D")
    assert (dynamics.n_models == 1) == (name[1] == "-")


@pytest.mark.parametrize(
    "space",
    [spaces.MultiBinary(2), spaces.Discrete(2, start=1), spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(-1, 1, (2, 2))],
)
def test_actions_that_cannot_be_planned_are_refused(space: spaces.Space) -> None:
    with pytest.raises((ValueError, TypeError), match=r"action.space"):
        SMALL.build(replace(TASK, action_space=space), CPU, seed=0)


def test_guidance_without_being_guided_is_refused():
    with pytest.raises(ValueError, match="guidance has settings, but guided is False"):
        PETS(guidance=GuidanceConfig(real_share=0.2))
    with pytest.raises(ValueError, match=r"guided is False, expected True: .* that of pets"):
        LOOP(guided=False)
    with pytest.raises(ValueError, match=r"guidance.learning.n_random_steps is 9, expected 0: actions are random for"):
        GuidanceConfig(learning=PolicyLearningConfig(n_random_steps=9))
