"""Published learning curves of a task, from experiments/references."""

import csv
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from experiments.report.statistics import Array

FOLDER = Path(__file__).parents[1] / "references"
"""Folder of the CSV files; its README.md has their columns and sources."""

METHODS = {
    **{"bro_utd10": "BRO (UTD 10)", "crossq": "CrossQ", "dreamerv3": "DreamerV3", "mrq": "MR.Q", "sac": "SAC"},
    **{"simbaV2_utd2": "SimbaV2 (UTD 2)", "tdmpc": "TD-MPC", "tdmpc2": "TD-MPC2"},
}
"""Names of the methods by their ids in the files; UTD: updates per environment step."""

METRICS = ("env/episode_return", "eval/episode_return")
"""Metrics that published returns can be compared with."""


@dataclass(frozen=True, eq=False)
class Published:
    """Published learning curve of one method on one task, with T points."""

    method: str
    """Name of the method."""
    task: str
    """Task of the source, such as HalfCheetah-v4."""
    frames: Array
    """Environment steps times action repeat, ascending, (T,)."""
    mean: Array
    """Mean return of the seeds, (T,)."""
    std: Array
    """Standard deviation over the seeds, (T,); NaN for a single one."""
    seeds: Array
    """Number of seeds, (T,)."""

    @property
    def label(self) -> str:
        """Name in legends and tables."""
        return f"{self.method}, published on {self.task}"

    def until(self, frames: float) -> Array:
        """Return frames and mean, (N, 2), up to a number of frames, where the curve ends by linear interpolation.

        It is empty if the first point comes later.
        """
        inside = self.frames <= frames
        points = np.stack([self.frames, self.mean], 1)[inside]
        if not inside.any() or inside.all() or points[-1, 0] == frames:
            return points
        return np.append(points, [[frames, float(np.interp(frames, self.frames, self.mean))]], 0)


def published(env: str, metric: str) -> list[Published]:
    """Return the published curves of an environment's task; an empty list if there are none for it or the metric."""
    return _curves().get(_task(env), []) if metric in METRICS else []


def _task(env: str) -> str:
    """Return the id of a task without module, version, and the differences between naming schemes.

    DeepMind Control's `ball_in_cup` is called `cup` in the source.
    """
    name = re.sub(r"-v\d+$", "", env.rpartition(":")[2])
    return name.replace("_", "-").replace("ball-in-cup", "cup") if name.startswith("dm_control/") else name


@cache
def _curves() -> dict[str, list[Published]]:
    rows: dict[tuple[str, str], list[list[float]]] = {}
    for path in sorted(FOLDER.glob("*.csv")):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        for row in csv.DictReader(lines):
            frames = row.get("env_frames") or row["env_steps"]
            numbers = [float(cell) if cell else np.nan for cell in (frames, row["mean"], row["sd"], row["seeds"])]
            rows.setdefault((row["task"], row["method"]), []).append(numbers)
    found: dict[str, list[Published]] = {}
    for (task, method), points in rows.items():
        columns = np.array(sorted(points)).T
        found.setdefault(_task(task), []).append(Published(METHODS.get(method, method), task, *columns))
    return found
