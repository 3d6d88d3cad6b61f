"""List agents, presets and environments: `python -m experiments.list`."""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import gymnasium as gym
from rich.console import Console
from rich.table import Table

import envs  # noqa: F401  registers the tasks with gymnasium
from experiments.run.command_line import command, command_line, fail, program
from experiments.run.config import AGENTS, agent_class, first_line, preset_names


@dataclass(frozen=True)
class ListConfig:
    """List agents, presets and environments."""


@command()
def main() -> None:
    """Print a table of the agents and one of the environments of the lab."""
    try:
        command_line(ListConfig, sys.argv[1:], prog=program("list"))
        agents, environments = _agents(), _environments()
    except ValueError as error:
        fail(error)
    console = Console()
    for table in (agents, environments):
        console.print(table)
        console.print()
    console.print(
        "Others: any id registered with gymnasium, such as --env Pendulum-v1; those of another package as "
        "--env package.module:Id; all ids: python -c 'import gymnasium; gymnasium.pprint_registry()'",
        highlight=False,
    )


def _agents() -> Table:
    table = _table("agent", "description", "presets")
    for name in AGENTS:
        cls = agent_class(name)
        table.add_row(name, first_line(cls), ", ".join(preset_names(cls)))
    return table


def _environments() -> Table:
    table = _table("environment", "description", "extra")
    for env_id, entry_point in _own_environments():
        module, _, name = entry_point.partition(":")
        spec = find_spec(module)
        if spec is None or spec.origin is None:
            raise ValueError(f"environment {env_id} is registered with {entry_point!r}, which does not exist")
        table.add_row(env_id, *_described(Path(spec.origin), name))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column == columns[0])
    return table


def _own_environments() -> Iterator[tuple[str, str]]:
    """Id and entry point of each environment of `envs`."""
    for env_id, spec in gym.registry.items():
        if isinstance(spec.entry_point, str) and spec.entry_point.startswith("envs."):
            yield env_id, spec.entry_point


def _described(path: Path, name: str) -> tuple[str, str]:
    """First line of the docstring of a class, and the extra that its module names; nothing is imported."""
    tree = ast.parse(path.read_text())
    docs = [ast.get_docstring(node) for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    extra = re.search(r"Needs the extra `(\w+)`", ast.get_docstring(tree) or "")
    return (next(filter(None, docs), "") or "").partition("\n")[0], extra[1] if extra else ""


if __name__ == "__main__":
    main()
