"""Opens the models of a curation: the own engine or an endpoint that is labeled, teachers, and replays of stored turns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from dv2_jax.agent.prompt_encoder import PromptEncoder
from dv2_jax.config import AgentConfig, ConfigError, CurateConfig, SamplingConfig
from dv2_jax.curation.curation import Curation
from dv2_jax.curation.replay import ReplayEngine
from dv2_jax.curation.scripted_teacher import ScriptedTeacher
from dv2_jax.curation.teachers import Teacher, run_reviewer
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.endpoint import ChatEndpoint, EndpointNames, RateLimit, ReplyJournal
from dv2_jax.evaluation.answerers.answerer import Answer, Answerer
from dv2_jax.evaluation.answerers.endpoint_answerer import EndpointAnswerer, EndpointSampling
from dv2_jax.evaluation.answerers.own_engine import OwnEngine
from dv2_jax.policy import load_policy
from dv2_jax.rollout.scheduler import RolloutScheduler
from dv2_jax.rollout.session import open_session
from dv2_jax.rollout.tools_client import open_tools


@dataclass(frozen=True)
class Model:
    """A model that answers. `tokenizer` decodes its trajectories; None: its answers carry their text."""

    name: str
    answerer: Answerer
    tokenizer: Tokenizer | None


def response_text(answer: Answer, tokenizer: Tokenizer | None) -> str:
    """Returns everything after the prompt."""
    if answer.text or tokenizer is None:
        return answer.text
    return answer.trajectory.response_text(tokenizer)


@contextmanager
def open_model(curation: Curation, *, with_tools: bool) -> Iterator[Model]:
    """Opens the model whose abilities are labeled: `curate.endpoint`, or the own engine with `model.init`."""
    config, settings = curation.config, curation.settings
    agent = config.agent if with_tools else without_tools(config.agent)
    if settings.endpoint:
        with _endpoint(curation, settings.endpoint, settings.endpoint_model, "curate.endpoint") as endpoint:
            yield from _on_endpoint(curation, endpoint, agent, settings.temperature)
        return
    policy = load_policy(config)
    with open_session(policy, config, curation.folder) as session:
        session.load_params()
        encoder = PromptEncoder(session.tokenizer, config.image, agent)
        sampling = SamplingConfig(temperature=settings.temperature)
        scheduler = RolloutScheduler(session.engine, session.tools, encoder, agent, config.tools, sampling)
        yield Model(config.model.init, OwnEngine(scheduler), session.tokenizer)


@contextmanager
def open_teacher(curation: Curation, teacher: Teacher, *, with_tools: bool) -> Iterator[Model]:
    """Opens a teacher, with the tools of the run or for long chains of thought without any.

    Raises:
        ConfigError: the scripted teacher is to answer without tools.
    """
    config = curation.config
    if teacher.is_scripted:
        if not with_tools:
            raise ConfigError(
                "curate.teachers: the scripted teacher writes no long chains of thought; name an endpoint"
            )
        tokenizer = load_policy(config).tokenizer
        assert tokenizer is not None
        with open_tools(config, curation.folder) as tools:
            encoder = PromptEncoder(tokenizer, config.image, config.agent)
            yield Model(teacher.name, ScriptedTeacher(config, encoder, tools), tokenizer)
        return
    with _endpoint(curation, teacher.base_url, teacher.model, "curate.teachers") as endpoint:
        agent = config.agent if with_tools else without_tools(config.agent)
        yield from _on_endpoint(curation, endpoint, agent, curation.settings.teacher_temperature)


@contextmanager
def open_reviewer(curation: Curation) -> Iterator[ChatEndpoint]:
    """Opens the judge of trajectories.

    Raises:
        ConfigError: `curate.reviewer` is empty or cannot be used.
    """
    reviewer = run_reviewer(curation.settings)
    with _endpoint(curation, reviewer.base_url, reviewer.model, "curate.reviewer") as endpoint:
        yield endpoint


@contextmanager
def open_replay(curation: Curation, turns: Mapping[str, Sequence[str]]) -> Iterator[RolloutScheduler]:
    """Opens a scheduler whose policy repeats stored turns (by row id), with the real tools and the limits of the run."""
    config = curation.config
    tokenizer = load_policy(config).tokenizer
    assert tokenizer is not None
    # Stored trajectories may be longer than the policy's own limits allow: they are replayed, not sampled.
    agent = replace(config.agent, max_turns=1_000, max_turn_tokens=1 << 20, max_total_tokens=1 << 24)
    with open_tools(config, curation.folder) as tools:
        encoder = PromptEncoder(tokenizer, config.image, agent)
        engine = ReplayEngine(encoder, turns)
        yield RolloutScheduler(engine, tools, encoder, agent, config.tools, SamplingConfig(temperature=0.0))


def without_tools(agent: AgentConfig) -> AgentConfig:
    """Returns the settings of an agent that has no tools and whose prompt describes no search."""
    prompt = "full_no_search" if agent.system_prompt == "full" else agent.system_prompt
    return replace(agent, tools=(), system_prompt=prompt)


def endpoint_sampling(settings: CurateConfig, temperature: float) -> EndpointSampling:
    """Returns the sampling parameters of requests to endpoints."""
    return EndpointSampling(temperature, settings.max_tokens, settings.concurrency)


@contextmanager
def _endpoint(curation: Curation, base_url: str, model: str, key: str) -> Iterator[ChatEndpoint]:
    """Opens a client whose replies are stored in the run, so that no request with a reply is sent again."""
    journal = ReplyJournal(curation.reply_path)
    names = EndpointNames(address_key=key, model_key=f"{key}_model" if key == "curate.endpoint" else key)
    endpoint = ChatEndpoint(
        base_url,
        model,
        journal=journal,
        names=names,
        timeout_s=curation.settings.timeout_s,
        concurrency=curation.settings.concurrency,
        rate=RateLimit(curation.settings.requests_per_minute, curation.settings.tokens_per_minute),
    )
    try:
        endpoint.probe()
        yield endpoint
    finally:
        endpoint.close()
        journal.close()


def _on_endpoint(curation: Curation, endpoint: ChatEndpoint, agent: AgentConfig, temperature: float) -> Iterator[Model]:
    config = curation.config
    sampling = endpoint_sampling(curation.settings, temperature)
    with ExitStack() as stack:
        tools = stack.enter_context(open_tools(config, curation.folder)) if agent.tools else None
        answerer = EndpointAnswerer(endpoint, sampling, agent, config.image, config.tools, tools)
        yield Model(endpoint.model, answerer, None)
