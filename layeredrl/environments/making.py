"""Factories of environments, vector environments and tasks."""

import contextlib
import difflib
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import gymnasium as gym
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorActionWrapper, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from layeredrl.action_spaces import Rescaling, unit_box
from layeredrl.checks import require_choice
from layeredrl.environments.answers import shown
from layeredrl.environments.facts import TaskFacts, read_facts
from layeredrl.environments.known import without_contradicted
from layeredrl.environments.names import observation_names
from layeredrl.environments.pool import EnvPool, OnFault
from layeredrl.faults import Fault
from layeredrl.task import TaskSpec, check_action_box

Vectorization = Literal["sync", "async", "native"]


class UnknownEnvironmentError(ValueError):
    """No environment is registered under the requested id, or its constructor fails."""


def make_env(env_id: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """Make one environment with Box actions scaled to [-1, 1].

    Args:
        env_id: An id registered with gymnasium.
        **kwargs: Arguments of the environment, such as `render_mode`.
    """
    env = _make_unscaled(env_id, **kwargs)
    if isinstance(env.action_space, spaces.Box):
        check_action_box(env.action_space)
        env = _Rescaled(env)
    return env


def make_task(env_id: str, n_envs: int = 1, **kwargs: Any) -> TaskSpec:
    """Read the task from an instance of an environment, which is closed afterwards.

    What the environment declares of itself is tried in a few random steps, and left out where these contradict it:
    wrappers may change the observations, actions or rewards.

    Args:
        env_id: An id registered with gymnasium.
        n_envs: Number of instances that the agent will act in.
        **kwargs: Arguments of the environment.
    """
    env = _make_unscaled(env_id, **kwargs)
    try:
        task = replace(TaskSpec.from_env(env, n_envs), names=observation_names(env))
        return without_contradicted(task, env)
    finally:
        env.close()


def make_facts(env_id: str, **kwargs: Any) -> TaskFacts:
    """Read from an instance of an environment, in some random steps, what decides about an agent's settings.

    Args:
        env_id: An id registered with gymnasium.
        **kwargs: Arguments of the environment.
    """
    env = _make_unscaled(env_id, **kwargs)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `make_task` warns
            task = without_contradicted(TaskSpec.from_env(env), env)
        return read_facts(env, task)
    finally:
        env.close()


def make_vector_env(
    env_id: str,
    n_envs: int = 1,
    *,
    vectorization: Vectorization = "sync",
    on_fault: OnFault = "raise",
    timeout_s: float = 60.0,
    max_faults: int = 100,
    **kwargs: Any,
) -> VectorEnv[Any, Any, Any]:
    """Make parallel instances of an environment that only the Collector resets.

    Args:
        env_id: An id registered with gymnasium.
        n_envs: Number of instances.
        vectorization: "sync": one after the other; "async": each in a process of its own; "native": the vector
            environment that is registered under the id, which steps all instances at once.
        on_fault: Reaction to a fault of an instance; see `EnvPool`. Native instances cannot be restarted.
        timeout_s: Seconds in which a process has to answer.
        max_faults: Largest number of faults of all instances together; the next one is raised in any case.
        **kwargs: Arguments of the environments.

    Raises:
        UnknownEnvironmentError: The environment is not registered, or not as a vector environment.
    """
    if n_envs < 1:
        raise ValueError(f"n_envs is {n_envs}, expected at least 1")
    require_choice("vectorization", vectorization, get_args(Vectorization))
    if vectorization == "native":
        if on_fault != "raise":
            raise ValueError(f"on_fault is {on_fault!r} with native vectors, expected 'raise': none can restart")
        return _Native(_make_native(env_id, n_envs, **kwargs))
    makers = [partial(make_env, env_id, **kwargs)] * n_envs
    return EnvPool(
        makers, asynchronous=vectorization == "async", on_fault=on_fault, timeout_s=timeout_s, max_faults=max_faults
    )


class _Rescaled(gym.ActionWrapper[Any, NDArray[Any], Any]):
    """An environment with actions in [-1, 1]."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        space = env.action_space
        assert isinstance(space, spaces.Box)
        self.action_space: spaces.Space[NDArray[Any]] = unit_box(space.shape)
        self._rescaling = Rescaling(space)

    def action(self, action: NDArray[Any]) -> NDArray[Any]:
        return self._rescaling(action)


class _RescaledVector(VectorActionWrapper):
    """A vector environment with actions in [-1, 1]."""

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        space = env.single_action_space
        assert isinstance(space, spaces.Box)
        self.single_action_space = unit_box(space.shape)
        self.action_space = batch_space(self.single_action_space, env.num_envs)
        self._rescaling = Rescaling(space)

    def actions(self, actions: NDArray[Any]) -> NDArray[Any]:
        return self._rescaling(actions)


class _Native(VectorWrapper):
    """A vector environment whose errors become faults, so that a run saves before it ends."""

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        with _faults("reset"):
            return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        with _faults("step"):
            return self.env.step(actions)


@contextlib.contextmanager
def _faults(call: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit and panics of code in Rust are no `Exception`
        raise Fault(f"{call} of the environments raised {type(error).__name__}: {shown(str(error))}") from error


def _make_native(env_id: str, n_envs: int, **kwargs: Any) -> VectorEnv[Any, Any, Any]:
    _make_unscaled(env_id, **kwargs).close()  # an unknown id raises with a hint, and the id's module is imported
    spec = gym.spec(env_id.rpartition(":")[2])
    if spec.vector_entry_point is None:
        raise UnknownEnvironmentError(f"environment {env_id!r} is not registered as a vector environment")
    try:
        env = gym.make_vec(
            spec, n_envs, vectorization_mode="vector_entry_point", autoreset_mode=AutoresetMode.DISABLED, **kwargs
        )
    except TypeError as error:
        raise UnknownEnvironmentError(
            f"the vector environment of {env_id!r} does not take autoreset_mode=DISABLED: {shown(str(error))}"
        ) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise UnknownEnvironmentError(f"the vector environment of {_cannot_be_made(env_id, error)}") from error
    space = env.single_action_space
    if isinstance(space, spaces.Box):
        check_action_box(space)
        if space != unit_box(space.shape):
            env = _RescaledVector(env)
    return env


def _make_unscaled(env_id: str, **kwargs: Any) -> gym.Env[Any, Any]:
    try:
        return gym.make(env_id, **kwargs)
    except (gym.error.NameNotFound, gym.error.NamespaceNotFound, gym.error.VersionNotFound) as error:
        near = difflib.get_close_matches(env_id, list(gym.registry), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; it is not registered with gymnasium"
        raise UnknownEnvironmentError(f"unknown environment {env_id!r}{hint}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a constructor raises, SystemExit included
        raise UnknownEnvironmentError(f"environment {_cannot_be_made(env_id, error)}") from error


def _cannot_be_made(env_id: str, error: BaseException) -> str:
    """Return the end of a message, in one line."""
    name = "" if isinstance(error, gym.error.Error | ModuleNotFoundError) else f"{type(error).__name__}: "
    return f"{env_id!r} cannot be made: {name}{shown(str(error))}"
