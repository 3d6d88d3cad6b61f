"""MBPO on walker-walk: targets of the model on scales of their own, on one, and as next states instead of changes.

python -m experiments.sweep experiments/studies/mbpo_scales.py
python -m experiments.report runs/mbpo_scales

Barkley and Fridovich-Keil 2025 (arXiv 2510.01457) find that the scales decide whether MBPO learns these tasks.
"""

from experiments.sweep import Study

study = Study(
    name="mbpo_scales",
    agents={
        "mbpo": {},
        "one-scale": {"agent": "mbpo", "model.normalize_targets": False},
        "next-state": {"agent": "mbpo", "model.predicts": "next"},
        "sac": {},
    },
    environments=("dm_control/walker-walk-v0",),
    seeds=(0, 1),
    common={
        "action_repeat": 2,
        "trainer.n_total_env_steps": 50_000,
        "trainer.checkpoint_every": 5_000,
        "pictures": False,
        "tensorboard": False,
    },
)
