"""A slower device is emulated by sleeping, and real nodes never sleep."""

import time
from collections.abc import Iterator

import pytest

from splitplane.runtime import emulation
from splitplane.runtime.environment import SettingsError


@pytest.fixture(autouse=True)
def forget_factor() -> Iterator[None]:
    emulation.speed_factor.cache_clear()
    yield
    emulation.speed_factor.cache_clear()


def test_a_real_node_is_not_slowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(emulation.VARIABLE, raising=False)
    assert emulation.pace(5.0, 5.0) == 0.0


def test_a_device_four_times_slower_sleeps_three_times_the_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(emulation.VARIABLE, "4")
    started = time.process_time()
    assert emulation.pace(0.02, 0.02) >= 0.06
    assert time.process_time() - started < 0.05  # asleep, not spinning


def test_waiting_for_a_shared_core_does_not_slow_the_device_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(emulation.VARIABLE, "4")
    assert 0.02 <= emulation.pace(0.02, 0.06) < 0.06
    assert emulation.pace(0.02, 0.09) == 0.0


@pytest.mark.parametrize("text", ["0.5", "nan", "inf", "fast", "-2"])
def test_a_wrong_factor_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(emulation.VARIABLE, text)
    with pytest.raises(SettingsError, match="at least 1"):
        emulation.pace(0.01, 0.01)
