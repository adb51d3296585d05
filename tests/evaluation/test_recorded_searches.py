"""Recorded searches: what was searched once is replayed without a service, and a missing one makes an answer failed."""

import base64
import hashlib
import io
import json
import pickle
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dv2_jax.agent.trajectory import Finish, Trajectory, TurnRecord
from dv2_jax.config import Config, ConfigError, EvalConfig, RunFailure
from dv2_jax.data.question import Question
from dv2_jax.endpoint import ChatEndpoint
from dv2_jax.evaluation.answerers import endpoint_session
from dv2_jax.evaluation.answerers.answerer import Answer, Answerer, AnswerRequest
from dv2_jax.evaluation.answerers.endpoint_session import EndpointSession
from dv2_jax.evaluation.readers.questions import LazyQuestions
from dv2_jax.evaluation.readers.table_file import IMAGE_DIGEST
from dv2_jax.evaluation.recorded_searches import (
    NOT_RECORDED,
    RecordedSearches,
    ReplayedAnswers,
    open_search_records,
    with_records,
)
from dv2_jax.evaluation.released_search_cache import read_released_cache
from dv2_jax.evaluation.search_records import SearchRecords
from tools_service.client import (
    ExecRequest,
    ImageSearchRequest,
    SearchItem,
    Status,
    TextSearchRequest,
    ToolResult,
)

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)


class NumberedTools:
    """A tool backend whose n-th search finds items named n, so that a repeated search is noticed."""

    def __init__(self, status=Status.OK):
        self.status, self.submitted, self.results = status, [], []

    def submit(self, requests):
        for request in requests:
            self.submitted.append(request)
            number = len(self.submitted)
            count = getattr(request, "k", 0)
            items = tuple(SearchItem(f"{number}.{i}", "u", "s", "", PNG if i == 0 else None) for i in range(count))
            message = "" if self.status is Status.OK else "no"
            self.results.append(ToolResult(request.request_id, request.kind, self.status, items=items, message=message))

    def poll(self, timeout_s=0.0):
        results, self.results = self.results, []
        return results

    def pending(self):
        return len(self.results)

    def close_sessions(self, ids):
        pass


def text(id_, query, k=2):
    return TextSearchRequest(id_, query, k)


def ask(backend, *requests):
    """Submits requests one after the other and returns their results by id."""
    found = {}
    for request in requests:
        backend.submit([request])
        found |= {result.request_id: result for result in backend.poll()}
    return found


def titles(result):
    return [item.title for item in result.items]


def test_a_recorded_search_is_replayed_without_a_service(tmp_path):
    requests = [text("a", "capital of France"), ImageSearchRequest("b", PNG, 3), ExecRequest("c", "s", "1", 1.0)]
    live = RecordedSearches(NumberedTools(), SearchRecords(tmp_path), "record")
    first = ask(live, *requests)
    again = RecordedSearches(NumberedTools(), SearchRecords(tmp_path), "replay")
    second = ask(
        again, text("x", " capital  of\nFrance"), ImageSearchRequest("y", PNG, 3), ExecRequest("z", "s", "1", 1.0)
    )
    assert second["x"].items == first["a"].items and second["y"].items == first["b"].items
    assert second["x"].items[0].thumbnail == PNG and second["x"].cached
    assert [type(request) for request in again.tools.submitted] == [ExecRequest]
    assert (again.found, again.searched, again.missing) == (2, 0, 0)


def test_a_search_that_is_not_recorded_is_refused_and_counted(tmp_path):
    """Catches a replay that searches, or that answers with an empty list as if nothing had been found."""
    replay = RecordedSearches(NumberedTools(), SearchRecords(tmp_path), "replay")
    result = ask(replay, text("a", "capital of Spain"))["a"]
    assert (result.status, result.message, replay.missing) == (Status.REFUSED, NOT_RECORDED, 1)
    assert replay.tools.submitted == []


def test_auto_searches_once_for_what_is_missing(tmp_path):
    auto = RecordedSearches(NumberedTools(), SearchRecords(tmp_path), "auto")
    found = ask(auto, text("a", "q"), text("b", "q"), text("c", "q", k=1), text("d", "q", k=4), text("e", "q", k=2))
    assert titles(found["a"]) == titles(found["b"]) == ["1.0", "1.1"]
    assert titles(found["c"]) == ["1.0"]  # fewer results than recorded
    assert titles(found["d"]) == ["2.0", "2.1", "2.2", "2.3"]  # more than recorded: searched again
    assert titles(found["e"]) == ["2.0", "2.1"]
    assert len(auto.tools.submitted) == 2


def test_record_searches_again_but_once_per_run(tmp_path):
    for run in (1, 2):
        tools = NumberedTools()
        ask(RecordedSearches(tools, SearchRecords(tmp_path), "record"), text("a", "q"), text("b", "q"))
        assert len(tools.submitted) == 1, run


def test_equal_searches_at_the_same_time_are_asked_once(tmp_path):
    backend = RecordedSearches(NumberedTools(), SearchRecords(tmp_path), "auto")
    backend.submit([text("a", "q"), text("b", "q"), text("c", "other")])
    assert backend.pending() == 3
    found = {result.request_id: result for result in backend.poll()}
    assert titles(found["a"]) == titles(found["b"]) and len(found) == 3 and len(backend.tools.submitted) == 2
    assert backend.pending() == 0


def test_failures_of_the_service_are_passed_on_and_not_recorded(tmp_path):
    """Catches an outage that becomes the recorded result of a search."""
    backend = RecordedSearches(NumberedTools(Status.UNAVAILABLE), SearchRecords(tmp_path), "auto")
    assert ask(backend, text("a", "q"))["a"].status is Status.UNAVAILABLE
    assert len(SearchRecords(tmp_path)) == 0


def test_records_survive_a_process_killed_while_it_writes(tmp_path):
    ask(RecordedSearches(NumberedTools(), SearchRecords(tmp_path), "auto"), text("a", "one"), text("b", "two"))
    path = tmp_path / "searches-0.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    records = SearchRecords(tmp_path)
    assert records.find(text("x", "one")) is not None and records.find(text("x", "two")) is None
    ask(RecordedSearches(NumberedTools(), records, "auto"), text("c", "three"))
    again = SearchRecords(tmp_path)
    assert [again.find(text("x", query)) is not None for query in ("one", "two", "three")] == [True, False, True]


def test_a_full_disk_ends_the_run_with_a_sentence(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device", "searches-0.jsonl")

    backend = RecordedSearches(NumberedTools(), SearchRecords(tmp_path), "auto")
    backend.submit([text("a", "q")])
    monkeypatch.setattr("pathlib.Path.open", full)
    monkeypatch.setattr("dv2_jax.evaluation.search_records.atomic_write", full)
    with pytest.raises(RunFailure, match="a search cannot be recorded: No space left on device; make room"):
        backend.poll()


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 30, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


class OldPickle:
    """Pickles as an image of an older Pillow, whose state has further entries."""

    def __init__(self, image):
        self.image = image

    def __reduce__(self):
        state = [{}, self.image.mode, self.image.size, None, self.image.tobytes(), "old", 3, ()]
        return object.__new__, (type(self.image),), state


def released(tmp_path, entries, name="fvqa_test_image_search_results_cache.pkl"):
    path = tmp_path / name
    path.write_bytes(pickle.dumps(entries, protocol=4))
    return path


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_released_results_have_the_pixels_and_titles_of_the_pickle(protocol, tmp_path):
    """Catches results of another question, and an image that the neutral reader of pickles changes."""
    image = opened(jpeg(1))
    entry = {"tool_returned_web_title_list": ["one", "two", "three"],
             "tool_returned_images_urls": [image, image.convert("L"), "https://example.org/x.jpg"]}  # fmt: skip
    path = tmp_path / "fvqa_test_image_search_results_cache.pkl"
    path.write_bytes(pickle.dumps({"fvqa_test_0": entry}, protocol=protocol))
    (first, second, third) = read_released_cache(path)["fvqa_test_0"]
    assert [first.title, second.title, third.title] == ["one", "two", "three"] and third.image is None
    assert np.array_equal(np.asarray(opened(first.item().thumbnail)), np.asarray(image))
    assert np.array_equal(np.asarray(opened(second.item().thumbnail).convert("L")), np.asarray(image.convert("L")))


def test_released_results_are_found_by_the_index_of_the_question(tmp_path):
    images = [jpeg(1), jpeg(2)]
    entries = {f"fvqa_test_{n}": {"tool_returned_web_title_list": [f"t{n}", "u"], "tool_returned_images_urls": [opened(image)]}
               for n, image in enumerate(images)}  # fmt: skip
    path = released(tmp_path, entries)
    texts = [
        Question(
            f"q{n}",
            "s",
            "search",
            "?",
            (),
            "",
            meta={"index": f"fvqa_test_{n}", IMAGE_DIGEST: hashlib.sha256(i).hexdigest()},
        )
        for n, i in enumerate(images)
    ]
    questions = LazyQuestions([q.id for q in texts], lambda i: texts[i], texts)[1:]
    config = replace(Config(), eval=EvalConfig(search_record="replay", search_records=str(path)))
    records = open_search_records(config, tmp_path, [questions, [], object()])
    backend = with_records(NumberedTools(), records, "replay")
    found = ask(backend, ImageSearchRequest("a", images[1], 5), ImageSearchRequest("b", images[0], 5))
    assert titles(found["a"]) == ["t1", "u"] and found["a"].items[1].thumbnail is None
    assert found["b"].status is Status.REFUSED  # not among the questions of the run
    assert backend.summary() == "searches: 1 from records, 0 searched, 1 not recorded"


class Exploit:
    def __reduce__(self):
        import os

        return os.system, ("touch /tmp/dv2_exploit",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"a": Exploit()}), r"contains (posix|os).system, and only containers, texts, numbers and images"),
        (pickle.dumps({"a": eval}), "contains builtins.eval"),
        (pickle.dumps({"a": {"titles": []}}), "'a' has titles, but tool_returned_web_title_list and"),
        (pickle.dumps([1]), "holds a list of 1 entries, not the results"),
        (pickle.dumps({"a": {}})[:-5], "is damaged or cut off"),
        (b"PAR1", "is damaged or cut off"),
    ],
)
def test_a_pickle_with_anything_but_data_is_refused(content, message, tmp_path):
    """Catches a pickle that runs code when it is read."""
    path = tmp_path / "x_image_search_results_cache.pkl"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_released_cache(path)


def test_the_released_json_names_files(tmp_path):
    (tmp_path / "0.jpg").write_bytes(jpeg(3))
    entry = {"tool_returned_web_title": ["one", "two"], "cached_images_path": ["0.jpg", None]}
    path = tmp_path / "fvqa_train_image_search_results_cache.json"
    path.write_text(json.dumps({"fvqa_train_0": entry}))
    results = read_released_cache(path)["fvqa_train_0"]
    assert opened(results[0].item().thumbnail).size == (30, 20) and results[1].item().thumbnail is None


class OneAnswer(Answerer):
    def __init__(self, turns):
        self.turns = turns

    def answers(self, requests):
        for request in requests:
            trajectory = Trajectory(request.id, request.question, finish=Finish.ANSWER, turns=self.turns)
            yield Answer(request, trajectory)


def test_an_answer_without_its_search_is_failed():
    """Catches an answer counted as wrong although the search that it needed was not recorded."""
    question = Question("q", "s", "search", "?", (), "")
    refused = TurnRecord("", "search", f"Error: {NOT_RECORDED}", status=Status.REFUSED)
    other = TurnRecord("", "search", "Error: the query is empty", status=Status.REFUSED)
    for turns, failed in (([refused], True), ([other], False), ([], False)):
        answers = list(ReplayedAnswers(OneAnswer(turns)).answers([AnswerRequest(question)]))
        assert bool(answers[0].failure) == failed


def test_replay_needs_records(tmp_path):
    config = replace(Config(), eval=EvalConfig(search_record="replay"))
    with pytest.raises(ConfigError, match="there is no recorded search in .*search_records; name a folder"):
        open_search_records(config, tmp_path, [])
    config = replace(Config(), eval=EvalConfig(search_record="auto", search_records=str(tmp_path / "no.pkl")))
    with pytest.raises(ConfigError, match=r"eval.search_records: there is no .*no.pkl"):
        open_search_records(config, tmp_path, [])
    assert open_search_records(Config(), tmp_path, []) is None
    assert with_records(tools := NumberedTools(), None, "off") is tools


def test_an_endpoint_searches_with_the_records_of_the_run(tmp_path, monkeypatch):
    """Catches a replay that holds for the own engine alone."""
    image, tools = jpeg(1), NumberedTools()
    path = released(
        tmp_path, {"fvqa_test_0": {"tool_returned_web_title_list": ["t"], "tool_returned_images_urls": [opened(image)]}}
    )
    meta = {"index": "fvqa_test_0", IMAGE_DIGEST: hashlib.sha256(image).hexdigest()}
    text_only = Question("q0", "s", "search", "?", (), "", meta=meta)
    questions = LazyQuestions(["q0"], lambda i: replace(text_only, images=(image,)), [text_only])
    config = replace(Config(), eval=EvalConfig(search_record="replay", search_records=str(path)))
    monkeypatch.setattr(endpoint_session, "open_tools", lambda *_: nullcontext(tools))
    with EndpointSession(ChatEndpoint("http://127.0.0.1:9/v1", "m"), config, tmp_path) as session:
        for _ in range(2):  # two stages
            answerer = session.answerer(config.agent, questions=questions)
        assert isinstance(answerer, ReplayedAnswers) and answerer.answerer.tools is session.tools()
        assert titles(ask(session.tools(), ImageSearchRequest("a", image, 3))["a"]) == ["t"]
    assert tools.submitted == []
