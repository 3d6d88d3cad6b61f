"""Train an agent: `python -m experiments.train pets --env ContinuousCartPole-v0 --seed 0`.

The same command resumes a run that was stopped. Exit codes: 0 done, 2 bad input, 3 a fault before which the run was
saved, 75 stopped by a signal.
"""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from agents.recipe import Choice
from experiments.pictures.while_training import SkillPictures
from experiments.run.building import build_agent, make_collector, make_logger, require_wandb
from experiments.run.chosen import FACTS, as_json
from experiments.run.command_line import FAULT, command, fail, shortage
from experiments.run.config import RunConfig, parse
from experiments.run.duration import print_long
from experiments.run.finish import Training, finish
from experiments.run.folder import SUMMARY, open_folder, write_whole
from experiments.run.playing import play
from experiments.run.saving import Saver
from experiments.run.signals import STOPPED, StopRequest
from experiments.run.suited import print_choices
from experiments.run.versions import record
from layeredrl.environments import TaskFacts
from layeredrl.faults import Fault
from layeredrl.randomness import derive_seed
from layeredrl.trainer import Trainer


@command(needs_output=False)
def main() -> None:
    """Assemble the parts, resume from the last checkpoint if there is one, train, and draw the pictures of the run."""
    with ExitStack() as at_end:
        stop = at_end.enter_context(StopRequest())
        known: list[TaskFacts] = []  # of the task, if settings are chosen for it

        def tell(config: RunConfig[Any], facts: TaskFacts, choices: Sequence[Choice]) -> None:
            print_choices(config, facts, choices)
            known.append(facts)

        try:
            config = parse(sys.argv[1:], tell)
            require_wandb(config)
            agent = build_agent(config)
            collector = make_collector(config, agent)
            at_end.callback(collector.close)
            folder = at_end.enter_context(open_folder(config))
            for facts in known:
                write_whole(folder / FACTS, as_json(facts))
            save = Saver(folder)
            logger = at_end.enter_context(make_logger(config, folder))
            trainer = Trainer(
                agent,
                collector,
                logger,
                config.trainer,
                evaluate=lambda n: play(config, agent, n, derive_seed(config.seed, "evaluation"), lambda: bool(stop)),
                save=save,
                stop=lambda: bool(stop),
                draw=SkillPictures(config, agent, folder, logger) if config.pictures else None,
            )
            save.restore(trainer, config.device)
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
        print_long(config, agent.task, n_end - n_before)
        try:
            trainer.run()
            if trainer.finished:
                save.require_saved(collector.n_total_env_steps)
        except Exception as error:
            reason = str(error) if isinstance(error, Fault) else shortage(error)
            if reason is None:
                raise
            logger.close()
            fail(f"{reason}; the same command goes on at {save.n_saved} of {n_end} environment steps", FAULT)
        if not trainer.finished:
            logger.close()
            n_now = collector.n_total_env_steps
            print(f"stopped by {stop.received} at {n_now} of {n_end} environment steps; ", end="")
            print(f"the same command goes on at {save.n_saved}")
            raise SystemExit(STOPPED)
        training = Training(trainer.episodes, collector.n_total_env_steps, trainer.seconds, trainer.cpu_seconds)
        try:
            finish(config, agent, folder, logger=logger, training=training, save=lambda: save.last(trainer))
        except Fault as error:
            logger.close()
            fail(f"{error}; the run is trained, and the same command finishes it", FAULT)


if __name__ == "__main__":
    main()
