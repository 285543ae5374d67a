import statistics as reference

import numpy
import pytest
from ansible.module_utils.bramble import statistics
from hypothesis import given
from hypothesis import strategies as st

VALUES = st.lists(st.floats(0.001, 1e6), min_size=1, max_size=40)


@pytest.mark.parametrize(
    ("percent", "expected"),
    [(0, 1.0), (25, 2.0), (50, 3.0), (90, 4.6), (95, 4.8), (100, 5.0)],
)
def test_percentiles_lie_between_the_closest_ranks(percent: float, expected: float) -> None:
    assert statistics.percentile([5, 1, 4, 2, 3], percent) == pytest.approx(expected)


@given(VALUES, st.floats(0, 100))
def test_percentiles_are_those_of_numpy(values: list[float], percent: float) -> None:
    assert statistics.percentile(values, percent) == pytest.approx(float(numpy.percentile(values, percent)))


@given(VALUES)
def test_mean_and_deviation_are_those_of_the_standard_library(values: list[float]) -> None:
    assert statistics.mean(values) == pytest.approx(reference.fmean(values))
    deviation = statistics.deviation(values)
    if len(values) == 1:
        assert deviation is None
    else:
        assert deviation == pytest.approx(reference.stdev(values), rel=1e-6, abs=1e-6)


def test_a_summary_of_one_value_has_no_deviation() -> None:
    one = {"mean": 2.0, "sd": None, "n": 1, "unit": "s", "p50": 2.0, "p95": 2.0, "min": 2.0, "max": 2.0}
    assert statistics.summary([2.0], "s") == one


def test_no_values_have_no_mean() -> None:
    with pytest.raises(ValueError, match="no values"):
        statistics.mean([])
    with pytest.raises(ValueError, match="no values"):
        statistics.percentile([], 50)


@given(value=st.floats(1e-6, 1e12), count=st.integers(2, 20))
def test_equal_values_have_no_deviation(value: float, count: int) -> None:
    assert statistics.deviation([value] * count) == 0.0
