"""MuJoCo's drawing on machines without a display."""

import importlib.util
import os
import subprocess
import sys

VARIABLE = "MUJOCO_GL"
"""Environment variable with which MuJoCo, gymnasium and dm_control choose how to draw."""
_NONE = "disable"
_BACKENDS = ("egl", "osmesa")
"""Libraries that draw without a display, the faster one first."""


def choose_backend() -> None:
    """Let MuJoCo draw by EGL, or else by OSMesa, on a machine without a display; if neither works, let it not draw.

    Without a choice it tries to open a window, and fails with messages that name no cause. Nothing is done if
    `MUJOCO_GL` is set, if there is a display, or on other systems than Linux. The choice is inherited by processes.
    """
    has_display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform != "linux" or VARIABLE in os.environ or has_display or importlib.util.find_spec("mujoco") is None:
        return
    os.environ[VARIABLE] = next(filter(_works, _BACKENDS), _NONE)


def problem() -> str | None:
    """Return the reason why MuJoCo cannot draw here; None if there is none that is known."""
    if "mujoco" not in sys.modules or os.environ.get(VARIABLE) != _NONE:
        return None
    return (
        "MuJoCo cannot draw on this machine: there is no display, and neither EGL nor OSMesa works; install one of "
        "them (libegl1 or libosmesa6 on Debian), or set MUJOCO_GL"
    )


def _works(backend: str) -> bool:
    """Return True if a library can be used, tried in another process: a driver may end its process."""
    environment = {**os.environ, VARIABLE: backend, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    code = f"from mujoco.{backend} import GLContext; GLContext(8, 8).make_current()"
    try:
        tried = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return False
    return tried.returncode == 0
