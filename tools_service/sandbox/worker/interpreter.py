"""Executes cells in one namespace with notebook semantics. Runs inside a session."""

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
import types
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image, ImageOps

from tools_service.sandbox.protocol.isolation_config import Limits
from tools_service.sandbox.worker import display, tracebacks

_FLAGS = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
_MAX_REPR = 200_000
_RECURSION_LIMIT = sys.getrecursionlimit()


class InvalidInputImage(Exception):
    """An input image cannot be opened by PIL."""


class Interpreter:
    """Holds the namespace of a session and runs cells in it."""

    def __init__(self, limits: Limits):
        self.images = display.ImageCollector(limits, lambda text: self._write_out(text + "\n"))
        self.cell_count = 0
        self._builtins = dict(vars(builtins))
        self._loop: asyncio.AbstractEventLoop | None = None
        module = types.ModuleType("__main__")
        sys.modules["__main__"] = module
        self.namespace = module.__dict__
        self.namespace["__builtins__"] = builtins
        self.namespace["display"] = display.install_hooks(self.images)
        tracebacks.install_warning_hook(lambda: self._cell_name, self.images.missing_characters)

    @property
    def _cell_name(self) -> str:
        return f"Cell In[{self.cell_count}]"

    def set_streams(self, write_out: Callable[[str], None], write_err: Callable[[str], None]) -> None:
        """Sets the functions that print to the cell's stdout and stderr. Must be called before the first cell."""
        self._write_out, self._write_err = write_out, write_err

    def bind_images(self, fds: Sequence[int]) -> None:
        """Opens encoded images, given as file descriptors, as `image_1` .. `image_n`; pixels are decoded lazily.

        The EXIF rotation is applied, as in the images that the policy sees, so that coordinates agree.

        Raises:
            InvalidInputImage: PIL cannot open an image.
        """
        for number, fd in enumerate(fds, start=1):
            try:
                data: Any = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
                image: Image.Image = Image.open(data)
                # PIL decodes the entire PNG to look for EXIF after its pixels, where hardly any file has it.
                if (image.format != "PNG" or "exif" in image.info) and image.getexif().get(0x0112, 1) != 1:
                    image = ImageOps.exif_transpose(image)
            except Exception as error:
                raise InvalidInputImage(f"picture {number} cannot be opened: {type(error).__name__}: {error}") from None
            finally:
                os.close(fd)
            self.namespace[f"image_{number}"] = image

    def run(self, source: str, format: str = "png") -> bool:
        """Runs one cell; returns False if it raised or does not parse. `format` encodes its images: png or webp."""
        self.cell_count += 1
        self.images.start_cell(format)
        try:
            ok = self._execute(source.removeprefix("\ufeff"), self._cell_name)
        except BaseException as error:  # any exception of the code ends the cell, not the session
            self._print_traceback(error, source)
            ok = False
        try:
            self.images.add_open_figures()
        except BaseException as error:
            self._print_traceback(error, source)
            ok = False
        for note in self.images.all_notes():
            self._write_err(note + "\n")
        return ok and not self.images.failed

    def _execute(self, source: str, name: str) -> bool:
        # Without the last line break, Python before 3.13 marks the place of an error one column too far to the right.
        lines = (source if source.endswith("\n") else source + "\n").splitlines(keepends=True)
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
        if self.images.show(value):
            return
        text = repr(value)
        if len(text) > _MAX_REPR:
            text = f"{text[:_MAX_REPR]}... ({len(text)} characters)"
        self._write_out(text + "\n")

    def _print_traceback(self, error: BaseException, source: str) -> None:
        text = tracebacks.format_traceback(error)
        if isinstance(error, SyntaxError) and (hint := _notebook_syntax_hint(source)):
            text += hint
        self._write_err(text)

    def reset_interpreter_state(self) -> None:
        """Resets trace functions, hooks, builtins and the recursion limit, which a cell may have changed."""
        sys.settrace(None)
        sys.setprofile(None)
        if sys.getrecursionlimit() < _RECURSION_LIMIT:
            sys.setrecursionlimit(_RECURSION_LIMIT)
        threading.settrace(None)
        threading.setprofile(None)
        sys.excepthook, sys.displayhook = sys.__excepthook__, sys.__displayhook__
        current = vars(builtins)
        for key, value in self._builtins.items():
            if current.get(key) is not value:
                current[key] = value


def _notebook_syntax_hint(source: str) -> str:
    for line in source.splitlines():
        start = line.lstrip()
        if start.startswith("%"):
            return f"Magic commands such as {start.split()[0]!r} are not available here: write plain Python.\n"
        if start.startswith("!"):
            return "Shell commands with '!' are not available here: write plain Python (the sandbox has no network).\n"
    return ""
