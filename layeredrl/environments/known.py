"""Checks of the known functions of an environment: wrappers may change what they are functions of."""

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from layeredrl import action_spaces
from layeredrl.checks import are_probabilities
from layeredrl.randomness import fork_globals
from layeredrl.task import GOAL_KEY, StateDims, TaskSpec

N_STEPS = 60
"""Environment steps that are tried: some episodes of tasks that end soon, and a short part of the others."""
TOLERANCE = 1e-3
"""Largest difference of a known reward or next state, relative to the largest one seen: observations are rounded."""


_PASS_ON = {
    "layeredrl.environments.action_repeat.ActionRepeat",  # its rewards are left out already
    *(f"gymnasium.wrappers.common.{x}" for x in ("TimeLimit", "OrderEnforcing", "PassiveEnvChecker")),
    "gymnasium.wrappers.common.RecordEpisodeStatistics",
    *(f"gymnasium.wrappers.rendering.{x}" for x in ("RecordVideo", "RenderCollection", "HumanRendering")),
    "gymnasium.wrappers.stateful_observation.TimeAwareObservation",
}
"""Wrappers of gymnasium with a `step` of their own that leave rewards and terminations as they are."""


@dataclass(frozen=True)
class _Trial:
    """Transitions of random actions; arrays with the step first."""

    obs: NDArray[np.float32]
    obs_next: NDArray[np.float32]
    action: NDArray[Any]
    """In the environment's own units."""
    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    raw: list[Any]
    """Next observations of the innermost environment."""


def without_contradicted(task: TaskSpec, env: gym.Env[Any, Any]) -> TaskSpec:
    """The task without those known functions and dimensions that a few random steps contradict or leave open.

    `env.unwrapped` declares them for its own observations, actions and rewards. A wrapper that negates rewards, repeats
    actions, or normalises or reorders observations makes them wrong for the environment that the agent acts in.
    Functions of other observations are not used even if they agree: random steps see few states. Neither are rewards
    and terminations under a wrapper with a `step` of its own that may change them where random steps do not come.

    Args:
        task: Read from the environment.
        env: The environment, with its wrappers; it is reset and stepped.

    Warns:
        RuntimeWarning: Something is left out, and learned instead.
    """
    known = {name: getattr(task, name) for name in ("reward", "termination", "dynamics")}
    if all(function is None for function in known.values()) and task.dims == StateDims():
        return task
    try:
        with fork_globals():
            trial = _try(task, env)
    except KeyboardInterrupt:
        raise
    except BaseException:  # an environment that fails is found, and named, where it acts for the agent
        _forget_offset(task)
        return task
    same = _same_observations(task, trial)
    left_out: dict[str, Any] = {
        name: None
        for name, function in known.items()
        if function is not None and not (same and not _may_change(name, env) and _agrees(task, name, function, trial))
    }
    if task.dims != StateDims() and not same:
        left_out["dims"] = StateDims()
    _forget_offset(task)
    if not left_out:
        return task
    names = {"dims": "dimensions (angle_dims and the like)"}
    listed = ", ".join(names.get(name, f"{name}_function") for name in left_out)
    learned = " and ".join(name for name in ("reward", "termination") if name in left_out)
    warnings.warn(
        f"{listed} of {type(env.unwrapped).__name__} contradict what the environment does in {N_STEPS} random steps, "
        "or may do so later; a wrapper may change its observations, actions or rewards. They are not used"
        + (f"; the {learned} will be learned" if learned else ""),
        RuntimeWarning,
        stacklevel=3,
    )
    return replace(task, **left_out)


def _forget_offset(task: TaskSpec) -> None:
    """Forget the offset of the tried observations: a run takes that of its own first observation."""
    if task.offset is not None:
        task.offset.forget()


def _try(task: TaskSpec, env: gym.Env[Any, Any]) -> _Trial:
    """Take random steps, with seeds of their own."""
    generator = torch.Generator().manual_seed(0)
    raw: list[Any] = []
    inner, step = env.unwrapped, env.unwrapped.step
    own = vars(inner).get("step")

    def recorded(action: Any) -> Any:
        result = step(action)
        raw.append(copy.deepcopy(result[0]))  # an environment may write its next observation into the same memory
        return result

    vars(inner)["step"] = recorded  # hides the method of its class
    try:
        rows = list(_transitions(task, env, generator, raw))
    finally:
        del vars(inner)["step"]
        if own is not None:
            vars(inner)["step"] = own
    obs, obs_next, action, reward, terminated, raw_next = (list(column) for column in zip(*rows, strict=True))
    return _Trial(
        obs=np.array(obs),
        obs_next=np.array(obs_next),
        action=np.array(action),
        reward=np.array(reward),
        terminated=np.array(terminated),
        raw=raw_next,
    )


def _transitions(
    task: TaskSpec, env: gym.Env[Any, Any], generator: torch.Generator, raw: list[Any]
) -> Iterator[tuple[Any, ...]]:
    obs = _flatten(task, env.reset(seed=0)[0])  # at once: an environment may write into its last observation
    for i in range(N_STEPS):
        drawn = action_spaces.uniform(task.action_space, (1,), generator)
        action = task.to_env_units(drawn).numpy()
        taken = action_spaces.to_env(task.action_space, action)[0]
        if isinstance(env.action_space, gym.spaces.Box):
            taken = np.clip(taken, env.action_space.low, env.action_space.high).astype(env.action_space.dtype)
        after, reward, terminated, truncated, _ = env.step(taken)
        obs_next = _flatten(task, after)
        yield obs, obs_next, action[0], float(reward), bool(terminated), raw[-1]
        obs = _flatten(task, env.reset(seed=i + 1)[0]) if terminated or truncated else obs_next


def _flatten(task: TaskSpec, observation: Any) -> NDArray[np.float32]:
    """One flat observation, (O,)."""
    if isinstance(observation, dict):
        batched: Any = {key: np.asarray(part)[None] for key, part in observation.items()}
    else:
        batched = np.asarray(observation)[None]
    flat: NDArray[np.float32] = task.flatten(batched)[0]
    return flat


def _agrees(task: TaskSpec, name: str, function: Any, trial: _Trial) -> bool:
    """Return True if a known function gives what happened."""
    goal = task.slices.get(GOAL_KEY, slice(0, 0))
    rest = [i for i in range(task.observation_dim) if not goal.start <= i < goal.stop]
    state, after = (torch.from_numpy(x[:, rest]) for x in (trial.obs, trial.obs_next))
    context, action = torch.from_numpy(trial.obs[:, goal]), torch.from_numpy(trial.action)
    try:
        if name == "dynamics":
            return _close(function(state, context, action), after)
        result = function(state, context, action, after)
        if name == "termination":
            return are_probabilities(result) and bool(((result > 0.5).numpy() == trial.terminated).all())
        return _close(result.double(), torch.from_numpy(trial.reward))
    except Exception:  # a function for other observations may raise anything
        return False


def _close(found: Tensor, expected: Tensor) -> bool:
    """Return True if values differ by rounding alone, in each column."""
    largest = expected.abs().amax(0)
    return found.shape == expected.shape and bool(((found - expected).abs() <= TOLERANCE * largest + 1e-6).all())


def _may_change(name: str, env: gym.Env[Any, Any]) -> bool:
    """Return True if a wrapper has a `step` of its own that may change rewards or terminations, at rare states too."""
    if name == "dynamics":
        return False
    passing = [gym.Wrapper.step, gym.ObservationWrapper.step, gym.ActionWrapper.step]
    if name == "termination":
        passing.append(gym.RewardWrapper.step)
    while isinstance(env, gym.Wrapper):
        cls = type(env)
        if cls.step not in passing and f"{cls.__module__}.{cls.__qualname__}" not in _PASS_ON:
            return True
        env = env.env
    return False


def _same_observations(task: TaskSpec, trial: _Trial) -> bool:
    """Return True if the wrappers leave observations as the innermost environment returns them, or only append."""
    try:
        raw = np.stack([_flatten(task, x) for x in trial.raw])
    except (ValueError, KeyError, TypeError):
        return False
    return raw.shape[1] <= task.observation_dim and bool(
        np.allclose(raw, trial.obs_next[:, : raw.shape[1]], rtol=1e-6, atol=1e-8)
    )
