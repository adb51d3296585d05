"""Collects the images of a cell: display(), plt.show(), open figures, PIL and array values, as PNG or WebP.

Runs inside a session. Matplotlib figures are rendered at their own size and dpi; other images keep their pixels.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from tools_service.sandbox.protocol import png_validator as png_validator
from tools_service.sandbox.protocol.isolation_config import Limits
from tools_service.sandbox.worker import png_encoder
from tools_service.sandbox.worker.ipython_shim import DisplayHandle, install_ipython_shim
from tools_service.sandbox.worker.tracebacks import format_traceback

_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"})
_WEBP_MAX_SIDE = 16383  # pixels, a limit of the format
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_LISTED_CHARACTERS = 10


class ImageCollector:
    """Collects the encoded images of one cell, within limits.

    `notes` explains which images were dropped, and why; `failed` is True if one could not be drawn. Characters that
    matplotlib has no glyph for are added to `missing_characters` by the warning hook.
    """

    def __init__(self, limits: Limits, print_text: Callable[[str], None]):
        self.limits = limits
        self.print_text = print_text
        self.missing_characters: set[str] = set()
        self._reported_characters: set[str] = set()
        self.start_cell("png")

    def start_cell(self, format: str) -> None:
        """Starts a cell whose images are encoded as `png` or `webp` (lossless; PNG for modes and sizes WebP lacks)."""
        self.format = format
        self.encoded: list[bytes] = []
        self.notes: list[str] = []
        self.dropped = 0
        self.failed = False
        self._failed_figures: set[Any] = set()
        self._bytes = 0

    def add(self, encode_image: Callable[[], bytes], width: float, height: float, kind: str) -> bool:
        """Adds the image that `encode_image` returns, unless the cell has too many or it is too large to render.

        If `encode_image` raises, its traceback becomes a note, the cell continues, and the result is False.
        """
        if len(self.encoded) >= self.limits.images:
            self.dropped += 1
            return True
        if width * height > self.limits.image_megapixels * 1e6:
            self.notes.append(
                f"{kind} of {width:.0f} x {height:.0f} pixels is too large to return (limit {self.limits.image_megapixels:g} megapixels)"
            )
            return True
        try:
            data = encode_image()
        except Exception as error:
            self.notes.append(f"{kind} could not be shown:\n{format_traceback(error)}".rstrip())
            self.failed = True
            return False
        if self._bytes + len(data) > self.limits.image_mb << 20:
            self.notes.append(f"{kind} dropped: the cell's pictures exceed {self.limits.image_mb} MB")
            return True
        self._bytes += len(data)
        self.encoded.append(data)
        return True

    def all_notes(self) -> list[str]:
        """Returns the notes of the cell. Characters without a glyph are named once per session."""
        notes = list(self.notes)
        if self.dropped:
            notes.append(f"{self.dropped} more pictures were not returned (limit {self.limits.images} per cell)")
        if characters := sorted(self.missing_characters - self._reported_characters):
            self._reported_characters.update(characters)
            more = len(characters) - _MAX_LISTED_CHARACTERS
            notes.append(
                f"no installed font has {' '.join(characters[:_MAX_LISTED_CHARACTERS])}{f' and {more} more characters' if more > 0 else ''}:"
                " figures show boxes instead; write these labels in Latin letters"
            )
        return notes

    def show(self, value: Any) -> bool:
        """Adds `value` if it is an image; returns False if it is not, or is a figure without content."""
        if isinstance(value, Image.Image):
            self._add_image(value)
        elif isinstance(value, np.ndarray):
            image = array_to_image(value)
            if image is None:
                return False
            self._add_image(image)
        elif (figure := _figure_of(value)) is not None:
            return self.add_figure(figure)
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

    def add_figure(self, figure: Any) -> bool:
        """Adds a Matplotlib figure, rendered at its own size and dpi; returns False if it has nothing to draw.

        A figure that could not be drawn once is not tried again in the same cell.
        """
        if _is_empty(figure):
            return False
        if figure not in self._failed_figures:
            width, height = figure.get_size_inches() * figure.dpi
            if not self.add(lambda: _render(figure, self.format), width, height, "figure"):
                self._failed_figures.add(figure)
        return True

    def add_open_figures(self) -> None:
        """Adds every open figure in order of creation, then closes all, as the inline backend of notebooks does.

        A figure without content is shown as text, for instance the one that `plt.savefig` creates after `plt.show`.
        """
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is None:
            return
        try:
            for number in pyplot.get_fignums():
                figure = pyplot.figure(number)
                if not self.add_figure(figure):
                    self.print_text(repr(figure))
        finally:
            pyplot.close("all")


def _float_image(image: Image.Image) -> Image.Image:
    converted = array_to_image(np.asarray(image), any_size=True)
    assert converted is not None  # two dimensions of any size
    return converted


def encode(image: Image.Image, format: str) -> bytes:
    """Encodes PNG with the fastest compression, or lossless WebP; unsupported modes are converted to RGB or L."""
    if format == "webp" and image.mode not in ("I", "I;16") and max(image.size) <= _WEBP_MAX_SIDE:
        has_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
        if image.mode == "F":
            image = _float_image(image)
        buffer = io.BytesIO()
        image.convert("RGBA" if has_alpha else "RGB").save(
            buffer, "WEBP", lossless=True, quality=0, method=0, exact=True
        )
        return buffer.getvalue()
    if image.mode == "F":
        image = _float_image(image)
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


def _is_empty(figure: Any) -> bool:
    """Returns True for a figure, or a subfigure, that holds no axes, text or other artist."""
    children = [child for child in figure.get_children() if child is not figure.patch]
    return all(hasattr(child, "subfigs") and _is_empty(child) for child in children)


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


def install_hooks(images: ImageCollector) -> Callable[..., Any]:
    """Redirects all ways of showing an image into `images`; returns `display` for the cell's namespace."""

    def display(*values: Any, display_id: Any = None, **_: Any) -> DisplayHandle | None:
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
                images.print_text(repr(value))
        return DisplayHandle(display, str(display_id)) if display_id else None

    def show_image(image: Image.Image, *_: Any, **__: Any) -> None:
        display(image)

    def show_array(title: Any, array: np.ndarray) -> None:
        color = array.ndim == 3 and array.shape[2] >= 3
        display(np.ascontiguousarray(array[:, :, 2::-1]) if color else array)

    modules: dict[str, Any] = sys.modules  # their functions are replaced
    modules["PIL.Image"].Image.show = show_image
    modules["PIL.Image"].show = lambda image, *_, **__: display(image)
    if "matplotlib.pyplot" in sys.modules:
        modules["matplotlib.pyplot"].show = lambda *_, **__: images.add_open_figures()
        modules["matplotlib.figure"].Figure.show = lambda figure, *_, **__: display(figure)
    if "cv2" in sys.modules:
        cv2 = modules["cv2"]
        cv2.imshow = show_array
        cv2.waitKey = lambda *_: -1
        cv2.destroyAllWindows = lambda: None
    install_ipython_shim(display)
    return display
