"""Tests that new programs are counted and named, and compiled ones are not."""

import jax
import jax.numpy as jnp

from dv2_jax.telemetry.recompilation import RecompilationCounter


@jax.jit
def doubled_sum(x):
    return (2 * x).sum()


def test_a_new_shape_is_counted_by_name_and_an_old_one_is_not():
    short, long = jnp.ones(3), jnp.ones(5)
    doubled_sum(short)
    counter = RecompilationCounter()
    doubled_sum(short)
    assert counter.count == 0
    doubled_sum(long)
    assert counter.names == ("jit(doubled_sum)",) and counter.count == 1
    counter.reset()
    assert counter.count == 0


def test_a_changed_type_or_static_value_is_a_recompilation_too():
    """Catches a counter that watches shapes only: a weak type or a Python number is what slips through in practice."""
    scaled = jax.jit(lambda x, times: x * times, static_argnums=1)
    x = jnp.ones(3)
    y = x.astype(jnp.bfloat16)
    scaled(x, 2)
    counter = RecompilationCounter()
    scaled(x, 3)
    scaled(y, 3)
    assert counter.count == 2


def test_counters_are_independent_of_each_other():
    first = RecompilationCounter()
    jax.jit(lambda x: x + 1)(1.0)
    second = RecompilationCounter()
    assert first.count == 1 and second.count == 0


def test_a_program_from_the_persistent_cache_counts(tmp_path):
    """Catches a count that depends on what an earlier run left in the cache, so that only the first run would fail."""
    previous = jax.config.jax_compilation_cache_dir
    from jax.experimental.compilation_cache import compilation_cache

    counts = []
    try:
        jax.config.update("jax_compilation_cache_dir", str(tmp_path))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        compilation_cache.reset_cache()
        for _ in range(2):
            jax.clear_caches()
            x = jnp.ones(11)
            counter = RecompilationCounter()
            doubled_sum(x)
            counts.append(counter.names)
    finally:
        jax.config.update("jax_compilation_cache_dir", previous)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        compilation_cache.reset_cache()
    assert list(tmp_path.iterdir()) and counts[0] == counts[1] == ("jit(doubled_sum)",)
