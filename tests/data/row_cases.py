"""Valid rows, and rows with one fault each: (name, change, field that the fault names, words of its problem or fix)."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from dv2_jax.config import ImageConfig
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.data.validation import ConversationCheck, QuestionCheck
from dv2_jax.rewards.reference_check import reference_issue

LIMITS = {"max_images": 3}


def png(size=(40, 30), seed=0) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


PNG = png()
BASE64 = base64.b64encode(PNG).decode()
LARGE_BASE64 = base64.b64encode(png((200, 100))).decode()


def rl_row(**changes) -> dict:
    base = {
        "images": [{"bytes": BASE64}],
        "data_source": "search",
        "prompt": [{"role": "system", "content": "Use tools."}, {"role": "user", "content": "<image>Who built it?"}],
        "reward_model": {"ground_truth": "Ada", "style": "rule"},
        "extra_info": {"question": "Who built it?", "index": "fvqa_3"},
    }
    return {name: value for name, value in {**base, **changes}.items() if value is not ...}


def sft_row(**changes) -> dict:
    base = {
        "messages": [
            {"role": "user", "content": "<image>2+2?"},
            {"role": "assistant", "content": "<think>Add.</think>\n<code>\n```python\nprint(2+2)\n```\n</code>"},
            {"role": "user", "content": "Code execution result: 4"},
            {"role": "assistant", "content": "<think>So 4.</think>\n<answer>4</answer>"},
        ],
        "images": [{"bytes": BASE64}],
    }
    return {name: value for name, value in {**base, **changes}.items() if value is not ...}


def user(text: object, role: str = "user") -> dict:
    return {"role": role, "content": text}


def graded(truth: object, **extra) -> dict:
    return {"reward_model": {"ground_truth": truth}, "extra_info": extra}


RL_FAULTS = [
    ("cut image", {"images": [{"bytes": base64.b64encode(PNG[:200]).decode()}]}, "images[0]", "cannot read an image"),
    ("text as image", {"images": [{"bytes": base64.b64encode(b"hello").decode()}]}, "images[0]", "cannot read"),
    ("no base64", {"images": [{"bytes": "not base64!"}]}, "images[0]", "is not base64"),
    ("base64 as path", {"images": [LARGE_BASE64]}, "images[0]", 'write {"bytes": text}'),
    ("data URL as path", {"images": ["data:image/png;base64," + BASE64]}, "images[0]", 'write {"bytes": text}'),
    ("URL", {"images": ["https://example.org/a.png"]}, "images[0]", "download it"),
    ("images is a path", {"images": "a.png"}, "images", "write a list, also for one image: ['a.png']"),
    ("images is an object", {"images": {"bytes": BASE64}}, "images", "write a list"),
    ("missing image file", {"images": [{"image": "gone.png"}]}, "images[0]", "gone.png"),
    ("image is a folder", {"images": [{"image": "."}]}, "images[0]", "cannot read '.'"),
    ("path with a null character", {"images": ["a\0.png"]}, "images[0]", "cannot read"),
    ("image is a number", {"images": [7]}, "images[0]", "is int (7), no image"),
    ("image is null", {"images": [None]}, "images[0]", "an image is"),
    ("empty image", {"images": [{"bytes": ""}]}, "images[0]", "has no bytes"),
    ("bytes are a list", {"images": [{"bytes": [1, 2]}]}, "images[0].bytes", "not bytes or base64 text"),
    ("narrow image", {"images": [{"bytes": base64.b64encode(png((900, 2))).decode()}]}, "images[0]", "as long as wide"),
    ("two markers, one image", {"prompt": [user("<image><image>?")]}, "prompt", "2 <image> markers for 1 images"),
    ("no marker", {"prompt": [user("Who?")]}, "prompt", "0 <image> markers for 1 images"),
    ("marker, no image", {"images": ...}, "prompt", "1 <image> markers for 0 images"),
    ("videos", {"videos": ["a.mp4"]}, "videos", "not supported"),
    ("unknown source", {"data_source": "geo"}, "data_source", "none of perception, reason, search"),
    ("no source", {"data_source": ...}, "data_source", "none of"),
    ("source is a list", {"data_source": ["search"]}, "data_source", "none of"),
    ("no prompt", {"prompt": ...}, "prompt", "is missing"),
    ("messages for prompt", {"prompt": ..., "messages": [user("<image>?")]}, "prompt", "rename 'messages'"),
    ("prompt is text", {"prompt": "<image>Who?"}, "prompt", "a list of messages"),
    ("prompt is NaN", {"prompt": float("nan")}, "prompt", "is NaN"),
    ("empty prompt", {"prompt": []}, "prompt", "is an empty list"),
    ("message is text", {"prompt": ["<image>Who?"]}, "prompt[0]", "not an object"),
    ("no user message", {"prompt": [user("S", "system")]}, "prompt", "no user message"),
    ("unknown role", {"prompt": [user("<image>?", "tool")]}, "prompt[0].role", "role 'tool' is none of"),
    ("role is a list", {"prompt": [user("<image>?", ["user"])]}, "prompt[0].role", "is none of"),
    ("from and value", {"prompt": [{"from": "human", "value": "?"}]}, "prompt[0].role", "rename from/value"),
    ("ends with the answer", {"prompt": [user("<image>?"), user("4", "assistant")]}, "prompt", "ends with the role"),
    ("system in between", {"prompt": [user("<image>?"), user("S", "system"), user("?")]}, "prompt[1].role", "the front"),
    ("content is a list", {"prompt": [user([{"type": "text", "text": "?"}])]}, "prompt[0].content", "not a string"),
    ("content is null", {"prompt": [user(None)]}, "prompt[0].content", "not a string"),
    ("blank question", {"prompt": [user(" \n")], "images": []}, "prompt[0].content", "is blank"),
    ("lone surrogate", {"prompt": [user("<image>a \ud83d")]}, "prompt[0].content", "lone surrogate (U+D83D) at character 9"),
    ("surrogate in the answer", graded("a \ud83d"), "reward_model.ground_truth", "lone surrogate"),
    ("surrogate in an alias", graded("a", aliases=["\ud83d"]), "extra_info.aliases[0]", "lone surrogate"),
    ("no reward model", {"reward_model": ...}, "reward_model", "is missing"),
    ("reward model is text", {"reward_model": '{"ground_truth": "Ada"}'}, "reward_model", "parse the JSON text first"),
    ("no answer", {"reward_model": {"style": "rule"}}, "reward_model.ground_truth", "is missing"),
    ("answer is a number", {"reward_model": {"ground_truth": 5}}, "reward_model.ground_truth", "is int (5), not a string"),
    ("answer is NaN", {"reward_model": {"ground_truth": float("nan")}}, "reward_model.ground_truth", "is NaN"),
    ("answer is null", {"reward_model": {"ground_truth": None}}, "reward_model.ground_truth", "not a string"),
    ("blank answer", {"reward_model": {"ground_truth": " "}}, "reward_model.ground_truth", "is blank"),
    ("extra info is text", {"extra_info": "{}"}, "extra_info", "parse the JSON text first"),
    ("question is a number", graded("Ada", question=3), "extra_info.question", "not a string"),
    ("number that is none", graded("red", verifier="number"), "reward_model.ground_truth", "no number"),
    ("unknown verifier", graded("red", verifier="exact"), "extra_info.verifier", "none of text, number, choice, math"),
    ("verifier is a list", graded("red", verifier=["text"]), "extra_info.verifier", "none of"),
    ("choice that is none", graded("E", verifier="choice", choices=["a", "b"]), "reward_model.ground_truth", "names none"),
    ("choices are text", graded("A", verifier="choice", choices="ab"), "extra_info.choices", "not a list or a mapping"),
    ("tolerance is text", graded("5", verifier="number", tolerance="1"), "extra_info.tolerance", "no number >= 0"),
    ("tolerance is NaN", graded("5", verifier="number", tolerance=float("nan")), "extra_info.tolerance", "is nan"),
    ("negative tolerance", graded("5", verifier="number", tolerance=-1), "extra_info.tolerance", "no number >= 0"),
    ("alias is a number", graded("Ada", aliases=[7]), "extra_info.aliases", "not a list of strings"),
    ("too many images", {"images": [{"bytes": BASE64}] * 4, "prompt": [user("<image>" * 4)]}, "images", "max_images = 3"),
    ("too long", {"prompt": [user("<image>" + "Who? " * 400)]}, "prompt", "agent.max_total_tokens = 300"),
]  # fmt: skip
SFT_FAULTS = [
    ("no messages", {"messages": ...}, "messages", "field 'messages' is missing"),
    ("conversations", {"messages": ..., "conversations": []}, "messages", "rename 'conversations'"),
    ("no assistant", {"messages": [user("<image>?")]}, "messages", "no assistant message"),
    ("assistant first", {"messages": [user("a", "assistant")], "images": []}, "messages", "no user message before"),
    ("no user", {"messages": [user("S", "system"), user("a", "assistant")], "images": []}, "messages", "no user message"),
    ("two assistants", {"messages": [user("<image>"), *[user("a", "assistant")] * 2]}, "messages[2].role", "alternate"),
    ("ends with the user", {"messages": [user("<image>"), user("a", "assistant"), user("b")]}, "messages", "ends with"),
    ("system in between", {"messages": [user("<image>"), user("a", "assistant"), user("S", "system")]},
     "messages[2].role", "alternate"),
    ("blank turn", {"messages": [user("<image>"), user(" ", "assistant")]}, "messages[1].content", "is blank"),
    ("marker mismatch", {"images": []}, "messages", "1 <image> markers for 0 images"),
    ("marker of the assistant", {"messages": [user("?"), user("<image>", "assistant")]}, "messages", "0 <image> markers"),
    ("cut image", {"images": [{"bytes": base64.b64encode(PNG[:90]).decode()}]}, "images[0]", "cannot read an image"),
    ("lone surrogate", {"messages": [user("<image>"), user("\udc00", "assistant")]}, "messages[1].content", "surrogate"),
    ("too long", {"messages": [user("<image>"), user("a b " * 400, "assistant")]}, "messages", "sft.row_tokens = 300"),
]  # fmt: skip


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def question_check(**changes) -> QuestionCheck:
    settings = {"max_total_tokens": 300, "check_reference": reference_issue} | LIMITS | changes
    return QuestionCheck(Tokenizer.from_package(), ImageConfig(), **settings)


def conversation_check(**changes) -> ConversationCheck:
    return ConversationCheck(Tokenizer.from_package(), ImageConfig(), **{"row_tokens": 300} | LIMITS | changes)
