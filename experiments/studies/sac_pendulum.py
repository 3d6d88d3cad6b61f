"""SAC on the pendulum.

python -m experiments.sweep experiments/studies/sac_pendulum.py
python -m experiments.report runs/sac_pendulum --reached -200

Long results: experiments/results/sac.md.
"""

from experiments.sweep import Study

study = Study(
    name="sac_pendulum",
    agents={"sac": {"preset": "demo"}},
    environments=("Pendulum-v1",),
    seeds=(0, 1, 2, 3, 4),
    common={"trainer.n_total_env_steps": 10_000, "trainer.checkpoint_every": 5000}
    | {"pictures": False, "tensorboard": False},
)
