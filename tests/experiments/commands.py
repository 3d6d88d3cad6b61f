"""The commands, called in this process, and the files of their runs."""

import contextlib
import csv
import hashlib
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import evaluate, train
from experiments.run.config import AGENTS, RunConfig, parse
from layeredrl.collector import Collector
from layeredrl.storage import Checkpoints

QUICK = ("--preset", "debug", "--no-pictures", "--no-tensorboard")
"""Options of a run that takes a fraction of a second."""


def call(main: Callable[[], None], *args: object) -> None:
    """Run a command with arguments, in a terminal wide enough for paths."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [main.__module__, *map(str, args)])
        patch.setenv("COLUMNS", "400")
        main()


def run_train(*args: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "parse", parse_once)
        call(train.main, *args)


_PARSED: dict[tuple[str, ...], RunConfig[Any]] = {}


def parse_once(words: Sequence[str], report: Any = None) -> RunConfig[Any]:
    """Parse the words of a command that were not parsed before: parsing takes longer than some of the runs.

    Settings that depend on more than the words, on the task or a sweep of W&B, are parsed each time.
    """
    key, in_a_sweep = tuple(words), any(name.startswith("WANDB_SWEEP") for name in os.environ)
    if in_a_sweep or "--preset" not in key or key[0] not in AGENTS:
        return parse(words, report)
    if key not in _PARSED:
        _PARSED[key] = parse(words, report)
    return _PARSED[key]


def run_evaluate(*args: object) -> None:
    call(evaluate.main, *args)


def read_metrics(folder: Path) -> list[dict[str, str]]:
    """Return the rows of a run's metrics.csv, as text."""
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def without_time(folder: Path) -> list[dict[str, str]]:
    """Return the rows of a run's metrics.csv without the clocks: a second run repeats them to the last digit."""
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read_metrics(folder)]


def episode_returns(folder: Path) -> list[float]:
    return [float(row["env/episode_return"]) for row in read_metrics(folder) if row["env/episode_return"]]


def all_files(folder: Path) -> dict[Path, bytes | None]:
    """Return the contents of all files below a folder; None for folders.

    Inside a folder `wandb`, whose service writes on after a run's end, only the runs' folders count.
    """
    found: dict[Path, bytes | None] = {}
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        inside = parts[parts.index("wandb") + 1 :] if "wandb" in parts else ()
        if not inside:
            found[path] = path.read_bytes() if path.is_file() else None
        elif len(inside) == 1 and path.is_dir():
            found[path] = None
    return found


def newest(folder: Path) -> Path:
    """Return the newest checkpoint of a run."""
    return max((folder / "checkpoints").glob("0*"))


def read_state(folder: Path) -> dict[str, Any]:
    """Return the state in the newest checkpoint of a run."""
    return Checkpoints(folder / "checkpoints").load()


def change_state(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the newest checkpoint of a run; its checksums fit."""
    checkpoints = Checkpoints(folder / "checkpoints")
    state = checkpoints.load()
    change(state)
    checkpoints.save(state, int(newest(folder).name))


def fit_manifest(folder: Path) -> None:
    """Write the manifest of the newest checkpoint anew, with the sizes and checksums of its files."""
    manifest = json.loads((newest(folder) / "manifest.json").read_bytes())
    del manifest["sha256"]
    places = {"files": newest(folder), "segments": folder / "checkpoints" / "segments"}
    for part, place in places.items():
        for name in manifest[part]:
            data = (place / name).read_bytes()
            manifest[part][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_manifest(folder, manifest)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with its own checksum: that of the sorted JSON without it."""
    checksum = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    text = json.dumps({**manifest, "sha256": checksum}, sort_keys=True)
    (newest(folder) / "manifest.json").write_text(text)


@contextlib.contextmanager
def signal_at(n_total_env_steps: int, number: signal.Signals = signal.SIGTERM) -> Iterator[None]:
    """Send a signal during the step after this number of steps."""
    real_step = Collector.step

    def step(collector: Collector, *, explore: bool) -> Any:
        if collector.learn and collector.n_total_env_steps == n_total_env_steps:
            signal.raise_signal(number)
        return real_step(collector, explore=explore)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Collector, "step", step)
        yield


CLOCKS = {"seconds", "cpu_seconds", "elapsed_s", "run_id"}
"""Keys of a checkpoint that differ between runs of the same settings."""


def assert_same(a: Any, b: Any, place: str = "state") -> None:
    """Assert that two nested states are equal to the last bit, except for the clocks."""
    assert type(a) is type(b), place
    if isinstance(a, dict):
        assert a.keys() == b.keys(), place
        for key in a.keys() - CLOCKS:
            assert_same(a[key], b[key], f"{place}[{key!r}]")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), place
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{place}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, place
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=lambda message: f"{place}: {message}")
    else:
        assert a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b)), place


def assert_same_run(a: Path, b: Path) -> None:
    """Assert that two runs have the same last checkpoint and the same metrics, except for the clocks."""
    assert newest(a).name == newest(b).name
    assert (b / "metrics.csv").exists()  # else there is little to compare
    assert without_time(a) == without_time(b)
    assert_same(read_state(a), read_state(b))
