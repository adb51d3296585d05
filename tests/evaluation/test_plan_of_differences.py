from types import SimpleNamespace

from dv2_jax.evaluation.evaluation_plan import visible_differences


def test_the_plan_states_what_each_benchmark_can_show():
    """Catches a number per answer instead of per question: several samples of a question do not make it several."""
    parts = [SimpleNamespace(name=name, ids=range(n)) for name, n in (("vstar", 191), ("few", 4))]
    expected = "smallest visible differences to another run, in points: vstar 9.0, few none"
    assert visible_differences(SimpleNamespace(parts=parts)) == expected
