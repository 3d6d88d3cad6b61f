"""MBPO on Hopper: reward and termination learned, in two ways; the termination known; three bounds of imagination.

python -m experiments.sweep experiments/studies/mbpo_hopper.py
python -m experiments.report runs/mbpo_hopper

Long results: experiments/results/mbpo.md.
"""

from experiments.sweep import Study

study = Study(
    name="mbpo_hopper",
    agents={
        "mbpo": {},
        "exact": {"agent": "mbpo", "fitting.caution": 0.0, "trainer.n_total_env_steps": 30_000},
        "dynamics": {"agent": "mbpo", "fitting.termination": "dynamics"},
        "macura": {
            "agent": "mbpo",
            "fitting.termination": "dynamics",
            "imagination.bound": "macura",
            "imagination.n_steps": (10, 10),
            "trainer.n_total_env_steps": 30_000,
        },
        "infoprop": {
            "agent": "mbpo",
            "fitting.termination": "dynamics",
            "imagination.bound": "infoprop",
            "imagination.n_steps": (30, 30),
            "trainer.n_total_env_steps": 30_000,
        },
    },
    environments=("Hopper-v5", "envs:KnownEndHopper-v0"),
    seeds=(0, 1, 2),
    common={
        "trainer.n_total_env_steps": 60_000,
        "trainer.checkpoint_every": 5_000,
        "pictures": False,
        "tensorboard": False,
    },
    by_environment={"envs:KnownEndHopper-v0": {"trainer.n_total_env_steps": 40_000}},
    skip={
        agent: {"envs:KnownEndHopper-v0": "compared with the termination learned"}
        for agent in ("exact", "dynamics", "macura", "infoprop")
    },
)
