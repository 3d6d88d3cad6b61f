"""Planners over goals and over skills, against flat agents, in Maze2D-Medium.

python -m experiments.sweep experiments/studies/maze.py
python -m experiments.report runs/maze --metric eval/success --reached 0.9
python -m experiments.evaluate runs/maze/splates-Maze2D-Medium-v0-seed0 --episodes 120

Long results: experiments/results/maze.md, skills/maze.md.
"""

from experiments.sweep import Study

study = Study(
    name="maze",
    agents={
        "goals": {},
        "sac": {"preset": "demo", "learning.n_random_steps": 2000, "learning.updates_per_transition": 0.5},
        "splates": {"trainer.n_total_env_steps": 150_000},
        "dads": {"trainer.n_total_env_steps": 120_000},
        "splates_discrete": {"agent": "splates", "n_skills": 16, "trainer.n_total_env_steps": 60_000},
        "splates-goals": {"trainer.n_total_env_steps": 60_000},
        "pets": {
            "preset": "demo",
            "model.hidden": (128, 128),
            "model.n_models": 3,
            "model.frequencies": (1.571, 3.142, 6.283),
            "model.rollout_dtype": "auto",
            "learning.n_random_steps": 2000,
            "learning.fit_every": 2000,
            "learning.fit.batch_size": 256,
            "planner.icem.horizon": 30,
            "planner.icem.n_samples": 64,
            "trainer.n_total_env_steps": 30_000,
        },
    },
    environments=("Maze2D-Medium-v0",),
    seeds=(0, 1, 2),
    common={
        "n_envs": 16,
        "vectorization": "native",
        "pictures": False,
        "tensorboard": False,
        "trainer.n_total_env_steps": 100_000,
        "trainer.checkpoint_every": 20_000,
        "trainer.eval_every": 20_000,
        "trainer.eval_episodes": 24,
    },
)
