"""Runs as a report sees them: what their folders hold, read with care, and which of them are seeds of one setting."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.run.folder import CHECKPOINTS, CODE, CONFIG, DIAGNOSIS, FREE, METRICS, SUMMARY, flatten
from layeredrl.loggers import STEP_COLUMN

SECONDS = "time/seconds"
CPU_SECONDS = "time/cpu_seconds"
RETURN = "env/episode_return"

OWN = FREE | {"name", "runs_dir", "seed"}
"""Settings that may differ between the seeds of one setting."""


@dataclass
class Run:
    """What a folder tells of a run. What could not be read is empty, and told in `notes`."""

    path: Path
    settings: dict[str, Any] = field(default_factory=dict)
    """With dots in the keys; empty if they cannot be read."""
    metrics: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """Environment steps and value by name, (N, 2), in the order of steps; only where there is a finite value."""
    summary: dict[str, str] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=dict)
    diagnosis: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What is missing or damaged."""
    n_steps: int = 0
    """Environment steps that are known to have been taken."""

    @property
    def name(self) -> str:
        """That of its folder."""
        return self.path.name or str(self.path)

    @property
    def readable(self) -> bool:
        """Whether it is known what was trained, where."""
        return bool(self.settings)

    @property
    def agent(self) -> str:
        """By its name on the command line."""
        return str(self.settings.get("agent", ""))

    @property
    def env(self) -> str:
        """Id of the environment."""
        return str(self.settings.get("env", ""))

    @property
    def seed(self) -> Any:
        """Of everything random."""
        return self.settings.get("seed")

    @property
    def n_planned(self) -> int:
        """Environment steps that the settings ask for."""
        return int(self.settings.get("trainer.n_total_env_steps", 0))

    @property
    def finished(self) -> bool:
        """Whether it has taken all of its steps."""
        return self.readable and (bool(self.summary) or 0 < self.n_planned <= self.n_steps)

    def seconds(self, steps: NDArray[np.float64]) -> NDArray[np.float64]:
        """The time that training had taken after these steps; empty if the run tells no times."""
        clock = self.metrics.get(SECONDS)
        return steps[:0] if clock is None else np.interp(steps, clock[:, 0], clock[:, 1])

    def final(self, metric: str, share: float) -> float | None:
        """Mean of a metric over the last share of the run's steps, or its last value if there is none in them."""
        points = self.metrics.get(metric)
        if points is None:
            return None
        late = points[points[:, 0] > (1 - share) * self.n_steps, 1]
        return float(late.mean() if len(late) else points[-1, 1])


def find_runs(paths: Iterable[Path]) -> list[Run]:
    """The runs in these folders, each read once: a folder is a run, or is searched for runs.

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
    """Folders of runs; a run's own folders are not searched."""
    if any((path / name).exists() for name in (CONFIG, METRICS, CHECKPOINTS)):
        yield path
        return
    try:
        below = sorted(child for child in path.iterdir() if child.is_dir() and not child.is_symlink())
    except OSError:  # a folder of somebody else's is no reason to tell nothing of the others
        return
    for child in below:
        yield from _folders(child)


def read_run(folder: Path) -> Run:
    """Read what a run left; the code of its agent is not needed, nor that its settings are those of today."""
    run = Run(folder)
    settings = flatten(_mapping(run, CONFIG, required=True))
    if {"agent", "env", "seed"} <= settings.keys() and isinstance(settings.get("trainer.n_total_env_steps", 0), int):
        run.settings = settings
    elif settings:
        run.notes.append(f"{CONFIG} holds no settings of a run")
    run.metrics, run.n_steps = _read_metrics(run)
    run.summary = {key: str(value) for key, value in _mapping(run, SUMMARY).items()}
    run.code = {key: str(value) for key, value in _mapping(run, CODE).items()}
    run.diagnosis = {
        policy: {key: float(value) for key, value in numbers.items() if isinstance(value, int | float)}
        for policy, numbers in _mapping(run, DIAGNOSIS).items()
        if isinstance(numbers, dict)
    }
    saved = [int(path.name) for path in (folder / CHECKPOINTS).glob("[0-9]*") if path.name.isdecimal()]
    run.n_steps = max([run.n_steps, *saved])
    if run.readable and not run.finished:
        run.notes.append(f"not finished: {run.n_steps} of {run.n_planned} environment steps")
    return run


def _mapping(run: Run, name: str, *, required: bool = False) -> dict[str, Any]:
    """A JSON file that holds an object; empty, and told, if it does not."""
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


def _read_metrics(run: Run) -> tuple[dict[str, NDArray[np.float64]], int]:
    """Every column, and the greatest number of steps; lines that are no numbers are left out, and told."""
    path = run.path / METRICS
    points: dict[str, list[tuple[float, float]]] = {}
    damaged, last = [], 0.0
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            for row in reader:
                try:
                    values = [float(cell) if cell else np.nan for cell in row]
                    cells = dict(zip(header, values, strict=True))  # a line that a killed process left is too short
                    step = cells.pop(STEP_COLUMN)
                    last = max(last, int(step))
                except (ValueError, KeyError):
                    damaged.append(str(reader.line_num))
                    continue
                for name, value in cells.items():
                    if np.isfinite(value):
                        points.setdefault(name, []).append((step, value))
    except FileNotFoundError:
        run.notes.append(f"there is no {METRICS}: nothing was logged yet")
    except (OSError, ValueError, csv.Error) as error:
        run.notes.append(f"{METRICS} cannot be read to its end: {error}")
    if damaged:
        more = ", ..." if len(damaged) > 5 else ""
        run.notes.append(f"{METRICS} is damaged in line {', '.join(damaged[:5])}{more}; left out")
    columns = {name: np.array(rows) for name, rows in points.items()}
    return {name: rows[np.argsort(rows[:, 0], kind="stable")] for name, rows in columns.items()}, int(last)


@dataclass(frozen=True)
class Group:
    """Runs of one setting in one environment, which differ in their seeds."""

    env: str
    label: str
    runs: tuple[Run, ...]

    def counted(self, metric: str, *, unfinished: bool) -> list[Run]:
        """The runs that statistics are made of: those that tell the metric, and are finished unless told otherwise."""
        return [run for run in self.runs if metric in run.metrics and (run.finished or unfinished)]

    def notes(self) -> list[str]:
        """What makes its runs less than independent seeds of one setting."""
        told = []
        twice = sorted(str(seed) for seed, n in Counter(str(run.seed) for run in self.runs).items() if n > 1)
        if twice:
            told.append(f"several runs have the seed {', '.join(twice)}: they are not independent of each other")
        planned = sorted({run.n_planned for run in self.runs})
        if len(planned) > 1:
            told.append(f"runs of different lengths: {', '.join(map(str, planned))} environment steps")
        mixed = differing_settings(self.runs)
        if mixed:
            more = ", ..." if len(mixed) > 5 else ""
            told.append(f"runs that differ in more than the seed: {', '.join(mixed[:5])}{more}")
        return told


def group_runs(runs: Sequence[Run], by: Sequence[str] = ()) -> list[Group]:
    """Runs that belong together, in the order of the first of each.

    Args:
        runs: Those that cannot be read are left out.
        by: Settings that make a group, besides the environment; by default all but the seed, and what cannot matter.

    Raises:
        ValueError: No run has such a setting.
    """
    runs = [run for run in runs if run.readable]
    known = {key for run in runs for key in run.settings}
    unknown = [key for key in by if key not in known]
    if unknown:
        raise ValueError(f"group-by names {unknown[0]!r}, which is no setting of these runs (agent, n_envs, ...)")
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
    """A short name for each kind of run, which tells it from the others in its environment.

    An agent that has its own settings for each environment, but one kind of them in each, has one name.
    """
    if by:
        return {kind: ", ".join(map(_told, keys, kind)) or "all runs" for _, kind in members}
    agents = {kind: runs[0].agent for (_, kind), runs in members.items()}
    labels: dict[tuple[str, ...], str] = {}
    for agent in dict.fromkeys(agents.values()):
        found: dict[str, list[tuple[str, ...]]] = {}
        for env, kind in members:
            if agents[kind] == agent:
                found.setdefault(env, []).append(kind)
        differing = [i for i in range(len(keys)) if any(len({k[i] for k in kinds}) > 1 for kinds in found.values())]
        values = {kind: tuple(kind[i] for i in differing) for kinds in found.values() for kind in kinds}
        ranks = {value: i for i, value in enumerate(dict.fromkeys(values.values()))}
        for kind, value in values.items():
            told = [_told(keys[i], kind[i]) for i in differing]
            # More would be too long for a legend; the table of settings says which is which.
            labels[kind] = ", ".join([agent, *told]) if len(told) <= 2 else f"{agent} {_letters(ranks[value])}"
    return labels


def _told(key: str, value: str) -> str:
    return value if key == "agent" else f"{key.removeprefix('settings.')} {value or 'unknown'}"


def _letters(i: int) -> str:
    return (_letters(i // 26 - 1) if i >= 26 else "") + chr(ord("A") + i % 26)


def written(value: Any) -> str:
    """A setting as a person would write it."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """Keys of the settings that are not the same in all of these runs, but for those of a run's own."""
    keys = sorted({key for run in runs for key in run.settings} - OWN)
    missing = object()
    return [key for key in keys if len({written(run.settings.get(key, repr(missing))) for run in runs}) > 1]
