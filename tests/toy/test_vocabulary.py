"""Tests that the shipped vocabulary equals the output of its command."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files

from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.toy.vocabulary import VOCABULARY


def test_the_command_reproduces_the_shipped_vocabulary_byte_for_byte(tmp_path):
    """Catches a changed prompt, task or teacher's phrase that the shipped vocabulary and weights were not trained on."""
    output = tmp_path / "tokenizer.json"
    command = [sys.executable, "-m", "dv2_jax.toy.vocabulary", "--output", str(output)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert output.read_bytes() == (files("dv2_jax") / "toy" / "assets" / "tokenizer.json").read_bytes()


def test_the_vocabulary_has_the_size_that_the_tiny_model_is_built_for():
    assert Tokenizer.from_package().vocab_size == VOCABULARY
    assert VOCABULARY % 64 == 0
