"""A latent world model on tasks of DeepMind Control: 50,000 decisions of two frames.

python -m experiments.sweep experiments/studies/tdmpc2_dmc.py
python -m experiments.report runs/tdmpc2_dmc

Results so far: experiments/results/tdmpc2.md.
"""

from experiments.sweep import Study

TASKS = ("cartpole-swingup", "finger-spin", "walker-walk", "reacher-easy", "pendulum-swingup", "cheetah-run")
PAPER = {"learning.n_random_steps": 2_500}
"""Settings for episodes of 500 decisions, which presets do not choose."""

study = Study(
    name="tdmpc2_dmc",
    agents={"tdmpc2": {}, "tdmpc2-small": {"agent": "tdmpc2", "preset": "small", **PAPER}},
    environments=tuple(f"dm_control/{name}-v0" for name in TASKS),
    seeds=(0, 1),
    common={
        "action_repeat": 2,
        "trainer.n_total_env_steps": 50_000,
        "trainer.checkpoint_every": 5_000,
        "pictures": False,
        "tensorboard": False,
    },
)
