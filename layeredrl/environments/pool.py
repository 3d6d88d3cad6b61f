"""Vector environments whose single environments may fail and are rebuilt one by one."""

import math
import multiprocessing
import multiprocessing.util
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from layeredrl.environments.answers import (
    LARGEST,
    EnvironmentFault,
    Failure,
    fitted,
    flag,
    number,
    require_finite,
    unpacked,
)
from layeredrl.environments.infos import FAULT_KEYS, add_info
from layeredrl.environments.observations import LastObservations
from layeredrl.environments.requests import masked, seeds_for, split
from layeredrl.environments.workers import CLOSE_S, Local, Maker, Remote, Timeout, close_all, close_members

OnFault = Literal["raise", "restart"]

_MAX_RETRIES = 3  # of a reset; four failures in a row will hardly end


class EnvPool(VectorEnv[Any, Any, NDArray[Any]]):
    """Parallel environments that the caller resets, as in gymnasium's `AutoresetMode.DISABLED`.

    A fault of an environment is one of these: `reset` or `step` raises; its process dies or hangs; its observation
    has another structure, shape or kind of number than its space, or is not finite in float32; its reward is not a
    finite number in float32; its flags are not booleans. Bounds of the space are not checked. With
    `on_fault="restart"` the episode ends as truncated, with the last good observation and reward 0, and the next
    `reset` rebuilds the environment.
    The infos of the call have `fault`, a mask (n,), and `fault_message`, a list of n messages or None; without a
    fault they have neither, and entries of these names in an environment's own info are left out. Entries whose
    shapes or types differ between environments become arrays of objects.

    A faulty `reset` is repeated with the same seed. After any exception from a call, `close` works, and so does
    `reset`, which rebuilds lost environments. A failure to draw a frame raises with any `on_fault`.

    Args:
        makers: Functions that make one environment each; called again after a fault.
        asynchronous: If True, each environment runs in a process of its own, otherwise one after the other in this
            process. The processes ignore SIGINT and SIGTERM: this process decides on Ctrl-C.
        timeout_s: Seconds in which a process has to answer.
        on_fault: "raise" an `EnvironmentFault`, or "restart" the environment.
        max_faults: With "restart", largest number of faults in total; the next one is raised.
    """

    def __init__(
        self,
        makers: Sequence[Maker],
        *,
        asynchronous: bool = False,
        timeout_s: float = 60.0,
        on_fault: OnFault = "raise",
        max_faults: int = 100,
    ) -> None:
        if not makers:
            raise ValueError("makers is empty, expected at least one")
        if not 0 < timeout_s < math.inf:
            raise ValueError(f"timeout_s is {timeout_s}, expected a positive number")
        if on_fault not in get_args(OnFault):
            raise ValueError(f"on_fault is {on_fault!r}, expected one of {', '.join(get_args(OnFault))}")
        if max_faults < 0:
            raise ValueError(f"max_faults is {max_faults}, expected at least 0")
        self.num_envs = len(makers)
        self.n_faults = 0
        """Number of faults so far."""
        self._makers, self._asynchronous, self._timeout_s = list(makers), asynchronous, timeout_s
        self._on_fault, self._max_faults = on_fault, max_faults
        # None where one is lost; the next reset rebuilds it.
        self._members: list[Any] = [None] * self.num_envs  # Local or Remote
        # Runs before multiprocessing's own hook at exit, which would wait for ever for processes that ignore SIGTERM.
        self._finalizer = multiprocessing.util.Finalize(self, close_all, (self._members, timeout_s), exitpriority=10)
        try:
            first = self._make_all()
        except BaseException:
            self.close()
            raise
        self.single_observation_space, self.single_action_space, metadata, self.render_mode = first
        # No spec, as in gymnasium's own vector environments: it could not make this one.
        self.metadata = {**(metadata or {}), "autoreset_mode": AutoresetMode.DISABLED}
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._obs = LastObservations(self.single_observation_space, self.num_envs)
        self._n_steps = np.zeros(self.num_envs, np.int64)
        self._waiting = set(range(self.num_envs))  # environments that need a reset
        self._never_reset = True
        self._frames: list[Any] = [None] * self.num_envs

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin episodes.

        Args:
            seed: One seed for each environment, or that of the first one, from which they count upwards.
            options: Options of the environments; `reset_mask`, bool (n,), selects those to reset, by default all.

        Returns:
            The current observations of all environments, and infos.
        """
        self._require_open()
        seeds = seeds_for(self.num_envs, seed)
        ids = range(self.num_envs) if options is None or "reset_mask" not in options else masked(self.num_envs, options)
        if self._never_reset and len(ids) < self.num_envs:
            raise gym.error.ResetNeeded("the first reset has a reset_mask, expected one of all environments")
        rest = None if options is None else {k: v for k, v in options.items() if k != "reset_mask"}
        try:
            return self._reset(ids, seeds, rest)
        except BaseException as error:
            self._interrupt(error)
            raise

    def step(self, actions: Any) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Take one step in every environment.

        Args:
            actions: An element of `action_space`.
        """
        self._require_open()
        if self._waiting:
            raise gym.error.ResetNeeded(f"environments {sorted(self._waiting)} have no episode, expected a reset")
        parts = split(self.action_space, self.num_envs, actions)
        try:
            return self._step(parts)
        except BaseException as error:
            self._interrupt(error)
            raise

    def render(self) -> tuple[Any, ...]:
        """Return a frame of each environment; the last frame of one that is lost until the next reset."""
        self._require_open()
        try:
            self._render()
        except BaseException as error:
            self._interrupt(error)
            raise
        return tuple(self._frames)

    def close_extras(self, **kwargs: Any) -> None:
        self._finalizer()

    def _make_all(self) -> tuple[Any, ...]:
        """Make all environments; returns their common spaces, metadata and render mode."""
        for i in range(self.num_envs):
            self._members[i] = self._make(i)
        timeout = Timeout(self._timeout_s)
        first: tuple[Any, ...] | None = None
        for i, member in enumerate(self._members):
            try:
                described = member.receive(timeout)
            except Failure as failure:
                if isinstance(failure.error, Exception):
                    raise failure.error from None  # its own type, which the maker's author expects
                raise EnvironmentFault(i, 0, f"environment {i}, when it was made, {failure}") from None
            first = described if first is None else first
            for name, space, common in zip(("observation", "action"), described, first, strict=False):
                if space != common:
                    raise ValueError(
                        f"environment {i} has the {name} space {space}, expected environment 0's, {common}"
                    )
        assert first is not None
        return first

    def _make(self, i: int) -> "Local | Remote":
        return Remote(self._makers[i], i) if self._asynchronous else Local(self._makers[i])

    def _reset(
        self, ids: Sequence[int], seeds: list[int | None], options: dict[str, Any] | None
    ) -> tuple[Any, dict[str, Any]]:
        infos: dict[str, Any] = {}
        faults: dict[int, Failure] = {}
        self._waiting.update(ids)
        self._n_steps[list(ids)] = 0
        todo = list(ids)
        for trial in range(_MAX_RETRIES + 1):
            results, failures = self._try_reset(todo, seeds, options)
            self._obs.place({i: obs for i, (obs, _) in results.items()})
            for i, (_, info) in results.items():
                infos = self._add_info(infos, info, i)
            if not failures:
                break
            faults |= failures
            todo = list(failures)
            self._record(failures, f", {trial + 1} times in a row" if trial == _MAX_RETRIES else None)
        self._waiting.difference_update(ids)
        self._never_reset = False
        return self._obs.copy(), self._with_faults(infos, faults)

    def _try_reset(
        self, ids: Sequence[int], seeds: list[int | None], options: dict[str, Any] | None
    ) -> tuple[dict[int, tuple[Any, dict[str, Any]]], "dict[int, Failure]"]:
        """Reset environments after rebuilding lost ones; returns results of some and failures of the others."""
        results: dict[int, tuple[Any, dict[str, Any]]] = {}
        failures: dict[int, Failure] = {}
        made = [i for i in ids if self._members[i] is None]
        for i in made:
            self._members[i] = self._make(i)
        timeout = Timeout(self._timeout_s)
        for i in made:
            try:
                if self._members[i].receive(timeout)[:2] != (self.single_observation_space, self.single_action_space):
                    raise Failure("was rebuilt with other spaces")
            except Failure as failure:
                failures[i] = failure
        members = {i: self._members[i] for i in ids if i not in failures}
        for i, member in members.items():
            member.send("reset", seed=seeds[i], options=options)
        timeout = Timeout(self._timeout_s)
        for i, member in members.items():
            try:
                obs, info = unpacked("reset", member.receive(timeout), 2)
                obs = fitted(self.single_observation_space, obs)
                require_finite(self.single_observation_space, obs)
                results[i] = obs, info
            except Failure as failure:
                failures[i] = failure
        return results, failures

    def _step(self, actions: Iterable[Any]) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        space, n = self.single_observation_space, self.num_envs
        shape, dtype = (space.shape, space.dtype) if isinstance(space, spaces.Box) else (None, None)
        rows: list[Any] = [None] * n
        rewards, terminated, truncated = np.zeros(n), np.zeros(n, np.bool_), np.zeros(n, np.bool_)
        infos: dict[str, Any] = {}
        failures: dict[int, Failure] = {}
        timeout = Timeout(self._timeout_s)
        self._n_steps += 1
        for member, action in zip(self._members, actions, strict=True):
            member.send("step", action)
        for i, member in enumerate(self._members):
            try:
                obs, reward, ends, is_cut, info = unpacked("step", member.receive(timeout), 5)
                is_plain = type(obs) is np.ndarray and obs.dtype is dtype and obs.shape == shape
                rows[i] = obs if is_plain else fitted(space, obs)
                rewards[i] = reward if type(reward) is float and -LARGEST <= reward <= LARGEST else number(reward)
                if ends is not False:
                    terminated[i] = flag("terminated", ends)
                if is_cut is not False:
                    truncated[i] = flag("truncated", is_cut)
            except Failure as failure:
                failures[i] = failure
                continue
            if info:
                infos = self._add_info(infos, info, i)
        self._obs.gather(rows, failures)
        if failures:
            faulty = list(failures)
            rewards[faulty], terminated[faulty], truncated[faulty] = 0.0, False, True
        done = terminated | truncated
        if np.count_nonzero(done):
            self._waiting.update(np.flatnonzero(done).tolist())
        if failures:
            self._record(failures)
        return self._obs.copy(), rewards, terminated, truncated, self._with_faults(infos, failures)

    def _render(self) -> None:
        present = {i: member for i, member in enumerate(self._members) if member is not None}
        for member in present.values():
            member.send("render")
        timeout, faults = Timeout(self._timeout_s), []
        for i, member in present.items():
            try:
                self._frames[i] = member.receive(timeout)
            except Failure as failure:
                faults.append(self._fault(i, failure, "drawn after"))
                faults[-1].__cause__ = failure.error
        for fault in faults:
            if present[fault.env_id].pending:  # dead or hung
                self._waiting.add(fault.env_id)
                self._discard(fault.env_id)
        if faults:
            raise faults[0]

    def _record(self, failures: "Mapping[int, Failure]", verdict: str | None = None) -> None:
        """Count failures and discard their environments; raise if `on_fault` or a verdict says so."""
        for i, failure in sorted(failures.items()):
            self.n_faults += 1
            self._discard(i)
            failure.message = str(self._fault(i, failure))
        if self._on_fault == "raise":
            verdict = ""
        elif self.n_faults > self._max_faults:
            verdict = f"; there were {self.n_faults} faults, more than max_faults, {self._max_faults}"
        if verdict is not None:
            i, failure = min(failures.items())
            raise self._fault(i, failure, verdict=verdict) from failure.error

    def _fault(self, i: int, failure: "Failure", when: str = "in", verdict: str = "") -> EnvironmentFault:
        n = int(self._n_steps[i])
        where = f"{when} step {n} of its episode" if n else f"{when} reset"
        return EnvironmentFault(i, n, f"environment {i}, {where}, {failure}{verdict}")

    def _with_faults(self, infos: dict[str, Any], failures: "Mapping[int, Failure]") -> dict[str, Any]:
        if failures:
            infos["fault"] = np.isin(np.arange(self.num_envs), list(failures))
            infos["fault_message"] = [failures[i].message if i in failures else None for i in range(self.num_envs)]
        return infos

    def _add_info(self, vector_infos: dict[str, Any], env_info: dict[str, Any], env_num: int) -> dict[str, Any]:
        if not env_info.keys().isdisjoint(FAULT_KEYS):
            env_info = {key: value for key, value in env_info.items() if key not in FAULT_KEYS}
        return add_info(vector_infos, env_info, env_num, self.num_envs)

    def _discard(self, i: int) -> None:
        """Close an environment, or kill it, so that the next reset rebuilds it."""
        member, self._members[i] = self._members[i], None
        if member is not None:
            close_members({i: member}, min(self._timeout_s, CLOSE_S))  # problems of closing would only hide the fault

    def _interrupt(self, error: BaseException) -> None:
        """After an interrupted call: all need a reset, and no later call receives an answer that is still due."""
        if not isinstance(error, EnvironmentFault):
            self._waiting.update(range(self.num_envs))
            for i, member in enumerate(self._members):
                if member is not None and member.pending:
                    self._discard(i)

    def _require_open(self) -> None:
        if self.closed:
            raise gym.error.ClosedEnvironmentError("the environments are closed")
