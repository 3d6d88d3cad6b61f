import pytest

from tests.planners.plain import GivenNumbers


@pytest.fixture
def numbers(monkeypatch):
    return GivenNumbers(monkeypatch)
