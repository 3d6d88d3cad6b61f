"""Checkpoints: complete whenever the process dies, and read without running code."""

import hashlib
import io
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from layeredrl.checks import require_count, require_number
from layeredrl.storage.segments import (
    FILE_NAME,
    Chain,
    Increment,
    Place,
    extend,
    put_back,
    require_plain,
    segment,
    take_out,
)

FORMAT = 3
"""Version of the files' layout."""

_MANIFEST_KEYS = {"files", "format", "n_total_env_steps", "score", "segments"}

Entry = dict[str, int | str]
"""Of a file: `size` in bytes and `sha256`."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not fit."""


class Checkpoints:
    """The checkpoints of a run, in one folder.

    A checkpoint is a folder named after its environment steps, with `state.pt` and `manifest.json`, which holds the
    checksums of all files that belong to it. It appears there in one step, when it is complete. Rows of the state's
    `Increment`s lie in the folder `segments`, which all checkpoints share. One process at a time may write. Neither
    folder may be a symbolic link: what is deleted there has to be this run's.

    Args:
        folder: Created by the first save.
        keep: How many of the last checkpoints are kept, besides the one of the best score.
    """

    def __init__(self, folder: Path, *, keep: int = 3) -> None:
        require_count("keep", keep)
        self.folder, self.keep = folder, keep
        self._segments = folder / "segments"
        self._chains: dict[Place, Chain] = {}
        self._entries: dict[str, Entry] = {}  # of the chains' files

    def newest(self) -> int | None:
        """The newest checkpoint's number of environment steps; None if there is none."""
        return max(self._found(), default=None)

    def save(self, state: Mapping[str, Any], n_total_env_steps: int, *, score: float | None = None) -> None:
        """Add a checkpoint, then delete those that are no longer to be kept.

        Args:
            state: Nested dicts, lists and tuples of tensors, numbers, strings and `Increment`s.
            n_total_env_steps: At least that of the newest checkpoint, which it replaces if it is the same.
            score: Of which the greatest is best, and the first of equals; None if there is none.

        Raises:
            CheckpointError: A folder is a symbolic link.
            OSError: It could not be written. The checkpoints before are as they were.
            TypeError: The state holds something that could not be read back.
            ValueError: An increment does not go on where the one before stopped.
        """
        require_count("n_total_env_steps", n_total_env_steps, 0)
        newest = self.newest()
        if newest is not None and n_total_env_steps < newest:
            wanted = f"at least {newest}, the newest checkpoint's in {self.folder}"
            raise ValueError(f"n_total_env_steps is {n_total_env_steps}, expected {wanted}")
        if score is not None:
            require_number("score", score, -float("inf"), float("inf"))
        increments: dict[Place, Increment] = {}
        tree = take_out(dict(state), (), increments)
        require_plain("state", tree)
        chains, new = extend(self._chains, increments, n_total_env_steps)

        self._create_folders()
        self._remove_unfinished()
        try:
            entries = {file: _write(self._segments / file, segment(increment)) for file, increment in new.items()}
            _sync(self._segments)
            entries |= {file: self._entries[file] for x in chains.values() for file in x.files if file not in new}
            parts = [{"place": place, **chain.state_dict()} for place, chain in chains.items()]
            manifest = {
                "format": FORMAT,
                "n_total_env_steps": int(n_total_env_steps),
                "score": None if score is None else float(score),
                "segments": entries,
            }
            self._put_in_place({"tree": tree, "increments": parts}, manifest)
        except BaseException:
            with suppress(OSError):
                self._remove_unfinished()
                self._remove_unused_segments()
            raise
        _sync(self.folder)
        self._chains, self._entries = chains, entries
        for increment in increments.values():
            increment.on_saved()
        self.prune()

    def prune(self) -> None:
        """Delete the checkpoints that need not be kept, and what an interrupted save left; `save` does so by itself."""
        try:
            self._prune()
        except OSError as error:  # the next save tries again
            message = f"old checkpoints in {self.folder} could not be removed: {error}"
            warnings.warn(message, RuntimeWarning, stacklevel=2)

    def _put_in_place(self, content: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
        final = self.folder / f"{manifest['n_total_env_steps']:012d}"
        temporary = final.with_suffix(".tmp")
        temporary.mkdir()
        entry = _write(temporary / "state.pt", content)
        _write_bytes(temporary / "manifest.json", _manifest_bytes({**manifest, "files": {"state.pt": entry}}))
        _sync(temporary)
        if final.exists():
            os.rename(final, final.with_suffix(".old"))  # which counts as the checkpoint until there is another
        os.rename(temporary, final)

    def load(
        self, device: torch.device | str = "cpu", *, best: bool = False, increments: bool = True
    ) -> dict[str, Any]:
        """Read a checkpoint.

        In place of each `Increment` is a dict of the rows that were needed: `rows`, on the CPU, environment by
        environment, and `start` and `stop`, the numbers of each environment's first row and one past its last.

        Args:
            device: Where tensors go.
            best: Read that of the best score instead of the newest.
            increments: Whether to read those too, from which the next `save` goes on. Otherwise None is in their place.

        Raises:
            CheckpointError: There is none, or it is damaged or of another format.
            OSError, MemoryError, RuntimeError: It could not be read now, for want of permission, memory or a working
                disk, say, which is no fault of its own.
        """
        torch.empty(0, device=device)  # raises if there is no such device, which is no fault of the checkpoint
        found = self._found()
        if not found:
            raise CheckpointError(f"there is no checkpoint in {self.folder}")
        n = _best({n: _read_manifest(path)["score"] for n, path in found.items()}) if best else max(found)
        if n is None:
            raise CheckpointError(f"no checkpoint in {self.folder} has a score")
        path = found.pop(n)
        try:
            state, chains, entries = self._load(path, device, increments=increments)
        except CheckpointError as error:
            intact = None if best else self._newest_intact(found)
            if intact is None:
                raise
            raise CheckpointError(f"{error}; with {path} removed the run would resume from {intact}") from error
        if increments:
            self._chains, self._entries = chains, entries
        return state

    def _newest_intact(self, found: Mapping[int, Path]) -> Path | None:
        for n in sorted(found, reverse=True):
            with suppress(CheckpointError, OSError, MemoryError, RuntimeError):
                self._load(found[n], "cpu", increments=True)
                return found[n]
        return None

    def _load(
        self, path: Path, device: torch.device | str, *, increments: bool
    ) -> tuple[dict[str, Any], dict[Place, Chain], dict[str, Entry]]:
        manifest = _read_manifest(path)
        content = _read_verified(path / "state.pt", manifest["files"]["state.pt"], device)
        entries = manifest["segments"]

        def read(file: str) -> Mapping[str, Any]:
            return _read_verified(self._segments / file, entries[file], "cpu")

        try:
            chains = {part["place"]: Chain.from_state(part) for part in content["increments"]}
            needed = {file for chain in chains.values() for file in chain.files}
            if needed != entries.keys():
                raise ValueError(f"the manifest names {sorted(entries)}, expected {sorted(needed)}")
            state = content["tree"]
            for place, chain in chains.items() if increments else ():
                state = put_back(state, place, chain.merge(read))
            return dict(state), chains, entries
        except Exception as error:  # whatever happens when types and shapes are not what `save` had written
            if isinstance(error, CheckpointError) or _is_shortage(error):
                raise
            raise CheckpointError(f"{path / 'state.pt'} is not a readable checkpoint: {error!r}") from error

    def _found(self) -> dict[int, Path]:
        """All checkpoints, whole or damaged."""
        for folder in (self.folder, self._segments):
            if folder.is_symlink():
                raise CheckpointError(f"{folder} is a symbolic link, expected a folder of its own")
        names = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
        whole = {int(name[:-4]): self.folder / name for name in names if re.fullmatch(r"\d{12,}\.old", name)}
        return whole | {int(name): self.folder / name for name in names if re.fullmatch(r"\d{12,}", name)}

    def _create_folders(self) -> None:
        if not self._segments.is_dir():
            self._segments.mkdir(parents=True, exist_ok=True)
            _sync(self.folder.parent)
            _sync(self.folder)

    def _prune(self) -> None:
        """Delete the checkpoints that need not be kept."""
        found = self._found()
        scores = {}
        for n, path in found.items():
            with suppress(CheckpointError):
                scores[n] = _read_manifest(path)["score"]
        kept = sorted(found)[-self.keep :]
        for n in found.keys() - {*kept, _best(scores)}:
            _discard(found[n])
        self._remove_unfinished()
        self._remove_unused_segments()

    def _remove_unfinished(self) -> None:
        """Delete what an interrupted save left."""
        for path in self.folder.glob("[0-9]*.tmp"):
            shutil.rmtree(path)
        for path in self.folder.glob("[0-9]*.old"):
            final = path.with_suffix("")
            if final.exists():
                _discard(path)
            else:
                os.rename(path, final)

    def _remove_unused_segments(self) -> None:
        _sync(self.folder)  # no checkpoint may come back without its segments
        used = set(self._entries)
        for path in self._found().values():
            try:
                used |= _read_manifest(path)["segments"].keys()
            except CheckpointError:
                return  # there is no telling which ones it needs
        for path in self._segments.iterdir():
            if FILE_NAME.fullmatch(path.name) and path.name not in used:
                path.unlink()


def _best(scores: Mapping[int, float | None]) -> int | None:
    """The number with the greatest score, the first of equals; None without scores."""
    scored = [(score, -n) for n, score in scores.items() if score is not None]
    return -max(scored)[1] if scored else None


def _read(path: Path, device: torch.device | str) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for files that are damaged or not its own
        raise _unreadable(path, error) from error
    found = content.get("format") if isinstance(content, dict) else type(content).__name__
    if type(found) is not int or found != FORMAT:
        raise CheckpointError(f"{path} has format {_describe(found)}, expected {FORMAT}")
    state = content.get("state")
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a state of type {type(state).__name__}, expected a dict")
    return state


def _read_verified(path: Path, entry: Entry, device: torch.device | str) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            found = {"size": size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    except OSError as error:
        raise _unreadable(path, error) from error
    if size != entry["size"]:
        raise CheckpointError(f"{path} has {size} bytes, expected {entry['size']}")
    if found != entry:
        raise CheckpointError(f"{path} has the SHA-256 checksum {found['sha256']}, expected {entry['sha256']}")
    return _read(path, device)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        names = sorted(file.name for file in folder.iterdir())
        if names != ["manifest.json", "state.pt"]:
            raise CheckpointError(f"{folder} holds {', '.join(names) or 'nothing'}, expected manifest.json, state.pt")
        data = path.read_bytes()
        manifest: dict[str, Any] = json.loads(data)
    except CheckpointError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
    if type(found) is not int or found != FORMAT:
        raise CheckpointError(f"{path} has format {_describe(found)}, expected {FORMAT}")
    checksum = manifest.pop("sha256", None)
    if manifest.keys() != _MANIFEST_KEYS:
        raise CheckpointError(
            f"{path} has the keys {', '.join(sorted(manifest))}, expected {', '.join(sorted(_MANIFEST_KEYS))}"
        )
    expected = _manifest_bytes(manifest)
    if data != expected:
        raise CheckpointError(f"{path} has the SHA-256 checksum {checksum}, expected {json.loads(expected)['sha256']}")
    if not _is_sound(manifest):
        raise CheckpointError(f"{path} is not a readable checkpoint: its values are not what they should be")
    if manifest["n_total_env_steps"] != int(folder.stem):
        raise CheckpointError(f"{path} is of {manifest['n_total_env_steps']} environment steps, expected {folder.stem}")
    return manifest


def _is_sound(manifest: Mapping[str, Any]) -> bool:
    files, segments = manifest["files"], manifest["segments"]
    return (
        type(manifest["n_total_env_steps"]) is int
        and (manifest["score"] is None or type(manifest["score"]) is float)
        and isinstance(files, dict)
        and isinstance(segments, dict)
        and files.keys() == {"state.pt"}
        and all(FILE_NAME.fullmatch(name) for name in segments)
        and all(isinstance(x, dict) and x.keys() == {"size", "sha256"} for x in [*files.values(), *segments.values()])
    )


def _manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """The manifest with its own checksum."""
    checksum = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return json.dumps({**manifest, "sha256": checksum}, sort_keys=True).encode()


def _write(path: Path, state: Mapping[str, Any]) -> Entry:
    buffer = io.BytesIO()  # torch.save hides what the disk complains of
    torch.save({"format": FORMAT, "state": state}, buffer)
    return _write_bytes(path, buffer.getbuffer())


def _write_bytes(path: Path, data: bytes | memoryview) -> Entry:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _sync(folder: Path) -> None:
    """Have the names in a folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _discard(folder: Path) -> None:
    """Delete a checkpoint; first its name, lest a half of it be taken for the whole."""
    temporary = folder.with_suffix(".tmp")
    os.rename(folder, temporary)
    shutil.rmtree(temporary)


def _describe(value: object) -> str:
    return repr(value) if isinstance(value, int | str | None) else type(value).__name__


def _is_shortage(error: Exception) -> bool:
    """Whether a good checkpoint may meet with the error: memory, a disk that fails, permissions."""
    if isinstance(error, IsADirectoryError | NotADirectoryError):
        return False
    # torch's CPU allocator raises a plain RuntimeError.
    return isinstance(error, OSError | MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    """What an error says about a file; one that is not the file's fault is raised as it is."""
    if isinstance(error, FileNotFoundError):
        return CheckpointError(f"{path} is missing")
    if _is_shortage(error):
        raise error
    return CheckpointError(f"{path} is not a readable checkpoint: {type(error).__name__}")
