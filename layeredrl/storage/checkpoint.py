"""Checkpoints of a run: complete at any moment the process may die, and read without running code."""

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
from layeredrl.storage import files
from layeredrl.storage.files import FORMAT, CheckpointError, Entry
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


class Checkpoints:
    """The checkpoints of a run, in one folder.

    A checkpoint is a folder named after its environment steps, with `state.pt` and `manifest.json`, which holds the
    checksums of all its files. It appears in one step, when it is complete. The rows of the state's `Increment`s lie
    in the folder `segments`, which all checkpoints share. One process at a time may write. Neither folder may be a
    symbolic link, so that only files of this run are ever deleted.

    Args:
        folder: Folder of the checkpoints; created by the first save.
        keep: Number of newest checkpoints to keep, besides the one of the best score.
        run: Id of the run, which its checkpoints name; one that names another run is not loaded. None: not checked.
    """

    def __init__(self, folder: Path, *, keep: int = 3, run: str | None = None) -> None:
        require_count("keep", keep)
        self.folder, self.keep, self.run = folder, keep, run
        self._segments = folder / "segments"
        self._chains: dict[Place, Chain] = {}
        self._entries: dict[str, Entry] = {}  # of the chains' files

    def newest(self) -> int | None:
        """Return the number of environment steps of the newest checkpoint; None if there is none."""
        return max(self._found(), default=None)

    def owner(self) -> str | None:
        """Return the id of the run that the newest checkpoint names; None if it names none or cannot be read."""
        found = self._found()
        with suppress(CheckpointError, OSError):
            return files.read_manifest(found[max(found)]).get("run") if found else None
        return None

    def save(self, state: Mapping[str, Any], n_total_env_steps: int, *, score: float | None = None) -> None:
        """Add a checkpoint, then delete those that need not be kept.

        Args:
            state: Nested dicts, lists and tuples of tensors, numbers, strings and increments.
            n_total_env_steps: Environment steps so far, at least those of the newest checkpoint. An equal number
                replaces that checkpoint.
            score: Score of the run, the greatest is best; among equals the first counts. None if there is none.

        Raises:
            CheckpointError: A folder is a symbolic link.
            OSError: The checkpoint could not be written. Earlier checkpoints are unchanged.
            TypeError: The state holds a value that could not be read back.
            ValueError: An increment does not continue the one before.
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
            entries = {file: files.write(self._segments / file, segment(increment)) for file, increment in new.items()}
            files.sync(self._segments)
            entries |= {file: self._entries[file] for x in chains.values() for file in x.files if file not in new}
            parts = [{"place": place, **chain.state_dict()} for place, chain in chains.items()]
            manifest = {
                "format": FORMAT,
                "n_total_env_steps": int(n_total_env_steps),
                "score": None if score is None else float(score),
                "segments": entries,
            } | ({} if self.run is None else {"run": self.run})
            self._put_in_place({"tree": tree, "increments": parts}, manifest)
        except BaseException:
            with suppress(OSError):
                self._remove_unfinished()
                self._remove_unused_segments()
            raise
        files.sync(self.folder)
        self._chains, self._entries = chains, entries
        for increment in increments.values():
            increment.on_saved()
        self.prune()

    def prune(self) -> None:
        """Delete checkpoints that need not be kept and leftovers of interrupted saves; `save` does so itself."""
        try:
            self._prune()
        except OSError as error:  # the next save tries again
            message = f"old checkpoints in {self.folder} could not be removed: {error}"
            warnings.warn(message, RuntimeWarning, stacklevel=2)

    def _put_in_place(self, content: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
        final = self.folder / f"{manifest['n_total_env_steps']:012d}"
        temporary = final.with_suffix(".tmp")
        temporary.mkdir()
        entry = files.write(temporary / "state.pt", content)
        files.write_bytes(temporary / "manifest.json", files.manifest_bytes({**manifest, "files": {"state.pt": entry}}))
        files.sync(temporary)
        if final.exists():
            os.rename(final, final.with_suffix(".old"))  # counts as the checkpoint until the new one is in place
        os.rename(temporary, final)

    def load(
        self, device: torch.device | str = "cpu", *, best: bool = False, increments: bool = True
    ) -> dict[str, Any]:
        """Read a checkpoint.

        In place of each `Increment` is a dict of the rows that were needed: `rows`, on the CPU, environment by
        environment, and `start` and `stop`, the numbers of each environment's first row and one past its last.

        Args:
            device: Device of the tensors.
            best: If True, read the checkpoint of the best score instead of the newest.
            increments: If True, read the increments too; the next `save` continues them. Otherwise None is in their
                place.

        Raises:
            CheckpointError: There is no checkpoint, or it is damaged, has another format, or is of another run.
            OSError, MemoryError, RuntimeError: The checkpoint may be intact but could not be read, for want of
                permission, memory or a working disk.
        """
        torch.empty(0, device=device)  # a missing device raises here, not as a damaged checkpoint
        found = self._found()
        if not found:
            raise CheckpointError(f"there is no checkpoint in {self.folder}")
        n = _best({n: files.read_manifest(path)["score"] for n, path in found.items()}) if best else max(found)
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
        manifest = files.read_manifest(path)
        owner = manifest.get("run", self.run)  # older checkpoints name none
        if self.run is not None and owner != self.run:
            raise CheckpointError(f"{path} is a checkpoint of another run, {owner}, expected one of {self.run}")
        content = files.read_verified(path / "state.pt", manifest["files"]["state.pt"], device)
        entries = manifest["segments"]

        def read(file: str) -> Mapping[str, Any]:
            return files.read_verified(self._segments / file, entries[file], "cpu")

        try:
            chains = {part["place"]: Chain.from_state(part) for part in content["increments"]}
            needed = {file for chain in chains.values() for file in chain.files}
            if needed != entries.keys():
                raise ValueError(f"the manifest names {sorted(entries)}, expected {sorted(needed)}")
            state = content["tree"]
            for place, chain in chains.items() if increments else ():
                state = put_back(state, place, chain.merge(read))
            return dict(state), chains, entries
        except Exception as error:  # any error that wrong types and shapes cause
            if isinstance(error, CheckpointError) or files.is_shortage(error):
                raise
            raise CheckpointError(f"{path / 'state.pt'} is not a readable checkpoint: {error!r}") from error

    def _found(self) -> dict[int, Path]:
        """Return all checkpoints, intact or damaged."""
        for folder in (self.folder, self._segments):
            if folder.is_symlink():
                raise CheckpointError(f"{folder} is a symbolic link, expected a folder of its own")
        names = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
        replaced = {int(name[:-4]): self.folder / name for name in names if re.fullmatch(r"\d{12,}\.old", name)}
        return replaced | {int(name): self.folder / name for name in names if re.fullmatch(r"\d{12,}", name)}

    def _create_folders(self) -> None:
        if not self._segments.is_dir():
            self._segments.mkdir(parents=True, exist_ok=True)
            files.sync(self.folder.parent)
            files.sync(self.folder)

    def _prune(self) -> None:
        """Delete the checkpoints that need not be kept."""
        found = self._found()
        scores = {}
        for n, path in found.items():
            with suppress(CheckpointError):
                scores[n] = files.read_manifest(path)["score"]
        kept = sorted(found)[-self.keep :]
        for n in found.keys() - {*kept, _best(scores)}:
            files.discard(found[n])
        self._remove_unfinished()
        self._remove_unused_segments()

    def _remove_unfinished(self) -> None:
        """Delete leftovers of an interrupted save."""
        for path in self.folder.glob("[0-9]*.tmp"):
            shutil.rmtree(path)
        for path in self.folder.glob("[0-9]*.old"):
            final = path.with_suffix("")
            if final.exists():
                files.discard(path)
            else:
                os.rename(path, final)

    def _remove_unused_segments(self) -> None:
        files.sync(self.folder)  # no checkpoint may come back without its segments
        used = set(self._entries)
        for path in self._found().values():
            try:
                used |= files.read_manifest(path)["segments"].keys()
            except CheckpointError:
                return  # any segment may be one that it needs
        for path in self._segments.iterdir():
            if FILE_NAME.fullmatch(path.name) and path.name not in used:
                path.unlink()


def _best(scores: Mapping[int, float | None]) -> int | None:
    """Return the number with the greatest score, the first of equals; None without scores."""
    scored = [(score, -n) for n, score in scores.items() if score is not None]
    return -max(scored)[1] if scored else None
