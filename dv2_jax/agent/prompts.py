"""System and user prompts, for questions that do not carry their own messages.

`full` and `full_no_search` follow the order of content of the released prompts, in other words. `brief` is for a
tiny model, for which prompt tokens dominate the cost: with its user prompt it has fewer than 60 words. `per_tool` describes
exactly the tools of the run, for models that were not trained with one of the others. Any other name is the path of a text
file to use as the system prompt.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from dv2_jax.agent.tools.base import Tool
from dv2_jax.data.chat_encoder import IMAGE_MARKER
from dv2_jax.data.question import Question

BRIEF = """\
Think, then act. image_1 is the first picture.
Run Python: <code>
```python
...
```
</code>
Search: <tool_call>
{"name": "search", "arguments": {"query": "..."}}
</tool_call>
or {"name": "image_search"}.
Finish: <answer>...</answer>"""

_HEAD = """\
You are an agent. Keep working until the user's question is completely answered; only then end your turn.

Work step by step. Whenever you cannot tell the answer yet, you may write Python that processes the picture; it \
runs in a Jupyter notebook, and its standard output, its standard error and every figure shown with \
`plt.show()` come back to you.

You MUST use Python whenever working on the picture could help: enlarge a region, rotate, raise the contrast, \
compute statistics, isolate a feature.
"""
_SEARCH_HEAD = """
When your own knowledge is not sufficient, you MUST search, thoroughly, and not give up early.

There are two searches. Image search looks for pages whose pictures resemble the original picture of the \
question. Text search sends a query to a web search engine.
"""
_PLAN = """
You MUST plan before every call and think about what came back afterwards. Do not chain calls without reasoning \
in between.
"""
_ONE_KIND = """
Tools may be combined over several rounds, but use only one kind of tool in a round.
"""
_TAIL = """
Every picture of the question is already loaded: the i-th is the global variable `image_i`, a `PIL.Image`; the \
first is `image_1`.

## Tools

## python

Put the code between `<code>` and `</code>`, like this:
<code>
```python
print(image_1.size)
```
</code>

1. A run either returns or is stopped at a time limit.
2. Show pictures with `plt.show()` (import matplotlib first), or leave a `PIL.Image` as the last value to see \
its own pixels.
3. All runs share one kernel: variables persist.
4. Code must terminate; no endless loops.
5. Do not write to the disk."""
_SEARCH_TAIL = """

## search

Call signatures, one JSON object between `<tool_call>` and `</tool_call>`:
- `image_search`: pages with pictures like the original picture of the question, with their titles. It takes no \
arguments. Use it at most once.
- `search`: web pages for the text `query` (a string).

<tool_call>
{"name": "image_search"}
</tool_call>
<tool_call>
{"name": "search", "arguments": {"query": "year the Pont du Gard was built"}}
</tool_call>

1. You may search many times.
2. Compare sources and check what they claim.
3. Prefer sources that are reliable and up to date.
4. One search per round.
5. Image search only once."""

PER_TOOL = "per_tool"
_PER_TOOL_HEAD = """\
You are an agent. Keep working until the user's question is completely answered; only then end your turn.

Work step by step. Whenever a tool could help, use it: plan before every call, and think about what came back afterwards. \
Write at most one call per turn, and end the turn after it; the result is the user's next message. Never write a result \
yourself.

# Tools"""

SYSTEM = {
    "brief": BRIEF,
    "full": _HEAD + _SEARCH_HEAD + _PLAN + _ONE_KIND + _TAIL + _SEARCH_TAIL,
    "full_no_search": _HEAD + _PLAN + _TAIL,
    PER_TOOL: _PER_TOOL_HEAD,
}
_USER_FULL = """

Put your final answer inside <answer> </answer>. Reason step by step; use Python if it helps, and search the \
Internet if you need to. Each of your turns has exactly one of these forms: <think> </think> <code> </code> to \
run code, <think> </think> <tool_call> </tool_call> to search, <think> </think> <answer> </answer> to finish."""
_USER_FULL_NO_SEARCH = """

Put your final answer inside <answer> </answer>. Reason step by step; use Python if it helps. Each of your \
turns has exactly one of these forms: <think> </think> <code> </code> to run code, <think> </think> <answer> \
</answer> to finish."""
_USER_PER_TOOL = """

Reason step by step inside <think> </think>. Then either call one tool, or put your final answer inside <answer> </answer>."""
_USER_NO_TOOL = """

Reason step by step inside <think> </think>. Then put your final answer inside <answer> </answer>."""
_USER = {"brief": "", PER_TOOL: _USER_PER_TOOL, "full": _USER_FULL, "full_no_search": _USER_FULL_NO_SEARCH}


@functools.cache
def system_prompt(name: str) -> str:
    """Returns the built-in system prompt `name`, or the text of the file at that path."""
    if name in SYSTEM:
        return SYSTEM[name]
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"agent.system_prompt {name!r} is neither a file nor one of {', '.join(SYSTEM)}")
    return path.read_text(encoding="utf-8")


def marked_text(question: Question) -> str:
    """Returns the question's text with one marker per image: those it has, or all of them before the text."""
    if IMAGE_MARKER in question.text:
        return question.text
    return f"{IMAGE_MARKER}\n" * len(question.images) + question.text


def build_messages(question: Question, prompt: str, tools: Sequence[Tool] = ()) -> tuple[dict, ...]:
    """Returns the question's own messages if it has any, else system and user message of the prompt `prompt`.

    The system message ends with the `Tool.prompt` of each tool that has one (with `per_tool`, the `Tool.manual`); a
    question's own messages are complete.
    """
    if question.messages is not None:
        return question.messages
    text = marked_text(question)
    if prompt == PER_TOOL and not tools:
        return ({"role": "user", "content": text + _USER_NO_TOOL},)
    user = text + _USER.get(prompt, _USER_FULL)
    described = [(prompt == PER_TOOL and tool.manual) or tool.prompt for tool in tools]
    system = "\n\n".join([system_prompt(prompt), *filter(None, described)])
    return ({"role": "system", "content": system}, {"role": "user", "content": user})
