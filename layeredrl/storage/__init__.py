"""Replay of transitions and checkpoints of runs."""

from layeredrl.storage.checkpoint import Checkpoints
from layeredrl.storage.files import CheckpointError
from layeredrl.storage.replay import Replay

__all__ = ["CheckpointError", "Checkpoints", "Replay"]
