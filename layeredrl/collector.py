"""Steps and resets vector environments for an agent, with true last observations and finished episodes."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import index
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray
from tianshou.data import Batch

from layeredrl.action_spaces import choices, same, to_env
from layeredrl.environments.action_repeat import FRAMES_KEY
from layeredrl.environments.answers import LARGEST, shown
from layeredrl.environments.infos import add_info, successes
from layeredrl.environments.pool import EnvPool
from layeredrl.environments.running_episodes import RunningEpisodes
from layeredrl.episodes import Episode, EpisodeCollector, warn_of_cut
from layeredrl.faults import Fault
from layeredrl.hierarchy import Hierarchy
from layeredrl.randomness import environment_and_acting_seeds


class Collector(EpisodeCollector):
    """Lets an agent act in vector environments, in any of gymnasium's three autoreset modes.

    It resets environments that do not reset themselves, with a new seed for every episode.

    Args:
        env: The environments.
        agent: Acts, and stores the transitions if `learn` is True.
        seed: Seed of the environments and of acting in them.
        learn: If True, the agent stores the transitions.
        on_step: Called after every step with a Batch of `obs`, `act`, `rew`, `terminated`, `truncated` and the true
            `obs_next`, and the indices of the environments (n,) of its n rows.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        agent: Hierarchy,
        *,
        seed: int,
        learn: bool = True,
        on_step: Callable[[Batch, NDArray[np.int64]], None] | None = None,
    ) -> None:
        mode = env.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise ValueError(
                f"the environments' metadata['autoreset_mode'] is {mode!r}, expected one of {[*AutoresetMode]}"
            )
        _require_fit(env, agent, learn)
        _accept_any_info(env)
        self._reports_faults = isinstance(env.unwrapped, EnvPool)
        self.env, self.agent, self.learn, self.mode, self.on_step = env, agent, learn, mode, on_step
        self.n_envs = env.num_envs
        self._action_bounds = _bounds(agent.task.action_space)
        self.n_total_env_steps = 0
        env_seeds, acting_seed = environment_and_acting_seeds(seed)
        self._env_rng = np.random.default_rng(env_seeds)
        self._carry = agent.initial_carry(self.n_envs, acting_seed)
        self._obs = np.zeros((self.n_envs, agent.task.observation_dim), np.float32)
        self._returns = np.zeros(self.n_envs)
        self._lengths = np.zeros(self.n_envs, np.int64)
        self._succeeded = np.full(self.n_envs, np.nan)  # NaN: no success or failure was reported
        self._resetting = np.zeros(self.n_envs, bool)  # NEXT_STEP: the next step of these is only a reset
        self._over = np.zeros(self.n_envs, bool)  # DISABLED: the episode of these has ended
        self._metrics: dict[str, list[float]] = {}
        # The seeds of episodes are unknown where the environments reset themselves.
        self._running = RunningEpisodes(self.n_envs) if mode == AutoresetMode.DISABLED else None
        self.n_abandoned = self.n_faults = self.n_frames = 0
        self._begin()

    def take_metrics(self) -> dict[str, float]:
        """Return mean decision metrics and predicted and achieved returns since the last call.

        Also the numbers since the beginning of abandoned episodes, of faults, and of frames, where actions are repeated
        for several frames, unless they are 0.
        """
        means = {name: float(np.mean(values)) for name, values in self._metrics.items()}
        self._metrics = {}
        counts = {"env/abandoned_episodes": self.n_abandoned, "env/faults": self.n_faults, "env/frames": self.n_frames}
        return means | {name: float(count) for name, count in counts.items() if count}

    def step(self, *, explore: bool) -> list[Episode]:
        self._begin_due()
        self._carry.unobserved[:] = False  # if the last step raised, no environment's action counts as carried out
        actions = self.agent.act(self._obs, self._carry, explore=explore)
        self._require_actions(actions)
        obs, rewards, terminated, truncated, info = self.env.step(to_env(self.env.single_action_space, actions))
        next_obs = self.agent.task.flatten(obs)
        faulty = np.zeros(self.n_envs, bool)  # an EnvPool rebuilds these
        if self._reports_faults and "fault" in info:
            faulty = info["fault"]
        ids = np.flatnonzero(~self._resetting & ~faulty)
        self.agent.reset(self._carry, np.flatnonzero(self._resetting))
        done = (terminated | truncated) & ~self._resetting & ~faulty
        true_next = self._true_last(next_obs, done, info)
        rewards = np.asarray(rewards, np.float64)
        self._require_finite("observation", true_next[ids], ids)
        self._require_finite("reward", rewards[ids], ids)
        step = Batch(
            obs=self._obs[ids],
            act=actions[ids],
            rew=rewards[ids],
            terminated=terminated[ids],
            truncated=truncated[ids],
            obs_next=true_next[ids],
        )
        if self._running is not None:
            self._running.add(ids, actions[ids])
        self.agent.observe(step, ids, self._carry, learn=self.learn)
        if faulty.any():
            self._abandon(np.flatnonzero(faulty), self._faults(info))
        if self.learn:
            for name, column in self._carry.last_metrics().items():
                values = column[ids]  # without steps that are only resets
                self._metrics.setdefault(name, []).extend(values[np.isfinite(values)].tolist())
        if self.on_step is not None:
            self.on_step(step, ids)
        self.n_total_env_steps += len(ids)
        if FRAMES_KEY in info:
            self.n_frames += int(info[FRAMES_KEY][ids].sum())
        self._returns[ids] += rewards[ids]
        self._lengths[ids] += 1
        success = successes(info, self.n_envs, same_step=self.mode == AutoresetMode.SAME_STEP)
        self._succeeded[ids] = np.fmax(self._succeeded, success)[ids]
        episodes = self._finish(np.flatnonzero(done))
        self._obs = next_obs
        if self.mode == AutoresetMode.NEXT_STEP:
            self._resetting = done
        elif self.mode == AutoresetMode.DISABLED:
            self._over = done | faulty
        return episodes

    def _finish(self, env_ids: NDArray[np.int64]) -> list[Episode]:
        """Return the episodes that ended, and reset the counters of their environments."""
        episodes = [
            Episode(
                env_id=int(i),
                episode_return=float(self._returns[i]),
                length=int(self._lengths[i]),
                n_total_env_steps=self.n_total_env_steps,
                success=None if np.isnan(self._succeeded[i]) else bool(self._succeeded[i]),
            )
            for i in env_ids
        ]
        self._forget(env_ids)
        return episodes

    def _forget(self, env_ids: NDArray[np.int64]) -> None:
        """Reset the counters of the running episodes of some environments."""
        self._returns[env_ids], self._lengths[env_ids], self._succeeded[env_ids] = 0.0, 0, np.nan

    def _begin_all(self) -> None:
        if self._lengths.any() or self._resetting.any():
            self._begin()

    def _cut_off(self, max_steps: int) -> list[Episode]:
        long = np.flatnonzero(self._lengths >= max_steps)
        if not len(long):
            return []
        warn_of_cut(max_steps)
        self.agent.abandon(self._carry, long, learn=self.learn)
        episodes = self._finish(long)
        if self.mode == AutoresetMode.DISABLED:
            self._over[long] = True
        else:
            self._begin()  # these environments reset themselves at an end, and at no other step
        return episodes

    def _require_finite(self, name: str, values: NDArray[np.floating[Any]], env_ids: NDArray[np.int64]) -> None:
        """Raise unless the values (n, ...) of some environments are finite in float32, in which agents learn."""
        if np.abs(values).max(initial=0.0) <= LARGEST:  # False if one is NaN
            return
        row = int((np.abs(values.reshape(len(values), -1)) <= LARGEST).all(1).argmin())
        i = env_ids[row]
        raise Fault(
            f"the {name} of environment {i} is {shown(values[row])}, in step {self._lengths[i] + 1} of its episode, "
            "expected finite numbers in float32"
        )

    def _require_actions(self, actions: NDArray[Any]) -> None:
        """Raise if an action is not in the action space, where the behaviour of environments is undefined."""
        low, high = self._action_bounds
        unfit = ~((actions >= low) & (actions <= high)).all(1)  # also NaN
        if unfit.any():
            self._carry.levels[-1].remaining[unfit] = 0  # decide again if the run continues
            i, space = int(unfit.argmax()), self.agent.task.action_space
            raise Fault(f"the action of environment {i} is {actions[i].tolist()}, expected one of {space}")

    def _begin(self) -> None:
        """Begin episodes in all environments."""
        obs, _ = self._reset()
        self._obs = self.agent.task.flatten(obs)
        self._resetting[:], self._over[:] = False, False
        self._forget(np.arange(self.n_envs))
        self.agent.reset(self._carry, np.arange(self.n_envs))

    def _true_last(
        self, next_obs: NDArray[np.float32], done: NDArray[np.bool_], info: dict[str, Any]
    ) -> NDArray[np.float32]:
        """Return the observations that the step led to, also where a new episode has already begun."""
        if self.mode != AutoresetMode.SAME_STEP or not done.any():
            return next_obs
        result = next_obs.copy()
        space = self.agent.task.observation_space
        for i in np.flatnonzero(done):
            last = info["final_obs"][i]
            single = {k: np.asarray(v)[None] for k, v in last.items()} if isinstance(space, spaces.Dict) else [last]
            result[i] = self.agent.task.flatten(single)[0]
        return result

    def _begin_due(self) -> None:
        """Begin episodes where the last one ended; a step later, so that an error of a reset loses no step."""
        if self._over.any():
            obs, _ = self._reset({"reset_mask": self._over.copy()})
            self._obs = np.where(self._over[:, None], self.agent.task.flatten(obs), self._obs)
            self._over[:] = False

    def _reset(self, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset environments, each with a new seed."""
        seeds = self._env_rng.integers(2**31, size=self.n_envs)
        as_list: Any = [int(seed) for seed in seeds]  # the base class's annotation lacks lists
        ids = np.arange(self.n_envs) if options is None else np.flatnonzero(options["reset_mask"])
        obs, info = self.env.reset(seed=as_list, options=options)
        for reason in self._faults(info):
            warnings.warn(f"an environment was rebuilt: {reason}", RuntimeWarning, stacklevel=4)
        if self._running is not None:
            self._running.begin(ids, seeds[ids])
        return obs, info

    def _faults(self, info: Mapping[str, Any]) -> list[str]:
        """Count and return the fault messages of an EnvPool."""
        messages = info.get("fault_message", ()) if self._reports_faults else ()
        reasons = [str(message) for message in messages if message is not None]
        self.n_faults += len(reasons)
        return reasons

    def _abandon(self, env_ids: NDArray[np.int64], reasons: Sequence[str]) -> None:
        """End episodes that cannot continue, as truncated: their last step is unknown."""
        self.agent.abandon(self._carry, env_ids, learn=self.learn)
        self._forget(env_ids)
        self.n_abandoned += len(env_ids)
        for reason in reasons:
            warnings.warn(f"an episode is closed as truncated: {reason}", RuntimeWarning, stacklevel=3)

    def close(self) -> None:
        self.env.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the state between two steps, with the environments as seeds and actions."""
        return {
            "n_total_env_steps": self.n_total_env_steps,
            "n_abandoned": self.n_abandoned,
            "n_faults": self.n_faults,
            "n_frames": self.n_frames,
            "env_rng": self._env_rng.bit_generator.state,
            "carry": self._carry.state_dict(),
            "metrics": self._metrics,
            "running": None if self._running is None else self._running.state_dict(),
            **{name: torch.from_numpy(getattr(self, f"_{name}").copy()) for name in _ARRAYS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`.

        The running episodes are replayed from their seeds. If a replay ends in another observation, the environment
        is not deterministic: the episode is closed as truncated, with a warning, and another one begins.
        """
        if "env" in state:
            raise ValueError(
                "the collector's state is that of environments on a device, expected one of environments in the memory "
                "of the host: a run goes on where its environments live"
            )
        for name in _ARRAYS:
            array, saved = getattr(self, f"_{name}"), state[name].cpu().numpy()
            if saved.shape != array.shape:
                raise ValueError(f"the collector's {name} has shape {saved.shape}, expected {array.shape}")
            array[:] = saved
        self.n_total_env_steps = index(state["n_total_env_steps"])
        self.n_abandoned, self.n_faults = index(state["n_abandoned"]), index(state["n_faults"])
        self.n_frames = index(state.get("n_frames", 0))  # none in older ones
        self._env_rng.bit_generator.state = state["env_rng"]
        self._metrics = {name: list(values) for name, values in state.get("metrics", {}).items()}  # none in older ones
        self._carry.load_state_dict(state["carry"])
        lost = np.ones(self.n_envs, bool)
        if self._running is not None and state["running"] is not None:
            self._running.load_state_dict(state["running"])
            obs, lost = self._running.play_again(self.env, partial(to_env, self.env.single_action_space))
            lost = (lost | (self.agent.task.flatten(obs) != self._obs).any(1)) & ~self._over
        if not lost.any():
            return
        ids = np.flatnonzero(lost)
        self._abandon(ids, [self._why_lost(int(i)) for i in ids])
        if self._running is not None:
            self._over |= lost
        else:
            obs, _ = self._reset()
            self._obs = self.agent.task.flatten(obs)
            self._resetting[:] = False

    def _why_lost(self, i: int) -> str:
        if self._running is None:
            return f"environment {i} resets itself, so that its episode cannot be replayed"
        if self._running.too_long[i]:
            return f"the episode of environment {i} had more steps than are kept, {self._running.max_steps}"
        return f"the replay of environment {i} ended in another observation than before; it is not deterministic"


_ARRAYS = ("obs", "returns", "lengths", "succeeded", "resetting", "over")


def _bounds(space: spaces.Space[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the lowest and highest actions, (A,) each."""
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        counts, starts = (np.array(x) for x in choices(space))
        return starts, starts + counts - 1
    assert isinstance(space, spaces.Box)
    return space.low, space.high


def _accept_any_info(env: VectorEnv[Any, Any, Any]) -> None:
    """Let gymnasium's vector environments take infos with entries of any type and shape, as an `EnvPool` does."""
    base: Any = env.unwrapped
    if type(base) in (SyncVectorEnv, AsyncVectorEnv):
        base._add_info = partial(add_info, n_envs=base.num_envs)


def _require_fit(env: VectorEnv[Any, Any, Any], agent: Hierarchy, learn: bool) -> None:
    task = agent.task
    for name, has, wants in [
        ("action", env.single_action_space, task.action_space),
        ("observation", env.single_observation_space, task.observation_space),
    ]:
        if not same(has, wants):
            raise ValueError(f"the environments' {name} space is {has}, expected the agent's, {wants}")
    if learn and env.num_envs != task.n_envs:
        raise ValueError(f"there are {env.num_envs} environments, expected {task.n_envs}, as the agent's task says")
