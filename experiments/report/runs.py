"""Read the folders of runs, also damaged or old ones, and group the runs that differ in their seeds only."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.report.metrics import SECONDS, read_metrics
from experiments.run.flags import did_you_mean
from experiments.run.folder import CHECKPOINTS, CODE, CONFIG, DIAGNOSIS, FREE, METRICS, SUMMARY, flatten

_NAME_END = re.compile(r"[-_]?(seed)?\d+$")
"""End of the name of a run's folder: its seed."""

OWN = FREE | {"name", "runs_dir", "seed"}
"""Settings that may differ between the seeds of one setting."""


@dataclass
class Run:
    """Content of a run's folder. What could not be read is empty, with a remark in `notes`."""

    path: Path
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings with dots in their keys; empty if they cannot be read."""
    metrics: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """Environment steps and value of each metric, (N, 2), in the order of steps; finite values only."""
    summary: dict[str, str] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=dict)
    diagnosis: dict[str, dict[str, float]] = field(default_factory=dict)
    study: dict[str, Any] = field(default_factory=dict)
    """Fields of the study that made the run, if its folder is in that of a study."""
    notes: list[str] = field(default_factory=list)
    """Remarks on what is missing or damaged."""
    n_steps: int = 0
    """Number of environment steps taken, according to metrics and checkpoints."""

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.name or str(self.path)

    @property
    def readable(self) -> bool:
        """If True, the settings could be read."""
        return bool(self.settings)

    @property
    def agent(self) -> str:
        """Name of the agent on the command line."""
        return str(self.settings.get("agent", ""))

    @property
    def env(self) -> str:
        """Id of the environment."""
        return str(self.settings.get("env", ""))

    @property
    def seed(self) -> Any:
        """Random seed."""
        return self.settings.get("seed")

    @property
    def action_repeat(self) -> int:
        """Number of frames of the simulator in an environment step."""
        repeat = self.settings.get("action_repeat", 1)
        return repeat if isinstance(repeat, int) and repeat > 0 else 1

    @property
    def n_planned(self) -> int:
        """Number of environment steps according to the settings."""
        return int(self.settings.get("trainer.n_total_env_steps", 0))

    @property
    def finished(self) -> bool:
        """If True, the run has taken all of its steps, or has ended at `trainer.stop_at_return`."""
        return self.readable and (bool(self.summary) or 0 < self.n_planned <= self.n_steps)

    def seconds(self, steps: NDArray[np.float64], clock: str = SECONDS) -> NDArray[np.float64]:
        """Seconds of a clock after these environment steps, (N,); empty if it was not logged.

        Args:
            steps: Environment steps, (N,).
            clock: Metric of the clock: `SECONDS` of wall time, or `CPU_SECONDS`.
        """
        points = self.metrics.get(clock)
        return steps[:0] if points is None else np.interp(steps, points[:, 0], points[:, 1])

    def final(self, metric: str, share: float) -> float | None:
        """Return the mean of a metric over the last share of the run's steps, or its last value if none lies there."""
        points = self.metrics.get(metric)
        if points is None:
            return None
        late = points[points[:, 0] > (1 - share) * self.n_steps, 1]
        return float(late.mean() if len(late) else points[-1, 1])

    def reached(self, metric: str, value: float, in_a_row: int = 1) -> int | None:
        """Return the first environment step at which a metric was at least `value`, or None.

        Args:
            metric: Name of the metric.
            value: Value to reach.
            in_a_row: Number of consecutive entries that have to reach it; the step is that of the last of them.
        """
        streak = 0
        for step, found in self.metrics.get(metric, ()):
            streak = streak + 1 if found >= value else 0
            if streak == in_a_row:
                return int(step)
        return None


def find_runs(paths: Iterable[Path]) -> list[Run]:
    """Read the runs in these folders, each once; a folder is that of a run, or is searched for runs.

    Raises:
        ValueError: There is no such folder, or no run in it.
    """
    folders: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"{path} is no folder, expected that of a run, or one with runs in it")
        found = list(_folders(path))
        if not found:
            raise ValueError(f"{path} holds no run: there is no {CONFIG} in it, nor in the folders below")
        for folder in found:
            folders.setdefault(folder.resolve(), folder)
    return [read_run(folder) for folder in folders.values()]


def _folders(path: Path) -> Iterable[Path]:
    """Yield the folders of runs; folders inside a run are not searched."""
    if any((path / name).exists() for name in (CONFIG, METRICS, CHECKPOINTS)):
        yield path
        return
    try:
        below = sorted(child for child in path.iterdir() if child.is_dir() and not child.is_symlink())
    except OSError:  # one folder without permission must not hide the others
        return
    for child in below:
        yield from _folders(child)


def read_run(folder: Path) -> Run:
    """Read a run's folder; neither the code of its agent nor the current names of its settings are needed."""
    run = Run(folder)
    settings = flatten(_mapping(run, CONFIG, required=True))
    if {"agent", "env", "seed"} <= settings.keys() and isinstance(settings.get("trainer.n_total_env_steps", 0), int):
        run.settings = settings
    elif settings:
        run.notes.append(f"{CONFIG} holds no settings of a run")
    run.metrics, run.n_steps, notes = read_metrics(folder / METRICS)
    run.notes += notes
    run.summary = {key: str(value) for key, value in _mapping(run, SUMMARY).items()}
    run.code = {key: str(value) for key, value in _mapping(run, CODE).items()}
    run.diagnosis = {
        policy: {
            key: math.nan if value is None else float(value)
            for key, value in numbers.items()
            if isinstance(value, int | float | None)
        }
        for policy, numbers in _mapping(run, DIAGNOSIS).items()
        if isinstance(numbers, dict)
    }
    run.study = _study(folder.resolve().parent)
    saved = [int(path.name) for path in (folder / CHECKPOINTS).glob("[0-9]*") if path.name.isdecimal()]
    run.n_steps = max([run.n_steps, *saved])
    if run.readable and not run.finished:
        run.notes.append(f"not finished: {run.n_steps} of {run.n_planned} environment steps")
    return run


def _study(folder: Path) -> dict[str, Any]:
    """Read the fields of a study; empty if the folder has none, or a damaged one."""
    try:
        content = json.loads((folder / "study.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _mapping(run: Run, name: str, *, required: bool = False) -> dict[str, Any]:
    """Read a JSON object; empty, with a note, if that fails."""
    path = run.path / name
    if not path.exists():
        if required:
            run.notes.append(f"there is no {name}")
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        run.notes.append(f"{name} cannot be read: {error}")
        return {}
    if not isinstance(content, dict):
        run.notes.append(f"{name} holds no object")
        return {}
    return content


@dataclass(frozen=True)
class Group:
    """Runs of one setting in one environment, with different seeds."""

    env: str
    label: str
    runs: tuple[Run, ...]

    def counted(self, metric: str, *, unfinished: bool) -> list[Run]:
        """Return the runs that count in statistics: they have the metric, and are finished unless `unfinished`."""
        return [run for run in self.runs if metric in run.metrics and (run.finished or unfinished)]

    def notes(self) -> list[str]:
        """Return reasons why the runs are not independent seeds of one setting."""
        notes = []
        twice = sorted(str(seed) for seed, n in Counter(str(run.seed) for run in self.runs).items() if n > 1)
        if twice:
            notes.append(f"several runs have the seed {', '.join(twice)}: they are not independent of each other")
        planned = sorted({run.n_planned for run in self.runs})
        if len(planned) > 1:
            notes.append(f"runs of different lengths: {', '.join(map(str, planned))} environment steps")
        mixed = differing_settings(self.runs)
        if mixed:
            more = ", ..." if len(mixed) > 5 else ""
            notes.append(f"runs that differ in more than the seed: {', '.join(mixed[:5])}{more}")
        return notes


def group_runs(runs: Sequence[Run], by: Sequence[str] = ()) -> list[Group]:
    """Group runs by environment and settings, in the order of the first run of each group.

    Args:
        runs: Runs; unreadable ones are left out.
        by: Settings to group by, besides the environment; by default all except the seed and settings that do not
            change what is learned.

    Raises:
        ValueError: No run has such a setting.
    """
    runs = [run for run in runs if run.readable]
    known = {key for run in runs for key in run.settings}
    unknown = [key for key in by if key not in known]
    if unknown:
        hint = did_you_mean(unknown[0], known) or " (agent, n_envs, ...)"
        raise ValueError(f"group-by names {unknown[0]!r}, which is no setting of these runs{hint}")
    keys = sorted(set(by) - {"env"}) if by else sorted(known - OWN - {"env"})
    members: dict[tuple[str, tuple[str, ...]], list[Run]] = {}
    for run in runs:
        kind = tuple(written(run.settings[key]) if key in run.settings else "" for key in keys)
        members.setdefault((run.env, kind), []).append(run)
    labels = _labels(members, keys, by)
    return [Group(env, labels[kind], tuple(group)) for (env, kind), group in members.items()]


def _labels(
    members: dict[tuple[str, tuple[str, ...]], list[Run]], keys: Sequence[str], by: Sequence[str]
) -> dict[tuple[str, ...], str]:
    """Return a short name for each kind of run, distinct among those of its environment.

    An agent with other settings in each environment, but a single kind of them in each, keeps one name.
    """
    if by:
        return {kind: ", ".join(map(_setting_label, keys, kind)) or "all runs" for _, kind in members}
    agents = {kind: runs[0].agent for (_, kind), runs in members.items()}
    labels: dict[tuple[str, ...], str] = {}
    for agent in dict.fromkeys(agents.values()):
        found: dict[str, list[tuple[str, ...]]] = {}
        for env, kind in members:
            if agents[kind] == agent:
                found.setdefault(env, []).append(kind)
        differing = [i for i in range(len(keys)) if any(len({k[i] for k in kinds}) > 1 for kinds in found.values())]
        values = {kind: tuple(kind[i] for i in differing) for kinds in found.values() for kind in kinds}
        short = _short_labels(
            {k: [r for (_, x), runs in members.items() if x == k for r in runs] for k in values}, values
        )
        for kind in values:
            parts = [_setting_label(keys[i], kind[i]) for i in differing]
            # More would be too long for a legend; the table of settings lists the differences.
            labels[kind] = ", ".join([agent, *parts]) if len(parts) <= 2 else f"{agent} {short[kind]}"
    return labels


def _short_labels(
    runs: Mapping[tuple[str, ...], Sequence[Run]], values: Mapping[tuple[str, ...], tuple[str, ...]]
) -> dict[tuple[str, ...], str]:
    """Return the common name of the folders of each kind, without environment and seed, or else a letter.

    Args:
        runs: Runs by kind.
        values: Settings in which kinds differ; equal ones have one label.
    """
    names: dict[tuple[str, ...], set[str]] = {}
    for kind, value in values.items():
        stems = {_NAME_END.sub("", run.name).removesuffix(_slug(run.env)).rstrip("-_") for run in runs[kind]}
        names.setdefault(value, set()).update(stems)
    every = [stem for found in names.values() for stem in found]
    distinct = all(every) and len(set(every)) == len(every) == len(names)
    short = {value: next(iter(found)) if distinct else _letters(i) for i, (value, found) in enumerate(names.items())}
    return {kind: short[value] for kind, value in values.items()}


def _setting_label(key: str, value: str) -> str:
    return value if key == "agent" else f"{key.removeprefix('settings.')} {value or 'unknown'}"


def _letters(i: int) -> str:
    return (_letters(i // 26 - 1) if i >= 26 else "") + chr(ord("A") + i % 26)


def _slug(env: str) -> str:
    return re.sub(r"[^\w.+=-]", "-", env, flags=re.ASCII)  # as in the folder names of studies


def written(value: Any) -> str:
    """Format a setting: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """Return the keys of settings in which runs differ, except those that may differ between seeds."""
    keys = sorted({key for run in runs for key in run.settings} - OWN)
    missing = object()
    return [key for key in keys if len({written(run.settings.get(key, repr(missing))) for run in runs}) > 1]
