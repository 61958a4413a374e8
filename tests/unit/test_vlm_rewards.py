"""Rewards that ask a vision-language model on a real server: what is asked and read, faults, waiting, keys."""

from __future__ import annotations

import base64
import io
import re
import sys
import threading
import time

import numpy as np
import pytest
import torch

import tiny_language
from scoring import total
from speaking import Speaking, failing, image
from tastemaker.drawings import Scene, Thing, render
from tastemaker.errors import RewardError, RewardUnavailable
from tastemaker.rewards.learned.bertscore import load_recall
from tastemaker.rewards.registry import load_reward
from tastemaker.rewards.serving import retry
from tastemaker.rewards.vlm.answers import Query, text_of
from tastemaker.rewards.vlm.rewards import load_vlm
from tastemaker.rewards.vlm.settings import Vlm

STAR, CIRCLE = Thing("star", "red", 0.3, 0.5, 0.2), Thing("circle", "blue", 0.7, 0.5, 0.2)
DRAWING = render(Scene((STAR, CIRCLE), "white"), 64)
X = torch.from_numpy(np.asarray(DRAWING, dtype=np.float32) / 255).permute(2, 0, 1)[None]
RIGHT, TURNED = "a red star on the left of a blue circle", "a red star on the right of a blue circle"
# The judge finds all of the first right, and of the second all but the relation: 3 of 4.
GOOD = 0.05 + 0.9


@pytest.fixture(autouse=True)
def _without_long_pauses(monkeypatch):
    monkeypatch.setattr(retry, "backoff", lambda tries: 0.02)
    monkeypatch.delenv("TASTEMAKER_VLM_KEY", raising=False)


@pytest.fixture(scope="module")
def speaking():
    with Speaking() as server:
        yield server


def load(name, server, **settings):
    said = []
    settings = {"wait": 0.5, "timeout": 2.0} | settings
    return load_reward(f"{name}:{server.name}", vlm=Vlm(**settings), log=said.append), said


def ask(name, server, x=X, prompts=(RIGHT,), **settings):
    return total(load(name, server, **settings)[0], x, list(prompts)).tolist()


def asked(server, place=0):
    """The question and the image's file of a request."""
    image, question = server.asked[place]["messages"][0]["content"]
    return question["text"], image["image_url"]["url"]


def test_ddpos_reward_is_the_recall_of_the_prompt_in_the_answer(tmp_path):
    model = str(tiny_language.deberta(tmp_path / "deberta"))
    with Speaking() as server:
        values = ask("vlm-bertscore", server, X.repeat(2, 1, 1, 1), [RIGHT, "two fish"], text_model=model, text_layer=2)
        question, url = asked(server)
        body = server.asked[0]
        # One image, one question: two prompts do not make it two requests.
        assert len(server.asked) == 1
    answer = f"It shows {RIGHT} on a plain white background."
    references = [f"The image contains {prompt}" for prompt in (RIGHT, "two fish")]
    assert values == pytest.approx(load_recall(model, 2)([answer] * 2, references).tolist(), abs=1e-6)
    assert question == "Answer concisely: what is going on in this image?"
    assert (body["max_tokens"], body["temperature"], "logprobs" in body) == (64, 0, False)
    file = io.BytesIO()
    DRAWING.save(file, "JPEG", quality=80)
    assert url == "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def test_yes_is_as_sure_as_the_model(tmp_path):
    x = X.repeat(2, 1, 1, 1)
    with Speaking() as server:
        assert ask("vlm-yes-no", server, x, [RIGHT, TURNED]) == pytest.approx([GOOD, 0.05 + 0.9 * 0.75])
        assert {asked(server, n)[0] for n in (0, 1)} == {
            f'Does this image show "{prompt}"? Please answer yes or no.' for prompt in (RIGHT, TURNED)
        }
        assert ask("vlm-yes-no", server, x, [RIGHT, "two fish"], logprobs=False) == [1, 0]
    with Speaking(logprobs=False) as server:
        assert ask("vlm-yes-no", server, x, [RIGHT, "two fish"]) == [1, 0]


def test_answers_with_and_without_chances_are_not_mixed():
    with Speaking(logprobs=False) as server:
        reward, said = load("vlm-yes-no", server, cache=0)
        assert total(reward, X, [RIGHT]).tolist() == [1]
        assert said == ["judge gives no log-probabilities: answers are used as they are written"]
        server.logprobs = True
        with pytest.raises(RewardError, match=r"some answers only: give vlm.logprobs=false"):
            total(reward, X, [RIGHT])


def test_a_rating_is_as_sure_as_the_model():
    # 5 with 0.6 and 3 with 0.3; 4 for three of four.
    with Speaking() as server:
        values = ask("vlm-rating", server, X.repeat(2, 1, 1, 1), [RIGHT, TURNED])
        assert values == pytest.approx([3.9 / 0.9, 3.3 / 0.9])
        assert "On a scale from 1 to 5" in asked(server)[0]
    with Speaking(logprobs=False) as server:
        assert ask("vlm-rating", server, X.repeat(2, 1, 1, 1), [RIGHT, TURNED]) == [5, 4]


def test_strict_is_the_share_of_answers_that_hold_what_is_expected(tmp_path):
    with Speaking() as server:
        prompts = ["two stars", "two hearts", "three circles", "four fish"]
        assert ask("vlm-strict", server, X.repeat(4, 1, 1, 1), prompts) == [1, 0.5, 0.5, 0]
        questions = {asked(server, place)[0] for place in range(len(server.asked))}
        assert questions >= {"How many stars are there in this image?", "What animal is in this image?"}
        with pytest.raises(RewardError, match="takes a number and a noun"):
            ask("vlm-strict", server, X, [RIGHT])
        path = tmp_path / "own.jsonl"
        path.write_text('{"prompt": "x", "questions": ["What?", "Where?", "Why?"], "answers": ["star", "left", "sky"]}')
        assert ask("vlm-strict", server, X, ["x"], questions=str(path)) == pytest.approx([2 / 3])
        with pytest.raises(RewardError, match="no questions about the prompt 'y'"):
            ask("vlm-strict", server, X, ["y"], questions=str(path))


def test_a_question_of_ones_own():
    with Speaking(["yes"]) as server:
        ask("vlm-yes-no", server, X, ["{a} \\1 star"], question='Is "{prompt}" {here}? ({prompt})')
        assert asked(server)[0] == 'Is "{a} \\1 star" {here}? ({a} \\1 star)'


def test_so_many_requests_side_by_side_and_in_order():
    say = lambda question, url: (str(round(4 * float(image(url).mean()) + 0.5)), {})  # noqa: E731
    x = torch.linspace(0.1, 0.9, 12).view(12, 1, 1, 1).expand(12, 3, 8, 8)
    with Speaking(lambda n: 0.1 if n % 3 else 0.05, say=say) as server:
        ask("vlm-rating", server, x[:1], [RIGHT])  # which imports the client
        values = ask("vlm-rating", server, x, [RIGHT] * 12, in_flight=6)
        assert (len(server.asked), server.most) == (13, 6)
    assert values == [round(4 * float(mean) + 0.5) for mean in torch.linspace(0.1, 0.9, 12)]


def test_what_was_asked_is_not_asked_again():
    with Speaking() as server:
        reward, _ = load("vlm-yes-no", server)
        first = total(reward, X, [RIGHT])
        assert total(reward, X, [RIGHT]).equal(first)
        assert len(server.asked) == 1
        total(reward, X, [TURNED])
        assert len(server.asked) == 2
        forgetful, _ = load("vlm-yes-no", server, cache=0)
        total(forgetful, X, [RIGHT])
        total(forgetful, X, [RIGHT])
        assert len(server.asked) == 4


def test_answers_are_handed_on_as_they_come():
    queries = [Query(b"one", "?"), Query(b"two", "?"), Query(b"one", "?"), Query(b"three", "?")]
    with Speaking(["1", "2", failing(400, {"detail": "no"})]) as server:
        model = load_vlm("the test", server.name, Vlm(in_flight=1))
        came: dict[int, str] = {}
        with pytest.raises(RewardError, match="refuses: status 400: no"):
            model(queries, text_of, received=came.__setitem__)
        # The third has the first's image and question, and its answer; the last one is refused.
        assert came == {0: "1", 1: "2", 2: "1"}
        assert len(server.asked) == 3


NOT_JSON = failing(200, b"<html>")
PASSING = {
    "500": failing(500, {"error": {"message": "out of memory", "type": "x", "param": None, "code": None}}),
    "503": failing(503, {"detail": "busy"}, Retry_After="0"),
    "429": failing(429, {"error": {"message": "slow down"}}),
    "slow": 4.0,
    "not JSON": NOT_JSON,
    "half a JSON": failing(200, b'{"choices": [{"mess'),
    "no choices": failing(200, {"choices": []}),
    "another thing": failing(200, [1, 2]),
    "a text": failing(200, "yes"),
    "nothing": failing(200, b""),
    "no message": failing(200, {"choices": [{"finish_reason": "stop"}]}),
    "null": failing(200, {"choices": [{"message": {"content": None}, "finish_reason": "length"}]}),
    "a number": failing(200, {"choices": [{"message": {"content": 5}}]}),
    "a refusal": failing(200, {"choices": [{"message": {"content": None, "refusal": "no"}}]}),
    "neither": "Perhaps.",
    "odd chances": failing(
        200,
        {"choices": [{"message": {"content": "Yes"}, "logprobs": {"content": [{"token": "Yes", "logprob": "x"}]}}]},
    ),
    "too likely": failing(
        200, {"choices": [{"message": {"content": "Yes"}, "logprobs": {"content": [{"token": "Yes", "logprob": 7.0}]}}]}
    ),
}


@pytest.mark.parametrize("fault", sorted(PASSING))
def test_a_fault_that_passes_leaves_no_trace(fault, speaking):
    speaking.begin([PASSING[fault]])
    reward, said = load("vlm-yes-no", speaking, wait=60, timeout=2.0 if fault == "slow" else 60.0)
    assert total(reward, X, [RIGHT]).tolist() == pytest.approx([GOOD])
    assert len(speaking.asked) == 2
    assert len(said) == 2
    assert "trying again" in said[0]
    assert "answers again" in said[1]


LASTING = {
    "500": (RewardUnavailable, "status 500: out of memory"),
    "503": (RewardUnavailable, "status 503: busy"),
    "slow": (RewardUnavailable, "no complete response within 0.3 s"),
    "not JSON": (RewardError, "a response that is not JSON"),
    "null": (RewardError, "the model gave an empty answer .finish reason 'length'; `vlm.tokens`"),
    "a refusal": (RewardError, "the model refuses: no"),
    "neither": (RewardError, "begins with yes or no, but the model answered 'Perhaps.'"),
    "too likely": (RewardError, "log-probabilities cannot be read"),
}


@pytest.mark.parametrize("fault", sorted(LASTING))
def test_a_fault_that_lasts_is_an_error_and_no_number(fault, speaking):
    kind, said = LASTING[fault]
    # A busy or silent server is waited for, by the clock; another is tried so many times.
    waited_for = fault in ("503", "slow")
    began = time.monotonic()
    speaking.begin(lambda n: PASSING[fault])
    with pytest.raises(RewardError, match=said) as caught:
        ask("vlm-yes-no", speaking, tries=3, timeout=0.3 if fault == "slow" else 60.0, wait=0.6 if waited_for else 60.0)
    assert type(caught.value) is kind
    assert re.search(r"vlm-yes-no:judge@http\S+ gave no answers after \d+ tries", str(caught.value))
    assert waited_for or len(speaking.asked) == 3
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("status", "hint"), [(400, "vlm.logprobs=false"), (401, "TASTEMAKER_VLM_KEY"), (404, "mostly in /v1"), (302, "")]
)
def test_a_refusal_ends_at_once(status, hint, speaking):
    speaking.begin([failing(status, {"error": {"message": "not so"}}, Location="http://127.0.0.1:9/")])
    with pytest.raises(RewardError, match=f"refuses: status {status}: .*not so.*{hint}") as caught:
        ask("vlm-yes-no", speaking)
    assert type(caught.value) is RewardError
    assert len(speaking.asked) == 1


def test_nobody_there():
    with pytest.raises(RewardUnavailable, match=r"http://127.0.0.1:9/v1: .*is it running\? `vlm.wait`"):
        total(load_reward("vlm-yes-no:m@http://127.0.0.1:9/v1", vlm=Vlm(wait=0.1)), X, [RIGHT])


def test_a_second_server_stands_in():
    with Speaking() as server:
        name = f"vlm-yes-no:judge@http://127.0.0.1:9/v1,{server.url}"
        assert total(load_reward(name, vlm=Vlm(wait=2)), X, [RIGHT]).tolist() == pytest.approx([GOOD])


def test_the_key_is_sent_and_shown_nowhere(monkeypatch):
    monkeypatch.setenv("TASTEMAKER_VLM_KEY", "s3cret-key")
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID"):
        monkeypatch.setenv(f"OPENAI_{name}", "another-s3cret")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer another-s3cret\nX-Other: another-s3cret")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    echo = failing(403, {"error": {"message": "no: Bearer s3cret-key"}})
    with Speaking([None, echo]) as server:
        ask("vlm-yes-no", server)
        assert server.headers[0]["authorization"] == "Bearer s3cret-key"
        assert "another" not in str(server.headers)
        with pytest.raises(RewardError, match=r"no: Bearer \*\*\*") as caught:
            ask("vlm-yes-no", server)
        assert "s3cret" not in str(caught.value)
        monkeypatch.delenv("TASTEMAKER_VLM_KEY")
        ask("vlm-yes-no", server)
        assert "s3cret" not in str(server.headers[2])
        with pytest.raises(RewardError, match="NO_KEY, which should have the VLM server's key, is not set"):
            ask("vlm-yes-no", server, key_env="NO_KEY")


def test_a_call_that_nobody_waits_for_ends():
    with Speaking(lambda n: 30) as server:
        reward, _ = load("vlm-yes-no", server, timeout=60)
        began = time.monotonic()
        threading.Timer(0.3, reward.cancel).start()
        with pytest.raises(RewardUnavailable, match="was cancelled"):
            total(reward, X, [RIGHT])
        assert time.monotonic() - began < 20


def test_without_the_client_one_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    monkeypatch.delitem(sys.modules, "tastemaker.rewards.vlm.served", raising=False)
    with pytest.raises(RewardError, match=r"pip install 'tastemaker\[vlm\]'"):
        load_reward("vlm-yes-no:m@http://127.0.0.1:9/v1")
