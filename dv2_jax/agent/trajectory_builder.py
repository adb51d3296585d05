"""Builds a trajectory. This is the only code that appends ids, so masks and budgets are implemented once.

The rollout appends sampled ids and the scripted teacher appends text; both append observations in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

from dv2_jax.agent import budget
from dv2_jax.agent.observation import Observation, ToolOutput, render_observation
from dv2_jax.agent.parser import ParsedTurn, parse_turn
from dv2_jax.agent.prompt_encoder import PromptEncoder
from dv2_jax.agent.trajectory import Finish, Trajectory, TurnRecord
from dv2_jax.config import AgentConfig
from dv2_jax.data.chat_encoder import Segment, strip_duplicate_eos
from dv2_jax.data.question import Question
from tools_service.common.status import Status


class TrajectoryBuilder:
    """Accumulates one trajectory, from its prompt to its finish.

    `append_generation` (or `append_scripted_turn`) returns the parsed turn. While `finish` is None, the caller runs
    the turn's tool and calls `append_tool_output` (or `append_observation`), which returns the segment to prefill,
    or None when it does not fit and the trajectory is finished. `max_new_tokens` limits the next generation.

    Args:
        limits: turns, tokens and images of this trajectory; None: those of the prompt encoder.
        prompt: the encoded question, if the caller has encoded it.
    """

    def __init__(
        self,
        prompt_encoder: PromptEncoder,
        question: Question,
        trajectory_id: str | None = None,
        *,
        limits: AgentConfig | None = None,
        prompt: Segment | None = None,
    ):
        self.prompt_encoder = prompt_encoder
        self.config = prompt_encoder.agent_config if limits is None else limits
        if prompt is None:
            prompt = prompt_encoder.encode_question(question)
        self._trajectory = Trajectory(
            trajectory_id or question.id, question, prompt_tokens=len(prompt.token_ids), tools=prompt_encoder.tools
        )
        self._turn: ParsedTurn | None = None  # the turn that awaits its observation
        self._append(prompt)
        self.prompt = prompt
        if not self.max_new_tokens:
            self._trajectory.finish = Finish.MAX_TOKENS

    @property
    def finish(self) -> Finish | None:
        return self._trajectory.finish

    @property
    def max_new_tokens(self) -> int:
        """The number of tokens that the next generation may sample."""
        return budget.max_new_tokens(self.config, len(self._trajectory.token_ids))

    @property
    def images_left(self) -> int:
        return budget.images_left(self.config, len(self._trajectory.images))

    def append_generation(
        self, token_ids: Sequence[int], logprobs: Sequence[float], version: int, *, ended: bool = True
    ) -> ParsedTurn:
        """Appends one generation and returns its parsed turn.

        Args:
            token_ids: the sampled ids, the stop string's tokens or `<|im_end|>` included.
            logprobs: the behavior log-prob of each id.
            version: the version of the policy that sampled them.
            ended: False when the generation was cut by its token limit rather than by a stop string.
        """
        self._check_state(awaiting_observation=False)
        if len(token_ids) != len(logprobs):
            raise ValueError(f"{len(token_ids)} sampled tokens but {len(logprobs)} log-probs")
        trajectory = self._trajectory
        trajectory.token_ids.extend(map(int, token_ids))
        trajectory.loss_mask.extend([1] * len(token_ids))
        trajectory.logprobs.extend(map(float, logprobs))
        trajectory.versions.extend([version] * len(token_ids))
        text = self.prompt_encoder.tokenizer.decode(id_ for id_ in token_ids if id_ != self.prompt_encoder.im_end)
        turn = parse_turn(text, trajectory.tools)
        trajectory.turns.append(TurnRecord(text, turn.kind))
        if turn.kind == "answer":
            trajectory.finish = Finish.ANSWER
        elif not ended or not text:
            full = len(trajectory.token_ids) >= self.config.max_total_tokens
            trajectory.finish = Finish.MAX_TOKENS if full else Finish.TURN_LIMIT
        elif not budget.may_continue(self.config, len(trajectory.turns)):
            trajectory.finish = Finish.MAX_TURNS
        else:
            self._turn = turn
        return turn

    def append_scripted_turn(self, text: str) -> ParsedTurn:
        """Appends a scripted turn with the ids that the policy would have sampled (log-prob 0, version -1).

        Raises:
            ValueError: when the turn is longer than `max_new_tokens`.
        """
        token_ids = self.prompt_encoder.chat.encode_assistant(text)
        if len(token_ids) > self.max_new_tokens:
            raise ValueError(
                f"a turn of {len(token_ids)} tokens exceeds the limit of {self.max_new_tokens} new tokens: {text!r}"
            )
        return self.append_generation(token_ids, [0.0] * len(token_ids), -1)

    def append_tool_output(self, result: ToolOutput | None, *, wall_ms: float = 0.0) -> Segment | None:
        """Renders and appends the observation for the last turn; `result` is None if that turn calls no tool."""
        self._check_state(awaiting_observation=True)
        assert self._turn is not None  # it awaits its observation
        observation = render_observation(
            self._turn,
            result,
            self.config,
            images_left=self.images_left,
            dataset_index=str(self._trajectory.question.meta.get("index", "")),
        )
        status = result.status if result is not None else None
        return self.append_observation(observation, status=status, wall_ms=wall_ms)

    def append_observation(
        self, observation: Observation, *, status: Status | None = None, wall_ms: float = 0.0
    ) -> Segment | None:
        """Appends an observation and returns exactly the ids and images that were appended.

        Returns None and finishes the trajectory if the observation leaves no room for another token or holds more
        images than the budget allows.
        """
        self._check_state(awaiting_observation=True)
        trajectory = self._trajectory
        segment = strip_duplicate_eos(
            trajectory.token_ids, self.prompt_encoder.encode_observation(observation), self.prompt_encoder.im_end
        )
        fits = budget.observation_fits(self.config, len(trajectory.token_ids), len(segment.token_ids))
        fits = fits and len(segment.images) <= self.images_left
        turn = trajectory.turns[-1]
        trajectory.turns[-1] = TurnRecord(
            turn.text,
            turn.kind,
            observation.text if fits else None,
            observation.images if fits else (),
            status,
            wall_ms,
        )
        self._turn = None
        if not fits:
            trajectory.finish = Finish.MAX_TOKENS
            return None
        self._append(segment)
        return segment

    def mark_lost(self) -> None:
        """Ends a trajectory after an infrastructure failure: it is masked from the loss and not graded as wrong."""
        self._turn = None
        self._trajectory.finish = Finish.LOST
        self._trajectory.dropped = True

    def trajectory(self) -> Trajectory:
        """Returns the trajectory in its current state, without a copy."""
        return self._trajectory

    def _append(self, segment: Segment) -> None:
        trajectory, count = self._trajectory, len(segment.token_ids)
        trajectory.token_ids.extend(segment.token_ids)
        trajectory.loss_mask.extend([0] * count)
        trajectory.logprobs.extend([0.0] * count)
        trajectory.versions.extend([-1] * count)
        trajectory.images.extend(segment.images)

    def _check_state(self, *, awaiting_observation: bool) -> None:
        trajectory = self._trajectory
        if trajectory.finish is not None:
            raise RuntimeError(f"trajectory {trajectory.id!r} is finished ({trajectory.finish.value})")
        if (self._turn is not None) != awaiting_observation:
            raise RuntimeError(
                f"trajectory {trajectory.id!r} expects "
                + ("a generation" if awaiting_observation else "an observation")
            )
