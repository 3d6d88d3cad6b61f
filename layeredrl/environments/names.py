"""Names of observation dimensions, for figures and tables."""

import warnings
from collections.abc import Iterable
from typing import Any

import gymnasium as gym
from gymnasium import spaces

_CART_POLE = ("cart position", "cart velocity", "pole angle", "pole angular velocity")
_MOUNTAIN_CAR = ("position", "velocity")
KNOWN = {
    "CartPoleEnv": _CART_POLE,
    "AcrobotEnv": (
        *("cos of joint 1", "sin of joint 1", "cos of joint 2", "sin of joint 2"),
        *("joint 1 velocity", "joint 2 velocity"),
    ),
    "PendulumEnv": ("cos of angle", "sin of angle", "angular velocity"),
    "MountainCarEnv": _MOUNTAIN_CAR,
    "Continuous_MountainCarEnv": _MOUNTAIN_CAR,
    "LunarLander": (
        *("x", "y", "x velocity", "y velocity", "angle", "angular velocity", "left leg contact", "right leg contact"),
    ),
    "ReacherEnv": (
        *("cos of joint 0", "cos of joint 1", "sin of joint 0", "sin of joint 1", "target x", "target y"),
        *("joint 0 velocity", "joint 1 velocity", "fingertip - target x", "fingertip - target y"),
    ),
}
"""Names by the class of gymnasium's own tasks, as their documentation gives them."""


def observation_names(env: gym.Env[Any, Any]) -> tuple[str, ...]:
    """Return the name of each dimension of an environment's Box observations, or nothing if the task gives none.

    They are the attribute `observation_names` of `env.unwrapped`, those of gymnasium's documentation, or for MuJoCo
    tasks whose observations are positions and velocities the names of the joints. Wrappers may change the observations:
    names are left out if their number is not that of the dimensions.

    Warns:
        RuntimeWarning: The environment declares something else than one name for each dimension.
    """
    inner = env.unwrapped
    declared = getattr(inner, "observation_names", None)
    if declared is not None:
        width = spaces.flatdim(inner.observation_space)
        names = tuple(map(str, declared)) if isinstance(declared, Iterable) else ()
        if len(names) != width:
            warnings.warn(
                f"observation_names is {declared!r}, expected {width} names, one for each dimension; it is not used",
                RuntimeWarning,
                stacklevel=3,
            )
            return ()
    else:
        names = _known_names(inner)
    fits = isinstance(env.observation_space, spaces.Box) and spaces.flatdim(env.observation_space) == len(names)
    return names if fits else ()


def _known_names(env: Any) -> tuple[str, ...]:
    """Return the names of a task of gymnasium; nothing for a subclass that observes something else."""
    classes = type(env).__mro__
    maker = next((cls for cls in classes if "_get_obs" in vars(cls)), gym.Env)
    if not maker.__module__.startswith("gymnasium."):
        return ()
    own = [cls.__name__ for cls in classes if cls.__module__.startswith("gymnasium.envs.")]
    return next((KNOWN[name] for name in own if name in KNOWN), ()) or _joint_names(env)


def _joint_names(env: Any) -> tuple[str, ...]:
    """Return the names of joint positions and velocities, if a MuJoCo task observes these and nothing else."""
    parts, model = getattr(env, "observation_structure", None), getattr(env, "model", None)
    if model is None or not isinstance(parts, dict) or not parts.keys() <= {"skipped_qpos", "qpos", "qvel"}:
        return ()
    if not model.nq == model.nv == model.njnt:  # a free or ball joint has several numbers
        return ()
    joints = [str(model.jnt(i).name) for i in range(model.njnt)]
    return (*joints[int(parts.get("skipped_qpos", 0)) :], *(f"{joint} velocity" for joint in joints))
