import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture
def nothing_cached():
    """Without a chip, what was compiled for one cannot be read back."""
    caching = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # else jax goes on as it began
    yield
    jax.config.update("jax_enable_compilation_cache", caching)
    compilation_cache.reset_cache()
