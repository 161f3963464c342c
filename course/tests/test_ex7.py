"""Exercise 7, the Wilson interval, against values worked out by hand with its closed form."""
import pytest
import stubs  # noqa: F401

from metrics import wilson


@pytest.mark.parametrize("k, n, interval", [
    (8, 10, (0.4902, 0.9433)), (0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0)),
    (150, 200, (0.6858, 0.8049))])
def test_by_hand(k, n, interval):
    assert wilson(k, n) == pytest.approx(interval, abs=2e-4)


def test_no_trial_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


def test_it_shrinks_with_n_and_grows_with_z():
    def width(k, n, **z):
        low, high = wilson(k, n, **z)
        return high - low
    assert width(80, 100) < width(8, 10) / 2
    assert width(8, 10, z=1.0) < width(8, 10) < width(8, 10, z=2.576)


def test_it_stays_between_0_and_1():
    for k in range(6):
        low, high = wilson(k, 5)
        assert 0 <= low <= k / 5 <= high <= 1
