"""Time that all tests share."""

import gc
import os

import pytest

os.environ["NUMBA_DISABLE_JIT"] = "1"  # tianshou compiles loops in each process, which takes longer than they run
gc.disable()  # the many objects that imports and the collection of tests make stay anyway


def pytest_collection_finish(session: pytest.Session) -> None:
    """Collect garbage from now on, but none of what is there already."""
    gc.freeze()
    gc.enable()
