"""Damages of a run's files, and the messages about them."""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from experiments.run.config import from_json, to_json
from layeredrl.storage.files import FORMAT
from tests.experiments.commands import change_state, fit_manifest, newest, write_manifest

FOLDER = Path("runs/r")
OWNED = "owned"
"""File that hostile files would make."""


class Malice:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(OWNED),)


@dataclass(frozen=True)
class Damage:
    """A damage of the run in `FOLDER`: PETS in one environment, 60 steps."""

    name: str
    do: Callable[[], object]
    message: str
    """Part of the message."""
    slow: bool = False
    """True for slow tests: the quick ones have the same damage at other places."""


def put_run(trained: Path) -> None:
    """Copy a run to `FOLDER`."""
    shutil.copytree(trained, FOLDER)
    settings = replace(from_json(FOLDER / "config.json"), name="r", runs_dir=Path("runs"))
    (FOLDER / "config.json").write_text(to_json(settings))


def _state() -> Path:
    return newest(FOLDER) / "state.pt"


def _manifest() -> Path:
    return newest(FOLDER) / "manifest.json"


def _segment() -> Path:
    return max((FOLDER / "checkpoints" / "segments").iterdir())


def _config() -> Path:
    return FOLDER / "config.json"


FILES = {"state.pt": _state, "segment": _segment, "manifest.json": _manifest, "config.json": _config}


def _cut(find: Callable[[], Path], percent: int) -> Callable[[], object]:
    def do() -> None:
        data = find().read_bytes()
        find().write_bytes(data[: len(data) * percent // 100])

    return do


def _flip(find: Callable[[], Path], percent: int) -> Callable[[], object]:
    def do() -> None:
        data = bytearray(find().read_bytes())
        data[min(len(data) * percent // 100, len(data) - 1)] ^= 0x80
        find().write_bytes(data)

    return do


def _write(find: Callable[[], Path], data: bytes, *, fitting: bool = False) -> Callable[[], object]:
    def do() -> None:
        find().write_bytes(data)
        if fitting:
            fit_manifest(FOLDER)

    return do


def _save(find: Callable[[], Path], content: object) -> Callable[[], object]:
    def do() -> None:
        torch.save(content, find())
        fit_manifest(FOLDER)

    return do


def _edit_manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[], object]:
    def do() -> None:
        manifest = json.loads(_manifest().read_bytes())
        del manifest["sha256"]
        change(manifest)
        write_manifest(FOLDER, manifest)

    return do


def _edit_config(**changes: object) -> Callable[[], object]:
    def do() -> None:
        settings = json.loads(_config().read_text())
        _config().write_text(json.dumps(settings | changes))

    return do


def _edit_state(change: Callable[[dict[str, Any]], object]) -> Callable[[], object]:
    return lambda: change_state(FOLDER, lambda state: (change(state), None)[1])


def _set(*keys: Any, to: Any) -> Callable[[], object]:
    """Set an entry of the state by its keys; a function gets the old value."""

    def change(state: dict[str, Any]) -> None:
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = to(state[keys[-1]]) if callable(to) else to

    return _edit_state(change)


def _without(*keys: Any) -> Callable[[], object]:
    def change(state: dict[str, Any]) -> None:
        for key in keys[:-1]:
            state = state[key]
        del state[keys[-1]]

    return _edit_state(change)


_LEARNER = ("agent", "planner", "learner")
_REPLAY = ("experience", "planner")
_CARRY = ("collector", "carry", "levels", 0)
_UNFIT = "checkpoints does not fit the settings in config.json"

TRUNCATED = [
    Damage(
        f"{name} cut at {percent} %",
        _cut(find, percent),
        message,
        slow=percent != (0 if name.endswith(".json") else 90),
    )
    for (name, find), message in zip(
        FILES.items(),
        ["bytes, expected", "bytes, expected", "is not a readable checkpoint", "not the folder of a run"],
        strict=True,
    )
    for percent in (0, 40, 90)
]

FLIPPED = [
    Damage(
        f"{name}, a bit at {percent} %",
        _flip(find, percent),
        message,
        slow=percent != (0 if name.endswith(".json") else 60),
    )
    for (name, find), message in zip(
        FILES.items(), ["SHA-256", "SHA-256", "not a readable checkpoint", "not the folder of a run"], strict=True
    )
    for percent in (0, 60, 100)
]

FORMATS = [
    *(
        Damage(f"manifest.json of format {value!r}", _edit_manifest(lambda m, v=value: m.update(format=v)), message)
        for value, message in [
            (FORMAT + 1, f"has format {FORMAT + 1}, expected {FORMAT}"),
            (str(FORMAT), f"has format '{FORMAT}', expected {FORMAT}"),
            (True, f"has format True, expected {FORMAT}"),
        ]
    ),
    *(
        Damage(f"state.pt of format {value!r}", _save(_state, {"format": value, "state": {}}), message)
        for value, message in [
            (FORMAT - 1, f"has format {FORMAT - 1}"),
            ([1], "has format list"),
        ]
    ),
    Damage("segment of format 7", _save(_segment, {"format": 7, "state": {}}), "has format 7"),
    Damage("state.pt that is a tensor", _save(_state, torch.zeros(3)), "has format 'Tensor'"),
    Damage("state.pt without state", _save(_state, {"format": FORMAT}), "NoneType, expected a dict"),
    Damage("segment without rows", _save(_segment, {"format": FORMAT, "state": {}}), "KeyError"),
]

KEYS = [
    *(
        Damage(f"manifest.json without {key}", _edit_manifest(lambda m, k=key: m.pop(k)), "manifest.json has")
        for key in ("files", "format")
    ),
    Damage(
        "manifest.json of other steps",
        _edit_manifest(lambda m: m.update(n_total_env_steps=61)),
        "expected 000000000060",
    ),
    Damage(
        "manifest.json that names a file elsewhere",
        _edit_manifest(lambda m: m.update(segments={"../../../etc/passwd": {"size": 1, "sha256": ""}})),
        "a value has another type than expected",
    ),
    Damage("a stranger's file in a checkpoint", lambda: (newest(FOLDER) / "notes.txt").touch(), "holds"),
    Damage("no state.pt", lambda: _state().unlink(), "holds manifest.json, expected"),
    Damage("no manifest.json", lambda: _manifest().unlink(), "holds state.pt, expected"),
    Damage("a missing segment", lambda: _segment().unlink(), "is missing"),
    *(
        Damage(f"a state without {key}", _without(key), "the state has the keys")
        for key in ("agent", "collector", "n_total_env_steps")
    ),
    Damage("an agent without its optimiser", _without(*_LEARNER, "optimizer"), f"{_UNFIT}: KeyError: 'optimizer'"),
    Damage(
        "an agent with a level more",
        _edit_state(lambda s: s["agent"].update({"1": {}})),
        "levels planner, 1, expected planner",
    ),
    Damage("another agent's checkpoint", _edit_state(lambda s: s.update(agent={"0": {}}, experience={})), _UNFIT),
    Damage("a replay without rewards", _without(*_REPLAY, "rows", "rows", "rew"), _UNFIT),
    Damage("a carry without its memory", _without(*_CARRY, "memory", "until_report"), "memory holds"),
]

SHAPES = [
    Damage(
        "weights of another shape",
        _set(*_LEARNER, "world", to=lambda w: {k: v[..., :1] if v.ndim > 1 else v for k, v in w.items()}),
        "size mismatch",
    ),
    Damage("a generator's state that is too short", _set(*_LEARNER, "generator", to=lambda g: g[:10]), _UNFIT),
    Damage("steps that are a word", _set("collector", "n_total_env_steps", to="sixty"), _UNFIT),
    Damage(
        "observations of another width",
        _set("collector", "obs", to=torch.zeros(1, 7)),
        "the collector's obs has shape (1, 7), expected (1, 4)",
    ),
    Damage(
        "actions under way of another width", _set("collector", "running", "actions", to=[torch.zeros(3, 2)]), _UNFIT
    ),
    Damage(
        "actions under way of two environments",
        _set("collector", "running", "actions", to=[torch.zeros(3, 1)] * 2),
        "episodes of 2 environments, expected 1",
    ),
    Damage(
        "a carry of another shape",
        _set(*_CARRY, "reward", to=torch.zeros(2)),
        "the carry's reward has shape (2,), expected (1,)",
    ),
    Damage(
        "a replay of two environments",
        _set(*_REPLAY, "rows", to=lambda r: r | {"start": [0, 0], "stop": [30, 30]}),
        "of 2 environments, expected 1",
    ),
    Damage(
        "rewards of another type",
        _set(*_REPLAY, "rows", "rows", "rew", to=lambda r: r.int()),
        "rew of the replay's state has dtype int32, expected float64",
    ),
    Damage("episodes of another shape", _set("episodes", to=torch.zeros(2, 3)), _UNFIT),
    Damage("a log with more rows than there are", _set("loggers", "CsvLogger", "n_rows", to=99), "should have 99 rows"),
]

HOSTILE = [
    *(
        Damage(f"a hostile pickle as {name}", _write(find, pickle.dumps(Malice())), message)
        for (name, find), message in zip(
            FILES.items(),
            ["bytes, expected", "bytes, expected", "not a readable checkpoint", "not the folder of a run"],
            strict=True,
        )
    ),
    *(
        Damage(
            f"a hostile pickle as {name} with a fitting manifest",
            _write(FILES[name], pickle.dumps(Malice()), fitting=True),
            "is not a readable checkpoint",
        )
        for name in ("state.pt", "segment")
    ),
    *(
        Damage(
            f"a hostile torch file as {name} with a fitting manifest",
            _save(FILES[name], {"format": FORMAT, "state": Malice()}),
            "is not a readable checkpoint",
        )
        for name in ("state.pt", "segment")
    ),
    Damage(
        "yaml as config.json",
        _write(_config, b"!!python/object/apply:os.system ['touch owned']"),
        "not the folder of a run",
    ),
    Damage(
        "yaml as the seed in config.json",
        _edit_config(seed="!!python/object/apply:os.system ['touch owned']"),
        "config.json does not hold the settings of a run: seed",
    ),
    Damage(
        "a call as the agent in config.json",
        _edit_config(agent="__import__('os').system('touch owned')"),
        "holds a run with other settings: agent was",
    ),
    Damage(
        "a class as the settings in config.json", _edit_config(settings={"py/object": "os.system"}), "other settings"
    ),
    Damage("deep nesting as manifest.json", _write(_manifest, b"[" * 100_000), "is not a readable checkpoint"),
    Damage("deep nesting as config.json", _write(_config, b"[" * 100_000), "not the folder of a run"),
]

MOMENTS = Damage(
    "an optimiser's moments of another shape",  # torch takes it, and fused Adam would then write beyond its end
    _set(*_LEARNER, "optimizer", "state", 0, "exp_avg", to=torch.zeros(1)),
    _UNFIT,
)

DAMAGES = [*TRUNCATED, *FLIPPED, *FORMATS, *KEYS, *SHAPES, MOMENTS, *HOSTILE]
