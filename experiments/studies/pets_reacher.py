"""PETS with a small budget on its reacher, and SAC until it is as good.

python -m experiments.sweep experiments/studies/pets_reacher.py
python -m experiments.report runs/pets_reacher --reached -50 -27.8

Long results: experiments/results/pets/reacher.md.
"""

from experiments.sweep import Study

study = Study(
    name="pets_reacher",
    agents={
        "fast": {"agent": "pets", "preset": "reacher-fast"},
        "sac": {
            "preset": "paper",
            "sac.learning_rate": 1e-3,
            "learning.n_random_steps": 1000,
            "trainer.n_total_env_steps": 15_000,
            "trainer.stop_at_return": -27.8,  # median over three seeds of the best return of `fast`
        },
    },
    environments=("envs:PETSReacher-v0",),
    seeds=(0, 1, 2),
    common={"trainer.n_total_env_steps": 6000, "pictures": False, "tensorboard": False},
)
