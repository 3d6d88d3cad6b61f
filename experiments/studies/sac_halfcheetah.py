"""SAC on HalfCheetah.

python -m experiments.sweep experiments/studies/sac_halfcheetah.py
python -m experiments.report runs/sac_halfcheetah --reached 4000

Long results: experiments/results/sac.md.
"""

from experiments.sweep import Study

study = Study(
    name="sac_halfcheetah",
    agents={"sac": {"preset": "paper", "sac.learning_rate": 1e-3, "learning.n_random_steps": 5000}},
    environments=("HalfCheetah-v5",),
    seeds=(0, 1),
    common={"trainer.n_total_env_steps": 100_000, "trainer.checkpoint_every": 5000}
    | {"pictures": False, "tensorboard": False},
)
