"""Collects the images of a cell: display(), plt.show(), open figures, PIL and array values, as PNG or WebP.

Runs inside a session. Matplotlib figures are rendered at their own size and dpi; other images keep their pixels.
"""

from __future__ import annotations

import io
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from tools_service.sandbox.protocol import png_validator as png_validator
from tools_service.sandbox.protocol.isolation_config import Limits
from tools_service.sandbox.worker import png_encoder

_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"})
_WEBP_MAX_SIDE = 16383  # pixels, a limit of the format
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class ImageCollector:
    """Collects the encoded images of one cell, within limits. `notes` explains which were dropped, and why."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.start_cell("png")

    def start_cell(self, format: str) -> None:
        """Starts a cell whose images are encoded as `png` or `webp` (lossless; PNG for modes and sizes WebP lacks)."""
        self.format = format
        self.encoded: list[bytes] = []
        self.notes: list[str] = []
        self.dropped = 0
        self._bytes = 0

    def add(self, encode_image: Callable[[], bytes], width: float, height: float, kind: str) -> None:
        """Adds the image that `encode_image` returns, unless the cell has too many or it is too large to render."""
        if len(self.encoded) >= self.limits.images:
            self.dropped += 1
            return
        if width * height > self.limits.image_megapixels * 1e6:
            self.notes.append(
                f"{kind} of {width:.0f} x {height:.0f} pixels is too large to return (limit {self.limits.image_megapixels:g} megapixels)"
            )
            return
        data = encode_image()
        if self._bytes + len(data) > self.limits.image_mb << 20:
            self.notes.append(f"{kind} dropped: the cell's pictures exceed {self.limits.image_mb} MB")
            return
        self._bytes += len(data)
        self.encoded.append(data)

    def show(self, value: Any) -> bool:
        """Adds `value` if it is an image; returns False if it is not."""
        if isinstance(value, Image.Image):
            self._add_image(value)
        elif isinstance(value, np.ndarray):
            image = array_to_image(value)
            if image is None:
                return False
            self._add_image(image)
        elif (figure := _figure_of(value)) is not None:
            self.add_figure(figure)
        elif isinstance(png := _png_repr(value), bytes) and png[:8] == _PNG_SIGNATURE:
            self._add_png(png)
        else:
            return False
        return True

    def _add_image(self, image: Image.Image) -> None:
        if 0 in image.size:
            self.notes.append(f"picture of {image.width} x {image.height} pixels has nothing to show")
            return
        self.add(lambda: encode(image, self.format), image.width, image.height, "picture")

    def _add_png(self, data: bytes) -> None:
        """Adds a PNG that the cell encoded. One that the server would reject is encoded again, or dropped."""
        try:
            _, width, height = png_validator.validate(data, self.limits.image_megapixels * 1e6)
        except png_validator.InvalidImage as reason:
            try:
                self._add_image(Image.open(io.BytesIO(data)))
            except Exception:
                self.notes.append(f"picture dropped: its PNG is broken ({reason})")
            return
        self.add(lambda: data, width, height, "picture")

    def add_figure(self, figure: Any) -> None:
        """Adds a Matplotlib figure, rendered at its own size and dpi."""
        width, height = figure.get_size_inches() * figure.dpi
        self.add(lambda: _render(figure, self.format), width, height, "figure")

    def add_open_figures(self) -> None:
        """Adds every open figure in order of creation, then closes all, as the inline backend of notebooks does."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is None:
            return
        try:
            for number in pyplot.get_fignums():
                self.add_figure(pyplot.figure(number))
        finally:
            pyplot.close("all")


def encode(image: Image.Image, format: str) -> bytes:
    """Encodes PNG with the fastest compression, or lossless WebP; unsupported modes are converted to RGB or L."""
    if format == "webp" and image.mode not in ("I", "I;16") and max(image.size) <= _WEBP_MAX_SIDE:
        has_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
        if image.mode == "F":
            image = array_to_image(np.asarray(image), any_size=True)
        buffer = io.BytesIO()
        image.convert("RGBA" if has_alpha else "RGB").save(
            buffer, "WEBP", lossless=True, quality=0, method=0, exact=True
        )
        return buffer.getvalue()
    if image.mode == "F":
        image = array_to_image(np.asarray(image), any_size=True)
    elif image.mode not in _PNG_MODES:
        image = image.convert("RGBA" if image.mode in ("RGBa", "PA") else "RGB")
    if png_encoder.can_encode(image):
        return png_encoder.encode_png(image)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def array_to_image(array: np.ndarray, any_size: bool = False) -> Image.Image | None:
    """Converts an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] to an image; None for any other shape.

    uint8 is used unchanged, booleans become black and white, floats within 0..1 and integers within 0..255 are
    scaled from that range, other values from their minimum and maximum. Unless `any_size`, only uint8 of at
    least 8 x 8 pixels is an image: a small matrix is shown as text.
    """
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        return None
    if not any_size and (array.dtype != np.uint8 or min(array.shape[:2]) < 8):
        return None
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        if array.dtype.kind not in "iuf":
            return None
        values = np.nan_to_num(array.astype(np.float64))
        low, high = float(values.min()), float(values.max())
        if array.dtype.kind == "f" and 0 <= low and high <= 1:
            low, high = 0.0, 1.0
        elif array.dtype.kind != "f" and 0 <= low and high <= 255:
            low, high = 0.0, 255.0
        array = np.clip((values - low) * (255 / max(high - low, 1e-12)), 0, 255).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(array))


def _figure_of(value: Any) -> Any:
    module = sys.modules.get("matplotlib.figure")
    return value if module is not None and isinstance(value, module.Figure) else None


def _png_repr(value: Any) -> Any:
    """Returns the result of the value's `_repr_png_` method, the notebook display protocol; None without one."""
    method = getattr(type(value), "_repr_png_", None)
    if method is None:
        return None
    try:
        return method(value)
    except Exception:  # as in notebooks, the value is then shown as text
        return None


def _render(figure: Any, format: str) -> bytes:
    buffer = io.BytesIO()
    if format == "webp":
        figure.savefig(buffer, format="png", bbox_inches="tight", pil_kwargs={"compress_level": 0})
        return encode(Image.open(buffer), format)
    figure.savefig(
        buffer, format="png", bbox_inches="tight", metadata={"Software": None}, pil_kwargs={"compress_level": 1}
    )
    return buffer.getvalue()


def install_hooks(images: ImageCollector, print_text: Callable[[str], None]) -> Callable[..., None]:
    """Redirects all ways of showing an image into `images`; returns `display` for the cell's namespace."""

    def display(*values: Any, **_: Any) -> None:
        """Shows images and figures as images, and everything else as text."""
        for value in values:
            shown = images.show(value)
            if (
                not shown
                and isinstance(value, np.ndarray)
                and (image := array_to_image(value, any_size=True)) is not None
            ):
                shown = images.show(image)
            if not shown:
                print_text(repr(value))

    def show_image(image: Image.Image, *_: Any, **__: Any) -> None:
        display(image)

    def show_array(title: Any, array: np.ndarray) -> None:
        color = array.ndim == 3 and array.shape[2] >= 3
        display(np.ascontiguousarray(array[:, :, 2::-1]) if color else array)

    Image.Image.show = show_image
    Image.show = lambda image, *_, **__: display(image)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].show = lambda *_, **__: images.add_open_figures()
        sys.modules["matplotlib.figure"].Figure.show = lambda figure, *_, **__: images.add_figure(figure)
    if "cv2" in sys.modules:
        cv2 = sys.modules["cv2"]
        cv2.imshow = show_array
        cv2.waitKey = lambda *_: -1
        cv2.destroyAllWindows = lambda: None
    _install_ipython_stub(display)
    return display


def _install_ipython_stub(display: Callable[..., None]) -> None:
    """Installs a stub of `IPython.display` with `display` and `Image`, which notebook code imports."""

    def open_image(data: bytes | None = None, filename: str | None = None, **_: Any) -> Image.Image:
        return Image.open(io.BytesIO(data) if isinstance(data, bytes) else filename or data)

    package, module = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    package.display, package.get_ipython = module, lambda: None
    package.version_info = (9, 0, 0)  # read by matplotlib
    module.display, module.Image, module.clear_output = display, open_image, lambda *_, **__: None
    sys.modules.setdefault("IPython", package)
    sys.modules.setdefault("IPython.display", module)
