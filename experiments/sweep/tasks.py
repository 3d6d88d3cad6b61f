"""Tries of trials as tasks of Ray."""

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.sweep.guard import Told
from experiments.sweep.study import Resources

GUARD = Path(__file__).with_name("guard.py")


class RayPool:
    """Makes tries wherever the resources are free.

    Each is a task in a worker of Ray, which does nothing but start a guard (guard.py) and wait. The training is
    a process of its own, and not part of the worker, for three reasons. What it takes of memory and of the GPU is given
    back whole, and a crash harms nothing else. Signals reach its main thread, as they do when a person starts it; Ray
    blocks SIGINT in its workers. And it is exactly the command that the study tells, which a person can repeat.

    Ray tries nothing again by itself: it cannot know what a failure means.

    Args:
        address: Of a cluster; None makes one of this machine, for as long as the pool is open.
        n_cpus: How many cores of this machine to use; all by default. Not with an address.
        resources: What each try occupies.

    Raises:
        ValueError: Ray is missing, there is no such cluster, or no trial will ever fit.
    """

    def __init__(self, address: str | None, n_cpus: int | None, resources: Resources) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # A trial that asks for no GPU sees none; that is Ray's default, but it warns where it is not said.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
        try:
            import ray
        except ImportError as error:
            raise ValueError(
                "a study needs Ray: in the checkout, pip install -c constraints.txt -e '.[ray]'"
            ) from error
        self._ray = ray
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if address is None:
                # The least that Ray takes; nothing but a line per try is stored.
                store = 80 * 2**20
                ray.init("local", num_cpus=n_cpus, include_dashboard=False, object_store_memory=store, **quiet)
            else:
                ray.init(address, **quiet)
        except (ConnectionError, ImportError, RuntimeError, ValueError) as error:
            raise ValueError(f"Ray cannot be reached at {address or 'this machine'}: {error}") from error
        self._tokens: dict[Any, str] = {}
        self._task = ray.remote(max_retries=0)(supervision()).options(
            num_cpus=resources.cpus, num_gpus=resources.gpus, scheduling_strategy="SPREAD"
        )
        wanted = {"CPU": resources.cpus, "GPU": resources.gpus}
        self._wanted = {kind: n for kind, n in wanted.items() if n}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.fits = any(all(node.get(kind, 0) >= n for kind, n in wanted.items()) for node in nodes)
        """Whether there is a machine now that a trial fits on."""
        if address is None and not self.fits:
            self.close()
            has = ", ".join(f"{nodes[0].get(kind, 0):g} {kind}" for kind in wanted) if nodes else "nothing"
            raise ValueError(f"a trial takes {resources.cpus:g} CPU, {resources.gpus:g} GPU; this machine has {has}")

    def room(self) -> int:
        """How many tries fit on the machines of now, side by side; at least one, for which a cluster may grow.

        Raises:
            ValueError: The cluster is lost.
        """
        try:
            nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        except (ConnectionError, self._ray.exceptions.RayError) as error:
            raise ValueError(f"the cluster is lost: {error}") from error
        return max(1, sum(min(int(node.get(kind, 0) / n) for kind, n in self._wanted.items()) for node in nodes))

    def submit(self, token: str, attempt: str) -> None:
        """Have a try made, now or when there is room."""
        self._tokens[self._task.remote(str(GUARD), attempt)] = token

    def wait(self, seconds: float) -> list[tuple[str, Told]]:
        """Tries that have ended, after so many seconds at most.

        Raises:
            ValueError: The cluster is lost.
        """
        if not self._tokens:
            time.sleep(seconds)
            return []
        try:
            first, _ = self._ray.wait(list(self._tokens), num_returns=1, timeout=seconds)
            if not first:
                return []
            ready, _ = self._ray.wait(list(self._tokens), num_returns=len(self._tokens), timeout=0)
        except (ConnectionError, self._ray.exceptions.RayError) as error:
            raise ValueError(f"the cluster is lost: {error}") from error
        return [(self._tokens.pop(task), self._told(task)) for task in ready or first]

    def close(self) -> None:
        """Leave the cluster; one of this machine alone ends."""
        self._ray.shutdown()

    def _told(self, task: Any) -> Told:
        try:
            told = self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            why = str(error).strip().partition("\n")[0].partition(". ")[0]  # advice of several lines follows
            return {"outcome": "lost", "message": f"its worker is lost: {type(error).__name__}: {why}"}
        try:
            result: Told = json.loads(told)
        except ValueError:
            return {"outcome": "crashed", "message": "its guard ended without a word"}
        return result


def supervision() -> Callable[[str, str], str]:
    """What a worker does; as a function within a function it travels whole, and workers import nothing of ours."""

    def supervise(guard: str, attempt: str) -> str:
        import subprocess
        import sys

        # The guard reads its input, only to see it end with this worker.
        pipe = subprocess.PIPE
        with subprocess.Popen([sys.executable, "-P", "-S", guard, attempt], stdin=pipe, stdout=pipe, text=True) as made:
            return made.stdout.read() if made.stdout is not None else ""

    return supervise
