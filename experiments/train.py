"""Train an agent: `python -m experiments.train pets --env ContinuousCartPole-v0 --seed 0`."""

import sys
import time
from contextlib import ExitStack

from experiments.config import fail, parse
from experiments.finish import Training, finish
from experiments.run import CHECKPOINT, build_agent, make_collector, make_logger, open_folder, play
from layeredrl.checkpoint import save_checkpoint
from layeredrl.randomness import derive_seed
from layeredrl.trainer import Trainer


def main() -> None:
    """Assemble the parts, train, and leave pictures."""
    with ExitStack() as at_end:
        try:
            config = parse(sys.argv[1:])
            agent = build_agent(config)
            collector = make_collector(config, agent)
            at_end.callback(collector.env.close)
            folder = open_folder(config)
        except (ValueError, TypeError) as error:
            fail(error)
        logger = at_end.enter_context(make_logger(config, folder))

        def save(n_total_env_steps: int) -> None:
            save_checkpoint(folder / CHECKPOINT, {"n_total_env_steps": n_total_env_steps, "agent": agent.state_dict()})

        trainer = Trainer(
            agent,
            collector,
            logger,
            config.trainer,
            evaluate=lambda n: play(config, agent, n, derive_seed(config.seed, "evaluation")),
            save=save,
        )
        start, start_cpu = time.perf_counter(), time.process_time()
        episodes = trainer.run()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
        training = Training(episodes, collector.n_total_env_steps, seconds, cpu_seconds)
        finish(config, agent, folder, logger, training)


if __name__ == "__main__":
    main()
