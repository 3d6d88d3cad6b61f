"""Versions of the code that a run was trained with."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from experiments.run import versions
from tests.experiments.commands import QUICK, run_train

NAMES = {"layeredrl", "python", "torch", "gymnasium", "numpy"}


def _git(root: Path, *args: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    output = subprocess.run(["git", *identity, *args], cwd=root, check=True, capture_output=True, text=True)
    return output.stdout.strip()


def _code(folder: Path) -> dict[str, str]:
    return json.loads((folder / "code.json").read_text())


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, in place of this one."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    root = tmp_path / "checkout"
    root.mkdir()
    _git(root, "init", "-q")
    (root / "file").write_text("a")
    _git(root, "add", "file")
    _git(root, "commit", "-qm", "first")
    monkeypatch.setattr(versions, "ROOT", root)
    return root


def test_versions_of_a_run(checkout: Path) -> None:
    run_train("random", *QUICK, "--name", "r")
    code = _code(Path("runs/r"))
    assert code.keys() == {*NAMES, "commit", "uncommitted changes"}
    assert code["commit"] == _git(checkout, "rev-parse", "HEAD")
    assert code["uncommitted changes"] == "no"


def test_only_changes_of_tracked_files_count(checkout: Path) -> None:
    (checkout / "new").write_text("a")
    assert versions.versions()["uncommitted changes"] == "no"
    (checkout / "file").write_text("b")
    assert versions.versions()["uncommitted changes"] == "yes"
    _git(checkout, "add", "file")
    assert versions.versions()["uncommitted changes"] == "yes"


def test_other_checkouts_do_not_count(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = checkout / "vendored"
    below.mkdir()
    monkeypatch.setattr(versions, "ROOT", below)
    assert versions.versions().keys() == NAMES
    monkeypatch.setattr(versions, "ROOT", checkout)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other"))
    assert "commit" in versions.versions()


@pytest.mark.parametrize("git", [None, "#!/bin/sh\nexit 128\n", "#!/bin/sh\nexec sleep 60\n"])
def test_without_git_there_is_no_commit(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, git: str | None
) -> None:
    (tmp_path / "bin").mkdir()
    if git is not None:
        (tmp_path / "bin" / "git").write_text(git)
        (tmp_path / "bin" / "git").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    else:
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(versions, "TIMEOUT_S", 0.2)
    assert versions.versions().keys() == NAMES


def test_a_resumed_run_keeps_versions_that_have_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("runs/r")
    for i, n_steps in enumerate((60, 60, 80, 100, 100)):
        monkeypatch.setattr(versions, "versions", lambda i=i: {"commit": f"c{i}", "torch": "2"})
        run_train("random", *QUICK, "--name", "r", "--trainer.n-total-env-steps", n_steps)
    # The second and the last command found a run that was done, and trained nothing.
    expected = {"commit": "c3", "torch": "2", "commit, until step 60": "c0", "commit, until step 80": "c2"}
    assert _code(folder) == expected
    run_train("random", *QUICK, "--name", "r", "--fresh")
    assert _code(folder) == {"commit": "c4", "torch": "2"}


def test_of_several_resumed_from_one_step_the_first_trained_the_steps_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, n_steps in enumerate((0, 60, 60)):
        monkeypatch.setattr(versions, "versions", lambda i=i: {"commit": f"c{i}"})
        versions.record(tmp_path, n_steps)
    assert _code(tmp_path) == {"commit": "c2", "commit, until step 60": "c0"}


def test_a_damaged_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "code.json").write_text("{")
    versions.record(tmp_path, 10)
    assert _code(tmp_path).keys() >= NAMES


def test_a_folder_that_cannot_be_written_does_not_stop_a_run(tmp_path: Path) -> None:
    versions.record(tmp_path / "gone", 0)
    assert not (tmp_path / "gone").exists()
