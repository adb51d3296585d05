"""A fourth tool in one file: `<zoom>left top right bottom</zoom>` returns an enlarged part of the first image."""

from __future__ import annotations

import io
import re

from PIL import Image

from dv2_jax.agent.tools.base import (
    LocalCall,
    LocalOutput,
    ParsedTurn,
    Refusal,
    RequestContext,
    Tool,
    malformed,
)


class ZoomTool(Tool):
    """Crops `image_1` and doubles its size, in a thread of the trainer."""

    name = tag = "zoom"
    title = "zoom"
    verb = "zooms"
    prompt = "Zoom: <zoom>left top right bottom</zoom>, in pixels of image_1."

    def parse(self, text: str) -> ParsedTurn | None:
        if self.opening_tag not in text:
            return None
        found = re.findall(r"<zoom>\s*(\d+) (\d+) (\d+) (\d+)\s*</zoom>", text)
        if not found:
            return malformed("Error: write four whole numbers between the zoom tags.")
        return ParsedTurn(self.name, " ".join(found[-1]), arguments={"box": tuple(map(int, found[-1]))})

    def request(self, turn: ParsedTurn, context: RequestContext) -> LocalCall | Refusal:
        if not context.question.images:
            return Refusal("the question has no image")
        image, box = context.question.images[0], turn.arguments["box"]
        return LocalCall(context.request_id, self.name, lambda: crop(image, box))


def crop(encoded: bytes, box: tuple[int, int, int, int]) -> LocalOutput:
    """Raises ValueError for a box that PIL cannot crop: the policy reads its text."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB").crop(box)
    out = io.BytesIO()
    image.resize((2 * image.width, 2 * image.height)).save(out, "PNG")
    return LocalOutput(f"{image.width} x {image.height} pixels", (out.getvalue(),))
