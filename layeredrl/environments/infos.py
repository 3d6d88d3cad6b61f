"""Infos of several environments as one, whatever their entries are."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FAULT_KEYS = ("fault", "fault_message")
"""Entries in which an `EnvPool` reports faults; those of an environment's own info are left out."""
SUCCESS_KEYS = ("is_success", "success")
"""Entries in which an environment reports success; the last one has priority."""


def add_info(infos: dict[str, Any], info: Mapping[str, Any], i: int, n_envs: int) -> dict[str, Any]:
    """Add the info of an environment to those of others, as gymnasium's vector environments do.

    Where gymnasium raises, or would change a value to the dtype of another environment's, the entry becomes an array
    of objects, with None for environments without it.

    Args:
        infos: Infos of the environments before it.
        info: Info of the environment.
        i: Index of the environment.
        n_envs: Number of environments.
    """
    for key, value in info.items():
        if isinstance(key, str) and key.startswith("_") and (key[1:] in info or key[1:] in infos):
            continue  # the name of the mask of another entry
        is_known = key in infos and _is_mask(infos.get(f"_{key}"), n_envs)
        mask: NDArray[np.bool_] = infos[f"_{key}"] if is_known else np.zeros(n_envs, np.bool_)
        is_nested = isinstance(value, dict) and key != "final_obs"
        column: Any = infos[key] if key in infos else {} if is_nested else _new_column(key, value, n_envs)
        if is_nested and isinstance(column, dict):
            column = add_info(column, value, i, n_envs)
        else:
            if not _fits(column, value):
                column = _as_objects(column, mask, n_envs)
            column[i] = value
        mask[i] = True
        infos[key], infos[f"_{key}"] = column, mask
    return infos


def _new_column(key: str, value: Any, n_envs: int) -> NDArray[Any]:
    if isinstance(value, np.ndarray) and key != "final_obs":
        return np.zeros((n_envs, *value.shape), value.dtype)
    if type(value) in (int, float, bool) or isinstance(value, np.number):
        return np.zeros(n_envs, type(value))
    return _objects(n_envs)


def _objects(n_envs: int) -> NDArray[Any]:
    return np.full(n_envs, None, object)


def _fits(column: Any, value: Any) -> bool:
    """Return True if a value can be stored in a column without a change."""
    if not isinstance(column, np.ndarray):
        return False
    if column.dtype == object and column.ndim == 1:
        return True
    if type(value) is int:
        return column.ndim == 1 and column.dtype == np.int64 and -(2**63) <= value < 2**63
    if type(value) in (float, bool) or isinstance(value, np.number | np.ndarray):
        array = np.asarray(value)
        return bool(array.shape == column.shape[1:] and array.dtype == column.dtype)
    return False


def _as_objects(column: Any, mask: NDArray[np.bool_], n_envs: int) -> NDArray[Any]:
    """Return a column, or infos of nested dicts, as an array of objects."""
    result = _objects(n_envs)
    for j in np.flatnonzero(mask):
        result[j] = _row(column, int(j))
    return result


def _row(column: Any, j: int) -> Any:
    """Return the entry of an environment."""
    if not isinstance(column, dict):
        return column[j]
    return {key: _row(column[key], j) for key in column if _has(column, key, j)}


def _has(infos: Mapping[str, Any], key: str, j: int) -> bool:
    mask = infos.get(f"_{key}")
    return isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and bool(mask[j])


def successes(infos: Mapping[str, Any], n_envs: int, *, same_step: bool) -> NDArray[np.float64]:
    """Return the success of a step, (E,): 1, 0, or NaN where an environment reported neither.

    `success` has priority over `is_success`; values other than yes and no do not count, each by itself.

    Args:
        infos: Infos of a vector environment.
        n_envs: Number of environments E.
        same_step: If True, environments reset themselves in the step that ends an episode: its own info is among
            `final_info`.
    """
    found = np.full(n_envs, np.nan)
    final = infos.get("final_info") if same_step else None
    if final is None:
        ended = np.zeros(n_envs, np.bool_)
    else:
        ended = _mask(infos.get("_final_info"), n_envs)
        if not isinstance(final, Mapping):  # one info for each environment, or None
            final = _collated(final, n_envs)
    for source, where in ((infos, ~ended), (final or {}, ended)):
        for key in SUCCESS_KEYS:
            if key in source:
                verdicts = _verdicts(source[key], n_envs)
                reported = where & _mask(source.get(f"_{key}"), n_envs) & np.isfinite(verdicts)
                found[reported] = verdicts[reported]
    return found


def _collated(rows: Any, n_envs: int) -> dict[str, Any]:
    infos: dict[str, Any] = {}
    if isinstance(rows, Sequence | np.ndarray) and len(rows) == n_envs:
        for i, row in enumerate(rows):
            infos = add_info(infos, row, i, n_envs) if isinstance(row, Mapping) else infos
    return infos


def _is_mask(values: Any, n_envs: int) -> bool:
    return isinstance(values, np.ndarray) and values.shape == (n_envs,) and values.dtype == np.bool_


def _mask(values: Any, n_envs: int) -> NDArray[np.bool_]:
    """Return a mask of environments; all of them if it is something else."""
    return values if _is_mask(values, n_envs) else np.ones(n_envs, np.bool_)


def _verdicts(column: Any, n_envs: int) -> NDArray[np.float64]:
    """Return 1 for yes, 0 for no, and NaN for all else, by environment."""
    if not isinstance(column, np.ndarray | list | tuple) or len(column) != n_envs:
        return np.full(n_envs, np.nan)
    if isinstance(column, np.ndarray) and column.shape == (n_envs,) and column.dtype.kind in "bif":
        return np.where((column == 0) | (column == 1), column, np.nan)
    return np.array([_verdict(value) for value in column])


def _verdict(value: Any) -> float:
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    is_number = isinstance(value, bool | int | float | np.bool_ | np.number)
    return float(value) if is_number and value in (0, 1) else np.nan
