"""SPlaTES in Maze2D-Medium: reward at every step or at the end of a skill, with and without symmetry breaking.

python -m experiments.sweep experiments/studies/skills_ablation.py
python -m experiments.report runs/skills_ablation --metric eval/success --reached 0.9

Long results: experiments/results/skills/ablation.md.
"""

from experiments.sweep import Study

BREAKING = {"sb_start_duration": 16_000, "sb_start_factor": 1.5}

study = Study(
    name="skills_ablation",
    agents={
        "splates": {},
        "splates-sb": {"agent": "splates", **BREAKING},
        "splates-end": {"agent": "splates", "reward": "end"},
        "splates-end-sb": {"agent": "splates", "reward": "end", **BREAKING},
    },
    environments=("Maze2D-Medium-v0",),
    seeds=(0, 1),
    common={
        "n_envs": 16,
        "vectorization": "native",
        "pictures": False,
        "tensorboard": False,
        "trainer.n_total_env_steps": 60_000,
        "trainer.checkpoint_every": 20_000,
        "trainer.eval_every": 20_000,
        "trainer.eval_episodes": 24,
    },
)
