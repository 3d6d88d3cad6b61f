"""PETS, SAC and the random agent on the cart-pole: `python -m experiments.sweep experiments/studies/cartpole.py`.

It takes a few minutes on two cores.
"""

from experiments.sweep import Study

study = Study(
    name="cartpole",
    agents={
        "pets": {"trainer.n_total_env_steps": 1000},
        "sac": {"trainer.n_total_env_steps": 5000},
        "random": {"trainer.n_total_env_steps": 1000},
    },
    environments=("ContinuousCartPole-v0",),
    seeds=(0, 1, 2),
    common={"preset": "demo", "trainer.checkpoint_every": 200, "pictures": False, "tensorboard": False},
)
