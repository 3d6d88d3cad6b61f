"""PETS with a small budget on its HalfCheetah, and SAC until it is as good.

python -m experiments.sweep experiments/studies/pets_halfcheetah.py
python -m experiments.report runs/pets_halfcheetah --reached 4000

Long results: experiments/results/pets/halfcheetah.md.
"""

from experiments.sweep import Study

study = Study(
    name="pets_halfcheetah",
    agents={
        "fast": {"agent": "pets", "preset": "halfcheetah-fast"},
        "sac": {
            "preset": "paper",
            "sac.learning_rate": 1e-3,
            "learning.n_random_steps": 5000,
            "trainer.n_total_env_steps": 100_000,
            "trainer.stop_at_return": 4000,
        },
    },
    environments=("envs:PETSHalfCheetah-v0",),
    seeds=(0, 1),
    common={
        "trainer.n_total_env_steps": 50_000,
        "trainer.checkpoint_every": 5000,
        "pictures": False,
        "tensorboard": False,
    },
)
