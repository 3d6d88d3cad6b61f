"""PETS with a small budget on its cart-pole, other ensembles, and SAC until it is as good.

python -m experiments.sweep experiments/studies/pets_cartpole.py
python -m experiments.report runs/pets_cartpole --reached 175 179.9

Long results: experiments/results/pets/cartpole.md.
"""

from experiments.sweep import Study

FAST = {"agent": "pets", "preset": "cartpole-fast"}

study = Study(
    name="pets_cartpole",
    agents={
        "fast": FAST,
        "PE-TS1": FAST | {"model.propagation": "ts1"},
        "DE": FAST | {"model.deterministic": True},
        "P": FAST | {"model.n_models": 1, "model.n_particles_per_model": 5},  # as many particles as the others
        "sac": {
            "preset": "paper",
            "sac.learning_rate": 1e-3,
            "learning.n_random_steps": 1000,
            "trainer.n_total_env_steps": 30_000,
            "trainer.stop_at_return": 179.9,  # median over three seeds of the best return of `fast`
        },
    },
    environments=("envs:PETSCartpole-v0",),
    seeds=(0, 1, 2),
    common={"trainer.n_total_env_steps": 3000, "pictures": False, "tensorboard": False},
)
