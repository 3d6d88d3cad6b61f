"""MBPO on HalfCheetah-v5: returns at 40,000 steps, and what updates for each step bring.

python -m experiments.sweep experiments/studies/mbpo_halfcheetah.py
python -m experiments.report runs/mbpo_halfcheetah

Long results: experiments/results/mbpo.md.
"""

from experiments.sweep import Study

study = Study(
    name="mbpo_halfcheetah",
    agents={
        "mbpo": {"trainer.n_total_env_steps": 40_000},
        **{f"updates-{n}": {"agent": "mbpo", "learning.updates_per_transition": float(n)} for n in (5, 20)},
    },
    environments=("HalfCheetah-v5",),
    seeds=(0, 1),
    common={
        "trainer.n_total_env_steps": 15_000,
        "trainer.checkpoint_every": 5_000,
        "pictures": False,
        "tensorboard": False,
    },
)
