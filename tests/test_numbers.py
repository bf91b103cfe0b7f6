"""Numbers in words."""

from tacit.numbers import compact, downward, percent, upward


def test_numbers():
    assert upward(2.9985) == "2.999"
    assert upward(2.998) == "2.998"
    assert upward(float("inf")) == "infinity"
    assert downward(2.9999) == "2.999"
    assert downward(float("inf")) == "infinity"
    assert [compact(value) for value in (0.5, 1e-4, 2.5e-5, 0, 3.0)] == ["0.5", "1e-4", "2.5e-5", "0", "3"]
    assert percent(0.9444) == "94.4 %"
