"""Runs VLMEvalKit's command without its model libraries: `python run_vlmeval.py --data NAME --model dv2 ...`.

Its code stays as installed. Libraries that only local models and other data sets need are replaced by empty modules.
"""

import importlib.abc
import importlib.machinery
import runpy
import sys
from unittest.mock import MagicMock

import openpyxl  # noqa: F401 - before the empty modules: it uses lxml where there is one
import pandas  # noqa: F401

ABSENT = {
    "accelerate", "apted", "attrdict", "bs4", "cairosvg", "cdfvd", "clip", "colormath", "cv2", "decord", "deepspeed",
    "distance", "editdistance", "einops", "evaluate", "flash_attn", "ftfy", "fuzzysearch", "geopy", "imageio", "ipdb",
    "jieba", "json_repair", "latex2sympy2_extended", "lpips", "lxml", "math_verify", "matplotlib", "matplotlib_venn",
    "mpl_toolkits", "nest_asyncio", "nltk", "openai", "playwright", "pronouncing", "pycocoevalcap", "pydantic",
    "pylatexenc", "qwen_vl_utils", "rouge", "rouge_score", "sacrebleu", "scipy", "sentence_transformers", "skimage",
    "sklearn", "squarify", "timm", "tokenizers", "torch", "torchmetrics", "torchvision", "transformers", "unidecode",
    "whisper", "zss",
}  # fmt: skip


class EmptyModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module with arbitrary attributes for every name of `ABSENT`."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = MagicMock(name=spec.name)
        module.__spec__, module.__path__, module.__version__ = spec, [], "0"
        module.__name__, module.__file__ = spec.name, f"<empty {spec.name}>"
        return module

    def exec_module(self, module):
        pass


sys.meta_path.insert(0, EmptyModules())
sys.argv[0] = "vlmeval"
runpy.run_module("vlmeval", run_name="__main__")
