"""PETS with the settings of its released code on cart-pole, five planned episodes: two hours on one core.

python -m experiments.sweep experiments/studies/pets_paper.py
python -m experiments.report runs/pets_paper runs/pets_cartpole --reached 175

Long results: experiments/results/pets/cartpole.md.
"""

from experiments.sweep import Study

study = Study(
    name="pets_paper",
    agents={"paper": {"agent": "pets", "preset": "cartpole-paper", "model.rollout_dtype": "bfloat16"}},
    environments=("envs:PETSCartpole-v0",),
    common={
        "trainer.n_total_env_steps": 1200,
        "trainer.checkpoint_every": 200,  # an episode takes more than twenty minutes
        "pictures": False,
        "tensorboard": False,
    },
)
