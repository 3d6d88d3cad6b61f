"""Checkpoints: complete whenever the process dies, and read without running code."""

import hashlib
import io
import json
import os
import re
import secrets
import shutil
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from layeredrl.checks import require_count, require_number
from layeredrl.segments import Chain, Increment, Place, name_of, put_back, require_plain, segment, take_out

FORMAT = 1
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
    `Increment`s lie in the folder `segments`, which all checkpoints share. One process at a time may write.

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
            score: Of which the greatest is best; None if there is none.

        Raises:
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
        chains, new = self._extended(increments, n_total_env_steps)

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
        try:
            self._prune()
        except OSError as error:  # the next save tries again
            message = f"old checkpoints in {self.folder} could not be removed: {error}"
            warnings.warn(message, RuntimeWarning, stacklevel=2)

    def _extended(
        self, increments: Mapping[Place, Increment], n_total_env_steps: int
    ) -> tuple[dict[Place, Chain], dict[str, Increment]]:
        """The chains as they will be, and what goes into new files."""
        chains, new = {}, {}
        for place, increment in increments.items():
            file = f"{n_total_env_steps:012d}-{secrets.token_hex(8)}.pt"  # no name is ever used again
            before = self._chains.get(place, Chain.empty(len(increment.start)))
            try:
                chains[place] = before.extended(increment, file)
            except ValueError as error:
                raise ValueError(f"{name_of(place)} does not go on from what was saved: {error}") from None
            if file in chains[place].files:
                new[file] = increment
        return chains, new

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

    def load(self, device: torch.device | str = "cpu") -> dict[str, Any]:
        """Read the newest checkpoint; the next `save` goes on from it.

        In place of each `Increment` is a dict of the rows that were needed: `rows`, on the CPU, environment by
        environment, and `start` and `stop`, the numbers of each environment's first row and one past its last.

        Raises:
            CheckpointError: There is none, or it is damaged or of another format.
        """
        torch.empty(0, device=device)  # raises if there is no such device, which is no fault of the checkpoint
        found = self._found()
        if not found:
            raise CheckpointError(f"there is no checkpoint in {self.folder}")
        newest = found.pop(max(found))
        try:
            state, self._chains, self._entries = self._load(newest, device)
        except CheckpointError as error:
            intact = self._newest_intact(found)
            if intact is None:
                raise
            raise CheckpointError(f"{error}; with {newest} removed the run would resume from {intact}") from error
        return state

    def _newest_intact(self, found: Mapping[int, Path]) -> Path | None:
        for n in sorted(found, reverse=True):
            with suppress(CheckpointError):
                self._load(found[n], "cpu")
                return found[n]
        return None

    def _load(
        self, path: Path, device: torch.device | str
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
            for place, chain in chains.items():
                state = put_back(state, place, chain.merge(read))
            return dict(state), chains, entries
        except CheckpointError:
            raise
        except Exception as error:  # whatever happens when types and shapes are not what `save` had written
            raise CheckpointError(f"{path / 'state.pt'} is not a readable checkpoint: {error!r}") from error

    def _found(self) -> dict[int, Path]:
        """All checkpoints, whole or damaged."""
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
        scored = [(score, n) for n, score in scores.items() if score is not None]
        if scored:
            kept.append(max(scored)[1])
        for n in found.keys() - set(kept):
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
        for path in self._segments.glob("*.pt"):
            if path.name not in used:
                path.unlink()


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state to one file; whenever the process dies, the file is the old one or the new one.

    Args:
        path: The file.
        state: Nested dicts, lists and tuples of tensors, numbers and strings.

    Raises:
        TypeError: It holds something that could not be read back.
    """
    require_plain("state", dict(state))
    temporary = path.with_name(path.name + ".tmp")
    _write(temporary, dict(state))
    os.replace(temporary, path)


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what `save_checkpoint` wrote.

    Raises:
        CheckpointError: There is no such file, or it is not a checkpoint of this format.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            damaged = archive.testzip()
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except Exception as error:  # zipfile raises a dozen kinds for files that are damaged
        raise _unreadable(path, error) from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: {damaged} does not fit its checksum")
    return _read(path, device)


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
        and all(re.fullmatch(r"\d{12,}-[0-9a-f]{16}\.pt", name) for name in segments)
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


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    if isinstance(error, FileNotFoundError):
        return CheckpointError(f"{path} is missing")
    return CheckpointError(f"{path} is not a readable checkpoint: {type(error).__name__}")
