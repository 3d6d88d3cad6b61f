"""Train an agent: `python -m experiments.train pets --env ContinuousCartPole-v0 --seed 0`.

The same command again goes on where it was stopped. Exit codes: 0 done, 2 bad input, 3 a fault that the run was saved
before, 75 asked to stop.
"""

import sys
import warnings
from contextlib import ExitStack
from pathlib import Path

from experiments.pictures.of_skills import SkillPictures
from experiments.run.command_line import fail
from experiments.run.config import parse
from experiments.run.finish import Training, finish
from experiments.run.parts import (
    CHECKPOINTS,
    FAULT,
    SUMMARY,
    build_agent,
    make_collector,
    make_logger,
    open_folder,
    play,
    restoring,
)
from experiments.run.signals import STOPPED, StopRequest
from experiments.run.versions import record
from layeredrl.faults import Fault
from layeredrl.randomness import derive_seed
from layeredrl.storage import Checkpoints
from layeredrl.trainer import Trainer


class Saver:
    """Writes checkpoints; what cannot be written now is tried again the next time.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.checkpoints = Checkpoints(folder / CHECKPOINTS)
        self.warned = False

    def __call__(self, trainer: Trainer) -> bool:
        """Save; a disk that is full or read-only is told of once, and does not stop the training."""
        state = trainer.state_dict()
        try:
            self.checkpoints.save(state, state["n_total_env_steps"], score=trainer.score)
        except OSError as error:
            if not self.warned:
                warnings.warn(
                    f"no checkpoint could be written, training goes on: {error}", RuntimeWarning, stacklevel=2
                )
            self.warned = True
            return False
        self.warned = False
        return True


def main() -> None:
    """Assemble the parts, go on from the last checkpoint if there is one, train, and leave pictures."""
    with ExitStack() as at_end:
        stop = at_end.enter_context(StopRequest())
        try:
            config = parse(sys.argv[1:])
            agent = build_agent(config)
            collector = make_collector(config, agent)
            at_end.callback(collector.env.close)
            folder = at_end.enter_context(open_folder(config))
            save = Saver(folder)
            logger = at_end.enter_context(make_logger(config, folder))
            trainer = Trainer(
                agent,
                collector,
                logger,
                config.trainer,
                evaluate=lambda n: play(config, agent, n, derive_seed(config.seed, "evaluation")),
                save=save,
                stop=lambda: bool(stop),
                draw=SkillPictures(config, agent, folder, logger) if config.pictures else None,
            )
            if save.checkpoints.newest() is not None:
                state = save.checkpoints.load(config.device)
                save.checkpoints.prune()  # a run that was killed in its last save may save nothing any more
                with restoring(save.checkpoints.folder):
                    trainer.load_state_dict(state)
        except Fault as error:
            fail(error, FAULT)
        except (ValueError, TypeError, OSError) as error:
            fail(error)
        n_before, n_end = collector.n_total_env_steps, config.trainer.n_total_env_steps
        if trainer.finished and (folder / SUMMARY).exists():
            more = "--trainer.stop-at-return None" if n_before < n_end else "--trainer.n-total-env-steps"
            print(f"{folder} is finished, with {n_before} environment steps. {more} goes on to more,")
            print("--fresh starts over.")
            return
        (folder / SUMMARY).unlink(missing_ok=True)  # of a shorter run
        record(folder, n_before)
        if n_before:
            print(f"{folder} goes on at {n_before} of {n_end} environment steps")
        try:
            trainer.run()
        except Fault as error:
            logger.close()
            n_saved = save.checkpoints.newest() or 0
            fail(f"{error}; the same command goes on at {n_saved} of {n_end} environment steps", FAULT)
        if not trainer.finished:
            logger.close()
            n_saved = save.checkpoints.newest() or 0
            print(f"stopped by {stop.received} at {collector.n_total_env_steps} of {n_end} environment steps; ", end="")
            print(f"the same command goes on at {n_saved}")
            raise SystemExit(STOPPED)
        training = Training(trainer.episodes, collector.n_total_env_steps, trainer.seconds, trainer.cpu_seconds)
        try:
            finish(config, agent, folder, logger=logger, training=training, save=lambda: save(trainer))
        except Fault as error:
            logger.close()
            fail(f"{error}; the run is trained and saved, but not all of its pictures are drawn", FAULT)


if __name__ == "__main__":
    main()
