"""The pool against gymnasium's SyncVectorEnv, and with faults of every kind."""

import contextlib
import ctypes
import gc
import itertools
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from layeredrl.environments import EnvironmentFault, EnvPool
from tests.envs.counter import CounterEnv

ROOT = Path(__file__).parents[2]
both = pytest.mark.parametrize("asynchronous", [False, True])
NOTHING = np.zeros((3, 1), np.float32)


class Panic(BaseException):
    """The base class of panics of code in Rust."""


class Faulty(CounterEnv):
    """Fails as an action k says, with the kth fault (0 is none), and in its first `n_bad_resets` resets."""

    FAULTS = ("raise", "nan", "inf", "shape", "dtype", "ragged", "reward nan", "reward text", "reward array", "flag")
    STEPS = (
        *(None, *FAULTS, "flag float", "tuple", "info", "exit", "kill", "hang"),
        *("compute", "sys.exit", "panic", "huge"),
    )

    def __init__(self, n_bad_resets=0, kind="raise", length=4):
        super().__init__(length, random_length=True)
        self.action_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.n_bad_resets, self.kind = n_bad_resets, kind
        self.render_mode = "rgb_array"

    def reset(self, *, seed=None, options=None):
        _, info = super().reset(seed=seed)
        self._count = int(self.np_random.integers(1000))
        self._length += self._count
        if self.n_bad_resets > 0:
            self.n_bad_resets -= 1
            return self.spoil(self.kind, self._observation(), info)
        return self._observation(), {"seed": -1 if seed is None else seed, "options": options}

    def _observation(self):
        return np.array([self._count, -self._count], np.float32)  # nothing of the episodes before

    def step(self, action):
        obs, reward, terminated, truncated, _ = super().step(action)
        info = {"n": self._count, "name": "x"} if self._count % 2 else {}
        fault = self.STEPS[int(action[0])]
        return self.spoil(fault, obs, reward, terminated, truncated, info)

    def spoil(self, fault, obs, *others):
        if fault == "raise":
            raise ValueError("boom")
        if fault == "exit":
            os._exit(3)
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "hang":
            time.sleep(1000)
        if fault == "compute":
            ctypes.PyDLL(None).sleep(1000)  # in C, while other threads of Python wait
        if fault == "sys.exit":
            sys.exit()
        if fault == "panic":
            raise Panic("index out of bounds")
        if fault in ("tuple", "info"):
            return (obs, *others[:-1], None)[: None if fault == "info" else -2]
        bad = {"nan": [np.nan, 1.0], "inf": np.array([1, -np.inf], np.float32), "shape": np.zeros(3, np.float32)}
        bad |= {"dtype": np.array(["a", "b"]), "ragged": [[1.0], [1.0, 2.0]]}
        if len(others) == 4:
            rewards = {"huge": 1e39, "reward nan": np.float32(np.nan), "reward text": "1", "reward array": np.ones(1)}
            flags = {"flag": None, "flag float": 1.0}
            others = rewards.get(fault, others[0]), flags.get(fault, others[1]), *others[2:]
        return bad.get(fault, obs), *others

    def render(self):
        return np.full((2, 2, 3), self._count % 256, np.uint8)


MESSAGES = {
    "raise": r"raised ValueError: boom \(test_pool.py:\d+\)",
    "nan": r"returned the observation \[nan,? 1\.0?\], expected finite numbers",
    "inf": r"returned the observation \[ *1\. -inf\], expected finite",
    "shape": r"returned the observation \[0\. 0\. 0\.\] of shape \(3,\), expected \(2,\)",
    "dtype": r"of dtype <U1, expected float32",
    "ragged": r"returned the observation \[\[1.0\], \[1.0, 2.0\]\], expected numbers",
    "reward nan": "returned the reward nan, expected a finite number",
    "reward text": "returned the reward 1, expected a finite number",
    "reward array": r"returned the reward \[1\.\], expected a finite number",
    "flag": "returned terminated = None, expected True or False",
    "flag float": "returned terminated = 1.0, expected True or False",
    "tuple": "expected a tuple of",
    "info": "the last a dict",
    "sys.exit": r"raised SystemExit: .*\(test_pool.py:\d+\)",
    "panic": r"raised Panic: index out of bounds",
    "huge": r"returned the reward 1e\+39, expected a finite number in float32",
    "exit": "ended its process with exit code 3",
    "kill": "lost its process to SIGKILL",
    "hang": "did not answer within 0.2 s",
}
IN_PROCESS = [*Faulty.STEPS[1:14], "sys.exit", "panic", "huge"]
OF_PROCESSES = ["exit", "kill", "hang"]
AT_RESET = ["raise", "nan", "inf", "shape", "dtype", "ragged", "info"]


def action_of(kind, at):
    """Actions of three environments, of which one fails."""
    actions = NOTHING.copy()
    actions[at] = Faulty.STEPS.index(kind)
    return actions


def sync_envs(n=3, maker=Faulty):
    return SyncVectorEnv([maker] * n, autoreset_mode=AutoresetMode.DISABLED)


@contextlib.contextmanager
def pool(makers=None, **kwargs):
    env = EnvPool(makers or [Faulty] * 3, **kwargs)
    try:
        yield env
    finally:
        env.close()
        assert not [p for p in multiprocessing.active_children() if p.name.startswith("EnvPool")]


def assert_same(ours, theirs):
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, tuple | list):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b)
    else:
        np.testing.assert_array_equal(ours, theirs)
        assert getattr(ours, "dtype", None) == getattr(theirs, "dtype", None)


class Goals(gym.ObservationWrapper):
    """Dict observations of two dtypes, one of them cast."""

    def __init__(self):
        super().__init__(CounterEnv(4, "alternate", random_length=True))
        self.observation_space = gym.spaces.Dict(
            count=self.env.observation_space, goal=gym.spaces.Box(-1, 1, (1,), np.float64)
        )

    def observation(self, observation):
        return {"goal": -observation[1:], "count": observation}


class Choices(gym.Env):
    """Observes a choice and its history."""

    observation_space = gym.spaces.Tuple([gym.spaces.Discrete(5), gym.spaces.MultiDiscrete([2, 3])])
    action_space = gym.spaces.Dict(a=gym.spaces.Discrete(3), b=gym.spaces.Box(0, 1, (2,)))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return (int(self.np_random.integers(5)), np.array([0, 2])), {}

    def step(self, action):
        draw = self.np_random.integers(5)
        return (draw, np.array([action["a"] % 2, 1])), 1, np.bool_(draw == 0), int(action["b"][0] > 0.8), {"draw": draw}


MAKERS = {
    "cartpole": partial(gym.make, "CartPole-v1", max_episode_steps=12, render_mode="rgb_array"),
    "counter": Faulty,
    "goals": Goals,
    "choices": Choices,
}


@pytest.mark.parametrize(
    ("name", "n", "asynchronous"), [*itertools.product(MAKERS, [3], [False, True]), ("counter", 1, False)]
)
def test_a_pool_without_faults_equals_a_sync_vector_env(name, n, asynchronous):
    theirs = sync_envs(n, MAKERS[name])
    rng = np.random.default_rng(n)
    is_counter = name == "counter"
    with pool([MAKERS[name]] * n, asynchronous=asynchronous) as ours:
        for attribute in ("num_envs", "metadata", "render_mode", "spec"):
            assert getattr(ours, attribute) == getattr(theirs, attribute)
        for attribute in ("observation_space", "action_space", "single_observation_space", "single_action_space"):
            assert getattr(ours, attribute) == getattr(theirs, attribute)
        kept = []
        for seed in (0, [5 + i for i in range(n)], [9] + [None] * (n - 1)):
            for env in (ours, theirs):
                env.reset(seed=list(range(n)))
            assert_same(ours.reset(seed=seed), theirs.reset(seed=seed))
            if is_counter:
                assert_same(ours.reset(seed=3, options={"a": 1}), theirs.reset(seed=3, options={"a": 1}))
            theirs.action_space.seed(1)
            for _ in range(15):
                actions = NOTHING[:n] if is_counter else theirs.action_space.sample()
                our_step = ours.step(actions)
                assert_same(our_step, theirs.step(actions))
                kept.append((our_step[0], json.dumps(our_step[0], default=str)))
                if is_counter:
                    assert_same(ours.render(), theirs.render())
                mask = our_step[2] | our_step[3] | (rng.random(n) < 0.2)
                if mask.any():
                    seeds = rng.integers(1000, size=n).tolist()
                    options = {"reset_mask": mask}
                    expected = theirs.reset(seed=seeds, options=dict(options))
                    assert_same(ours.reset(seed=seeds, options=options), expected)
                    assert options.keys() == {"reset_mask"}
        assert all(json.dumps(obs, default=str) == text for obs, text in kept)  # they are copies
        assert ours.n_faults == 0
    theirs.close()


def faults(kinds, asynchronous_kinds):
    return pytest.mark.parametrize(
        ("kind", "asynchronous"), [*((k, False) for k in kinds), *((k, True) for k in asynchronous_kinds)]
    )


@faults(IN_PROCESS, ["raise", "nan", *OF_PROCESSES])
def test_a_fault_ends_one_episode_and_leaves_the_others_alone(kind, asynchronous):
    twin = sync_envs()
    with pool(asynchronous=asynchronous, on_fault="restart", timeout_s=0.2 if kind == "hang" else 20.0) as env:
        for n_faults, at in enumerate((0, 2), 1):
            before = env.reset(seed=20 + at)[0]
            twin.reset(seed=20 + at)
            obs, rewards, terminated, truncated, infos = env.step(action_of(kind, at))
            theirs = twin.step(NOTHING)
            np.testing.assert_array_equal(obs[at], before[at])
            assert (rewards[at], terminated[at], truncated[at]) == (0.0, False, True)
            others = np.arange(3) != at
            for ours, their in zip((obs, rewards, terminated, truncated), theirs[:4], strict=True):
                np.testing.assert_array_equal(ours[others], their[others])
            np.testing.assert_array_equal(infos["fault"], ~others)
            assert [message is None for message in infos["fault_message"]] == others.tolist()
            assert infos["fault_message"][at].startswith(f"environment {at}, in step 1 of its episode, ")
            assert re.search(MESSAGES[kind], infos["fault_message"][at])
            assert env.n_faults == n_faults
            with pytest.raises(gym.error.ResetNeeded, match=rf"environments \[.*{at}.*\] have no episode"):
                env.step(NOTHING)
            mask = terminated | truncated
            for _ in range(3):
                assert_same(*(e.reset(seed=[40, 50, 60], options={"reset_mask": mask.copy()}) for e in (env, twin)))
                ours = env.step(NOTHING)
                assert_same(ours, twin.step(NOTHING))
                mask = ours[2] | ours[3] | ~others


@faults(["raise", "nan", "reward text"], ["raise", "kill", "hang"])
def test_a_fault_in_a_step_can_raise(kind, asynchronous):
    with pool(asynchronous=asynchronous, timeout_s=0.2 if kind == "hang" else 20.0) as env:
        env.reset(seed=0)
        with pytest.raises(EnvironmentFault, match=MESSAGES[kind]) as caught:
            env.step(action_of(kind, 1))
        assert (caught.value.env_id, caught.value.n_steps, env.n_faults) == (1, 1, 1)
        if kind == "raise":
            assert type(caught.value.__cause__) is ValueError
            assert not asynchronous or "in spoil" in "".join(caught.value.__cause__.__notes__)
        with pytest.raises(gym.error.ResetNeeded):
            env.step(NOTHING)
        env.reset(seed=0)
        env.step(NOTHING)


class Makers:
    """Makers whose first `n_bad` environments fail in their resets, or cannot be remade; a file counts the calls."""

    def __init__(self, path, n_bad, kind):
        self.path, self.n_bad, self.kind = path, n_bad, kind

    def __call__(self):
        n = len(self.path.read_text()) if self.path.exists() else 0
        self.path.write_text("x" * (n + 1))
        if self.kind == "maker" and 0 < n <= self.n_bad:
            raise OSError("no licence")
        return Faulty(n < self.n_bad, "raise" if self.kind == "maker" else self.kind)


@faults([*AT_RESET, "maker"], ["raise", "maker", *OF_PROCESSES])
def test_a_faulty_reset_is_repeated_with_the_same_seed(kind, asynchronous, tmp_path):
    at = len(kind) % 3
    makers = [Faulty] * 3
    makers[at] = Makers(tmp_path / "count", 2, kind)
    with pool(makers, asynchronous=asynchronous, on_fault="restart", timeout_s=0.2 if kind == "hang" else 20.0) as env:
        obs, infos = env.reset(seed=[1, 2, 3])
        np.testing.assert_array_equal(obs, sync_envs().reset(seed=[1, 2, 3])[0])
        assert infos["seed"].tolist() == [1, 2, 3]
        assert infos["fault"].tolist() == [i == at for i in range(3)]
        if kind != "maker":
            assert infos["fault_message"][at].startswith(f"environment {at}, in reset, ")
        assert env.n_faults == (3 if kind == "maker" else 2)
        env.step(NOTHING)


@both
def test_resets_that_never_work_raise(asynchronous):
    for kwargs, n in (({"on_fault": "restart"}, 4), ({"on_fault": "raise"}, 1)):
        with pool([Faulty, partial(Faulty, 9), Faulty], asynchronous=asynchronous, **kwargs) as env:
            text = "environment 1, in reset, raised ValueError: boom" + (".*4 times in a row" if n == 4 else "")
            with pytest.raises(EnvironmentFault, match=text) as caught:
                env.reset(seed=0)
            assert (caught.value.env_id, caught.value.n_steps, env.n_faults) == (1, 0, n)


def test_too_many_faults_raise():
    with pool(on_fault="restart", max_faults=2) as env:
        for _ in range(2):
            env.reset(seed=0)
            env.step(action_of("raise", 2))
        env.reset(seed=0)
        with pytest.raises(EnvironmentFault, match=r"environment 2, .*there were 3 faults, more than max_faults, 2"):
            env.step(action_of("raise", 2))


@both
def test_several_faults_at_once_and_steps_are_counted(asynchronous):
    with pool([partial(Faulty, length=1000)] * 3, asynchronous=asynchronous, on_fault="restart") as env:
        env.reset(seed=1)
        env.reset(seed=7)
        for _ in range(2):
            env.step(NOTHING)
        _, rewards, _, truncated, infos = env.step(NOTHING + np.array([[1], [0], [2]], np.float32))
        assert truncated.tolist() == infos["fault"].tolist() == [True, False, True]
        assert rewards[1] > 0
        assert "step 3 of" in infos["fault_message"][0]
        assert "step 3 of" in infos["fault_message"][2]
        assert env.n_faults == 2


def test_values_that_are_converted():
    class Lenient(CounterEnv):
        def step(self, action):
            obs, reward, *_ = super().step(action)
            return (obs.astype(np.float64) - 9).tolist(), np.array(int(reward)), np.bool_(False), 0, {}

    with pool([Lenient]) as env:
        env.reset()
        obs, rewards, terminated, truncated, _ = env.step(NOTHING[:1])
        np.testing.assert_array_equal(obs, [[-8, -9]])  # out of the space's bounds
        assert (obs.dtype, rewards.tolist()) == (np.float32, [1.0])
        assert (terminated.tolist(), truncated.tolist()) == ([False], [False])


def test_messages_of_long_and_nested_observations():
    class Long(CounterEnv):
        def __init__(self):
            super().__init__()
            self.observation_space = gym.spaces.Dict(x=gym.spaces.Box(-1, 1, (30, 40)))
            self.key, self.value = "x", 1e300  # too large for float32

        def _observation(self):
            values = np.zeros((30, 40))
            values[3, 17] = self.value if self._count else 0
            return {self.key if self._count else "x": values}

    with pool([Long]) as env:
        env.reset()
        message = r"observation\['x'\] .*, at \[3, 17\] inf, expected finite"
        with pytest.raises(EnvironmentFault, match=message) as caught:
            env.step(NOTHING[:1])
        assert len(str(caught.value)) < 600
    with pool([Long]) as env:
        env.reset()
        env._members[0]._env.key = "y"
        with pytest.raises(EnvironmentFault, match=r"expected a dict with the keys x"):
            env.step(NOTHING[:1])


def pids(env):
    return [member._process.pid for member in env._members if member is not None]


@pytest.mark.parametrize(("number", "at"), [(signal.SIGKILL, 0), (signal.SIGKILL, 2), (signal.SIGSTOP, 2)])
def test_a_worker_that_dies_or_stops_between_calls(number, at):
    with pool(asynchronous=True, on_fault="restart", timeout_s=0.3) as env:
        env.reset(seed=0)
        os.kill(pids(env)[at], number)
        _, _, _, truncated, infos = env.step(NOTHING)
        assert truncated[at]
        assert infos["fault"].tolist() == [i == at for i in range(3)]
        os.kill(pids(env)[0], number)
        obs, infos = env.reset(seed=4)
        np.testing.assert_array_equal(obs, sync_envs().reset(seed=4)[0])
        assert infos["fault"].sum() == 1
        env.step(NOTHING)


def test_many_kills_leave_nothing_behind():
    def footprint():
        return len(os.listdir("/proc/self/fd")), len(multiprocessing.active_children())

    before = footprint()
    with pool(asynchronous=True, on_fault="restart") as env:
        env.reset(seed=0)
        counts = set()
        for k in range(6):
            os.kill(pids(env)[k % 3], signal.SIGKILL)
            assert env.step(NOTHING)[4]["fault"][k % 3]
            env.reset(seed=k)
            counts.add(footprint())
        assert len(counts) == 1
        assert env.n_faults == 6
    assert footprint() == before


@both
def test_unreferenced_pools_are_closed(asynchronous, tmp_path):
    class Closing(CounterEnv):
        def close(self):
            (tmp_path / "closed").write_text("yes")

    env = EnvPool([Closing], asynchronous=asynchronous)
    env.reset()
    del env
    gc.collect()
    assert (tmp_path / "closed").read_text() == "yes"
    assert not multiprocessing.active_children()


@both
def test_errors_and_hangs_while_closing(asynchronous):
    class Complaining(CounterEnv):
        def close(self):
            raise ValueError("open file")

    class Slow(CounterEnv):
        def close(self):
            time.sleep(1000 if asynchronous else 0)

    env = EnvPool([Complaining, Slow], asynchronous=asynchronous, timeout_s=0.2)
    env.reset()
    with pytest.warns(RuntimeWarning, match="environment 0, when it was closed, raised ValueError: open file"):
        env.close()
    env.close()
    with pytest.raises(gym.error.ClosedEnvironmentError):
        env.reset()
    assert not multiprocessing.active_children()


@pytest.fixture
def interruptible():
    """SIGINT raises, also in a background job of a shell, which begins with that signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@both
@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_call_requires_a_reset(asynchronous):
    class Interrupting(Faulty):
        def step(self, action):
            if action[0] == 1:
                os.kill(parent, signal.SIGINT)
                time.sleep(0.3)
                action = NOTHING[0]
            return super().step(action)

    parent = os.getpid()
    with pool([Faulty, Interrupting, Faulty], asynchronous=asynchronous) as env:
        env.reset(seed=0)
        with pytest.raises(KeyboardInterrupt):
            env.step(action_of("raise", 1))
        with pytest.raises(gym.error.ResetNeeded):
            env.step(NOTHING)
        obs, infos = env.reset(seed=6)
        np.testing.assert_array_equal(obs, sync_envs().reset(seed=6)[0])
        assert "fault" not in infos
        assert env.n_faults == 0


@both
def test_frames(asynchronous):
    class NoScreen(Faulty):
        def render(self):
            raise RuntimeError("no screen")

    with pool([NoScreen], asynchronous=asynchronous, on_fault="restart") as env:
        env.reset()
        with pytest.raises(EnvironmentFault, match="environment 0, drawn after reset, raised RuntimeError: no screen"):
            env.render()
        env.step(NOTHING[:1])
    with pool(asynchronous=asynchronous, on_fault="restart") as env:
        env.reset(seed=0)
        before = env.render()
        assert [frame.shape for frame in before] == [(2, 2, 3)] * 3
        env.step(action_of("raise", 0))
        np.testing.assert_array_equal(env.render()[0], before[0])
        if asynchronous:
            os.kill(pids(env)[1], signal.SIGKILL)
            with pytest.raises(EnvironmentFault, match=r"drawn after step 1 .*, lost its process to SIGKILL"):
                env.render()
            env.reset()
            env.render()


@both
def test_errors_of_makers_keep_their_type(asynchronous):
    def broken():
        raise gym.error.DependencyNotInstalled("no simulator")

    with pytest.raises(gym.error.DependencyNotInstalled, match="no simulator"):
        EnvPool([Faulty, broken], asynchronous=asynchronous)
    assert not multiprocessing.active_children()


def test_bad_arguments():
    for makers, kwargs, text in [
        ([Faulty], {"timeout_s": 0.0}, "timeout_s is 0.0, expected a positive number"),
        ([Faulty], {"timeout_s": float("nan")}, "timeout_s is nan"),
        ([Faulty], {"on_fault": "ignore"}, "on_fault is 'ignore', expected one of raise, restart"),
        ([Faulty], {"max_faults": -1}, "max_faults is -1"),
        ([], {}, "makers is empty"),
        ([CounterEnv, Goals], {}, "environment 1 has the observation space Dict.*expected environment 0's, Box"),
        ([CounterEnv, Faulty], {}, "environment 1 has the action space"),
        ([CounterEnv, Faulty], {"asynchronous": True}, "environment 1 has the action space"),
    ]:
        with pytest.raises(ValueError, match=text):
            EnvPool(makers, **kwargs)
    assert not multiprocessing.active_children()


@both
def test_bad_calls_do_no_harm(asynchronous):
    with pool(asynchronous=asynchronous) as env:
        with pytest.raises(gym.error.ResetNeeded):
            env.step(NOTHING)
        with pytest.raises(gym.error.ResetNeeded, match="first reset"):
            env.reset(options={"reset_mask": np.array([True, False, False])})
        env.reset(seed=0)
        for actions in (NOTHING[:2], NOTHING[:, 0], np.zeros((3, 2))):
            with pytest.raises(ValueError, match=r"actions have shape .*expected \(3, 1\)"):
                env.step(actions)
        with pytest.raises(ValueError, match="there are 2 seeds, expected 3"):
            env.reset(seed=[1, 2])
        for mask in ([True, False, False], np.zeros(3, bool), np.ones(2, bool)):
            with pytest.raises((TypeError, ValueError), match="reset_mask"):
                env.reset(options={"reset_mask": mask})
        env.step(NOTHING)


SCRIPT = """
import multiprocessing, os, signal, sys, time
import numpy as np
from layeredrl.environments import EnvPool, workers
from tests.environments.test_pool import Faulty, pids

def run(ending):
    other, env = EnvPool([Faulty], asynchronous=True), EnvPool([Faulty] * 2, asynchronous=True, on_fault="restart")
    env.reset(seed=0)
    os.kill(pids(env)[0], signal.SIGKILL)  # one of them is younger than the rest
    env.step(np.zeros((2, 1)))
    env.reset(seed=0)
    interrupted = []  # the handlers come last, so that no worker inherits them
    signal.signal(signal.SIGINT, lambda *_: interrupted.append(1))
    signal.signal(signal.SIGTERM, lambda *_: None)
    os.killpg(0, signal.SIGINT)
    os.killpg(0, signal.SIGTERM)
    time.sleep(0.3)
    assert "fault" not in env.step(np.zeros((2, 1)))[4] and interrupted
    if ending in ("hang", "compute"):
        env._members[1].send("step", np.array([Faulty.STEPS.index(ending)]))
    print(*pids(env), *pids(other), flush=True)
    if ending != "exit":
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    method, *endings = sys.argv[1:]
    multiprocessing.set_start_method(method)
    workers.CLOSE_S = 0.1  # seconds that a hanging worker outlives this process
    workers.DEATH_SIGNAL = signal.SIGHUP  # 1, the number of seconds that a computing one does
    for ending in endings[1:]:  # each in a process of its own
        child = os.fork()
        if not child:
            os.setsid()
            run(ending)
            sys.exit()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (0 if ending == "exit" else -9)
    run(endings[0])
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("method", "endings"),
    [
        ("fork", ["hang", "compute", "idle", "exit"]),
        pytest.param("spawn", ["exit"], marks=pytest.mark.slow),
        pytest.param("forkserver", ["idle"], marks=pytest.mark.slow),
    ],
)
def test_workers_survive_signals_but_not_their_parent(method, endings, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.run(
        [sys.executable, str(script), method, *endings],
        capture_output=True,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=200,
        check=False,
    )
    assert process.returncode == (0 if endings[0] == "exit" else -signal.SIGKILL), process.stderr
    workers = [int(pid) for pid in process.stdout.split()]
    assert len(workers) == 3 * len(endings)
    deadline = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))
