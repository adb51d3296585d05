from dv2_jax.evaluation.evaluation_plan import PlannedAnswers, _visible


def test_the_plan_states_what_each_benchmark_can_show():
    rows = [PlannedAnswers("result", name, n, 1, 0, 0, n, 0, 0, 0) for name, n in (("vstar", 191), ("few", 4))]
    assert _visible(rows) == "smallest visible differences to another run, in points: vstar 9.0, few none"
