"""Environments of other packages: ids, install hints, DeepMind Control, goal environments."""

import importlib.util
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

from layeredrl.environments import (
    EnvConfig,
    UnknownEnvironmentError,
    headless,
    make_env,
    make_task,
    make_vector_env,
    registration,
)
from layeredrl.environments.registration import with_own_extra


def _lacks(*modules: str) -> bool:
    return not all(importlib.util.find_spec(module) for module in modules)


NO_DMC = pytest.mark.skipif(_lacks("dm_control", "shimmy"), reason="needs the extra dmc")
NO_ROBOTICS = pytest.mark.skipif(_lacks("mujoco", "gymnasium_robotics"), reason="needs the extra robotics")


@pytest.mark.parametrize(
    ("env_id", "extra"),
    [("dm_control/cheetah-run-v0", "dmc"), ("envs:FetchReach-v4", "robotics"), ("PointMaze_UMaze-v3", "robotics")],
)
def test_missing_packages_are_named_by_their_extra(env_id, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "shimmy", raising=False)
    monkeypatch.delitem(sys.modules, "gymnasium_robotics", raising=False)
    monkeypatch.setattr(gym.envs.registration, "registry", {})
    with pytest.raises(gym.error.DependencyNotInstalled, match=rf"pip install 'layeredrl\[{extra}\]'"):
        registration.register_needed(env_id)


@pytest.mark.parametrize(
    ("message", "extra"),
    [
        ('MuJoCo is not installed, run `pip install "gymnasium[mujoco]"`', "mujoco"),
        ("No module named 'mujoco'", "mujoco"),
        (
            'Box2D is not installed, you can install it by run `pip install swig` and `pip install "gymnasium[box2d]"`',
            "box2d",
        ),
        ('pygame is not installed, run `pip install "gymnasium[classic-control]"`', "box2d"),
    ],
)
def test_hints_of_gymnasium_name_our_extras(message, extra):
    assert with_own_extra(message) == f"it needs the extra {extra}: pip install 'layeredrl[{extra}]'"


def test_other_messages_stay():
    for message in ("No module named 'viewer'", 'ale is not installed, run `pip install "gymnasium[atari]"`'):
        assert with_own_extra(message) == message


@NO_DMC
def test_observations_of_dm_control_are_flattened_in_order_and_episodes_are_truncated():
    env, task = make_env("dm_control/walker-walk-v0"), make_task("dm_control/walker-walk-v0")
    assert {key: part.stop - part.start for key, part in task.slices.items()} == {
        "height": 1,  # a scalar
        "orientations": 14,
        "velocity": 9,
    }
    vector = make_vector_env("dm_control/walker-walk-v0", 2)
    first, _ = vector.reset(seed=[3, 4])
    alone, _ = env.reset(seed=4)
    expected = np.concatenate([np.ravel(alone[key]) for key in ("height", "orientations", "velocity")])
    np.testing.assert_array_equal(task.flatten(first)[1], expected.astype(np.float32))
    vector.close()
    env = make_env(EnvConfig("dm_control/cartpole-swingup-v0", action_repeat=8))
    env.reset(seed=0)
    for n in range(1, 126):
        *_, terminated, truncated, _ = env.step(np.zeros(1, np.float32))
        assert (terminated, truncated) == (False, n == 125)
    assert env.metadata["render_fps"] == pytest.approx(100 / 8)


@NO_DMC
def test_processes_register_dm_control_themselves():
    env = make_vector_env("envs:dm_control/finger-spin-v0", 2, vectorization="async")
    env.reset(seed=0)
    obs = env.step(np.zeros((2, 2), np.float32))[0]
    assert {key: part.shape for key, part in obs.items()} == {"position": (2, 4), "touch": (2, 2), "velocity": (2, 3)}
    env.close()


@NO_DMC
def test_dm_control_has_near_matches():
    with pytest.raises(UnknownEnvironmentError, match="did you mean dm_control/cheetah-run-v0"):
        make_env("dm_control/cheetah-runs-v0")


@NO_ROBOTICS
@pytest.mark.parametrize("env_id", ["FetchReach-v4", "PointMaze_UMaze-v3"])
def test_goal_environments_of_robotics(env_id):
    task = make_task(env_id)
    assert list(task.slices) == ["achieved_goal", "desired_goal", "observation"]
    with pytest.raises(UnknownEnvironmentError, match="did you mean"):
        make_env(f"{env_id}0")


class _Backends:
    """Stands in for the processes in which backends are tried."""

    def __init__(self, *working):
        self.working, self.tried = working, []

    def __call__(self, command, **kwargs):
        self.tried.append(kwargs["env"]["MUJOCO_GL"])
        return subprocess.CompletedProcess(command, int(self.tried[-1] not in self.working))


@pytest.mark.parametrize(
    ("working", "chosen", "tried"),
    [
        (["egl", "osmesa"], "egl", ["egl"]),
        (["osmesa"], "osmesa", ["egl", "osmesa"]),
        ([], "disable", ["egl", "osmesa"]),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="other systems draw without a choice")
def test_mujoco_draws_by_what_works_without_a_display(working, chosen, tried, monkeypatch):
    backends = _Backends(*working)
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(subprocess, "run", backends)
    monkeypatch.setitem(sys.modules, "mujoco", sys)
    headless.choose_backend()
    headless.choose_backend()  # the choice stays
    assert backends.tried == tried
    assert headless.os.environ["MUJOCO_GL"] == chosen
    assert (headless.problem() is None) == bool(working)
    if not working:
        assert "neither EGL nor OSMesa works" in headless.problem()


@pytest.mark.parametrize(("name", "value"), [("DISPLAY", ":0"), ("MUJOCO_GL", "glfw")])
def test_a_display_or_a_choice_is_left_alone(name, value, monkeypatch):
    for variable in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(subprocess, "run", None)
    headless.choose_backend()
    assert headless.os.environ.get("MUJOCO_GL") == (value if name == "MUJOCO_GL" else None)
