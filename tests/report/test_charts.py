import math
import re

import pytest

from dv2_jax.report.charts import Series, line_chart, running_mean, ticks


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.31, 0.62), (-3.2, 0.4), (1e-6, 3e-6), (0, 4096), (5, 5), (0, 0)])
def test_ticks_are_few_even_and_cover_the_range(low, high):
    found = ticks(low, high)
    steps = [b - a for a, b in zip(found, found[1:])]
    assert 2 <= len(found) <= 8
    assert found[0] <= low and found[-1] >= high
    assert max(steps) == pytest.approx(min(steps))


def test_step_ticks_are_integers_inside_the_range():
    assert ticks(1, 40, integers=True) == [10, 20, 30, 40] or ticks(1, 40, integers=True) == [8, 16, 24, 32, 40]
    assert ticks(1, 3, integers=True) == [1, 2, 3]


def test_the_running_mean_starts_at_the_first_value_and_follows():
    assert running_mean([2.0, 2.0, 2.0]) == pytest.approx([2, 2, 2])
    assert running_mean([0.0, 1.0])[1] == pytest.approx(1 / (1 + 0.5 ** (1 / 3)))
    assert running_mean([0.0] + [1.0] * 60)[-1] == pytest.approx(1.0, abs=1e-5)


def test_points_are_inside_the_frame_in_order_and_gaps_are_left_out():
    svg = line_chart("Reward", [Series("reward", [1, 2, 3, 4], [0.1, math.nan, 0.9, 0.5])])
    points = re.search(r'<polyline class="raw s0" points="([^"]*)"', svg).group(1).split()
    x, y = zip(*(map(float, point.split(",")) for point in points), strict=True)
    assert len(points) == 3
    assert list(x) == sorted(x) and min(x) >= 0 and max(x) <= 460
    assert y[1] == min(y) and y[0] == max(y) and min(y) >= 0 and max(y) <= 230  # up is more
    assert "nan" not in svg


def test_a_label_cannot_break_out_of_the_markup():
    assert "<script>" not in line_chart("<script>", [Series("<script>", [1], [1])])


def test_nothing_to_draw_is_nothing():
    assert line_chart("Reward", [Series("reward", [], [])]) == ""
