"""Replay of transitions and checkpoints of runs."""

from layeredrl.storage.checkpoint import Checkpoints
from layeredrl.storage.files import CheckpointError
from layeredrl.storage.replay import Replay
from layeredrl.storage.tensor_replay import TensorReplay

__all__ = ["CheckpointError", "Checkpoints", "Replay", "TensorReplay"]
