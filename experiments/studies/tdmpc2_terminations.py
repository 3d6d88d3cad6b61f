"""A latent world model on a task that ends episodes: terminations learned softly, against none.

python -m experiments.sweep experiments/studies/tdmpc2_terminations.py
python -m experiments.report runs/tdmpc2_terminations

Results so far: experiments/results/tdmpc2.md.
"""

from experiments.sweep import Study

study = Study(
    name="tdmpc2_terminations",
    agents={"tdmpc2": {}, "without": {"agent": "tdmpc2", "latent.terminations": False}},
    environments=("InvertedDoublePendulum-v5",),
    seeds=(0, 1),
    common={
        "trainer.n_total_env_steps": 15_000,
        "trainer.checkpoint_every": 2_500,
        "pictures": False,
        "tensorboard": False,
    },
)
