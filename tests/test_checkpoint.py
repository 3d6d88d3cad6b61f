"""Checkpoints: what comes back, what is refused, and that no failure costs the old file."""

import os
import pickle
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from layeredrl.checkpoint import FORMAT, CheckpointError, load_checkpoint, save_checkpoint

STATE = {
    "weights": torch.arange(12.0).view(3, 4),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "count": torch.tensor(2**40),
    "nested": {"list": [1, 2.5, "three", None, True], "empty": {}, "deep": {"x": [torch.ones(2)]}},
}


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Unpicklable:
    def __reduce__(self):
        raise RuntimeError("the disk is on fire")


def assert_equal(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    else:
        assert a == b


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.pt"


def test_round_trip(path):
    save_checkpoint(path, STATE)
    assert_equal(load_checkpoint(path), STATE)
    save_checkpoint(path, {"other": 1})
    assert load_checkpoint(path) == {"other": 1}
    assert list(path.parent.iterdir()) == [path]


def test_an_optimiser_goes_on_as_if_nothing_happened(path):
    def make():
        torch.manual_seed(0)
        net = torch.nn.Linear(3, 1)
        return net, torch.optim.Adam(net.parameters(), lr=0.1)

    def train(net, optimizer, n):
        for i in range(n):
            optimizer.zero_grad()
            net(torch.full((1, 3), 1.0 + i)).square().sum().backward()
            optimizer.step()

    net, optimizer = make()
    train(net, optimizer, 3)
    save_checkpoint(path, {"net": net.state_dict(), "optimizer": optimizer.state_dict()})
    train(net, optimizer, 2)
    other, other_optimizer = make()
    state = load_checkpoint(path)
    other.load_state_dict(state["net"])
    other_optimizer.load_state_dict(state["optimizer"])
    train(other, other_optimizer, 2)
    assert torch.equal(net.weight, other.weight)


def test_a_missing_file_is_named(path):
    with pytest.raises(CheckpointError, match=f"there is no checkpoint {re.escape(str(path))}"):
        load_checkpoint(path)


def test_damaged_files_are_refused(path):
    save_checkpoint(path, STATE)
    whole = path.read_bytes()
    damaged = [b"", b"PK", b"not a checkpoint", whole[: len(whole) // 2], whole[:-30], bytes(len(whole))]
    damaged.append(whole.replace(b"data.pkl", b"date.pkl"))
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{re.escape(str(path))} is not a readable checkpoint"):
            load_checkpoint(path)


def test_no_flipped_bit_goes_unnoticed(path):
    state = {"weights": torch.arange(100.0), "n": 3}
    save_checkpoint(path, state)
    whole = path.read_bytes()
    for i in range(0, len(whole), 5):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 0x10]) + whole[i + 1 :])
        try:
            loaded = load_checkpoint(path)
        except CheckpointError:
            continue
        assert_equal(loaded, state)  # a flip in padding does no harm


def test_a_folder_is_refused(path):
    path.mkdir()
    with pytest.raises(CheckpointError, match="is not a readable checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("writer", ["torch", "torch, old format", "pickle", "swapped"])
def test_hostile_files_run_no_code(path, writer):
    victim = path.parent / "victim"
    content = {"format": FORMAT, "state": {"x": Trap(victim)}}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content))
    elif writer == "swapped":  # a good checkpoint whose pickle was replaced
        save_checkpoint(path.with_name("good.pt"), {"x": 1})
        with zipfile.ZipFile(path.with_name("good.pt")) as good, zipfile.ZipFile(path, "w") as evil:
            for name in good.namelist():
                evil.writestr(name, pickle.dumps(content) if name.endswith(".pkl") else good.read(name))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(CheckpointError, match="is not a readable checkpoint"):
        load_checkpoint(path)
    assert not victim.exists()
    if writer.startswith("torch"):  # the trap works
        torch.load(path, weights_only=False)
        assert victim.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": FORMAT + 1, "state": {}}, f"has format {FORMAT + 1}, expected {FORMAT}"),
        ({"format": "1", "state": {}}, "has format '1', expected"),
        ({"state": {}}, "has format None, expected"),
        ({"weights": torch.ones(2)}, "has format None, expected"),
        (torch.ones(2), "has format 'Tensor', expected"),
        ([1, 2], "has format 'list', expected"),
        ({"format": torch.ones(2), "state": {}}, "has format"),
        ({"format": FORMAT}, "state"),
        ({"format": FORMAT, "state": [1]}, "state"),
    ],
)
def test_files_of_another_format_are_refused(path, content, message):
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "value",
    [Path("x"), torch.zeros(1).numpy(), torch.zeros(1).numpy()[0], Trap],
    ids=["path", "array", "number", "class"],
)
def test_what_could_not_be_read_back_is_not_written(path, value):
    save_checkpoint(path, {"good": 1})
    with pytest.raises((TypeError, ValueError), match="bad"):
        save_checkpoint(path, {"nested": {"bad": value}})
    assert load_checkpoint(path) == {"good": 1}


def test_a_failure_in_the_middle_of_writing_leaves_the_old_file(path, monkeypatch):
    save_checkpoint(path, STATE)
    with pytest.raises(TypeError, match="bad"):
        save_checkpoint(path, {"big": torch.zeros(10_000), "bad": Unpicklable()})
    assert_equal(load_checkpoint(path), STATE)
    for name in ("fsync", "replace"):

        def fail(*args):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(OSError, match="No space left"):
                save_checkpoint(path, {"x": 1})
        assert_equal(load_checkpoint(path), STATE)
    save_checkpoint(path, {"x": 2})
    assert load_checkpoint(path) == {"x": 2}
    assert list(path.parent.iterdir()) == [path]


def test_a_process_that_is_killed_leaves_a_whole_file(path):
    code = (
        "import sys, torch; from pathlib import Path; from layeredrl.checkpoint import save_checkpoint\n"
        "for i in range(10**6): save_checkpoint(Path(sys.argv[1]), {'i': i, 'x': torch.full((500_000,), float(i))})"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=Path(__file__).parents[1])
    try:
        deadline = time.monotonic() + 60
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        for _ in range(10):  # while it writes, every look finds a whole one
            state = load_checkpoint(path)
            assert (state["x"] == state["i"]).all()
            time.sleep(0.003)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    state = load_checkpoint(path)
    assert (state["x"] == state["i"]).all()
