"""Tests that the code of `docs/how-to/own-loss.md` works as it is printed."""

import re
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dv2_jax.config import load
from dv2_jax.rl.advantage_registry import compute_advantages
from dv2_jax.rl.batch import make_minibatches
from dv2_jax.rl.objective import make_objective
from tests.rl.test_batch import trajectory

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "how-to" / "own-loss.md").read_text()


def test_the_guide_works_as_printed(monkeypatch):
    """Catches: a guide whose function signature, field or option no longer exists."""
    for name, source in re.findall(r"```python\n# (\w+)\.py\n(.*?)```", GUIDE, re.DOTALL):
        module = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(source, module.__dict__)
    overrides = re.findall(r"--config\.rl\S+", GUIDE)
    assert len(overrides) == 4
    rl = load([f"--config={ROOT}/configs/rl.py", *overrides]).rl
    old, advantages, ones = jnp.zeros((1, 2)), jnp.array([[1.0, -1.0]]), jnp.ones((1, 2))
    logprobs = jnp.log(jnp.array([[4.0, 2.0]]))  # ratios; the cap is 3
    loss, masks = make_objective(rl)(logprobs, old, advantages, ones, ones.astype(int), 1.0)
    assert float(loss) == pytest.approx(-3.0 + 2.0) and masks["cut"].tolist() == [[True, False]]
    np.testing.assert_allclose(compute_advantages(rl.advantage, [0.1, 0.9, 0.5], [0, 0, 0]), [-1, 1, 0])
    (part,) = make_minibatches([trajectory(4), trajectory(9)], [1.0, -1.0], rl)
    np.testing.assert_allclose([e.weight for e in part.examples], [2.0, 3.0])
    assert part.denominator == 2.0
