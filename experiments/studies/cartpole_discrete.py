"""PETS on gymnasium's cart-pole, which has two discrete actions.

python -m experiments.sweep experiments/studies/cartpole_discrete.py
python -m experiments.report runs/cartpole_discrete --reached 500 --in-a-row 3

Long results: experiments/results/cartpole_discrete.md.
"""

from experiments.sweep import Study

study = Study(
    name="cartpole_discrete",
    agents={"pets": {"preset": "demo"}},
    environments=("CartPole-v1",),
    seeds=(0, 1, 2),
    common={"trainer.n_total_env_steps": 2200, "pictures": False, "tensorboard": False},
)
