"""A trajectory under construction: the only code that appends ids, so masks and budgets exist once.

The rollout adds what was sampled, the scripted solver adds text; both add observations the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

from dv2_jax.agent import budget
from dv2_jax.agent.observation import Observation, Result, render
from dv2_jax.agent.parser import Turn, parse_turn
from dv2_jax.agent.prompt_encoder import SpliceCodec
from dv2_jax.agent.trajectory import Finish, Trajectory, TurnRecord
from dv2_jax.data.chat_encoder import Segment, after
from dv2_jax.data.question import Question


class Transcript:
    """One trajectory, from its prompt to its finish.

    Life: ``add_sampled`` (or ``add_turn_text``) returns the parsed turn; while ``finish`` is None, run what the
    turn asks, then ``add_result`` (or ``add_observation``), which returns the segment to prefill, or None when it
    does not fit and the trajectory is over. ``allowance`` is the cap of the next generation.
    """

    def __init__(self, codec: SpliceCodec, question: Question, trajectory_id: str | None = None):
        self.codec = codec
        self.config = codec.agent_config
        prompt = codec.prompt(question)
        self._trajectory = Trajectory(trajectory_id or question.id, question, prompt_tokens=len(prompt.token_ids))
        self._turn: Turn | None = None  # asked, not yet answered
        self._append(prompt)
        self.prompt = prompt
        if not self.allowance:
            self._trajectory.finish = Finish.MAX_TOKENS

    @property
    def finish(self) -> Finish | None:
        return self._trajectory.finish

    @property
    def allowance(self) -> int:
        """Tokens that the next generation may sample."""
        return budget.turn_allowance(self.config, len(self._trajectory.token_ids))

    @property
    def images_left(self) -> int:
        return budget.images_left(self.config, len(self._trajectory.pictures))

    def add_sampled(
        self, token_ids: Sequence[int], logprobs: Sequence[float], version: int, *, ended: bool = True
    ) -> Turn:
        """Appends one generation and reads it.

        Args:
            token_ids: as sampled, the stop token or ``<|im_end|>`` included.
            logprobs: behavior log-prob of each.
            version: of the policy that sampled them.
            ended: False when the generation was cut by its token cap rather than by a stop.
        """
        self._expect(asked=False)
        if len(token_ids) != len(logprobs):
            raise ValueError(f"{len(token_ids)} sampled tokens but {len(logprobs)} log-probs")
        trajectory = self._trajectory
        trajectory.token_ids.extend(map(int, token_ids))
        trajectory.loss_mask.extend([1] * len(token_ids))
        trajectory.logprobs.extend(map(float, logprobs))
        trajectory.versions.extend([version] * len(token_ids))
        text = self.codec.tokenizer.decode(id_ for id_ in token_ids if id_ != self.codec.im_end)
        turn = parse_turn(text)
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

    def add_turn_text(self, text: str) -> Turn:
        """Appends a scripted turn as the policy would have sampled it (log-prob 0, version -1).

        Raises:
            ValueError: when the turn is longer than the policy could have sampled.
        """
        token_ids = self.codec.chat.assistant(text)
        if len(token_ids) > self.allowance:
            raise ValueError(f"a turn of {len(token_ids)} tokens exceeds the allowance of {self.allowance}: {text!r}")
        return self.add_sampled(token_ids, [0.0] * len(token_ids), -1)

    def add_result(self, result: Result | None, *, wall_ms: float = 0.0) -> Segment | None:
        """Renders and appends the answer to the last turn; ``result`` is None where the turn calls no tool."""
        self._expect(asked=True)
        row = str(self._trajectory.question.meta.get("index", ""))
        observation = render(self._turn, result, self.config, images_left=self.images_left, row_index=row)
        status = getattr(result.status, "name", str(result.status)) if result is not None else ""
        return self.add_observation(observation, status=status, wall_ms=wall_ms)

    def add_observation(self, observation: Observation, *, status: str = "", wall_ms: float = 0.0) -> Segment | None:
        """Appends an observation, and returns exactly the ids and pictures that were appended.

        None, and the trajectory is over, when it would not leave room for another token or holds more pictures
        than are left.
        """
        self._expect(asked=True)
        trajectory = self._trajectory
        segment = after(trajectory.token_ids, self.codec.observation(observation), self.codec.im_end)
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

    def lose(self) -> None:
        """Ends a trajectory that the infrastructure failed: out of the loss, and never an empty answer."""
        self._turn = None
        self._trajectory.finish = Finish.LOST
        self._trajectory.dropped = True

    def trajectory(self) -> Trajectory:
        """The trajectory as it stands."""
        return self._trajectory

    def _append(self, segment: Segment) -> None:
        trajectory, count = self._trajectory, len(segment.token_ids)
        trajectory.token_ids.extend(segment.token_ids)
        trajectory.loss_mask.extend([0] * count)
        trajectory.logprobs.extend([0.0] * count)
        trajectory.versions.extend([-1] * count)
        trajectory.pictures.extend(segment.images)

    def _expect(self, *, asked: bool) -> None:
        trajectory = self._trajectory
        if trajectory.finish is not None:
            raise RuntimeError(f"trajectory {trajectory.id!r} is finished ({trajectory.finish.value})")
        if (self._turn is not None) != asked:
            raise RuntimeError(
                f"trajectory {trajectory.id!r} expects " + ("a generation" if asked else "an observation")
            )
