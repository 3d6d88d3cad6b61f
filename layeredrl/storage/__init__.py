"""Replay of transitions, and checkpoints of runs."""

from layeredrl.storage.checkpoint import CheckpointError, Checkpoints
from layeredrl.storage.replay import Replay

__all__ = ["CheckpointError", "Checkpoints", "Replay"]
