"""PETS and SAC with their default settings on standard tasks of the field, with the random agent as chance.

python -m experiments.sweep experiments/studies/first_try.py
python -m experiments.report runs/first_try

Apart from the number of environment steps of each task, only records that change no result are set. It takes a night on
two cores, and needs the extras for MuJoCo, Box2D and DeepMind Control.
"""

from experiments.sweep import Study

N_STEPS = {
    "ContinuousCartPole-v0": 3_000,
    "CartPole-v1": 3_000,
    "Acrobot-v1": 5_000,
    "Pendulum-v1": 3_000,
    "MountainCarContinuous-v0": 10_000,
    "LunarLanderContinuous-v3": 20_000,
    "InvertedPendulum-v5": 3_000,
    "Reacher-v5": 5_000,
    "HalfCheetah-v5": 10_000,
    "Hopper-v5": 10_000,
    "dm_control/cartpole-swingup-v0": 10_000,
    "dm_control/finger-spin-v0": 10_000,
    "dm_control/reacher-easy-v0": 10_000,
}
"""Environment steps of each run by task."""

study = Study(
    name="first_try",
    agents={"pets": {}, "sac": {}, "random": {}},
    environments=tuple(N_STEPS),
    seeds=(0, 1),
    common={"pictures": False, "tensorboard": False},
    by_environment={env: {"trainer.n_total_env_steps": n} for env, n in N_STEPS.items()},
    skip={"sac": dict.fromkeys(("CartPole-v1", "Acrobot-v1"), "its actions are discrete, SAC's are continuous")},
)
