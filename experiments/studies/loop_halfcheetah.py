"""Planning guided by a policy and critics on PETS' HalfCheetah, the same without guidance, and pets.

python -m experiments.sweep experiments/studies/loop_halfcheetah.py
python -m experiments.report runs/loop_halfcheetah

Results so far: experiments/results/guided.md.
"""

from experiments.sweep import Study

study = Study(
    name="loop_halfcheetah",
    agents={
        "loop": {},
        "unguided": {"agent": "loop", "guided": False},
        "pets": {"preset": "halfcheetah-fast"},
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
