import signal
from collections.abc import Iterator

import pytest

from experiments.run.signals import STOPPED, StopRequest
from tests.experiments.commands import QUICK, run_train, signal_at


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


def test_a_closed_terminal_stops_a_run_which_is_saved(capsys: pytest.CaptureFixture[str]) -> None:
    with signal_at(40, signal.SIGHUP), pytest.raises(SystemExit) as stop:
        run_train("random", *QUICK, "--name", "r")
    assert stop.value.code == STOPPED
    assert "stopped by SIGHUP at 41 of 60 environment steps; the same command goes on at 41" in capsys.readouterr().out


@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGTERM])
def test_a_further_hangup_does_not_disturb_the_save(first: signal.Signals) -> None:
    """A shell and the kernel both send one."""
    with StopRequest() as stop:
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGHUP)
        assert stop.received == first.name


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    """As `nohup` has it."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert not stop
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
