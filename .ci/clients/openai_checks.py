"""Checks the server with the unmodified `openai` package: `python openai_checks.py URL FOLDER`.

Writes `openai.json`: the answer to each question of `rows.json`, for the comparison with `evaluate`.
"""

import asyncio
import json
import sys
from pathlib import Path

import openai

url, folder = sys.argv[1], Path(sys.argv[2])
rows = json.loads((folder / "rows.json").read_text())
client = openai.OpenAI(base_url=url, api_key="none", max_retries=2)


def messages(row: dict) -> list[dict]:
    images = [{"type": "image_url", "image_url": {"url": image, "detail": "auto"}} for image in row["images"]]
    return [{"role": "user", "content": [*images, {"type": "text", "text": row["text"]}]}]


def check_models() -> None:
    assert [model.id for model in client.models.list()] == ["dv2", "dv2-raw"]
    assert client.models.retrieve("dv2-raw").object == "model"


def check_answers() -> list[str]:
    replies = [client.chat.completions.create(model="dv2", messages=messages(row), temperature=0) for row in rows]
    for reply in replies:
        (choice,) = reply.choices
        assert choice.message.content and choice.finish_reason in ("stop", "length"), reply
        assert choice.message.reasoning_content and choice.dv2["turns"] >= 1
        counts = reply.usage
        assert counts.total_tokens == counts.prompt_tokens + counts.completion_tokens > 0
        assert 0 <= counts.completion_tokens_details.reasoning_tokens <= counts.completion_tokens
    return [reply.choices[0].message.content for reply in replies]


def check_stream(expected: list[str]) -> None:
    stream = client.chat.completions.create(
        model="dv2", messages=messages(rows[0]), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected[0]
    assert chunks[-1].usage.completion_tokens > 0 and chunks[-2].choices[0].finish_reason == "stop"


async def check_async(expected: list[str]) -> None:
    asynchronous = openai.AsyncOpenAI(base_url=url, api_key="none")
    tasks = [asynchronous.chat.completions.create(model="dv2", messages=messages(row)) for row in rows]
    replies = await asyncio.gather(*tasks)
    assert [reply.choices[0].message.content for reply in replies] == expected, "concurrent answers differ"


def check_raw() -> None:
    options = {"model": "dv2-raw", "messages": messages(rows[0]), "temperature": 1.0, "seed": 5, "n": 2}
    first = client.chat.completions.create(**options, logprobs=True, extra_body={"return_token_ids": True})
    again = client.chat.completions.create(**options)
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices] and len(texts) == 2
    for choice in first.choices:
        assert len(choice.token_ids) == len(choice.logprobs.content)
        assert all(entry.logprob <= 0 for entry in choice.logprobs.content)
    assert len(first.prompt_token_ids) == first.usage.prompt_tokens
    stopped = client.chat.completions.create(model="dv2-raw", messages=messages(rows[0]), stop=[">"])
    assert ">" not in stopped.choices[0].message.content and stopped.choices[0].finish_reason == "stop"
    short = client.chat.completions.create(model="dv2-raw", messages=messages(rows[0]), max_completion_tokens=2)
    assert short.usage.completion_tokens == 2 and short.choices[0].finish_reason == "length"


def check_errors() -> None:
    hello = [{"role": "user", "content": "hello"}]
    assert client.chat.completions.create(model="dv2", messages=hello).choices[0].message.content
    expected = [
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, openai.BadRequestError, "context_length_exceeded"),
        ({"model": "gpt-4"}, openai.NotFoundError, "model_not_found"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, openai.BadRequestError, "unsupported_parameter"),
        ({"messages": messages({"images": ["https://a.b/c.png"], "text": ""})}, openai.BadRequestError, "unsupported_image_url"),
    ]  # fmt: skip
    for changes, kind, code in expected:
        try:
            client.chat.completions.create(**{"model": "dv2", "messages": hello} | changes)
        except kind as error:
            assert error.code == code, error
        else:
            raise AssertionError(f"no error for {changes}")


check_models()
answers = check_answers()
check_stream(answers)
asyncio.run(check_async(answers))
check_raw()
check_errors()
(folder / "openai.json").write_text(json.dumps(answers))
print(
    f"openai {openai.__version__}: models, answers, stream, async, seeds, log-probs, stop strings and errors are right"
)
