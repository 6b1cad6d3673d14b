import math

import numpy as np
import pytest
import scipy.stats

from benchmarks.intervals import Interval, interval


def test_intervals_are_students():
    values = [0.2, 0.5, 0.45, 0.61]
    low, high = scipy.stats.t.interval(
        0.95, 3, loc=np.mean(values), scale=scipy.stats.sem(values)
    )
    found = interval(values)
    assert found.mean == pytest.approx((low + high) / 2)
    assert found.half == pytest.approx((high - low) / 2)
    assert str(Interval(0.25, 0.1)) == "0.250 ± 0.100"
    assert str(interval([0.25])) == "0.250"
    assert str(interval([math.nan, 1.0])) == ""
