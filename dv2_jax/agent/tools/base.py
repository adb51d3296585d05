"""The interface of a tool: how it is called, what it requests, and what the policy and people see of its result.

A tool is one class in one file. This one needs no service:

    class LetterCounter(Tool):
        name = tag = "count"
        prompt = "To count its letters, write a word between <count> and </count>."

        def parse(self, text):
            calls = re.findall(r"<count>(.*?)</count>", text, re.DOTALL)
            return ParsedTurn(self.name, calls[-1]) if calls else None

        def request(self, turn, context):
            return LocalCall(context.request_id, self.name, lambda: LocalOutput(f"{len(turn.payload)} letters"))

`--config.agent.tools=code,search,image_search,my_package.my_module:LetterCounter` adds it to a run.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from dv2_jax.agent.agent_images import fit_returned_image
from dv2_jax.config import AgentConfig, ImageConfig, ToolsConfig
from dv2_jax.data.chat_encoder import IMAGE_MARKER, escape_special_tokens
from dv2_jax.data.question import Question
from tools_service.common.status import Status

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tools_service.client import Request

RESPONSE_TAG = "tool_response"  # surrounds the output of tools in observations
NOT_TOOLS = ("answer", "malformed", "none")  # kinds of turns that call no tool


@dataclass(frozen=True)
class ParsedTurn:
    """One parsed assistant turn.

    `kind` is the name of the called tool, or `answer`, `malformed` (a call that breaks the format) or `none` (no
    action). `payload` is the answer, the code, or the query; `arguments` holds further arguments of a call. For the
    kinds `malformed` and `none`, `error` is the text that the policy observes. `error_includes_row_id` marks errors
    that the released code ends with the index of the dataset row.
    """

    kind: str
    payload: str = ""
    error: str = ""
    error_includes_row_id: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def calls_tool(self) -> bool:
        return self.kind not in NOT_TOOLS


@dataclass(frozen=True)
class Observation:
    """Text with one `<image>` marker per encoded image, in order."""

    text: str
    images: tuple[bytes, ...] = ()


class ToolOutput(Protocol):
    """The fields of a `tools_service.client.ToolResult` that an observation is rendered from."""

    @property
    def status(self) -> Status: ...
    @property
    def stdout(self) -> str: ...
    @property
    def stderr(self) -> str: ...
    @property
    def images(self) -> tuple[bytes, ...]: ...
    @property
    def items(self) -> Sequence: ...
    @property
    def message(self) -> str: ...
    @property
    def restarted(self) -> bool: ...


@dataclass(frozen=True)
class LocalOutput:
    """Output of a `LocalCall`. A status other than OK is explained by `message`."""

    text: str = ""
    images: tuple[bytes, ...] = ()  # encoded
    status: Status = Status.OK
    message: str = ""


@dataclass(frozen=True)
class LocalCall:
    """A request that runs in a thread of the trainer instead of the tools service.

    An exception of `function` is an observation of this trajectory: its text follows "Error: ". A call that takes
    longer than `tools.request_timeout_s` counts as a failure of the infrastructure. Calls run concurrently.
    """

    request_id: str
    kind: str  # name of the tool
    function: Callable[[], LocalOutput]


@dataclass(frozen=True)
class Refusal:
    """Stands for a request that is not sent; the policy observes "Error: " and the message."""

    message: str


@dataclass(frozen=True)
class RequestContext:
    """The trajectory and the configuration that a request is made from."""

    request_id: str  # unique per request
    session_id: str  # unique per attempt of a trajectory: id of its sandbox session
    question: Question
    observed_images: tuple[bytes, ...]  # encoded images of the observations so far
    agent: AgentConfig
    image: ImageConfig
    tools: ToolsConfig


@dataclass(frozen=True)
class RenderContext:
    """Limits and escapes of one observation."""

    config: AgentConfig
    max_images: int
    tags: tuple[str, ...]  # protocol tags of all tools of the run
    row_suffix: str = ""  # " for {index}" in observations of failed searches on released data rows

    def escape(self, text: str) -> str:
        """Escapes control tokens, image markers and protocol tags, so that tool output cannot imitate them."""
        return escape_special_tokens(text, self.tags)

    def error(self, result: ToolOutput) -> Observation:
        """Returns the observation of a call that failed."""
        return Observation(self.escape(f"Error: {result.message or result.status.value}") + self.row_suffix)

    def readable_images(self, images: Sequence[bytes]) -> tuple[bytes, ...]:
        """Returns the images that can be decoded, resized where necessary, at most `max_images`."""
        readable = [image for image in map(fit_returned_image, images) if image is not None]
        return tuple(readable[: self.max_images])


class Tool(abc.ABC):
    """A tool: everything that the agent loop, training, evaluation and reports must know about it.

    A subclass sets `name` and `tag` and implements `parse` and `request`; all else has defaults.
    """

    name: ClassVar[str]  # kind of the turns that call it; lower-case identifier, also a key of stored records
    tag: ClassVar[str]  # a call ends with `</tag>`, at which generation stops; tools may share a tag
    title: ClassVar[str]  # noun in tables and charts; by default the name
    verb: ClassVar[str]  # predicate in the report: "searches"; by default "calls NAME"
    category: ClassVar[str]  # evaluations report the share of trajectories per category; by default the name
    is_search: ClassVar[bool] = False  # in the search split a call costs `reward.search_penalty`, and tags must balance
    output_tags: ClassVar[tuple[str, ...]] = (RESPONSE_TAG,)  # further tags that no tool output may imitate
    prompt: ClassVar[str] = ""  # appended to the system prompt; the built-in prompts describe DeepEyesV2's tools
    manual: ClassVar[str] = ""  # description of a built-in tool alone, for the prompt `per_tool`; empty: `prompt`
    uses: ClassVar[Mapping[str, str]]  # class of a use (see `classify`) → its title; by default one class, the name

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            words = cls.name.replace("_", " ")
            for attribute, default in (("title", words), ("verb", f"calls {words}"), ("category", cls.name)):
                if attribute not in cls.__dict__:
                    setattr(cls, attribute, default)
            if "uses" not in cls.__dict__:
                cls.uses = {cls.name: cls.title}

    @property
    def opening_tag(self) -> str:
        return f"<{self.tag}>"

    @property
    def stop_string(self) -> str:
        """The closing tag. Generation stops at the token that completes it."""
        return f"</{self.tag}>"

    @abc.abstractmethod
    def parse(self, text: str) -> ParsedTurn | None:
        """Parses the call in an assistant turn.

        Returns None if the turn does not call this tool: the next tool is tried. A call that breaks the format is a
        turn of kind `malformed` (see `malformed`), from which the policy can recover.
        """

    def reject(self, text: str) -> ParsedTurn | None:
        """Returns the error for a turn that no tool of the run parses, or None if this tool has nothing to say."""
        return None

    @abc.abstractmethod
    def request(self, turn: ParsedTurn, context: RequestContext) -> Request | LocalCall | Refusal:
        """Returns the request of a parsed call: to the tools service, or a function to run in this process."""

    def render(self, turn: ParsedTurn, result: ToolOutput, context: RenderContext) -> Observation:
        """Renders the observation; `result` is never a failure of the infrastructure."""
        return context.error(result) if result.status is not Status.OK else self.render_success(turn, result, context)

    def render_success(self, turn: ParsedTurn, result: ToolOutput, context: RenderContext) -> Observation:
        """Renders the result of a call that succeeded: its text, then its images."""
        images = context.readable_images(result.images)
        body = "\n".join(filter(None, [context.escape(result.stdout), IMAGE_MARKER * len(images)]))
        return tool_response(body, images)

    def is_called_in(self, text: str) -> bool:
        """Returns True if `text` holds a call of this tool, well-formed or not; the rewards count these."""
        return self.opening_tag in text

    def classify(self, text: str, num_images: int) -> str:
        """Returns the class (of `uses`) of the executed call in the turn `text`, which returned `num_images` images."""
        return self.name

    def display(self, payload: str) -> RenderableType:
        """Returns the call as the chat prints it."""
        from rich.text import Text

        return Text.assemble("  ", (self.title, "cyan"), *([" ", payload] if payload else []))

    def output_parts(self, observation: str) -> list[tuple[str, bool]]:
        """Splits an observation into (text, is an error) for people: without tags and image markers."""
        return plain_output(observation, self.output_tags)


def tool_response(body: str, images: tuple[bytes, ...] = ()) -> Observation:
    """Returns the observation of an escaped text between the tags of tool output."""
    return Observation(f"<{RESPONSE_TAG}>\n{body}\n</{RESPONSE_TAG}>", images)


def plain_output(observation: str, tags: Sequence[str] = (RESPONSE_TAG,)) -> list[tuple[str, bool]]:
    """Returns an observation without its tags and image markers, as one part."""
    for tag in tags:
        for marker in (f"<{tag}>", f"</{tag}>"):
            observation = observation.replace(f"{marker}\n", "").replace(marker, "")
    return [(observation.replace(IMAGE_MARKER, "").strip(), False)]


def malformed(error: str, *, includes_row_id: bool = False) -> ParsedTurn:
    """Returns the turn of a call that breaks the format. `error` should name the problem and contain no tag.

    The format reward counts tags over the entire trajectory, observations included.
    """
    return ParsedTurn("malformed", error=error, error_includes_row_id=includes_row_id)
