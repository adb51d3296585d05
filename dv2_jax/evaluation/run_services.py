"""The services of an evaluation that are not its engine: the evaluated endpoint, the judge, and prices."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from dv2_jax.config import Config
from dv2_jax.data.question import Question
from dv2_jax.endpoint import ChatEndpoint
from dv2_jax.evaluation.answerers.answerer import Answerer
from dv2_jax.evaluation.answerers.endpoint_session import EndpointSession, connect_endpoint, journal_path
from dv2_jax.evaluation.costs import PriceTable
from dv2_jax.evaluation.judging.caching_judge import CachingJudge
from dv2_jax.evaluation.judging.rubric_registry import get_rubric
from dv2_jax.evaluation.records import AnswerInfo
from dv2_jax.evaluation.scoring import RecordingJudge, has_judge, judge_model
from dv2_jax.evaluation.stage_run import StageRun
from dv2_jax.rewards import verdicts


class RunServices:
    """Connects to what the configuration names, and opens it when it is first needed. Use it in a `with` block.

    Args:
        answers: questions will be asked, so that the endpoint is probed; otherwise only its model's name is needed.

    Raises:
        ConfigError: the endpoint, the judge, the rubric or the price table cannot be used.
    """

    def __init__(self, config: Config, *, answers: bool = True):
        self.config = config
        self.prices = PriceTable.load(config.eval.prices) if config.eval.prices else None
        get_rubric(config.eval.judge_rubric)
        self._endpoint: ChatEndpoint | None = None
        self.model = ""  # at the endpoint; empty: there is none
        if config.eval.endpoint:
            self.model = config.eval.endpoint_model
            if answers or not self.model:
                self._endpoint = connect_endpoint(config)
                self.model = self._endpoint.model
        if has_judge(config.reward) and "judge" not in config.reward.verdicts:  # otherwise the reward has probed it
            verdicts.judge_client(config.reward).probe()
        self._session: EndpointSession | None = None
        self._stack = ExitStack()

    def __enter__(self) -> RunServices:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def check_prices(self, models: list[str]) -> None:
        """Raises ConfigError if there are prices, but none of an evaluated model: a limit on costs would not hold."""
        for model in models:
            if self.prices is not None:
                self.prices.price(model)

    def price(self, info: AnswerInfo) -> float | None:
        """Returns the cost of an answer; None without prices."""
        return None if self.prices is None else self.prices.answer_cost(info)

    def judge(self, run_dir: str | Path) -> Callable[[Question], RecordingJudge] | None:
        """Returns the function that makes the judge of one answer; None without a judge."""
        if not has_judge(self.config.reward):
            return None
        judge = CachingJudge.open(self.config, journal_path(run_dir, "judge"), judge_model(self.config.reward))
        self._stack.callback(judge.close)
        return judge.for_question

    def answerer(self, run: StageRun) -> Answerer:
        """Returns the answerer of a stage by the endpoint."""
        if self._session is None:
            assert self._endpoint is not None  # `answers` was set
            self._session = self._stack.enter_context(EndpointSession(self._endpoint, self.config, run.run_dir))
        return self._session.answerer(run.agent, refuses_tools=run.stage.refuses_tools, questions=run.part.questions)
