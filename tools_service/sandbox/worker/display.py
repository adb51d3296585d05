"""Pictures of a cell: display(), plt.show(), figures left open, PIL and array values, as PNG or WebP at native pixels.

Runs inside a session. Matplotlib figures keep their own size; everything else keeps its pixels.
"""

from __future__ import annotations

import io
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from tools_service.sandbox.protocol import png_validator as png_format
from tools_service.sandbox.protocol.isolation_config import Limits
from tools_service.sandbox.worker import png_encoder

_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"})
_WEBP_SIDE = 16383  # pixels, of the format
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Pictures:
    """Collects the pictures of one cell, within limits. ``notes`` says what was left out and why."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.clear("png")

    def clear(self, format: str) -> None:
        """Starts a cell whose pictures are encoded as ``png`` or ``webp`` (lossless; PNG where WebP cannot)."""
        self.format = format
        self.encoded: list[bytes] = []
        self.notes: list[str] = []
        self.dropped = 0
        self._bytes = 0

    def add(self, make: Callable[[], bytes], width: float, height: float, what: str) -> None:
        """Adds the picture that ``make`` encodes, unless it is one too many or too large to be rendered."""
        if len(self.encoded) >= self.limits.images:
            self.dropped += 1
            return
        if width * height > self.limits.image_megapixels * 1e6:
            self.notes.append(
                f"{what} of {width:.0f} x {height:.0f} pixels is too large to return (limit {self.limits.image_megapixels:g} megapixels)"
            )
            return
        data = make()
        if self._bytes + len(data) > self.limits.image_mb << 20:
            self.notes.append(f"{what} dropped: the cell's pictures exceed {self.limits.image_mb} MB")
            return
        self._bytes += len(data)
        self.encoded.append(data)

    def show(self, value: Any) -> bool:
        """Adds ``value`` if it is a picture; False if it is not."""
        if isinstance(value, Image.Image):
            self._image(value)
        elif isinstance(value, np.ndarray):
            picture = array_to_image(value)
            if picture is None:
                return False
            self._image(picture)
        elif (figure := _figure_of(value)) is not None:
            self.figure(figure)
        elif isinstance(png := _own_png(value), bytes) and png[:8] == _PNG_SIGNATURE:
            self._png(png)
        else:
            return False
        return True

    def _image(self, image: Image.Image) -> None:
        if 0 in image.size:
            self.notes.append(f"picture of {image.width} x {image.height} pixels has nothing to show")
            return
        self.add(lambda: encode(image, self.format), image.width, image.height, "picture")

    def _png(self, data: bytes) -> None:
        """A picture that the cell encoded itself. What the service would not pass on is drawn anew, or dropped."""
        try:
            _, width, height = png_format.check(data, self.limits.image_megapixels * 1e6)
        except png_format.BadPicture as reason:
            try:
                self._image(Image.open(io.BytesIO(data)))
            except Exception:
                self.notes.append(f"picture dropped: its PNG is broken ({reason})")
            return
        self.add(lambda: data, width, height, "picture")

    def figure(self, figure: Any) -> None:
        width, height = figure.get_size_inches() * figure.dpi
        self.add(lambda: _render(figure, self.format), width, height, "figure")

    def open_figures(self) -> None:
        """Shows every open figure in order of creation, and closes it: an inline notebook does the same."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is None:
            return
        try:
            for number in pyplot.get_fignums():
                self.figure(pyplot.figure(number))
        finally:
            pyplot.close("all")


def encode(image: Image.Image, format: str) -> bytes:
    """PNG with the fastest compression, or lossless WebP; modes that they lack become RGB or L."""
    if format == "webp" and image.mode not in ("I", "I;16") and max(image.size) <= _WEBP_SIDE:
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
        return png_encoder.png(image)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def array_to_image(array: np.ndarray, any_size: bool = False) -> Image.Image | None:
    """A picture from [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]; None if the array does not look like one.

    Bytes are taken as they are, booleans as black and white, floats as 0..1 if they lie there, and
    otherwise stretched. Without ``any_size`` only bytes of at least 8 x 8 pixels count: a small matrix is
    a result to read.
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


def _own_png(value: Any) -> Any:
    """What the value's own ``_repr_png_`` gives, as notebooks ask for it."""
    method = getattr(type(value), "_repr_png_", None)
    if method is None:
        return None
    try:
        return method(value)
    except Exception:  # the same as having none: notebooks then show the text
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


def install(pictures: Pictures, print_text: Callable[[str], None]) -> Callable[..., None]:
    """Routes every way of showing a picture into ``pictures``; returns ``display`` for the namespace."""

    def display(*values: Any, **_: Any) -> None:
        """Shows pictures and figures as pictures, and everything else as text."""
        for value in values:
            shown = pictures.show(value)
            if (
                not shown
                and isinstance(value, np.ndarray)
                and (image := array_to_image(value, any_size=True)) is not None
            ):
                shown = pictures.show(image)
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
        sys.modules["matplotlib.pyplot"].show = lambda *_, **__: pictures.open_figures()
        sys.modules["matplotlib.figure"].Figure.show = lambda figure, *_, **__: pictures.figure(figure)
    if "cv2" in sys.modules:
        cv2 = sys.modules["cv2"]
        cv2.imshow = show_array
        cv2.waitKey = lambda *_: -1
        cv2.destroyAllWindows = lambda: None
    _notebook_module(display)
    return display


def _notebook_module(display: Callable[..., None]) -> None:
    """``from IPython.display import display, Image``: what notebook code expects to find."""

    def picture(data: bytes | None = None, filename: str | None = None, **_: Any) -> Image.Image:
        return Image.open(io.BytesIO(data) if isinstance(data, bytes) else filename or data)

    package, module = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    package.display, package.get_ipython = module, lambda: None
    package.version_info = (9, 0, 0)  # matplotlib asks for it
    module.display, module.Image, module.clear_output = display, picture, lambda *_, **__: None
    sys.modules.setdefault("IPython", package)
    sys.modules.setdefault("IPython.display", module)
