"""The client of remote rewards against servers that are down, slow, busy, or talk nonsense."""

from __future__ import annotations

import math
import threading
import time
from email.utils import formatdate

import anyio
import httpx
import pytest
import torch

import serving
from scoring import total
from serving import GOOD, Scripted, changed, cut, drip, good, hang_up, raw, redness, served, slow
from tastemaker.errors import ConfigError, RewardError, RewardUnavailable
from tastemaker.rewards.registry import load_reward
from tastemaker.rewards.serving import client as client_module
from tastemaker.rewards.serving import retry
from tastemaker.rewards.serving.cache import AnswerCache
from tastemaker.rewards.serving.client import RemoteReward
from tastemaker.rewards.serving.retry import backoff, retry_after
from tastemaker.rewards.serving.settings import Remote, endpoints, read_token

X = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
PROMPTS = list("abcde")
EXACT = redness(X, PROMPTS)


@pytest.fixture(autouse=True)
def _without_long_pauses(monkeypatch):
    monkeypatch.setattr(retry, "backoff", lambda tries: 0.02)
    monkeypatch.delenv("TASTEMAKER_REWARD_TOKEN", raising=False)


def client(name, **settings):
    settings = {"format": "safetensors", "batch": 2, "wait": 0.5, "timeout": 60.0} | settings
    said = []
    made = RemoteReward(name, Remote(**settings), said.append)
    return made, said


def test_a_batch_is_cut_asked_and_put_together_in_order():
    with Scripted(lambda n: slow(0.05 * (3 - n))) as server:  # the first asked answers last
        ask, _ = client(server.url)
        assert total(ask, X, PROMPTS).equal(EXACT)
        assert sorted(len(asked.prompts) for asked in server.asked) == [1, 2, 2]
        assert (ask.differentiable, ask.space) == (False, "image")


def test_requests_run_side_by_side_and_not_more_than_so_many():
    running, most, lock = [0], [0], threading.Lock()

    def count(handler, content):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.1)
        with lock:
            running[0] -= 1
        good(handler, content)

    with Scripted(lambda n: count) as server:
        ask, _ = client(server.url, batch=1, in_flight=2)
        assert total(ask, X, PROMPTS).equal(EXACT)
    assert most[0] == 2


SILENT = ("slow", "a byte now and then")
"""Those of the following that only a limit of time ends."""
PASSING = {
    "500": raw(b'{"detail": "out of memory"}', 500),
    "502": raw(b"<html>bad gateway</html>", 502),
    "503": raw(b'{"detail": "busy"}', 503, Retry_After="0"),
    "429": raw(b"{}", 429),
    "cut in the middle": cut,
    "hung up": hang_up,
    "slow": slow(5),
    "a byte now and then": drip,
    "too few": changed(rewards=lambda values: values[:-1]),
    "too many": changed(rewards=lambda values: [*values, 1.0]),
    "nan": changed(rewards=lambda values: [math.nan, *values[1:]]),
    "infinity": changed(rewards=lambda values: [*values[1:], -math.inf]),
    "beyond float32": changed(rewards=lambda values: [1e39, *values[1:]]),
    "beyond float64": changed(rewards=lambda values: [10**400, *values[1:]]),
    "text": changed(rewards=lambda values: [str(value) for value in values]),
    "truth": changed(rewards=lambda values: [True for _ in values]),
    "none": changed(rewards=None),
    "nested": changed(rewards=lambda values: [[value] for value in values]),
    "one number": changed(rewards=1.0),
    "not json": raw(b"rewards: 1 2 3"),
    "not an object": raw(b"[1.0, 2.0]"),
    "deep": raw(b"[" * 100_000),
    "empty": raw(b""),
    "anonymous": changed(reward=None),
    "endless": raw(b'{"rewards": [1.0, ' + b" " * (2**20 + 10) + b"2.0]}"),
    "a status of its own": raw(b"", 599),
}


@pytest.mark.parametrize("what", PASSING)
def test_what_passes_is_tried_again(what):
    with Scripted([PASSING[what]]) as server:
        ask, said = client(server.url, timeout=2.0 if what in SILENT else 60.0, wait=60)
        assert total(ask, X, PROMPTS).equal(EXACT)
        assert len(server.asked) == 4
    assert len(said) == 2
    assert "trying again, for up to 60 s" in said[0]
    assert "answers again" in said[1]


@pytest.mark.parametrize("what", PASSING)
def test_what_does_not_pass_ends_in_an_error_in_time(what):
    with Scripted(lambda n: PASSING[what]) as server:
        ask, _ = client(server.url, timeout=0.3 if what in SILENT else 60.0, wait=0.3, tries=3)
        began = time.monotonic()
        with pytest.raises(RewardError, match="gave no numbers after") as caught:
            total(ask, X, PROMPTS)
        assert time.monotonic() - began < 30
        assert "\n" not in str(caught.value)
        nonsense = not isinstance(caught.value, RewardUnavailable)
        assert nonsense == ("sent an invalid response" in str(caught.value))
        assert caught.value.exit_code == (2 if nonsense else 69)
    assert not ask._cache


def test_a_server_that_fails_at_a_request_is_asked_so_many_times():
    with Scripted(lambda n: PASSING["500"]) as server:
        ask, _ = client(server.url, wait=60, tries=3)
        with pytest.raises(RewardUnavailable, match=r"3 tries .*status 500: out of memory"):
            ask(X[:1], ["a"])
        assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("status", "hint"),
    [(400, ""), (401, "TASTEMAKER_REWARD_TOKEN"), (404, "reward serve"), (413, "remote.batch"), (302, "")],
)
def test_a_refusal_is_not_tried_again(status, hint):
    refusal = raw(b'{"detail": "no,\\n not this"}', status, Location="http://127.0.0.1:9/")
    with Scripted(lambda n: refusal) as server:
        ask, said = client(server.url, wait=60)
        with pytest.raises(RewardError, match=f"refuses: status {status}: no, not this.*{hint}") as caught:
            ask(X[:1], ["a"])
        assert caught.value.exit_code == 2
        assert (len(server.asked), said) == (1, [])


def test_nobody_there():
    ask, said = client("http://127.0.0.1:9", wait=0.3)
    began = time.monotonic()
    with pytest.raises(RewardUnavailable, match=r"gave no numbers after \d+ tries in \d+ s: .*ConnectError"):
        total(ask, X, PROMPTS)
    assert 0.1 < time.monotonic() - began < 30
    assert len(said) == 1


def test_a_server_that_comes_back_is_found():
    first = Scripted([])
    port = first.port
    ask, said = client(first.url, wait=20)
    total(ask, X, PROMPTS)
    first.close()
    second = []
    timer = threading.Timer(0.4, lambda: second.append(Scripted([], port)))
    timer.start()
    assert total(ask, 1 - X, PROMPTS).equal(redness(1 - X, PROMPTS))
    timer.join()
    second[0].close()
    assert "answers again" in said[-1]


def test_retry_after():
    headers = lambda value: httpx.Headers({"Retry-After": value})  # noqa: E731
    assert retry_after(headers("7")) == 7
    assert retry_after(headers("100000")) == 60
    assert 5 < retry_after(headers(formatdate(time.time() + 8, usegmt=True))) <= 8
    assert [retry_after(headers(text)) for text in ("soon", "-3", "", "nan")] == [0] * 4
    assert retry_after(httpx.Headers()) == 0
    with Scripted([raw(b"", 503, Retry_After="1")]) as server:
        ask, _ = client(server.url, wait=60)
        began = time.monotonic()
        ask(X[:1], ["a"])
        assert 1.0 <= time.monotonic() - began < 30


def test_pauses_grow_and_are_bounded():
    assert 0.25 <= backoff(1) <= 0.375
    assert 2 <= backoff(4) <= 3
    assert 10 <= backoff(5000) <= 15
    assert len({backoff(3) for _ in range(5)}) == 5


def test_another_server_takes_over():
    with Scripted(lambda n: PASSING["500"]) as bad, Scripted([]) as fine:
        ask, said = client(f"remote:http://127.0.0.1:9,{bad.url},{fine.url}/", wait=20)
        for turn in range(4):
            x = (X + turn) / 4
            assert total(ask, x, PROMPTS).equal(redness(x, PROMPTS))
        # Once it has failed, the others are preferred for a while.
        assert len(bad.asked) <= 3
        assert len(fine.asked) == 12
    assert said


def test_two_servers_share_the_work():
    with Scripted([]) as one, Scripted([]) as other:
        ask, _ = client(f"{one.url},{other.url}", batch=1)
        total(ask, X, PROMPTS)
        assert sorted((len(one.asked), len(other.asked))) == [2, 3]


@pytest.mark.parametrize("change", [{"version": "2"}, {"reward": "blueness"}])
def test_rewards_of_two_kinds_are_not_mixed(change):
    with Scripted([good, changed(**change)]) as server:
        ask, _ = client(server.url)
        ask(X[:1], ["a"])
        with pytest.raises(RewardError, match="cannot be mixed"):
            ask(X[1:2], ["b"])
        assert ask.identity() == GOOD


def test_an_answer_that_is_kept_again_outlives_older_ones():
    cache = AnswerCache[float](2)
    cache.keep([(b"a", 1.0), (b"b", 2.0), (b"a", 1.0), (b"c", 3.0)])
    assert cache.known([b"a", b"b", b"c", b"d"]) == {b"a": 1.0, b"c": 3.0}
    none = AnswerCache[float](0)
    none.keep([(b"a", 1.0)])
    assert not none.known([b"a"])


def test_the_cache_is_by_image_and_prompt_and_bounded():
    with Scripted([]) as server:
        ask, _ = client(server.url, batch=1, cache=3)
        ask(X[:3], ["a", "b", "c"])
        ask(X[:3], ["a", "b", "c"])
        assert len(server.asked) == 3
        ask(X[:1], ["another"])
        ask(X[1:2].clone(), ["b"])
        ask(X[1:2].flip(3), ["b"])
        assert len(server.asked) == 5
        assert len(ask._cache) == 3
        none, _ = client(server.url, cache=0)
        none(X[:1], ["a"])
        none(X[:1], ["a"])
        assert len(server.asked) == 7


def test_a_call_can_be_ended_from_another_thread():
    with Scripted(lambda n: slow(40)) as server:
        ask, _ = client(server.url, timeout=60, wait=60)
        threading.Timer(0.3, ask.cancel).start()
        began = time.monotonic()
        with pytest.raises(RewardUnavailable, match="was cancelled"):
            total(ask, X, PROMPTS)
        assert time.monotonic() - began < 20
        ask.cancel()  # nothing is under way: nothing happens


@pytest.mark.parametrize("how", ["another fails", "the time is up", "it is cancelled"])
def test_a_request_that_is_ended_closes_its_connection_first(how, monkeypatch):
    """httpx closes connections behind anyio's shield, which asyncio's own cancellation breaks: sockets stayed open."""
    began, closed = [], []

    async def closes_slowly(http, request, limit):
        began.append(request)
        if how == "another fails" and len(began) == 2:
            raise RewardError("no")
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.3)
            closed.append(request)
        await anyio.sleep(60)

    monkeypatch.setattr(client_module, "exchange", closes_slowly)
    ask, _ = client("http://127.0.0.1:9", timeout=0.1 if how == "the time is up" else 60, wait=0)
    if how == "it is cancelled":
        threading.Timer(0.1, ask.cancel).start()
    wanted = {"another fails": "^no$", "the time is up": "no complete response", "it is cancelled": "was cancelled"}
    with pytest.raises(RewardError, match=wanted[how]):
        ask(X[:4], list("abcd"))
    assert len(began) == 2
    assert closed == [one for one in began if how != "another fails" or one is began[0]]


def test_inside_an_event_loop():
    import asyncio

    async def notebook():
        return total(ask, X, PROMPTS)

    with Scripted([]) as server:
        ask, _ = client(server.url)
        assert asyncio.run(notebook()).equal(EXACT)


# ---------------------------------------------------------------- token and addresses


def test_the_token_is_sent_and_never_shown(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "s3cret-token\n")
    echo = raw(b'{"detail": "you said Bearer s3cret-token"}', 400)
    with Scripted([good, echo]) as server:
        ask, _ = client(server.url, token_env="MY_TOKEN")
        ask(X[:1], ["a"])
        assert {k.lower(): v for k, v in server.seen[0].items()}["authorization"] == "Bearer s3cret-token"
        with pytest.raises(RewardError) as caught:
            ask(X[1:2], ["b"])
    assert "you said Bearer ***" in str(caught.value)
    assert "s3cret" not in str(caught.value) + repr(ask.token) + repr(vars(ask)) + str(ask.settings)


def test_a_token_that_was_asked_for_must_be_there(monkeypatch):
    assert read_token("TASTEMAKER_REWARD_TOKEN") is None
    with pytest.raises(RewardError, match=r"variable NO_SUCH_TOKEN.* is not set"):
        load_reward("http://127.0.0.1:9", Remote(token_env="NO_SUCH_TOKEN"))
    monkeypatch.setenv("MY_TOKEN", "a b")
    with pytest.raises(RewardError, match="has spaces") as caught:
        read_token("MY_TOKEN")
    assert "a b" not in str(caught.value)
    with pytest.raises(ConfigError, match="not the name of an environment variable") as caught:
        Remote(token_env="sk-my-secret")
    assert "secret" not in str(caught.value)


def test_addresses():
    assert endpoints("http://a:1/") == ("http://a:1",)
    assert endpoints("remote:http://a:1, https://b/x,http://a:1") == ("http://a:1", "https://b/x")
    assert endpoints("http://[::1]:8000") == ("http://[::1]:8000",)
    for wrong in ("remote:", "remote:a:1", "remote:ftp://a", "http://", "http://a:99999", "http://a,b", "http://a?x=1"):
        with pytest.raises(RewardError, match=r"not an address|must have no query"):
            endpoints(wrong)
    with pytest.raises(RewardError, match="must not hold a name or password") as caught:
        load_reward("http://me:hunter2@a")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", ["batch", "in_flight", "timeout", "tries"])
def test_settings_are_checked(name):
    with pytest.raises(ConfigError, match=f"remote.{name} is 0"):
        Remote(**{name: 0})
    with pytest.raises(ConfigError, match=r"remote.wait is -1"):
        Remote(wait=-1)


def test_no_proxy_of_the_environment_sees_the_images(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with served(serving.redness) as url:
        ask, _ = client(url)
        assert total(ask, X, PROMPTS).equal(EXACT)
