"""PETS with a small budget on its pusher, other ensembles, and SAC until it is as good.

python -m experiments.sweep experiments/studies/pets_pusher.py
python -m experiments.report runs/pets_pusher --reached -60 -74.1

Long results: experiments/results/pets/pusher.md.
"""

from experiments.sweep import Study

FAST = {"agent": "pets", "preset": "pusher-fast"}
SHORT = FAST | {"trainer.n_total_env_steps": 3000}

study = Study(
    name="pets_pusher",
    agents={
        "fast": FAST,
        "PE-TS1": SHORT | {"model.propagation": "ts1"},
        "DE": SHORT | {"model.deterministic": True},
        "P": SHORT | {"model.n_models": 1, "model.n_particles_per_model": 5},  # as many particles as the others
        "sac": {
            "preset": "paper",
            "sac.learning_rate": 1e-3,
            "learning.n_random_steps": 1000,
            "trainer.n_total_env_steps": 60_000,
            "trainer.stop_at_return": -74.1,  # median over three seeds of the best return of `fast`
        },
    },
    environments=("envs:PETSPusher-v0",),
    seeds=(0, 1, 2),
    common={"trainer.n_total_env_steps": 7500, "pictures": False, "tensorboard": False},
)
