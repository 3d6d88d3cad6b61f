"""Checkpoints of a run in training."""

import warnings
from pathlib import Path

from experiments.run.folder import checkpoints_of
from experiments.run.loading import restoring
from layeredrl.faults import Fault
from layeredrl.trainer import Trainer


class Saver:
    """Writes and restores the checkpoints of a run.

    Args:
        folder: Folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.checkpoints = checkpoints_of(folder)
        self.error: OSError | None = None
        """Reason why the last save failed; None if it did not."""

    @property
    def n_saved(self) -> int:
        """Number of environment steps of the newest checkpoint; 0 if there is none."""
        return self.checkpoints.newest() or 0

    def __call__(self, trainer: Trainer) -> bool:
        """Save the trainer's state and return True; if the disk is full or read-only, warn once and return False.

        The next call tries again, so that a failure does not stop the training.
        """
        state = trainer.state_dict()
        try:
            self.checkpoints.save(state, state["n_total_env_steps"], score=trainer.score)
        except OSError as error:
            if self.error is None:
                warnings.warn(
                    f"no checkpoint could be written, training goes on: {error}", RuntimeWarning, stacklevel=2
                )
            self.error = error
            return False
        self.error = None
        return True

    def last(self, trainer: Trainer) -> None:
        """Save the trainer's state at the end of a run, where no later save makes up for a failure.

        Raises:
            Fault: The checkpoint could not be written.
        """
        if not self(trainer):
            raise Fault(f"the last checkpoint could not be written: {self.error}") from self.error

    def require_saved(self, n_total_env_steps: int) -> None:
        """Raise a `Fault` unless there is a checkpoint of this number of environment steps."""
        if self.n_saved < n_total_env_steps:
            raise Fault(f"the last checkpoint could not be written: {self.error}") from self.error

    def restore(self, trainer: Trainer, device: str) -> None:
        """Load the newest checkpoint, if there is one, into the trainer.

        Raises:
            ValueError: The checkpoint cannot be read, or does not fit the settings.
        """
        if self.checkpoints.newest() is None:
            return
        state = self.checkpoints.load(device)
        self.checkpoints.prune()  # a run that was killed in its last save may never save again
        with restoring(self.checkpoints.folder):
            trainer.load_state_dict(state)
