"""Tasks registered with gymnasium on import, each with its known functions (reward, termination, dynamics) in torch.

Where an environment is made in another process, gymnasium's module syntax imports this package there:
`gymnasium.make("envs:ContinuousCartPole-v0")`.
"""

import gymnasium as gym

for _name, _entry_point, _max_episode_steps in (
    ("ContinuousCartPole-v0", "envs.cartpole:ContinuousCartPole", 200),  # CartPole-v0's limit, as in PETS and mbrl-lib
    ("DiscreteCartPole-v0", "envs.cartpole:DiscreteCartPole", 500),  # CartPole-v1's limit
    ("CartPoleSwingUp-v0", "envs.cartpole_swingup:CartPoleSwingUp", 200),  # 8 seconds, as in PETS' cart-pole
    ("SwingUpPendulum-v0", "envs.pendulum:SwingUpPendulum", 200),  # Pendulum-v1's limit
    ("FullStateHalfCheetah-v0", "envs.half_cheetah:FullStateHalfCheetah", 1000),  # HalfCheetah-v5's limit
    ("KnownEndHopper-v0", "envs.hopper:KnownEndHopper", 1000),  # Hopper-v5's limit
    ("AntGoal-v0", "envs.ant:AntGoal", 200),  # as in DADS
    ("PETSCartpole-v0", "envs.pets_cartpole:PETSCartpole", 200),  # these four as in PETS
    ("PETSReacher-v0", "envs.pets_reacher:PETSReacher", 150),
    ("PETSPusher-v0", "envs.pets_pusher:PETSPusher", 150),
    ("PETSHalfCheetah-v0", "envs.pets_half_cheetah:PETSHalfCheetah", 1000),
):
    if _name not in gym.registry:
        gym.register(id=_name, entry_point=_entry_point, max_episode_steps=_max_episode_steps)

for _layout in ("simple", "corridor", "medium"):
    _name = f"Maze2D-{_layout.capitalize()}-v0"
    if _name not in gym.registry:
        gym.register(
            id=_name,
            entry_point="envs.maze2d:Maze2D",
            vector_entry_point="envs.maze2d_vector:Maze2DVectorEnv",
            kwargs={"layout": _layout},  # no limit here: the environment truncates by itself
        )

for _name, _entry_point, _maze, _max_episode_steps in (  # gymnasium-robotics' limits
    ("PointMaze-UMaze-v0", "envs.robotics_mazes:PointMaze", "umaze", 300),
    ("PointMaze-Medium-v0", "envs.robotics_mazes:PointMaze", "medium", 600),
    ("AntMaze-UMaze-v0", "envs.robotics_mazes:AntMaze", "umaze", 700),
    ("AntMaze-Medium-v0", "envs.robotics_mazes:AntMaze", "medium", 1000),
):
    if _name not in gym.registry:
        gym.register(id=_name, entry_point=_entry_point, max_episode_steps=_max_episode_steps, kwargs={"maze": _maze})
