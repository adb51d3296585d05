"""Opens the model at `eval.endpoint` for one evaluation: its client, the journal of its replies, and the tools."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from dv2_jax.config import AgentConfig, Config, ConfigError
from dv2_jax.data.question import Question
from dv2_jax.endpoint import ChatEndpoint, ReplyJournal
from dv2_jax.evaluation.answerers.answerer import Answerer
from dv2_jax.evaluation.answerers.endpoint_answerer import EndpointAnswerer, EndpointSampling
from dv2_jax.evaluation.baselines import RefusingTools
from dv2_jax.evaluation.recorded_searches import REPLAY, ReplayedAnswers, open_search_records, with_records
from dv2_jax.parallel import distributed
from dv2_jax.rollout.tool_requests import ToolBackend
from dv2_jax.rollout.tools_client import open_tools

REPLIES = "replies"  # folder of the journals in the run directory
OUTAGE_S = 300.0  # without one reply, after which the run stops


def connect_endpoint(config: Config) -> ChatEndpoint:
    """Returns the client of `eval.endpoint`, whose `model` is the configured one or the first that is served there.

    Raises:
        ConfigError: the endpoint cannot be used; the message names the field to change.
    """
    settings = config.eval
    if settings.endpoint_concurrency < 1 or settings.endpoint_max_tokens < 1 or settings.endpoint_timeout_s <= 0:
        raise ConfigError(
            "eval.endpoint_concurrency, eval.endpoint_max_tokens and eval.endpoint_timeout_s: use 1 or more"
        )
    endpoint = ChatEndpoint(
        settings.endpoint,
        settings.endpoint_model,
        timeout_s=settings.endpoint_timeout_s,
        outage_s=OUTAGE_S,
        slow_s=2 * settings.endpoint_timeout_s,
        concurrency=settings.endpoint_concurrency,
    )
    endpoint.probe()
    return endpoint


def journal_path(run_dir: str | Path, name: str) -> Path:
    """Returns the path of this host's journal of replies, `answers` or `judge`."""
    host = distributed.process_index()
    return Path(run_dir) / REPLIES / f"{name}{f'.{host}' if host else ''}.jsonl"


class EndpointSession:
    """The endpoint with its journal in a run directory; the tools service starts with the first answerer that needs it.

    Use it in a `with` block, which closes everything.
    """

    def __init__(self, endpoint: ChatEndpoint, config: Config, run_dir: str | Path):
        self.endpoint, self.config, self.run_dir = endpoint, config, run_dir
        self._tools: ToolBackend | None = None
        self._records = open_search_records(config, Path(run_dir), ())
        self._stack = ExitStack()

    def __enter__(self) -> EndpointSession:
        self._stack.callback(self.endpoint.close)
        self.endpoint.journal = ReplyJournal(journal_path(self.run_dir, "answers"))
        self._stack.callback(self.endpoint.journal.close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def answerer(
        self,
        agent: AgentConfig,
        tools: ToolBackend | None = None,
        *,
        refuses_tools: bool = False,
        questions: Sequence[Question] = (),
    ) -> Answerer:
        """Returns the answerer of a stage.

        Args:
            agent: prompt, tools and limits of the stage.
            tools: replaces the tools of the run, for example to record searches.
            refuses_tools: every call is refused.
            questions: of the stage; they make released search results known under `eval.search_record`.
        """
        if self._records is not None:
            self._records.add_rows(getattr(questions, "texts", ()))
        settings = self.config.eval
        if refuses_tools:
            tools = RefusingTools()
        elif agent.tools and tools is None:
            tools = self.tools()
        sampling = EndpointSampling(settings.temperature, settings.endpoint_max_tokens, settings.endpoint_concurrency)
        answerer = EndpointAnswerer(self.endpoint, sampling, agent, self.config.image, self.config.tools, tools)
        return ReplayedAnswers(answerer) if settings.search_record == REPLAY else answerer

    def tools(self) -> ToolBackend:
        """Returns the client of the tools service, which the first call starts or connects to."""
        if self._tools is None:
            client = self._stack.enter_context(open_tools(self.config, self.run_dir))
            self._tools = with_records(client, self._records, self.config.eval.search_record)
        return self._tools
