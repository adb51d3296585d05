"""Runs cells in one namespace the way a notebook does. Runs inside a session."""

from __future__ import annotations

import ast
import asyncio
import builtins
import inspect
import linecache
import mmap
import os
import sys
import threading
import traceback
import types
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image, ImageOps

from tools_service.sandbox.protocol.isolation_config import Limits
from tools_service.sandbox.worker import display

_FLAGS = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
_MAX_REPR = 200_000
_RECURSION = sys.getrecursionlimit()
_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep


class BadPicture(Exception):
    """An input picture that PIL cannot open."""


class Shell:
    """The namespace of a session and everything needed to run a cell in it."""

    def __init__(self, limits: Limits):
        self.pictures = display.Pictures(limits)
        self.cells = 0
        self._builtins = dict(vars(builtins))
        self._loop: asyncio.AbstractEventLoop | None = None
        module = types.ModuleType("__main__")
        sys.modules["__main__"] = module
        self.namespace = module.__dict__
        self.namespace["__builtins__"] = builtins
        self.namespace["display"] = display.install(self.pictures, lambda text: self._write_out(text + "\n"))

    def attach(self, write_out: Callable[[str], None], write_err: Callable[[str], None]) -> None:
        """``write_out`` and ``write_err`` print text to the cell's two streams; before the first cell."""
        self._write_out, self._write_err = write_out, write_err

    def bind_images(self, handles: Sequence[int]) -> None:
        """Opens encoded pictures, given as open files, as image_1 .. image_n. Pixels are decoded when first used.

        An EXIF rotation is applied, as it is to the model's view, so that coordinates agree.
        """
        for number, handle in enumerate(handles, start=1):
            try:
                image = Image.open(mmap.mmap(handle, 0, access=mmap.ACCESS_READ))
                # PIL decodes a whole PNG to look for EXIF after its pixels, where next to none have it.
                if (image.format != "PNG" or "exif" in image.info) and image.getexif().get(0x0112, 1) != 1:
                    image = ImageOps.exif_transpose(image)
            except Exception as error:
                raise BadPicture(f"picture {number} cannot be opened: {type(error).__name__}: {error}") from None
            finally:
                os.close(handle)
            self.namespace[f"image_{number}"] = image

    def run(self, source: str, format: str = "png") -> bool:
        """Runs one cell: True if it ended well, False if it raised or does not parse. ``format``: of its pictures."""
        self.cells += 1
        self.pictures.clear(format)
        name = f"Cell In[{self.cells}]"
        try:
            ok = self._run(source.removeprefix("\ufeff"), name)
        except BaseException as error:  # whatever the code raises ends the cell, not the session
            self._report(error, name, source)
            ok = False
        try:
            self.pictures.open_figures()
        except BaseException as error:
            self._report(error, name, source)
            ok = False
        for note in self._notes():
            self._write_err(note + "\n")
        return ok

    def _notes(self) -> list[str]:
        notes = list(self.pictures.notes)
        if self.pictures.dropped:
            notes.append(
                f"{self.pictures.dropped} more pictures were not returned (limit {self.pictures.limits.images} per cell)"
            )
        return notes

    def _run(self, source: str, name: str) -> bool:
        lines = source.splitlines(keepends=True)
        linecache.cache[name] = (len(source), None, lines, name)
        tree = compile(source, name, "exec", ast.PyCF_ONLY_AST | _FLAGS, dont_inherit=True)
        last = None
        if tree.body and isinstance(tree.body[-1], ast.Expr):
            last = ast.Expression(tree.body.pop().value)
        if tree.body:
            self._evaluate(compile(tree, name, "exec", _FLAGS, dont_inherit=True))
        if last is not None:
            value = self._evaluate(compile(last, name, "eval", _FLAGS, dont_inherit=True))
            if value is not None and not source.rstrip().endswith(";"):
                self.namespace["_"] = value
                self._show(value)
        return True

    def _evaluate(self, code: types.CodeType) -> Any:
        value = eval(code, self.namespace)
        if code.co_flags & inspect.CO_COROUTINE:
            if self._loop is None or self._loop.is_closed():
                self._loop = asyncio.new_event_loop()
            return self._loop.run_until_complete(value)
        return value

    def _show(self, value: Any) -> None:
        if self.pictures.show(value):
            return
        text = repr(value)
        if len(text) > _MAX_REPR:
            text = f"{text[:_MAX_REPR]}... ({len(text)} characters)"
        self._write_out(text + "\n")

    def _report(self, error: BaseException, name: str, source: str) -> None:
        """The traceback, without the frames that are ours."""
        try:
            told = seen = traceback.TracebackException(type(error), error, error.__traceback__)
            for _ in range(100):  # along the chain of causes
                seen.stack = traceback.StackSummary.from_list(
                    [f for f in seen.stack if not f.filename.startswith(_OURS)]
                )
                seen = seen.__cause__ or seen.__context__
                if seen is None:
                    break
            text = "".join(told.format())
        except BaseException as second:  # an exception whose own methods raise
            text = f"{type(error).__name__} (its traceback cannot be printed: {type(second).__name__})\n"
        if isinstance(error, SyntaxError) and (hint := _notebook_syntax(source)):
            text += hint
        self._write_err(text)

    def tidy(self) -> None:
        """Undoes what a cell may have left in the interpreter and would break the next one."""
        sys.settrace(None)
        sys.setprofile(None)
        if sys.getrecursionlimit() < _RECURSION:
            sys.setrecursionlimit(_RECURSION)
        threading.settrace(None)
        threading.setprofile(None)
        sys.excepthook, sys.displayhook = sys.__excepthook__, sys.__displayhook__
        current = vars(builtins)
        for key, value in self._builtins.items():
            if current.get(key) is not value:
                current[key] = value


def _notebook_syntax(source: str) -> str:
    for line in source.splitlines():
        start = line.lstrip()
        if start.startswith("%"):
            return f"Magic commands such as {start.split()[0]!r} are not available here: write plain Python.\n"
        if start.startswith("!"):
            return "Shell commands with '!' are not available here: write plain Python (the sandbox has no network).\n"
    return ""
