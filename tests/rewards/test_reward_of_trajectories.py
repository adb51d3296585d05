"""Tests of the reward of trajectories: the text that is read, the order of verdict sources, dropped rows and outages."""

import dataclasses
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import dv2_jax.rewards as rewards
from dv2_jax.agent.trajectory import Finish, Trajectory
from dv2_jax.config import ConfigError, RewardConfig
from dv2_jax.data.question import Question
from dv2_jax.data.tokenizer import train_bpe
from dv2_jax.rewards import verdicts
from dv2_jax.rewards.judge import Judge


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["<think></think><answer>Paris</answer>"] * 3, 300)


def finished(
    tokenizer, answer: str, *, verifier="text", source="perception", reference="Paris", name="t"
) -> Trajectory:
    question = Question(name, "plain", source, "Which city?", (), reference, verifier=verifier)
    prompt = tokenizer.encode("<answer>not this</answer><think>")
    ids = tokenizer.encode(f"<think>x</think><answer>{answer}</answer>") + [tokenizer.id("<|im_end|>")]
    return Trajectory(name, question, prompt + ids, prompt_tokens=len(prompt), finish=Finish.ANSWER)


def test_only_the_response_is_scored(tokenizer):
    parts = rewards.trajectory_reward(finished(tokenizer, "the PARIS!"), tokenizer, RewardConfig())
    assert (parts.accuracy, parts.format, parts.total) == (1.0, 1.0, pytest.approx(1.0))


def test_a_lost_trajectory_has_no_reward(tokenizer):
    lost = finished(tokenizer, "Paris")
    lost.finish, lost.dropped = Finish.LOST, True
    with pytest.raises(ValueError, match="lost"):
        rewards.trajectory_reward(lost, tokenizer, RewardConfig())
    rewards.compute_rewards([lost], tokenizer, RewardConfig())
    assert lost.reward is None and lost.reward_parts == {}


def test_compute_rewards_fills_the_parts(tokenizer):
    right, wrong = finished(tokenizer, "Paris"), finished(tokenizer, "Rome")
    rewards.compute_rewards([right, wrong], tokenizer, RewardConfig())
    assert (right.reward, wrong.reward) == (pytest.approx(1.0), pytest.approx(0.2))
    assert right.reward_parts["accuracy"] == 1.0 and wrong.reward_parts["format"] == 1.0


@pytest.fixture
def lenient_judge():
    """A server that accepts everything and counts what it is asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            verdict = r"## Equivalence Judgement\nTRUE" if "heading" in asked[-1] else r"\\boxed{Yes}"
            body = b'{"choices": [{"message": {"content": "%s"}}]}' % verdict.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", asked
    server.shutdown()
    server.server_close()


def test_the_judge_is_asked_only_where_rules_cannot_decide(tokenizer, lenient_judge):
    url, asked = lenient_judge
    config = RewardConfig(judge_base_url=url, judge_model="m")
    cases = [
        (finished(tokenizer, "Paris"), 1.0, 0),  # accepted by the rules
        (finished(tokenizer, "the capital of France"), 1.0, 1),
        (finished(tokenizer, "half", source="reason", verifier="math", reference="0.5"), 1.0, 1),
        (finished(tokenizer, "8", verifier="number", reference="7"), 0.0, 0),  # numbers are decided by rules
        (finished(tokenizer, "x" * 300), 0.0, 0),  # too long to be judged
        (finished(tokenizer, " "), 1.0, 1),  # empty: put to the judge, as released
        (finished(tokenizer, " ", source="reason", verifier="math"), 0.0, 0),
    ]
    for trajectory, accuracy, questions in cases:
        before = len(asked)
        assert rewards.trajectory_reward(trajectory, tokenizer, config).accuracy == accuracy
        assert len(asked) - before == questions


def test_a_silent_judge_drops_the_trajectory_instead_of_failing_the_answer(tokenizer, monkeypatch):
    monkeypatch.setattr(
        verdicts, "judge_client", lambda config: Judge(config.judge_base_url, config.judge_model, attempts=1)
    )
    config = RewardConfig(judge_base_url="http://127.0.0.1:1/v1", judge_model="m")
    unsure, sure = finished(tokenizer, "the capital of France"), finished(tokenizer, "Paris")
    rewards.compute_rewards([unsure, sure], tokenizer, config)
    assert unsure.dropped and unsure.reward is None
    assert sure.reward == pytest.approx(1.0) and not sure.dropped


def test_an_outage_ends_the_batch(tokenizer, monkeypatch):
    """Catches: an outage that only drops trajectories, so that a run goes on and exports with exit code 0."""
    judge = Judge("http://127.0.0.1:1/v1", "m", attempts=2, longest_wait_s=0.01, outage_s=0.0)
    monkeypatch.setattr(verdicts, "judge_client", lambda config: judge)
    config = RewardConfig(judge_base_url="http://127.0.0.1:1/v1", judge_model="m")
    with pytest.raises(rewards.JudgeOutage, match="no verdict"):
        rewards.compute_rewards([finished(tokenizer, "the capital of France") for _ in range(50)], tokenizer, config)


def test_a_row_with_an_unusable_reference_costs_that_row(tokenizer, caplog):
    """Catches: one bad row that ends the run after its rollouts."""
    bad = finished(tokenizer, "5", verifier="number", reference="red", name="bad")
    good = finished(tokenizer, "Paris")
    rewards.compute_rewards([bad, good], tokenizer, RewardConfig())
    assert bad.dropped and bad.reward is None and "question bad dropped" in caplog.text and "'red'" in caplog.text
    assert good.reward == pytest.approx(1.0) and not good.dropped


def test_preparing_fails_at_once_without_a_judge():
    """Catches: a run whose judge is missing, noticed only after the first rollouts."""
    config = RewardConfig(judge_base_url="http://127.0.0.1:1/v1")
    with pytest.raises(ConfigError, match="no connection to the judge"):
        rewards.prepare_rewards(config)
    rewards.prepare_rewards(dataclasses.replace(config, verdicts=("rules",)))  # it is not asked
    rewards.prepare_rewards(RewardConfig())
    with pytest.raises(ConfigError, match="reward.terms"):
        rewards.prepare_rewards(RewardConfig(terms=("nothing",)))
