"""Checkpoints: states that are restored, files that are refused, and saves that fail without loss."""

import copy
import hashlib
import io
import itertools
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from layeredrl.storage import CheckpointError, Checkpoints
from layeredrl.storage.files import FORMAT, manifest_bytes
from layeredrl.storage.segments import Increment

STATE = {
    "weights": torch.arange(12.0).view(3, 4),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "count": torch.tensor(2**40),
    "nested": {"list": [1, 2.5, "three", None, True], "empty": {}, "deep": {"x": [torch.ones(2)]}},
}


class Trap:
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def assert_equal(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    else:
        assert a == b


@pytest.fixture(autouse=True)
def without_sync(monkeypatch):
    """Syncing takes time and only matters when the machine loses its power."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "runs" / "checkpoints")


def assert_refused(checkpoints: Checkpoints, message: str, **kwargs) -> None:
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(**kwargs)


def test_states_of_modules_and_optimisers_come_back(checkpoints):
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.eye(3)).square().sum().backward()
    optimizer.step()
    state = {"net": net.state_dict(), "optimizer": optimizer.state_dict()}
    checkpoints.save(state, 3)
    assert_equal(checkpoints.load(), state)
    assert state["optimizer"]["state"][0]["exp_avg"].any()


def save_until_killed(folder: Path) -> None:
    """Save rows, of which the last 40 are needed, without end."""
    checkpoints = Checkpoints(folder, keep=2)
    stop = checkpoints.load()["rows"]["stop"][0] if checkpoints.newest() is not None else 0
    saved = [stop]
    while True:
        start, stop = saved[0], stop + 3
        rows = {"number": torch.arange(start, stop)}
        increment = Increment(rows, [start], [stop], [max(0, stop - 40)], lambda stop=stop: saved.__setitem__(0, stop))
        checkpoints.save({"stop": stop, "rows": increment}, stop - stop % 2, score=float(stop % 7))


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_killed_process_leaves_intact_checkpoints(tmp_path):
    rng, folder, last = random.Random(0), tmp_path / "run", 0
    for i in range(100):
        if i >= 12 and last > 30:
            break
        child = os.fork()
        if not child:
            try:
                save_until_killed(folder)
            finally:
                os._exit(1)
        time.sleep(0.02 + 0.1 * rng.random())
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        if Checkpoints(folder).newest() is None:
            continue
        state = Checkpoints(folder).load()
        stop = state["stop"]
        assert state["rows"]["rows"]["number"].tolist() == list(range(max(0, stop - 40), stop))
        assert stop >= last
        assert stop - stop % 2 == Checkpoints(folder).newest()
        last = stop
    assert last > 30
    checkpoints = Checkpoints(folder)
    checkpoints.load()
    checkpoints.save({}, 10**9)
    assert_no_litter(checkpoints)


class Rings:
    """Rows of some environments as plain lists, which make increments and check what is loaded."""

    def __init__(self, n_envs: int, size: int) -> None:
        self.size = size
        self.rows: list[list[float]] = [[] for _ in range(n_envs)]
        self.saved = [0] * n_envs

    def add(self, env: int, n: int) -> None:
        self.rows[env] += [1000.0 * env + len(self.rows[env]) + i for i in range(n)]

    def increment(self, *, start: list[int] | None = None) -> Increment:
        stop = [len(rows) for rows in self.rows]
        keep_from = [max(0, n - self.size) for n in stop]
        if start is None:
            start = [max(pair) for pair in zip(self.saved, keep_from, strict=True)]
        new = [x for rows, first in zip(self.rows, start, strict=True) for x in rows[first:]]
        values = torch.tensor(new, dtype=torch.float64)
        columns = {"x": values, "pair": torch.stack([values, -values], 1).to(torch.bfloat16), "even": values % 2 == 0}
        return Increment(columns, start, stop, keep_from, lambda: setattr(self, "saved", stop))

    def check(self, loaded: dict) -> None:
        values = torch.tensor([x for rows in self.rows for x in rows[-self.size :]], dtype=torch.float64)
        columns = {"x": values, "pair": torch.stack([values, -values], 1).to(torch.bfloat16), "even": values % 2 == 0}
        stop = [len(rows) for rows in self.rows]
        start = [max(0, n - self.size) for n in stop]
        assert_equal(loaded, {"start": start, "stop": stop, "rows": columns if len(values) else {}})


def segments_of(checkpoints: Checkpoints) -> set[str]:
    return {path.name for path in (checkpoints.folder / "segments").iterdir()}


def assert_no_litter(checkpoints: Checkpoints) -> None:
    folders = [path for path in checkpoints.folder.iterdir() if path.name != "segments"]
    assert all(path.name.isdigit() and len(path.name) == 12 for path in folders), folders
    used = set()
    for path in folders:
        assert {file.name for file in path.iterdir()} == {"state.pt", "manifest.json"}
        used |= json.loads((path / "manifest.json").read_bytes())["segments"].keys()
    assert segments_of(checkpoints) == used


def test_the_newest_comes_back(checkpoints):
    assert checkpoints.newest() is None
    assert_refused(checkpoints, f"there is no checkpoint in {re.escape(str(checkpoints.folder))}")
    state = {**STATE, "tuple": (1, (2.5, [torch.ones(1)])), 3: {None: True}}
    state["generator"] = np.random.default_rng(0).bit_generator.state
    checkpoints.save({"old": 1}, 0)
    checkpoints.save(state, 1000)
    for reader in (checkpoints, Checkpoints(checkpoints.folder)):
        assert reader.newest() == 1000
        assert_equal(reader.load(), state)
    assert {path.name for path in checkpoints.folder.iterdir()} == {"000000000000", "000000001000", "segments"}


def test_the_last_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)

    def kept() -> list[int]:
        return sorted(int(path.name) for path in tmp_path.iterdir() if path.name != "segments")

    for n, score, expected in [
        (1, None, [1]),
        (2, -5.0, [1, 2]),
        (3, -7, [2, 3]),
        (4, None, [2, 3, 4]),
        (5, -5.0, [2, 4, 5]),  # of equals the first
        (6, np.float32(-6), [2, 5, 6]),
        (7, None, [2, 6, 7]),
        (8, 1e30, [7, 8]),
        (8, -100.0, [7, 8]),  # in its place
        (9, -10.0, [8, 9]),
        (10, None, [9, 10]),
        (11, None, [9, 10, 11]),
    ]:
        checkpoints.save({"n": n}, n, score=score)
        assert kept() == expected
    other = Checkpoints(tmp_path / "other")
    for call, message in [
        (lambda: checkpoints.save({}, 10), "n_total_env_steps is 10, expected at least 11, the newest checkpoint's"),
        (lambda: other.save({}, -1), "n_total_env_steps is -1"),
        (lambda: checkpoints.save({}, 12, score=float("nan")), "score is nan"),
        (lambda: Checkpoints(tmp_path, keep=0), "keep is 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    assert kept() == [9, 10, 11]
    assert not other.folder.exists()


def test_values_that_could_not_be_read_back_are_not_written(checkpoints):
    good = {"widest": (1 << 2039) - 1, "lowest": -(1 << 2039) + 1}
    checkpoints.save(good, 0)
    bad = [Path("x"), np.zeros(1), np.float64(1), {1, 2}, b"x", 1j, 1 << 2039, {"a": (Trap,)}, {Path("x"): 1}]
    for value in bad:
        with pytest.raises((TypeError, ValueError), match=r"state\['bad'\]"):
            checkpoints.save({"bad": value}, 1)
    assert checkpoints.load() == good
    assert_no_litter(checkpoints)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 12))])
def test_increments_add_up(tmp_path, seed):
    """Random adds, saves and restarts, of two rings at different places; each load is compared with the lists."""
    rng = np.random.default_rng(seed)
    n_envs, size = int(rng.integers(1, 4)), int(rng.integers(1, 12))
    rings = {"a": Rings(n_envs, size), "b": Rings(1, 5)}
    checkpoints = Checkpoints(tmp_path, keep=int(rng.integers(1, 4)))
    last, n = None, 0
    for _ in range(20):
        for ring in rings.values():
            for env in range(len(ring.rows)):
                ring.add(env, int(rng.integers(0, 2 * ring.size) if rng.random() < 0.5 else 0))
        if rng.random() < 0.2:
            rings["a"].increment()  # a save that failed
        n += int(rng.integers(0, 3))
        start = None
        if rng.random() < 0.15:  # all is written again
            start = [max(0, len(rows) - size - int(rng.integers(0, 2))) for rows in rings["a"].rows]
        state = {"nested": [1, (rings["a"].increment(start=start), "x")], "b": rings["b"].increment(), "n": n}
        checkpoints.save(state, n, score=rng.standard_normal() if rng.random() < 0.5 else None)
        last = {name: copy.deepcopy(ring) for name, ring in rings.items()}
        assert_no_litter(checkpoints)
        if rng.random() < 0.3:
            checkpoints = Checkpoints(tmp_path, keep=checkpoints.keep)
            loaded = checkpoints.load()
            rings = last
        else:
            loaded = Checkpoints(tmp_path).load()
        rings["a"].check(loaded["nested"][1][0])
        rings["b"].check(loaded["b"])
        assert loaded["nested"] == [1, (loaded["nested"][1][0], "x")]
        assert loaded["n"] == n


def test_a_save_writes_only_new_rows(checkpoints):
    rings = Rings(2, 10_000)

    def save(n: int, *new: int) -> set[str]:
        for env, count in enumerate(new):
            rings.add(env, count)
        checkpoints.save({"rows": rings.increment()}, n)
        return segments_of(checkpoints)

    (first,) = save(0, 10_000)
    before = (checkpoints.folder / "segments" / first).stat()
    (second,) = save(1, 0, 10) - {first}
    assert (checkpoints.folder / "segments" / first).stat() == before
    assert (checkpoints.folder / "segments" / second).stat().st_size < 4000
    assert save(2) == {first, second}
    assert first in save(3, 9_999)  # for one row
    save(4, 1)
    save(5)
    found = save(6)
    assert first not in found
    assert second in found
    rings.check(checkpoints.load()["rows"])


def test_a_view_is_written_without_the_rest_of_its_storage(checkpoints):
    whole = torch.zeros(100_000)
    increment = Increment({"x": whole[5:7], "y": torch.arange(4.0).view(2, 2).T}, [0], [2], [0], lambda: None)
    checkpoints.save({"rows": increment}, 0)
    (file,) = (checkpoints.folder / "segments").iterdir()
    assert file.stat().st_size < 4000
    rows = checkpoints.load()["rows"]["rows"]
    assert_equal(rows, {"x": torch.zeros(2), "y": torch.arange(4.0).view(2, 2).T})


def plain_increment(start: list[int], stop: list[int], keep_from: list[int] | None = None, **rows) -> Increment:
    n = sum(stop) - sum(start)
    return Increment(rows or {"x": torch.zeros(n)}, start, stop, keep_from or [0] * len(start), lambda: None)


def test_increments_that_do_not_continue_the_last_one_are_refused(checkpoints):
    checkpoints.save({"part": [plain_increment([0], [5], [2])]}, 0)
    for increment, message in [
        (plain_increment([6], [7]), "first new row of environment 0 is 6, expected 5"),
        (plain_increment([4], [7], [3]), "first new row of environment 0 is 4, expected 5.*at most 3"),
        (plain_increment([0, 0], [5, 1]), "of 2 environments, expected 1"),
        (plain_increment([5], [7], [0]), "keep_from and stop of environment 0 are 0 and 7, expected at least 2"),
        (plain_increment([0], [4], [2]), "are 2 and 4, expected at least 2 and 5"),
        (plain_increment([5], [6], [4], x=torch.zeros(1, 2)), "rows are .* expected .*'x'.* as before"),
        (plain_increment([5], [6], [4], y=torch.zeros(1)), "rows are .* expected .*'x'.* as before"),
    ]:
        for writer in (checkpoints, Checkpoints(checkpoints.folder)):
            assert writer.load()["part"][0]["stop"] == [5]
            with pytest.raises(ValueError, match=rf"state\['part'\]\[0\] does not continue .*: .*{message}"):
                writer.save({"part": [increment]}, 1)
    assert checkpoints.newest() == 0
    assert_no_litter(checkpoints)


def test_rows_that_are_not_needed_may_be_missing(checkpoints):
    checkpoints.save({"rows": plain_increment([0, 0], [5, 5], x=torch.arange(10))}, 0)
    # with another layout, because nothing of the old one is left
    checkpoints.save({"rows": plain_increment([9, 5], [11, 6], [9, 5], y=torch.arange(3.0))}, 1)
    assert len(segments_of(checkpoints)) == 2
    rows = checkpoints.load()["rows"]
    assert_equal(rows, {"start": [9, 5], "stop": [11, 6], "rows": {"y": torch.arange(3.0)}})
    with pytest.raises(ValueError, match="first new row of environment 0 is 3, expected 0"):
        Checkpoints(checkpoints.folder / "other").save({"rows": plain_increment([3], [4])}, 0)


@pytest.mark.parametrize(
    ("rows", "start", "stop", "keep_from", "message"),
    [
        ({"x": torch.zeros(2)}, [0], [1], [0], r"x has shape \(2,\), expected \(1, ...\)"),
        ({"x": torch.tensor(1.0)}, [0], [1], [0], r"x has shape \(\), expected \(1, ...\)"),
        ({}, [0], [1], [0], "rows is empty, expected 1 rows"),
        ({}, [2], [1], [0], "environment 0 are 2, 1 and 0"),
        ({}, [1], [1], [2], "environment 0 are 1, 1 and 2"),
        ({}, [-1], [-1], [0], "environment 0 are -1, -1 and 0"),
        ({}, [0], [0, 1], [0], "of 1, 2 and 1 environments"),
    ],
)
def test_an_inconsistent_increment_is_refused(rows, start, stop, keep_from, message):
    with pytest.raises(ValueError, match=message):
        Increment(rows, start, stop, keep_from, lambda: None)


class Killed(BaseException):
    """Simulates the end of the process: later calls have no effect either."""


class Failing:
    """Makes the n-th call to the operating system raise: once, always from then on, or as if the process had died."""

    NAMES = ("rename", "replace", "fsync", "open", "mkdir", "unlink", "rmdir")

    def __init__(self, patch: pytest.MonkeyPatch, n: int, kind: str) -> None:
        self.calls, self.n, self.kind = 0, n, kind
        for name in self.NAMES:
            patch.setattr(os, name, self.wrap(getattr(os, name)))
        patch.setattr(io, "open", self.wrap(io.open))

    def wrap(self, function):
        def called(*args, **kwargs):
            self.calls += 1
            if self.calls == self.n or (self.calls > self.n and self.kind != "once"):
                raise Killed if self.kind == "killed" else OSError(28, "No space left on device")
            return function(*args, **kwargs)

        return called


@pytest.mark.parametrize(
    ("kind", "same"),
    [("once", False), ("always", True), ("killed", True), pytest.param("killed", False, marks=pytest.mark.slow)],
)
@pytest.mark.filterwarnings("ignore:old checkpoints in .* could not be removed:RuntimeWarning")
def test_a_save_that_fails_at_any_call_loses_nothing(tmp_path, monkeypatch, kind, same):
    """At the n-th call for every n, until it gets through without a failure."""
    template = Rings(2, 6)
    checkpoints = Checkpoints(tmp_path / "template", keep=1)
    for n in range(2):
        template.add(0, 4)
        template.add(1, 1)
        checkpoints.save({"rows": template.increment(), "n": n}, 10 * n, score=-n)
    outcomes = []
    for n in itertools.count(1):
        folder = tmp_path / str(n)
        shutil.copytree(tmp_path / "template", folder)
        checkpoints, rings = Checkpoints(folder, keep=1), copy.deepcopy(template)
        checkpoints.load()
        rings.add(0, 5)
        before, after = template, copy.deepcopy(rings)
        with monkeypatch.context() as patch:
            failing = Failing(patch, n, kind)
            try:
                checkpoints.save({"rows": rings.increment(), "n": 2}, 10 if same else 20, score=2)
                outcomes.append("saved")
            except OSError:
                outcomes.append("raised")
            except Killed:
                outcomes.append("killed")
        state = Checkpoints(folder).load()
        assert state["n"] == 2 or outcomes[-1] != "saved"
        (after if state["n"] == 2 else before).check(state["rows"])
        if outcomes[-1] == "raised" and kind == "once" and state["n"] == 1:
            assert_no_litter(checkpoints)
        if kind == "killed":
            checkpoints = Checkpoints(folder, keep=1)
            checkpoints.load()
            rings = copy.deepcopy(after if state["n"] == 2 else before)
            rings.saved = [len(rows) for rows in rings.rows]
        rings.add(1, 2)
        checkpoints.save({"rows": rings.increment(), "n": 3}, 20, score=3)
        rings.check(Checkpoints(folder).load()["rows"])
        assert_no_litter(checkpoints)
        assert checkpoints.newest() == 20
        assert len(list(folder.iterdir())) == 2
        shutil.rmtree(folder)
        if failing.calls < n:
            break
    assert n > 15
    assert outcomes[:5] == ["killed" if kind == "killed" else "raised"] * 5
    assert outcomes[-1] == "saved"


def test_files_are_synced_before_the_checkpoint_appears(checkpoints, monkeypatch):
    checkpoints.save({}, 0)
    events = []
    rename = os.rename

    def name_of(descriptor: int) -> str:
        return str(Path(os.readlink(f"/proc/self/fd/{descriptor}")).relative_to(checkpoints.folder))

    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append(name_of(descriptor)))
    monkeypatch.setattr(os, "rename", lambda old, new: events.append(f"to {new.name}") or rename(old, new))
    checkpoints.save({"rows": plain_increment([0], [5])}, 1)
    (segment_file,) = segments_of(checkpoints)
    temporary = "000000000001.tmp"
    written = [f"segments/{segment_file}", "segments", f"{temporary}/state.pt", f"{temporary}/manifest.json", temporary]
    assert events[:7] == [*written, "to 000000000001", "."]


def test_a_full_disk_raises_an_os_error_and_leaves_nothing(checkpoints):
    checkpoints.save({"x": 1}, 0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoints.save({"rows": plain_increment([0], [5]), "x": torch.zeros(100_000)}, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoints.load() == {"x": 1}
    assert_no_litter(checkpoints)


def test_pruning_deletes_leftovers_of_killed_saves_and_nothing_else(checkpoints):
    for n in range(4):
        checkpoints.save({"x": n}, n)
    foreign = ["notes.txt", "mine.tmp", "5", "segments/mine.pt", "segments/1-0.pt", "segments/000000000000-weights.pt"]
    for call in (Checkpoints(checkpoints.folder).prune, lambda: checkpoints.save({"x": 3}, 3)):
        for name in foreign:
            (checkpoints.folder / name).mkdir()
        (checkpoints.folder / "000000000000.tmp").mkdir()  # in the midst of being deleted
        shutil.copytree(checkpoints.folder / "000000000001", checkpoints.folder / "000000000000")
        (checkpoints.folder / "segments" / "000000000000-0123456789abcdef.pt").touch()
        call()
        for name in foreign:
            (checkpoints.folder / name).rmdir()
        assert_no_litter(checkpoints)
        assert not segments_of(checkpoints)
        assert sorted(path.name for path in checkpoints.folder.glob("0*")) == [f"{n:012d}" for n in (1, 2, 3)]
        assert checkpoints.load() == {"x": 3}


def saved_once(checkpoints: Checkpoints) -> list[Path]:
    """The three files of a checkpoint."""
    rings = Rings(1, 3)
    rings.add(0, 3)
    checkpoints.save({"rows": rings.increment()}, 7, score=0.5)
    (segment_file,) = (checkpoints.folder / "segments").iterdir()
    folder = checkpoints.folder / "000000000007"
    return [folder / "state.pt", folder / "manifest.json", segment_file]


@pytest.mark.parametrize("index", range(3), ids=["state", "manifest", "segment"])
def test_every_damage_is_noticed(checkpoints, index):
    path = saved_once(checkpoints)[index]
    whole = path.read_bytes()
    step = max(1, len(whole) // 40)
    flipped = [whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :] for i in range(0, len(whole), step)]
    cut = [whole[:i] for i in range(0, len(whole), 5 * step)]
    for content in [*flipped, *cut, whole + b"\0", whole + b" ", b"[]", b"null", b"[" * 100_000]:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=re.escape(str(path))) as caught:
            checkpoints.load()
        assert "\n" not in str(caught.value)
    path.unlink()
    assert_refused(checkpoints, r"manifest\.json|is missing")
    path.write_bytes(whole)
    assert checkpoints.load()["rows"]["stop"] == [3]


def test_messages_of_damage(checkpoints):
    state, _, rows = saved_once(checkpoints)
    size, whole = state.stat().st_size, rows.read_bytes()
    rows.write_bytes(whole[:-1] + b"x")
    assert_refused(checkpoints, f"{rows} has the SHA-256 checksum [0-9a-f]{{64}}, expected [0-9a-f]{{64}}$")
    os.truncate(state, 100)
    assert_refused(checkpoints, f"{state} has 100 bytes, expected {size}$")
    (state.parent / "more.txt").touch()
    assert_refused(checkpoints, r"holds manifest\.json, more\.txt, state\.pt, expected manifest\.json, state\.pt")
    (state.parent / "more.txt").unlink()
    state.unlink()
    state.mkdir()
    assert_refused(checkpoints, f"{state} is not a readable checkpoint")


def test_a_damaged_newest_checkpoint_is_not_skipped(checkpoints):
    rings = Rings(1, 4)
    for n in range(1, 4):
        rings.add(0, 2)
        checkpoints.save({"rows": rings.increment(), "n": n}, n)
    first, second, third = (checkpoints.folder / f"{n:012d}" for n in range(1, 4))
    os.truncate(third / "state.pt", 10)
    assert_refused(checkpoints, f"with {third} removed the run would resume from {second}$")
    os.truncate(second / "manifest.json", 10)
    assert_refused(checkpoints, f"with {third} removed the run would resume from {first}$")
    shutil.rmtree(third)
    assert_refused(checkpoints, f"with {second} removed the run would resume from {first}$")
    shutil.rmtree(second)
    assert checkpoints.load()["n"] == 1
    os.truncate(first / "state.pt", 10)
    assert_refused(checkpoints, r"state.pt has 10 bytes, expected \d+$")


def test_saves_continue_after_a_damaged_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    rings = Rings(1, 4)
    for n in range(1, 6):
        rings.add(0, 2)
        checkpoints.save({"rows": rings.increment()}, n, score=-n)
        rings.check(Checkpoints(tmp_path).load()["rows"])
        if n == 1:
            (tmp_path / "000000000001" / "manifest.json").write_text("{")
    assert_no_litter(checkpoints)


def test_segments_stay_while_a_damaged_checkpoint_may_need_them(checkpoints):
    checkpoints.save({"rows": plain_increment([0], [5], x=torch.arange(5))}, 0)
    manifest = checkpoints.folder / "000000000000" / "manifest.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(b"{")
    checkpoints.save({"rows": plain_increment([5], [9], [5])}, 1)
    manifest.write_bytes(whole)
    shutil.rmtree(checkpoints.folder / "000000000001")
    assert checkpoints.load()["rows"]["rows"]["x"].tolist() == [0, 1, 2, 3, 4]


def test_a_checkpoint_counts_until_it_is_replaced(checkpoints, monkeypatch):
    """The process had been killed between the two renames; then the disk is full."""
    checkpoints.save({"x": 1}, 0)
    checkpoints.save({"x": 2}, 1)
    folder = checkpoints.folder / "000000000001"
    folder.rename(folder.with_suffix(".old"))
    shutil.copytree(folder.with_suffix(".old"), folder.with_suffix(".tmp"))
    for n in (0, 1):
        assert Checkpoints(checkpoints.folder).newest() == 1
        assert Checkpoints(checkpoints.folder).load() == {"x": 2}
        with monkeypatch.context() as patch:
            patch.setattr(os, "mkdir", Mock(side_effect=OSError(28, "No space left")))
            with pytest.raises(OSError, match="No space left"):
                checkpoints.save({"x": 3}, 1 + n)
    checkpoints.save({"x": 4}, 1)
    assert checkpoints.load() == {"x": 4}
    assert_no_litter(checkpoints)


def rewritten(path: Path, **changes) -> None:
    """Change values of a manifest and correct its checksum."""
    manifest = json.loads(path.read_bytes())
    del manifest["sha256"]
    manifest |= changes
    path.write_bytes(manifest_bytes({key: value for key, value in manifest.items() if value != "absent"}))


def entries(path: Path) -> dict:
    """The entry of a file in a manifest."""
    return {path.name: {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": FORMAT + 1}, f"manifest.json has format {FORMAT + 1}, expected {FORMAT}"),
        ({"format": FORMAT - 1}, f"manifest.json has format {FORMAT - 1}, expected {FORMAT}"),
        ({"format": "absent"}, f"manifest.json has format None, expected {FORMAT}"),
        ({"format": True}, f"manifest.json has format True, expected {FORMAT}"),
        ({"score": "absent"}, "has the keys files, format, n_total_env_steps, segments, expected files, .*score"),
        ({"more": 1}, "has the keys .*more.*, expected files, format, n_total_env_steps, score, segments"),
        ({"n_total_env_steps": 8}, "is of 8 environment steps, expected 000000000007"),
        ({"n_total_env_steps": "8"}, "not a readable checkpoint"),
        ({"score": "high"}, "not a readable checkpoint"),
        ({"files": {}}, "not a readable checkpoint"),
        ({"files": {"state.pt": {"size": 1}}}, "not a readable checkpoint"),
        ({"files": {"state.pt": {"size": 1, "sha256": "0"}}}, r"state.pt has \d+ bytes, expected 1$"),
        ({"segments": {}}, "not a readable checkpoint: .*the manifest names"),
        ({"segments": {"../../x.pt": {"size": 1, "sha256": "0"}}}, "not a readable checkpoint"),
        ({"segments": None}, "not a readable checkpoint"),
    ],
)
def test_a_manifest_with_wrong_values_is_refused(checkpoints, changes, message):
    _, manifest, _ = saved_once(checkpoints)
    rewritten(manifest)
    checkpoints.load()
    rewritten(manifest, **changes)
    assert_refused(checkpoints, message)


@pytest.mark.parametrize("part", ["state", "segment"])
def test_hostile_checkpoints_with_right_checksums_run_no_code(checkpoints, part):
    state, manifest, rows = saved_once(checkpoints)
    path = state if part == "state" else rows
    for writer in ("torch", "torch, old format", "pickle"):
        victim = checkpoints.folder / f"victim of {writer}"
        content = {"format": FORMAT, "state": {"tree": {"x": Trap(victim)}, "increments": []}}
        path.write_bytes(pickle.dumps(content))
        if writer != "pickle":
            torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
        rewritten(manifest, **({"files": entries(state)} if part == "state" else {"segments": entries(rows)}))
        assert_refused(checkpoints, f"{path} is not a readable checkpoint")
        assert not victim.exists()
        if writer != "pickle":  # the trap works
            torch.load(path, weights_only=False)
            assert victim.exists()


def assert_state_refused(checkpoints, message, content, change=lambda content: None):
    path, manifest, _ = saved_once(checkpoints)
    content = torch.load(path, weights_only=True) if content is None else content
    change(content)
    torch.save(content, path)
    rewritten(manifest, files=entries(path))
    assert_refused(checkpoints, f"{path} {message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": FORMAT + 1, "state": {}}, f"has format {FORMAT + 1}, expected {FORMAT}"),
        ({"format": "1", "state": {}}, "has format '1', expected"),
        ({"weights": torch.ones(2)}, "has format None, expected"),
        (torch.ones(2), "has format 'Tensor', expected"),
        ({"format": torch.ones(2), "state": {}}, "has format Tensor, expected"),
        ({"format": FORMAT}, "holds a state of type NoneType, expected a dict"),
    ],
)
def test_a_state_of_another_format_is_refused(checkpoints, content, message):
    assert_state_refused(checkpoints, message, content)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("tree"),
        lambda state: state.update(increments=None),
        lambda state: state["increments"].append({}),
        lambda state: state["increments"][0]["layout"].update(x=("torch.int64", ())),
        *(
            lambda state, part=part: state["increments"][0].update(part)
            for part in (
                {"place": ("nowhere", 0)},
                {"files": []},
                {"end": torch.tensor([4])},
                {"end": torch.tensor([3, 3])},
                {"start": torch.tensor([[1]])},
                {"layout": {}},
            )
        ),
    ],
)
def test_inconsistent_files_are_refused(checkpoints, change):
    assert_state_refused(checkpoints, "is not a readable checkpoint", None, lambda content: change(content["state"]))


def test_an_absent_device_is_not_reported_as_damage(checkpoints):
    checkpoints.save({}, 0)
    checkpoints.save({}, 1)
    assert checkpoints.load("meta") == {}
    with pytest.raises(RuntimeError) as caught:
        checkpoints.load("nonsense")
    assert not isinstance(caught.value, CheckpointError)


@pytest.mark.parametrize("name", [".", "segments"])
def test_a_symbolic_link_is_refused(checkpoints, tmp_path, name):
    rows = saved_once(checkpoints)[2]
    link, elsewhere = checkpoints.folder / name, tmp_path / "elsewhere"
    link.rename(elsewhere)
    link.symlink_to(elsewhere)
    message = f"{link} is a symbolic link, expected a folder of its own"
    for call in (checkpoints.newest, checkpoints.load, lambda: checkpoints.save({}, 8)):
        with pytest.raises(CheckpointError, match=message):
            call()
    assert list(elsewhere.rglob(rows.name))


def test_the_best_checkpoint_is_the_first_of_equals(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for n, score in enumerate([None, 2.0, 3.0, 3.0]):
        checkpoints.save({"n": n}, n, score=score)
        if not n:
            assert_refused(checkpoints, f"no checkpoint in {tmp_path} has a score", best=True)
    assert checkpoints.load(best=True) == {"n": 2}
    assert checkpoints.load() == {"n": 3}
    os.truncate(tmp_path / "000000000002" / "state.pt", 10)
    assert_refused(checkpoints, r"000000000002/state.pt has 10 bytes, expected \d+$", best=True)
    os.truncate(tmp_path / "000000000001" / "manifest.json", 10)  # it may be the best
    assert_refused(checkpoints, "000000000001/manifest.json is not a readable checkpoint", best=True)


def test_rows_that_are_left_out_are_not_read(checkpoints):
    rings = Rings(1, 9)
    rings.add(0, 3)
    checkpoints.save({"part": (1, rings.increment())}, 0)
    (segment_file,) = (checkpoints.folder / "segments").iterdir()
    whole = segment_file.read_bytes()
    segment_file.unlink()
    assert Checkpoints(checkpoints.folder).load(increments=False) == {"part": (1, None)}
    assert_refused(checkpoints, f"{segment_file} is missing")
    segment_file.write_bytes(whole)
    assert checkpoints.load(increments=False) == {"part": (1, None)}
    rings.add(0, 1)
    checkpoints.save({"part": (1, rings.increment())}, 1)  # as if nothing had been read
    rings.check(Checkpoints(checkpoints.folder).load()["part"][1])


@pytest.mark.parametrize(
    "error",
    [
        OSError(5, "Input/output error"),
        PermissionError(13, "Permission denied"),
        MemoryError("no memory"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_shortages_are_not_reported_as_damage(checkpoints, monkeypatch, error):
    saved_once(checkpoints)
    for function in ("torch.load", "torch.cat"):
        with monkeypatch.context() as patch:
            patch.setattr(function, Mock(side_effect=error))
            with pytest.raises(type(error)) as caught:
                checkpoints.load()
            assert caught.value is error
    checkpoints.load()
