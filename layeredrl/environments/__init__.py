"""Vector environments: factories, and a pool that survives failures of single environments."""

from layeredrl.environments.answers import EnvironmentFault
from layeredrl.environments.config import EnvConfig
from layeredrl.environments.facts import TaskFacts
from layeredrl.environments.making import (
    UnknownEnvironmentError,
    Vectorization,
    make_env,
    make_facts,
    make_task,
    make_torch_vector_env,
    make_unscaled_env,
    make_vector_env,
)
from layeredrl.environments.pool import EnvPool, OnFault
from layeredrl.environments.torch_vector import HostVector, TorchStep, TorchVectorEnv

__all__ = [
    "EnvConfig",
    "EnvPool",
    "EnvironmentFault",
    "HostVector",
    "OnFault",
    "TaskFacts",
    "TorchStep",
    "TorchVectorEnv",
    "UnknownEnvironmentError",
    "Vectorization",
    "make_env",
    "make_facts",
    "make_task",
    "make_torch_vector_env",
    "make_unscaled_env",
    "make_vector_env",
]
