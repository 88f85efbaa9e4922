"""Signals ask a sweep to end."""

from __future__ import annotations

import os
import signal

import pytest

from sdm_ray.sweep.interrupt import StopSwitch, stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_asks_once_and_a_second_one_insists_unless_a_terminal_closed(number: signal.Signals) -> None:
    switch, said, before = StopSwitch(), list[str](), signal.getsignal(number)
    try:
        signal.signal(number, signal.SIG_DFL)  # the suite may run under `nohup`
        with stop_on_signals(switch, said.append):
            os.kill(os.getpid(), number)
            assert switch.reason == "interrupted"
            if number is signal.SIGHUP:
                os.kill(os.getpid(), number)
            else:
                with pytest.raises(KeyboardInterrupt):
                    os.kill(os.getpid(), number)
        assert len(said) == 1
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_nohup_is_obeyed() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        switch = StopSwitch()
        with stop_on_signals(switch, lambda text: None):
            os.kill(os.getpid(), signal.SIGHUP)
            assert switch.reason is None
    finally:
        signal.signal(signal.SIGHUP, before)
