"""Tests trajectory building: masks, alignment, budgets, and equal ids from the rollout and from stored messages."""

import pytest

from dv2_jax.agent import budget, prompts
from dv2_jax.agent.observation import Observation
from dv2_jax.agent.trajectory import Finish
from dv2_jax.agent.trajectory_builder import TrajectoryBuilder
from dv2_jax.config import AgentConfig
from dv2_jax.data.chat_encoder import encode_conversation
from tests.agent.tool_results import Item, Result, png
from tools_service.common.status import Status

CODE = "<think>look</think>\n<code>\n```python\nprint(1)\n```\n</code>"
SEARCH = 'go on</think>\n<tool_call>\n{"name": "search", "arguments": {"query": "x"}}\n</tool_call>'
ANSWER = "seen</think>\n<answer>7</answer>"


def build_trajectory(prompt_encoder, question) -> TrajectoryBuilder:
    builder = TrajectoryBuilder(prompt_encoder, question)
    builder.append_scripted_turn(CODE)
    builder.append_tool_output(Result(stdout="1\n", images=(png(50, 70, seed=3),)), wall_ms=12.0)
    builder.append_scripted_turn(SEARCH)
    builder.append_tool_output(Result(items=(Item("T <image>", "u", "S"),)))
    builder.append_scripted_turn(ANSWER)
    return builder


def test_only_what_the_policy_sampled_is_trained(prompt_encoder, question, tokenizer):
    trajectory = build_trajectory(prompt_encoder, question).trajectory()
    runs, last = [], None
    for id_, mask in zip(trajectory.token_ids, trajectory.loss_mask, strict=True):
        if mask != last:
            runs.append((mask, []))
        runs[-1][1].append(id_)
        last = mask
    texts = [(mask, tokenizer.decode(ids)) for mask, ids in runs]
    assert [mask for mask, _ in texts] == [0, 1, 0, 1, 0, 1]
    assert [text for mask, text in texts if mask] == [CODE, SEARCH, ANSWER + "<|im_end|>"]
    for _, observation in (texts[2], texts[4]):
        assert observation.startswith("<|im_end|>\n<|im_start|>user\n")
        assert observation.endswith("<|im_end|>\n<|im_start|>assistant\n<think>")


def test_the_columns_of_a_trajectory_stay_aligned(prompt_encoder, question):
    builder = TrajectoryBuilder(prompt_encoder, question)
    ids = prompt_encoder.tokenizer.encode(CODE)
    builder.append_generation(ids, [-0.5] * len(ids), version=3)
    segment = builder.append_tool_output(Result())
    trajectory = builder.trajectory()
    prompt = len(builder.prompt.token_ids)
    assert trajectory.prompt_tokens == prompt
    after = len(segment.token_ids)
    assert trajectory.token_ids == [*builder.prompt.token_ids, *ids, *segment.token_ids]
    assert trajectory.logprobs == [0.0] * prompt + [-0.5] * len(ids) + [0.0] * after
    assert trajectory.versions == [-1] * prompt + [3] * len(ids) + [-1] * after
    assert trajectory.sampled_tokens == len(ids)


def test_a_stored_conversation_gives_the_ids_of_the_rollout(prompt_encoder, question):
    """Catches a second renderer: different white space, tokenization across a boundary, another image order."""
    builder = build_trajectory(prompt_encoder, question)
    trajectory = builder.trajectory()
    messages = list(prompts.build_messages(question, prompt_encoder.agent_config.system_prompt))
    images = list(question.images)
    for number, turn in enumerate(trajectory.turns):
        messages.append({"role": "assistant", "content": "<think>" * bool(number) + turn.text})
        if turn.observation is not None:
            messages.append({"role": "user", "content": turn.observation})
            images += turn.images
    example = encode_conversation(messages, images, prompt_encoder.chat)
    assert example.token_ids == trajectory.token_ids and example.loss_mask == trajectory.loss_mask
    assert [p.digest for p in example.images] == [p.digest for p in trajectory.images] and len(images) == 2


def test_a_scripted_turn_has_the_ids_of_the_sampled_one(prompt_encoder, question):
    scripted, sampled = TrajectoryBuilder(prompt_encoder, question), TrajectoryBuilder(prompt_encoder, question)
    scripted.append_scripted_turn(CODE)
    ids = prompt_encoder.tokenizer.encode(CODE)
    sampled.append_generation(ids, [0.0] * len(ids), -1)
    assert scripted.trajectory().token_ids == sampled.trajectory().token_ids


def test_a_stop_string_that_ends_inside_a_token_keeps_the_entire_token(prompt_encoder, question, tokenizer):
    """Catches ids truncated or re-tokenized: the token that completes `</code>` may also contain a line break."""
    ids = tokenizer.encode(CODE + "\n")
    assert tokenizer.token_bytes(ids[-1]) == b">\n"
    builder = TrajectoryBuilder(prompt_encoder, question)
    assert builder.append_generation(ids, [-1.0] * len(ids), 0).payload == "print(1)"
    segment = builder.append_tool_output(Result(stdout="1"))
    trajectory = builder.trajectory()
    assert trajectory.token_ids == [*builder.prompt.token_ids, *ids, *segment.token_ids]
    assert segment.token_ids[0] == prompt_encoder.im_end and sum(trajectory.loss_mask) == len(ids)


def test_a_turn_that_ended_itself_is_not_closed_twice(prompt_encoder, question, tokenizer):
    builder = TrajectoryBuilder(prompt_encoder, question)
    turn = builder.append_scripted_turn("<think>hm</think>")
    assert turn.kind == "none"
    segment = builder.append_tool_output(None)
    trajectory = builder.trajectory()
    text = tokenizer.decode(trajectory.token_ids)
    assert "<think>hm</think><|im_end|>\n<|im_start|>user\nError: No action found." in text
    assert trajectory.token_ids[-len(segment.token_ids) :] == list(segment.token_ids)
    assert trajectory.loss_mask[-len(segment.token_ids) - 1] == 1
    messages = [
        *prompts.build_messages(question, "brief"),
        {"role": "assistant", "content": "<think>hm</think>"},
        {"role": "user", "content": trajectory.turns[0].observation},
        {"role": "assistant", "content": "<think>"},
    ]
    example = encode_conversation(messages, question.images, prompt_encoder.chat)
    assert example.token_ids[:-1] == trajectory.token_ids and example.loss_mask[:-1] == trajectory.loss_mask


def test_an_answer_finishes_and_nothing_can_be_added(prompt_encoder, question):
    builder = build_trajectory(prompt_encoder, question)
    trajectory = builder.trajectory()
    assert builder.finish is Finish.ANSWER and trajectory.tool_calls == 2
    assert trajectory.used_categories() == {"code": True, "search": True} and not trajectory.dropped
    assert [turn.wall_ms for turn in trajectory.turns] == [12.0, 0.0, 0.0]
    with pytest.raises(RuntimeError, match="finished"):
        builder.append_scripted_turn(ANSWER)


def test_generation_and_observation_must_alternate(prompt_encoder, question):
    builder = TrajectoryBuilder(prompt_encoder, question)
    with pytest.raises(RuntimeError, match="expects a generation"):
        builder.append_observation(Observation("x"))
    builder.append_scripted_turn(CODE)
    with pytest.raises(RuntimeError, match="expects an observation"):
        builder.append_scripted_turn(SEARCH)


def test_the_last_turn_gets_no_observation(make_prompt_encoder, question):
    builder = TrajectoryBuilder(make_prompt_encoder(max_turns=2), question)
    builder.append_scripted_turn(CODE)
    assert builder.finish is None
    builder.append_tool_output(Result())
    builder.append_scripted_turn(SEARCH)
    assert builder.finish is Finish.MAX_TURNS
    assert builder.trajectory().loss_mask[-1] == 1 and builder.trajectory().tool_calls == 1


def test_an_answer_counts_even_on_the_last_turn_and_at_the_token_limit(make_prompt_encoder, question):
    builder = TrajectoryBuilder(make_prompt_encoder(max_turns=1), question)
    ids = builder.prompt_encoder.tokenizer.encode(ANSWER)
    builder.append_generation(ids, [0.0] * len(ids), 0, ended=False)
    assert builder.finish is Finish.ANSWER


def test_a_turn_cut_at_its_cap_ends_the_trajectory(prompt_encoder, question):
    for text, ended in ((CODE, False), ("", True)):
        builder = TrajectoryBuilder(prompt_encoder, question)
        ids = prompt_encoder.tokenizer.encode(text) or [prompt_encoder.im_end]
        builder.append_generation(ids, [0.0] * len(ids), 0, ended=ended)
        assert builder.finish is Finish.TURN_LIMIT


def test_an_observation_that_does_not_fit_is_not_appended(make_prompt_encoder, question):
    """Catches a trajectory that ends with an observation, and an off-by-one of the total budget."""
    probe = TrajectoryBuilder(make_prompt_encoder(), question)
    probe.append_scripted_turn(CODE)
    before = len(probe.trajectory().token_ids)
    after = before + len(probe.append_tool_output(Result(stdout="1")).token_ids)
    for limit, fits in ((after, False), (after + 1, True)):
        builder = TrajectoryBuilder(make_prompt_encoder(max_total_tokens=limit), question)
        builder.append_scripted_turn(CODE)
        assert (builder.append_tool_output(Result(stdout="1")) is not None) == fits
        assert len(builder.trajectory().token_ids) == (after if fits else before)
        assert builder.finish is (None if fits else Finish.MAX_TOKENS)
        assert builder.max_new_tokens == (1 if fits else min(400, limit - before))
        assert (builder.trajectory().turns[-1].observation is not None) == fits
        assert builder.trajectory().turns[-1].status is Status.OK


def test_a_prompt_that_fills_the_budget_is_finished_at_once(make_prompt_encoder, question):
    size = len(TrajectoryBuilder(make_prompt_encoder(), question).prompt.token_ids)
    assert TrajectoryBuilder(make_prompt_encoder(max_total_tokens=size), question).finish is Finish.MAX_TOKENS
    assert TrajectoryBuilder(make_prompt_encoder(max_total_tokens=size + 1), question).finish is None


def test_images_of_a_trajectory_are_bounded(prompt_encoder, question):
    builder = TrajectoryBuilder(prompt_encoder, question)  # limits: 5 in total, 3 per turn; the question has 1
    many = tuple(png(seed=i) for i in range(4))
    builder.append_scripted_turn(CODE)
    assert len(builder.append_tool_output(Result(images=many)).images) == 3
    builder.append_scripted_turn(CODE.removeprefix("<think>"))
    assert len(builder.append_tool_output(Result(images=many)).images) == 1
    assert "[images left out: 3]" in builder.trajectory().turns[-1].observation
    assert len(builder.trajectory().images) == 5 and builder.images_left == 0


def test_a_lost_trajectory_is_dropped_and_has_no_answer(prompt_encoder, question):
    builder = TrajectoryBuilder(prompt_encoder, question)
    builder.append_scripted_turn(CODE)
    builder.mark_lost()
    trajectory = builder.trajectory()
    assert trajectory.finish is Finish.LOST and trajectory.dropped and trajectory.turns[-1].observation is None


def test_a_scripted_turn_longer_than_max_new_tokens_is_an_error(make_prompt_encoder, question):
    with pytest.raises(ValueError, match="limit of 10 new tokens"):
        TrajectoryBuilder(make_prompt_encoder(max_turn_tokens=10), question).append_scripted_turn(CODE)


def test_budgets_are_those_of_the_released_loop():
    released = AgentConfig(max_turns=9, max_turn_tokens=8192, max_total_tokens=24576, max_images=50)
    assert budget.max_new_tokens(released, 1000) == 8192
    assert budget.max_new_tokens(released, 20_000) == 4576
    assert budget.max_new_tokens(released, 24_576) == budget.max_new_tokens(released, 30_000) == 0
    assert budget.may_continue(released, 8) and not budget.may_continue(released, 9)
    assert budget.observation_fits(released, 24_000, 575) and not budget.observation_fits(released, 24_000, 576)
    assert budget.images_left(released, 49) == 1 and budget.images_left(released, 60) == 0
