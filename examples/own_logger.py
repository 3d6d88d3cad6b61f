"""A logger of your own beside the console's: python -m examples.own_logger."""

import json
import tempfile
from pathlib import Path

import torch

from agents.pets import PETS
from layeredrl.collector import Collector
from layeredrl.environments import make_task, make_vector_env
from layeredrl.loggers import ConsoleLogger, Logger, LoggerList
from layeredrl.trainer import Trainer, TrainerConfig


class JSONLines(Logger):  # one JSON object per record
    def __init__(self, path):
        self.file = path.open("w")

    def log(self, metrics, n_total_env_steps):
        if metrics:  # empty records only report progress
            print(json.dumps({"steps": n_total_env_steps, **metrics}), file=self.file)

    def close(self):
        self.file.close()


path = Path(tempfile.mkdtemp()) / "log.jsonl"
logger, config = LoggerList([ConsoleLogger(140), JSONLines(path)]), TrainerConfig(n_total_env_steps=140)
agent = PETS.preset("demo").build(make_task("envs:ContinuousCartPole-v0"), torch.device("cpu"), seed=0)
collector = Collector(make_vector_env("envs:ContinuousCartPole-v0", max_episode_steps=100), agent, seed=0)
with logger:
    Trainer(agent, collector, logger, config).run()
records = [json.loads(line) for line in path.read_text().splitlines()]
print("returns:", [record["env/episode_return"] for record in records if "env/episode_return" in record])
