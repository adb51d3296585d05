"""Makes ms-vlmeval importable in an environment that has only what its scoring functions need.

For a process of its own: importing vlmeval turns off the verification of certificates. The packages of models, videos and
optional metrics, which it imports at the top of its modules, are replaced by mocks; its own code stays as it is.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from unittest.mock import MagicMock

STUBS = frozenset(
    "accelerate anthropic av cv2 datasets decord imageio jieba joblib json_repair math_verify nltk openai pylatexenc"
    " qwen_vl_utils rouge scipy sklearn torch torchvision transformers".split()
)


class _Mocks(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in STUBS:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = _MockModule(spec.name)
        module.__path__ = []
        module.__version__ = "9.9.9"
        return module

    def exec_module(self, module):
        pass


class _MockType(type):
    def __getattr__(cls, name):
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return MagicMock(name=f"{cls.__name__}.{name}")


class _MockModule(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        mock = _MockType(name, (), {}) if name[:1].isupper() else MagicMock(name=f"{self.__name__}.{name}")
        setattr(self, name, mock)
        return mock


def install() -> None:
    """Makes imports of `STUBS` give mocks from now on."""
    sys.meta_path.insert(0, _Mocks())
