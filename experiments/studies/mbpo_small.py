"""MBPO and SAC with default settings on two pendulums; rewards and terminations are learned.

python -m experiments.sweep experiments/studies/mbpo_small.py
python -m experiments.report runs/mbpo_small --reached Pendulum-v1=-200 InvertedPendulum-v5=1000

Long results: experiments/results/mbpo.md.
"""

from experiments.sweep import Study

study = Study(
    name="mbpo_small",
    agents={"mbpo": {}, "sac": {"trainer.n_total_env_steps": 15_000}},
    environments=("Pendulum-v1", "InvertedPendulum-v5"),
    seeds=(0, 1, 2, 3, 4),
    common={"pictures": False, "tensorboard": False},
    by_environment={
        "Pendulum-v1": {"trainer.n_total_env_steps": 2_500},
        "InvertedPendulum-v5": {"trainer.n_total_env_steps": 4_000},
    },
)
