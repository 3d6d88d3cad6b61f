"""Planning guided by a policy and critics on PETS' HalfCheetah, and pets by its defaults and with its own preset.

python -m experiments.sweep experiments/studies/loop_halfcheetah.py
python -m experiments.report runs/loop_halfcheetah

Results so far: experiments/results/guided.md.
"""

from experiments.sweep import Study

study = Study(
    name="loop_halfcheetah",
    agents={
        "loop": {},
        "pets": {},
        "pets-fast": {"agent": "pets", "preset": "halfcheetah-fast"},
    },
    environments=("PETSHalfCheetah-v0",),
    seeds=(0, 1, 2, 3),
    common={
        "trainer.n_total_env_steps": 30_000,
        "trainer.checkpoint_every": 5_000,
        "pictures": False,
        "tensorboard": False,
    },
)
