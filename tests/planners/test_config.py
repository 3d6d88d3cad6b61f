import math
import pickle
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from pydantic import TypeAdapter
from tianshou.data import Batch

from experiments.run.command_line import command_line
from layeredrl.planners import (
    CEM,
    PLANNERS,
    CEMConfig,
    ICEMConfig,
    MPPIConfig,
    Plan,
    Planner,
    PlannerConfig,
    RandomShootingConfig,
    make_planner_config,
)

SPACE = Box(-1.0, 1.0, (2,), np.float32)


@dataclass(frozen=True)
class Recipe:
    """A recipe."""

    planner: PlannerConfig = field(default_factory=lambda: PlannerConfig(icem=ICEMConfig(horizon=7)))
    """The planner."""


def from_command_line(recipe, *words):
    return command_line(type(recipe), words, prog="train", default=recipe).planner


@pytest.mark.parametrize("kind", PLANNERS)
def test_each_kind_builds_its_planner_with_its_own_settings(kind):
    planner_class, config_class = PLANNERS[kind]
    settings = config_class(horizon=4)
    config = PlannerConfig(kind, **{kind: settings})
    planner = config.build(SPACE)
    assert type(planner) is planner_class
    assert planner.action_space is SPACE
    assert planner.config is config.settings is settings


def test_icem_is_the_default_kind():
    assert PlannerConfig().kind == "icem"
    assert PlannerConfig().settings == ICEMConfig()


def test_the_command_line_changes_the_kind_and_single_settings():
    config = from_command_line(Recipe(), "--planner.kind", "cem", "--planner.cem.horizon", "12")
    assert config == PlannerConfig("cem", cem=CEMConfig(horizon=12), icem=ICEMConfig(horizon=7))
    assert isinstance(config.build(SPACE), CEM)


def test_the_help_lists_kinds_and_settings(capsys):
    with pytest.raises(SystemExit):
        from_command_line(Recipe(), "--help")
    text = capsys.readouterr().out
    assert "--planner.kind {icem,cem,mppi,random_shooting}" in text
    assert "Planner to use; the settings of the other kinds are ignored." in " ".join(text.replace("│", "").split())
    assert all(f"--planner.{kind.replace('_', '-')}.horizon INT" in text for kind in PLANNERS)


def test_an_unknown_kind_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="kind is 'icm', expected one of icem, cem, mppi, random_shooting"):
        PlannerConfig("icm")
    with pytest.raises(ValueError, match=r"invalid choice 'icm' .*'icem', 'cem', 'mppi', 'random_shooting'"):
        from_command_line(Recipe(), "--planner.kind", "icm")


def test_settings_survive_json_pickle_and_replace():
    recipe = Recipe(replace(PlannerConfig("mppi"), cem=CEMConfig(horizon=3)))
    adapter = TypeAdapter(Recipe)
    assert adapter.validate_json(adapter.dump_json(recipe)) == recipe
    assert pickle.loads(pickle.dumps(recipe)) == recipe


@dataclass(frozen=True)
class MiddleConfig:
    """Settings of the toy planner."""

    horizon: int = 3
    """Actions that are planned ahead."""


class Middle(Planner):
    """Toy planner: zeros."""

    def __init__(self, action_space, config):
        super().__init__(action_space, config.horizon)

    def initial_warm_start(self, n_envs, device):
        return Batch()

    def _plan(self, score, n_envs, warm_start, generator, proposals):
        actions = torch.zeros(n_envs, self.horizon, 2)
        scores = score(actions.unsqueeze(1))
        return Plan(actions, scores[:, 0], Batch(), scores.mT)


def test_one_line_in_a_registry_adds_a_planner():
    config_class = make_planner_config({**PLANNERS, "middle": (Middle, MiddleConfig)})

    @dataclass(frozen=True)
    class OwnRecipe:
        planner: config_class = field(default_factory=config_class)

    config = from_command_line(OwnRecipe(), "--planner.kind", "middle", "--planner.middle.horizon", "5")
    assert config.icem == ICEMConfig()
    planner = config.build(SPACE)
    assert type(planner) is Middle
    start = planner.initial_warm_start(1, torch.device("cpu"))
    plan = planner.plan(lambda candidates: candidates.sum((2, 3)), 1, start, torch.Generator())
    assert plan.actions.shape == (1, 5, 2)
    with pytest.raises(ValueError, match="expected one of icem, cem, mppi, random_shooting, middle"):
        config_class("top")


SEARCHES = (CEMConfig, ICEMConfig, MPPIConfig)
ALL = (*SEARCHES, RandomShootingConfig)


@pytest.mark.parametrize(
    ("classes", "name", "values"),
    [
        (ALL, "horizon", [0]),
        (ALL, "n_samples", [0, -3]),
        (SEARCHES, "n_iterations", [0]),
        (SEARCHES, "n_elites", [0, 31]),
        (SEARCHES, "momentum", [-0.1, 1.1]),
        (SEARCHES, "init_std", [0.0, math.nan]),
        (SEARCHES, "uniform_share", [1.1]),
        (SEARCHES, "execute", ["median"]),
        ([CEMConfig], "stop_variance", [-0.1, math.nan]),
        ([ICEMConfig], "decay", [0.9, math.nan]),
        ([ICEMConfig], "reuse_fraction", [-0.1, 1.1]),
        ([ICEMConfig, MPPIConfig], "noise_exponent", [-0.1, math.nan]),
        ([MPPIConfig], "temperature", [0.0, -1.0, math.nan]),
        ([MPPIConfig], "temperature_unit", ["reward"]),
        ([MPPIConfig], "min_std", [-0.1]),
        ([MPPIConfig], "smoothing", [-0.1, 1.1]),
    ],
)
def test_settings_out_of_range_are_named(classes, name, values):
    for cls in classes:
        few = {} if cls is RandomShootingConfig else {"n_elites": 6}
        for value in values:
            with pytest.raises(ValueError, match=f"{name} is {value!r}"):
                cls(**{"n_samples": 30} | few | {name: value})


def test_a_number_of_elites_is_an_integer():
    with pytest.raises(TypeError, match=r"n_elites is 2\.5"):
        MPPIConfig(n_elites=2.5)
