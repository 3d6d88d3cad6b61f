"""Tasks registered with gymnasium on import, each with its reward and termination as torch functions.

Where an environment is made in another process, gymnasium's module syntax imports this package there:
`gymnasium.make("envs:ContinuousCartPole-v0")`.
"""

import gymnasium as gym

if "ContinuousCartPole-v0" not in gym.registry:
    gym.register(
        id="ContinuousCartPole-v0",
        entry_point="envs.cartpole:ContinuousCartPole",
        max_episode_steps=200,  # CartPole-v0's limit, which PETS and mbrl-lib keep
    )
