"""Tests the selection of trajectories for the report page."""

from dv2_jax.report.selection import GROUPS_PER_STEP, select
from dv2_jax.telemetry.trajectories import TrajectoryWriter


def _score(trajectories, rewards):
    for trajectory, reward in zip(trajectories, rewards, strict=True):
        trajectory.reward, trajectory.reward_parts = reward, {"accuracy": float(reward > 0.5)}
    return trajectories


def test_of_training_the_first_middle_and_last_step_show_complete_groups_where_rewards_differ(
    tmp_path, tokenizer, make, parts, trajectories
):
    """Catches groups without reward variance, an incomplete group, and a page filled by one skill."""
    questions = [trajectory.question for trajectory in trajectories[1:]]
    with TrajectoryWriter(tmp_path, tokenizer) as writer:
        for step in range(1, 10):
            group = [
                make(question, [("x</think>\n<answer>1</answer>", None)], seed)
                for question in questions
                for seed in range(3)
            ]
            # per question: all alike; a wide, a narrow and a middling spread
            _score(group, [1.0] * 3 + [0.0, 1.0, 1.0] + [0.9, 1.0, 1.0] + [0.2, 0.8, 0.8])
            writer.write(group, stage="train", step=step, advantages=[0.0] * len(group))
    shown = select(tmp_path)
    assert list(dict.fromkeys(record["step"] for record in shown)) == [9, 5, 1]
    last = [record for record in shown if record["step"] == 9]
    assert [record["question"]["id"] for record in last] == ["q-add"] * 3 + ["q-plain"] * 3
    assert len(last) == 3 * GROUPS_PER_STEP
    assert [record["reward"] for record in last] == [1.0, 1.0, 0.0, 0.8, 0.8, 0.2]


def test_of_an_evaluation_every_skill_and_outcome_is_shown_but_not_everything(
    tmp_path, tokenizer, make, parts, trajectories
):
    plain = trajectories[4].question
    many = [make(plain, [("x</think>\n<answer>red</answer>", None)], seed) for seed in range(30)]
    needless = make(plain, [(parts.SUM, parts.Result(stdout="42")), ("x</think>\n<answer>red</answer>", None)], 77)
    rows = _score([*many, needless], [1.0] * 29 + [0.0, 1.0])
    with TrajectoryWriter(tmp_path, tokenizer) as writer:
        writer.write(rows, stage="rl")
    shown = select(tmp_path)
    assert len(shown) <= 6
    assert {record["reward"] for record in shown} == {0.0, 1.0}
    assert needless.id in [record["id"] for record in shown]  # another use of tools than the rest


def test_an_empty_or_missing_folder_shows_nothing(tmp_path):
    assert select(tmp_path) == select(tmp_path / "missing") == []
