"""PETS on the cart-pole: one environment and eight, rollouts in float32 and bfloat16.

python -m experiments.sweep experiments/studies/cartpole_pets.py
python -m experiments.report runs/cartpole_pets --reached 200 --in-a-row 3

Long results: experiments/results/cartpole_pets.md, cartpole_pets_8_envs.md, model_bfloat16.md.
"""

from experiments.sweep import Study

study = Study(
    name="cartpole_pets",
    agents={
        "pets": {},
        "pets_8_envs": {"agent": "pets", "n_envs": 8, "trainer.n_total_env_steps": 2400},
        "pets_bfloat16": {"agent": "pets", "model.rollout_dtype": "bfloat16"},
    },
    environments=("ContinuousCartPole-v0",),
    seeds=tuple(range(10)),
    common={"preset": "demo", "pictures": False, "tensorboard": False},
)
