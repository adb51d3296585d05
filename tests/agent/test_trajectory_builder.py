"""A trajectory as it grows: masks, alignment, budgets, and the same ids on both ways to build it."""

import pytest

from dv2_jax.agent import budget, prompts
from dv2_jax.agent.observation import Observation
from dv2_jax.agent.trajectory import Finish
from dv2_jax.agent.trajectory_builder import Transcript
from dv2_jax.config import AgentConfig
from dv2_jax.data.chat_encoder import encode_messages
from tests.agent.tool_results import Item, Result, png

CODE = "<think>look</think>\n<code>\n```python\nprint(1)\n```\n</code>"
SEARCH = 'go on</think>\n<tool_call>\n{"name": "search", "arguments": {"query": "x"}}\n</tool_call>'
ANSWER = "seen</think>\n<answer>7</answer>"


def played(codec, question) -> Transcript:
    transcript = Transcript(codec, question)
    transcript.add_turn_text(CODE)
    transcript.add_result(Result(stdout="1\n", images=(png(50, 70, seed=3),)), wall_ms=12.0)
    transcript.add_turn_text(SEARCH)
    transcript.add_result(Result(items=(Item("T <image>", "u", "S"),)))
    transcript.add_turn_text(ANSWER)
    return transcript


def test_only_what_the_policy_sampled_is_trained(codec, question, tokenizer):
    trajectory = played(codec, question).trajectory()
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


def test_the_columns_of_a_trajectory_stay_aligned(codec, question):
    transcript = Transcript(codec, question)
    ids = codec.tokenizer.encode(CODE)
    transcript.add_sampled(ids, [-0.5] * len(ids), version=3)
    segment = transcript.add_result(Result())
    trajectory = transcript.trajectory()
    prompt = len(transcript.prompt.token_ids)
    assert trajectory.prompt_tokens == prompt
    after = len(segment.token_ids)
    assert trajectory.token_ids == [*transcript.prompt.token_ids, *ids, *segment.token_ids]
    assert trajectory.logprobs == [0.0] * prompt + [-0.5] * len(ids) + [0.0] * after
    assert trajectory.versions == [-1] * prompt + [3] * len(ids) + [-1] * after
    assert trajectory.sampled_tokens == len(ids)


def test_a_stored_conversation_gives_the_ids_that_the_rollout_spliced(codec, question):
    """Catches a second way of rendering: other white space, a re-tokenized joint, another picture order."""
    transcript = played(codec, question)
    trajectory = transcript.trajectory()
    messages = list(prompts.messages(question, codec.agent_config.system_prompt))
    images = list(question.images)
    for number, turn in enumerate(trajectory.turns):
        messages.append({"role": "assistant", "content": "<think>" * bool(number) + turn.text})
        if turn.observation is not None:
            messages.append({"role": "user", "content": turn.observation})
            images += turn.images
    example = encode_messages(messages, images, codec.chat)
    assert example.token_ids == trajectory.token_ids and example.loss_mask == trajectory.loss_mask
    assert [p.digest for p in example.pictures] == [p.digest for p in trajectory.pictures] and len(images) == 2


def test_a_scripted_turn_has_the_ids_of_the_sampled_one(codec, question):
    scripted, sampled = Transcript(codec, question), Transcript(codec, question)
    scripted.add_turn_text(CODE)
    ids = codec.tokenizer.encode(CODE)
    sampled.add_sampled(ids, [0.0] * len(ids), -1)
    assert scripted.trajectory().token_ids == sampled.trajectory().token_ids


def test_a_stop_that_ends_inside_a_token_keeps_the_token_whole(codec, question, tokenizer):
    """Catches ids cut or re-made from text: the token that completes ``</code>`` may carry a line break too."""
    ids = tokenizer.encode(CODE + "\n")
    assert tokenizer.token_bytes(ids[-1]) == b">\n"
    transcript = Transcript(codec, question)
    assert transcript.add_sampled(ids, [-1.0] * len(ids), 0).payload == "print(1)"
    segment = transcript.add_result(Result(stdout="1"))
    trajectory = transcript.trajectory()
    assert trajectory.token_ids == [*transcript.prompt.token_ids, *ids, *segment.token_ids]
    assert segment.token_ids[0] == codec.im_end and sum(trajectory.loss_mask) == len(ids)


def test_a_turn_that_ended_itself_is_not_closed_twice(codec, question, tokenizer):
    transcript = Transcript(codec, question)
    turn = transcript.add_turn_text("<think>hm</think>")
    assert turn.kind == "none"
    segment = transcript.add_result(None)
    trajectory = transcript.trajectory()
    text = tokenizer.decode(trajectory.token_ids)
    assert "<think>hm</think><|im_end|>\n<|im_start|>user\nError: No action found." in text
    assert trajectory.token_ids[-len(segment.token_ids) :] == list(segment.token_ids)
    assert trajectory.loss_mask[-len(segment.token_ids) - 1] == 1
    messages = [
        *prompts.messages(question, "brief"),
        {"role": "assistant", "content": "<think>hm</think>"},
        {"role": "user", "content": trajectory.turns[0].observation},
        {"role": "assistant", "content": "<think>"},
    ]
    example = encode_messages(messages, question.images, codec.chat)
    assert example.token_ids[:-1] == trajectory.token_ids and example.loss_mask[:-1] == trajectory.loss_mask


def test_an_answer_finishes_and_nothing_can_be_added(codec, question):
    transcript = played(codec, question)
    trajectory = transcript.trajectory()
    assert transcript.finish is Finish.ANSWER and trajectory.tool_calls == 2
    assert trajectory.used_code and trajectory.used_search and not trajectory.dropped
    assert [turn.wall_ms for turn in trajectory.turns] == [12.0, 0.0, 0.0]
    with pytest.raises(RuntimeError, match="finished"):
        transcript.add_turn_text(ANSWER)


def test_generation_and_observation_must_alternate(codec, question):
    transcript = Transcript(codec, question)
    with pytest.raises(RuntimeError, match="expects a generation"):
        transcript.add_observation(Observation("x"))
    transcript.add_turn_text(CODE)
    with pytest.raises(RuntimeError, match="expects an observation"):
        transcript.add_turn_text(SEARCH)


def test_the_last_turn_gets_no_observation(make_codec, question):
    transcript = Transcript(make_codec(max_turns=2), question)
    transcript.add_turn_text(CODE)
    assert transcript.finish is None
    transcript.add_result(Result())
    transcript.add_turn_text(SEARCH)
    assert transcript.finish is Finish.MAX_TURNS
    assert transcript.trajectory().loss_mask[-1] == 1 and transcript.trajectory().tool_calls == 1


def test_an_answer_counts_even_on_the_last_turn_and_at_the_cap(make_codec, question):
    transcript = Transcript(make_codec(max_turns=1), question)
    ids = transcript.codec.tokenizer.encode(ANSWER)
    transcript.add_sampled(ids, [0.0] * len(ids), 0, ended=False)
    assert transcript.finish is Finish.ANSWER


def test_a_turn_cut_at_its_cap_ends_the_trajectory(codec, question):
    for text, ended in ((CODE, False), ("", True)):
        transcript = Transcript(codec, question)
        ids = codec.tokenizer.encode(text) or [codec.im_end]
        transcript.add_sampled(ids, [0.0] * len(ids), 0, ended=ended)
        assert transcript.finish is Finish.TURN_LIMIT


def test_an_observation_that_does_not_fit_is_not_appended(make_codec, question):
    """Catches a trajectory that ends with an observation, and an off-by-one of the total budget."""
    probe = Transcript(make_codec(), question)
    probe.add_turn_text(CODE)
    before = len(probe.trajectory().token_ids)
    after = before + len(probe.add_result(Result(stdout="1")).token_ids)
    for limit, fits in ((after, False), (after + 1, True)):
        transcript = Transcript(make_codec(max_total_tokens=limit), question)
        transcript.add_turn_text(CODE)
        assert (transcript.add_result(Result(stdout="1")) is not None) == fits
        assert len(transcript.trajectory().token_ids) == (after if fits else before)
        assert transcript.finish is (None if fits else Finish.MAX_TOKENS)
        assert transcript.allowance == (1 if fits else min(400, limit - before))
        assert (transcript.trajectory().turns[-1].observation is not None) == fits
        assert transcript.trajectory().turns[-1].status == "OK"


def test_a_prompt_that_fills_the_budget_is_finished_at_once(make_codec, question):
    size = len(Transcript(make_codec(), question).prompt.token_ids)
    assert Transcript(make_codec(max_total_tokens=size), question).finish is Finish.MAX_TOKENS
    assert Transcript(make_codec(max_total_tokens=size + 1), question).finish is None


def test_pictures_of_a_trajectory_are_bounded(codec, question):
    transcript = Transcript(codec, question)  # 5 in all, 3 a turn; the question has 1
    many = tuple(png(seed=i) for i in range(4))
    transcript.add_turn_text(CODE)
    assert len(transcript.add_result(Result(images=many)).images) == 3
    transcript.add_turn_text(CODE.removeprefix("<think>"))
    assert len(transcript.add_result(Result(images=many)).images) == 1
    assert "[images left out: 3]" in transcript.trajectory().turns[-1].observation
    assert len(transcript.trajectory().pictures) == 5 and transcript.images_left == 0


def test_a_lost_trajectory_is_dropped_and_has_no_answer(codec, question):
    transcript = Transcript(codec, question)
    transcript.add_turn_text(CODE)
    transcript.lose()
    trajectory = transcript.trajectory()
    assert trajectory.finish is Finish.LOST and trajectory.dropped and trajectory.turns[-1].observation is None


def test_a_scripted_turn_longer_than_the_allowance_is_an_error(make_codec, question):
    with pytest.raises(ValueError, match="allowance of 10"):
        Transcript(make_codec(max_turn_tokens=10), question).add_turn_text(CODE)


def test_budgets_are_those_of_the_released_loop():
    released = AgentConfig(max_turns=9, max_turn_tokens=8192, max_total_tokens=24576, max_images=50)
    assert budget.turn_allowance(released, 1000) == 8192
    assert budget.turn_allowance(released, 20_000) == 4576
    assert budget.turn_allowance(released, 24_576) == budget.turn_allowance(released, 30_000) == 0
    assert budget.may_continue(released, 8) and not budget.may_continue(released, 9)
    assert budget.observation_fits(released, 24_000, 575) and not budget.observation_fits(released, 24_000, 576)
    assert budget.images_left(released, 49) == 1 and budget.images_left(released, 60) == 0
