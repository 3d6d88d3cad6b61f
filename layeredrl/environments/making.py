"""Factories of environments, vector environments and tasks."""

import difflib
import importlib
import sys
import warnings
from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast, get_args

import gymnasium as gym
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorActionWrapper, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from layeredrl.action_spaces import Rescaling, unit_box
from layeredrl.checks import require_choice, require_count
from layeredrl.environments import headless
from layeredrl.environments.action_repeat import ActionRepeat
from layeredrl.environments.answers import as_faults, shown
from layeredrl.environments.config import EnvConfig
from layeredrl.environments.facts import TaskFacts, read_facts
from layeredrl.environments.known import without_contradicted
from layeredrl.environments.names import observation_names
from layeredrl.environments.pool import EnvPool, OnFault
from layeredrl.environments.registration import register_needed, with_own_extra
from layeredrl.environments.torch_vector import HostVector, TorchVectorEnv
from layeredrl.task import TaskSpec, check_action_box

Vectorization = Literal["sync", "async", "native"]


class UnknownEnvironmentError(ValueError):
    """No environment is registered under the requested id, or its constructor fails."""


def make_env(env: str | EnvConfig, **kwargs: Any) -> gym.Env[Any, Any]:
    """Make one environment with Box actions scaled to [-1, 1].

    Args:
        env: An id registered with gymnasium, or the recipe of an environment.
        **kwargs: Arguments of the environment, such as `render_mode`.
    """
    made = make_unscaled_env(env, **kwargs)
    if isinstance(made.action_space, spaces.Box):
        check_action_box(made.action_space)
        made = _Rescaled(made)
    return made


def make_unscaled_env(env: str | EnvConfig, **kwargs: Any) -> gym.Env[Any, Any]:
    """Make one environment with actions in its own units.

    Args:
        env: An id registered with gymnasium, or the recipe of an environment.
        **kwargs: Arguments of the environment, such as `render_mode`.
    """
    return _make_unscaled(EnvConfig.of(env, **kwargs))


def make_task(env: str | EnvConfig, n_envs: int = 1, **kwargs: Any) -> TaskSpec:
    """Read the task from an instance of an environment, which is closed afterwards.

    What the environment declares of itself is tried in a few random steps, and left out where these contradict it:
    wrappers may change the observations, actions or rewards. With repeated actions, its known reward and dynamics are
    those of a frame, and are left out.

    Args:
        env: An id registered with gymnasium, or the recipe of an environment.
        n_envs: Number of instances that the agent will act in.
        **kwargs: Arguments of the environment.
    """
    config = EnvConfig.of(env, **kwargs)
    made = _make_unscaled(config)
    try:
        return without_contradicted(_task_of(made, config, n_envs), made)
    finally:
        made.close()


def make_facts(env: str | EnvConfig, **kwargs: Any) -> TaskFacts:
    """Read from an instance of an environment, in some random steps, what decides about an agent's settings.

    Args:
        env: An id registered with gymnasium, or the recipe of an environment.
        **kwargs: Arguments of the environment.
    """
    config = EnvConfig.of(env, **kwargs)
    made = _make_unscaled(config)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `make_task` warns
            task = without_contradicted(_task_of(made, config), made)
        return read_facts(made, task)
    finally:
        made.close()


def _task_of(made: gym.Env[Any, Any], config: EnvConfig, n_envs: int = 1) -> TaskSpec:
    """Task as an environment declares it."""
    task = replace(TaskSpec.from_env(made, n_envs), names=observation_names(made))
    if config.action_repeat > 1:  # a termination of the reached state stays the same
        task = replace(task, reward=None, dynamics=None)
    return task


def make_vector_env(
    env: str | EnvConfig,
    n_envs: int = 1,
    *,
    vectorization: Vectorization = "sync",
    device: torch.device | str | None = None,
    on_fault: OnFault = "raise",
    timeout_s: float = 60.0,
    max_faults: int = 100,
    **kwargs: Any,
) -> VectorEnv[Any, Any, Any]:
    """Make parallel instances of an environment that only the Collector resets.

    Args:
        env: An id registered with gymnasium, or the recipe of an environment.
        n_envs: Number of instances.
        vectorization: "sync": one after the other; "async": each in a process of its own; "native": the vector
            environment that is registered under the id, which steps all instances at once.
        device: With "native", device on which the environments live, for those that have a `torch_vector_env`; None for
            the registered vector environment.
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
    config = EnvConfig.of(env, **kwargs)
    if vectorization == "native":
        if on_fault != "raise":
            raise ValueError(f"on_fault is {on_fault!r} with native vectors, expected 'raise': none can restart")
        if config.is_changed:
            raise ValueError(
                "vectorization is 'native', expected 'sync' or 'async': wrappers and action_repeat change single "
                "environments, and native ones step all at once"
            )
        return _Native(_make_native(config, n_envs, device))
    if device is not None:
        raise ValueError(f"vectorization is {vectorization!r} with environments on a device, expected 'native'")
    _prepare_drawing(config)  # processes of environments inherit the choice
    makers = [partial(make_env, config)] * n_envs
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
        with as_faults("reset"):
            return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        with as_faults("step"):
            return self.env.step(actions)


def _make_native(config: EnvConfig, n_envs: int, device: torch.device | str | None) -> VectorEnv[Any, Any, Any]:
    _make_unscaled(config).close()  # an unknown id raises with a hint, and the id's module is imported
    spec = gym.spec(config.id.rpartition(":")[2])
    try:
        if device is None:
            env = _registered(config, spec, n_envs)
        else:
            env = HostVector(make_torch_vector_env(config, n_envs, device))
    except (KeyboardInterrupt, UnknownEnvironmentError):
        raise
    except BaseException as error:
        raise UnknownEnvironmentError(f"the vector environment of {_cannot_be_made(config.id, error)}") from error
    space = env.single_action_space
    if isinstance(space, spaces.Box):
        check_action_box(space)
        if space != unit_box(space.shape):
            env = _RescaledVector(env)
    return env


def make_torch_vector_env(
    env: str | EnvConfig, n_envs: int = 1, device: torch.device | str = "cpu", **kwargs: Any
) -> TorchVectorEnv:
    """Make parallel instances of an environment on a device, for a `DeviceCollector`; actions in their own units.

    Args:
        env: An id registered with gymnasium, or the recipe of an environment, without wrappers or repeated actions.
        n_envs: Number of instances.
        device: Their device.
        **kwargs: Arguments of the environments.

    Raises:
        UnknownEnvironmentError: The environment is not registered, or has no `torch_vector_env`.
        ValueError: The recipe has wrappers or repeated actions, or n_envs is less than 1.
    """
    require_count("n_envs", n_envs)
    config = EnvConfig.of(env, **kwargs)
    if config.is_changed:
        raise ValueError("wrappers and action_repeat change single environments, expected none on a device")
    single = _make_unscaled(config)
    path = vars(type(single.unwrapped)).get("torch_vector_env")  # a subclass may have other physics
    single.close()
    if path is None:
        raise UnknownEnvironmentError(f"environment {config.id!r} has no torch_vector_env to live on a device")
    spec = gym.spec(config.id.rpartition(":")[2])
    limit = {} if spec.max_episode_steps is None else {"max_episode_steps": spec.max_episode_steps}
    settings = {**limit, **spec.kwargs, **config.kwargs, "device": device}
    try:
        made: TorchVectorEnv = _class_at(path)(n_envs, **settings)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise UnknownEnvironmentError(f"the vector environment of {_cannot_be_made(config.id, error)}") from error
    return made


def _registered(config: EnvConfig, spec: EnvSpec, n_envs: int) -> VectorEnv[Any, Any, Any]:
    """Make the vector environment that is registered under an id."""
    if spec.vector_entry_point is None:
        raise UnknownEnvironmentError(f"environment {config.id!r} is not registered as a vector environment")
    settings: dict[str, Any] = {**config.kwargs, "autoreset_mode": AutoresetMode.DISABLED}
    try:
        return gym.make_vec(spec, n_envs, vectorization_mode="vector_entry_point", **settings)
    except TypeError as error:
        raise UnknownEnvironmentError(
            f"the vector environment of {config.id!r} does not take autoreset_mode=DISABLED: {shown(str(error))}"
        ) from error


_UNKNOWN = (gym.error.NameNotFound, gym.error.NamespaceNotFound, gym.error.VersionNotFound)


def _make_unscaled(config: EnvConfig) -> gym.Env[Any, Any]:
    """Make one environment with repeated actions and wrappers, and actions in its own units."""
    try:
        try:
            env = gym.make(config.id, **config.kwargs)
        except _UNKNOWN:
            if not register_needed(config.id):
                raise
            env = gym.make(config.id, **config.kwargs)
        return _changed(config, env)
    except UnknownEnvironmentError:
        raise
    except _UNKNOWN as error:
        near = difflib.get_close_matches(config.id, list(gym.registry), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; it is not registered with gymnasium"
        raise UnknownEnvironmentError(f"unknown environment {config.id!r}{hint}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a constructor raises, SystemExit included
        raise UnknownEnvironmentError(f"environment {_cannot_be_made(config.id, error)}") from error


def _changed(config: EnvConfig, env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Return a registered environment with what its recipe puts around it."""
    _prepare_drawing(config)
    if type(env.unwrapped).__module__ == "shimmy.dm_control_compatibility":
        seconds: float = cast(Any, env.unwrapped).dt
        env.metadata = {**env.metadata, "render_fps": 1 / seconds}  # shimmy declares 1000 times the seconds of a step
    if config.action_repeat > 1:
        env = ActionRepeat(env, config.action_repeat)
    for wrapper in config.wrappers:
        wrapped = _wrapper(wrapper)(env)
        if not isinstance(wrapped, gym.Env):
            raise UnknownEnvironmentError(f"wrapper {wrapper!r} returned {type(wrapped).__name__}, expected a gym.Env")
        env = wrapped
    return env


def _prepare_drawing(config: EnvConfig) -> None:
    if config.kwargs.get("render_mode") and "mujoco" in sys.modules:
        headless.choose_backend()


def _class_at(path: str) -> Any:
    """Return the class of package.module:Class."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _wrapper(path: str) -> Any:
    """Return the wrapper at package.module:Class."""
    try:
        found = _class_at(path)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # the last two: not the name of a module
        raise UnknownEnvironmentError(f"unknown wrapper {path!r}: {shown(str(error))}") from error
    if not callable(found):
        raise UnknownEnvironmentError(f"wrapper {path!r} is {shown(found)}, expected a class")
    return found


def _cannot_be_made(env_id: str, error: BaseException) -> str:
    """Return the end of a message, in one line."""
    if isinstance(error, gym.error.DependencyNotInstalled | ModuleNotFoundError):
        return f"{env_id!r} cannot be made: {shown(with_own_extra(str(error)))}"
    name = "" if isinstance(error, gym.error.Error) else f"{type(error).__name__}: "
    return f"{env_id!r} cannot be made: {name}{shown(str(error))}"
