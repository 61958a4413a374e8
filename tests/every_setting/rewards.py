"""Cases of rewards that are asked over a network: the sections `remote`, `vlm` and `labelers`, on 127.0.0.1."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import anyio
import pytest
import torch
from torch import Tensor

import tiny_language
from every_setting import Lab, acts, close
from label_app import LabelApp, send
from scoring import total
from serving import Scripted, good, raw, redness, slow
from speaking import Speaking, failing
from tastemaker.errors import RewardError, RewardUnavailable
from tastemaker.rewards.learned.bertscore import load_recall
from tastemaker.rewards.serving import retry
from tastemaker.rewards.vlm.answers import Answer

X = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
PROMPTS = list("abcde")
BUSY, FAILED = raw(b'{"detail": "busy"}', 503, Retry_After="0"), raw(b'{"detail": "out of memory"}', 500)


@contextmanager
def impatient() -> Iterator[None]:
    """Short pauses between tries."""
    with mock.patch.object(retry, "backoff", return_value=0.01):
        yield


def remote(lab: Lab, server: Scripted, **settings: Any) -> Any:
    """The reward that a run with these settings asks."""
    return lab.session(reward=server.url, remote=settings).reward


@acts("remote.format")
def remote_format(lab: Lab) -> None:
    """Exactly, where PNG rounds to 8 bits."""
    with Scripted([]) as server:
        values = total(remote(lab, server, format="safetensors"), X, PROMPTS)
        sent = torch.cat([asked.x for asked in server.asked])
    assert torch.equal(values, redness(X, PROMPTS))
    assert torch.equal(sent, X)


@acts("remote.batch")
def remote_batch(lab: Lab) -> None:
    with Scripted([]) as server:
        total(remote(lab, server, batch=2), X, PROMPTS)
        assert sorted(len(asked.prompts) for asked in server.asked) == [1, 2, 2]


@acts("remote.in_flight")
def remote_in_flight(lab: Lab) -> None:
    running, most, lock = [0], [0], threading.Lock()

    def count(handler: Any, content: dict[str, Any]) -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.1)
        with lock:
            running[0] -= 1
        good(handler, content)

    with Scripted(lambda n: count) as server:
        total(remote(lab, server, batch=1, in_flight=2), X, PROMPTS)
    assert most[0] == 2


@acts("remote.timeout")
def remote_timeout(lab: Lab) -> None:
    with Scripted([slow(0.6)]) as server, pytest.raises(RewardUnavailable, match=r"no complete response within 0\.2 s"):
        total(remote(lab, server, timeout=0.2, wait=0), X, PROMPTS)


@acts("remote.wait")
def remote_wait(lab: Lab) -> None:
    """A busy server is asked again for as long as that; with 0 it is not."""
    with impatient(), Scripted([BUSY]) as server:
        with pytest.raises(RewardUnavailable, match="after 1 try"):
            total(remote(lab, server, wait=0), X, PROMPTS)
        assert len(server.asked) == 1


@acts("remote.tries")
def remote_tries(lab: Lab) -> None:
    with impatient(), Scripted([FAILED] * 3) as server:
        with pytest.raises(RewardUnavailable, match="after 3 tries"):
            total(remote(lab, server, tries=3), X, PROMPTS)
        assert len(server.asked) == 3


@acts("remote.cache")
def remote_cache(lab: Lab) -> None:
    """The last two answers are kept."""
    with Scripted([]) as server:
        reward = remote(lab, server, cache=2, batch=1, in_flight=1)
        total(reward, X[:3], PROMPTS[:3])
        total(reward, X[1:3], PROMPTS[1:3])
        assert len(server.asked) == 3
        total(reward, X[:1], PROMPTS[:1])
        assert len(server.asked) == 4


@acts("remote.token_env")
def remote_token_env(lab: Lab) -> None:
    with Scripted([]) as server, mock.patch.dict(os.environ, {"MY_TOKEN": "open-sesame"}):
        total(remote(lab, server, token_env="MY_TOKEN"), X, PROMPTS)
        assert server.seen[0]["Authorization"] == "Bearer open-sesame"


# Vision-language models.

DRAWN = "two red stars"


def drawing() -> Tensor:
    """[1,3,64,64] two red stars."""
    import numpy as np

    from tastemaker.drawings import Scene, Thing, render

    scene = Scene((Thing("star", "red", 0.3, 0.5, 0.2), Thing("star", "red", 0.7, 0.5, 0.2)), "white")
    return torch.from_numpy(np.asarray(render(scene, 64), dtype=np.float32) / 255).permute(2, 0, 1)[None]


def vlm(lab: Lab, name: str, server: Speaking, prompts: Sequence[str], **settings: Any) -> list[float]:
    """The rewards of the drawing for each prompt, by a run with these settings."""
    reward = lab.session(reward=f"{name}:{server.name}", vlm=settings).reward
    return total(reward, drawing().repeat(len(prompts), 1, 1, 1), list(prompts)).tolist()


def questions(server: Speaking) -> set[str]:
    return {body["messages"][0]["content"][1]["text"] for body in server.asked}


@acts("vlm.question")
def vlm_question(lab: Lab) -> None:
    with Speaking() as server:
        vlm(lab, "vlm-yes-no", server, [DRAWN], question='Is that "{prompt}"?')
        assert questions(server) == {f'Is that "{DRAWN}"?'}


@acts("vlm.questions")
def vlm_questions(lab: Lab) -> None:
    """`It shows two red stars ...` holds the first answer, and not the second."""
    entry = {"prompt": "x", "questions": ["What?", "Where?"], "answers": ["stars", "heaven"]}
    path = lab.file("own.jsonl", json.dumps(entry) + "\n")
    with Speaking(say=lambda question, url: ("two red stars", {})) as server:
        assert vlm(lab, "vlm-strict", server, ["x"], questions=str(path)) == [0.5]
        assert questions(server) == {"What?", "Where?"}


@acts("vlm.scale")
def vlm_scale(lab: Lab) -> None:
    with Speaking(say=lambda question, url: ("7", {})) as server:
        assert vlm(lab, "vlm-rating", server, [DRAWN], scale=(0, 9)) == [7]
        assert "On a scale from 0 to 9" in questions(server).pop()
        with impatient(), pytest.raises(RewardError, match="cannot be used"):
            vlm(lab, "vlm-rating", server, [DRAWN], scale=(0, 6), tries=1)


@acts("vlm.logprobs")
def vlm_logprobs(lab: Lab) -> None:
    """The chances are 0.7 against 0.3; as it is written the answer is yes."""
    with Speaking(say=lambda question, url: ("Yes.", {"Yes": 0.7, "No": 0.3})) as server:
        close(vlm(lab, "vlm-yes-no", server, [DRAWN]), [0.7])
        assert vlm(lab, "vlm-yes-no", server, [DRAWN], logprobs=False) == [1.0]
        assert ["logprobs" in body for body in server.asked] == [True, False]


@acts("vlm.tokens")
def vlm_tokens(lab: Lab) -> None:
    with Speaking() as server:
        vlm(lab, "vlm-yes-no", server, [DRAWN], tokens=7)
        assert [body["max_tokens"] for body in server.asked] == [7]


@acts("vlm.text_model", "vlm.text_layer")
def vlm_text(lab: Lab) -> None:
    path = str(tiny_language.deberta(lab.new("deberta")))
    with Speaking(say=lambda question, url: ("a blue fish", {})) as server:
        values = vlm(lab, "vlm-bertscore", server, [DRAWN], text_model=path, text_layer=1)
    layers = [load_recall(path, layer)(["a blue fish"], [f"The image contains {DRAWN}"]) for layer in (1, 2, 3)]
    close(values, layers[0])
    assert abs(layers[0] - layers[1]) > 1e-3
    assert abs(layers[0] - layers[2]) > 1e-3


@acts("vlm.batch")
def vlm_batch(lab: Lab) -> None:
    """How many images a model in the process is given at once; its answers are made up here."""
    from tastemaker.rewards.vlm import local

    sizes: list[int] = []

    def init(self: Any, reward: str, model: str, settings: Any, logprobs: bool = False) -> None:
        self.reward, self.settings, self.logprobs = reward, settings, logprobs

    def answers(self: Any, queries: Sequence[Any]) -> list[Answer]:
        sizes.append(len(queries))
        return [Answer("Yes.")] * len(queries)

    with (
        mock.patch.object(local.LocalModel, "__init__", init),
        mock.patch.object(local.LocalModel, "_answers", answers),
    ):
        reward = lab.session(reward="vlm-yes-no:some/model", vlm={"batch": 3}).reward
        assert total(reward, X, PROMPTS).tolist() == [1.0] * 5
    assert sizes == [3, 2]


@acts("vlm.in_flight")
def vlm_in_flight(lab: Lab) -> None:
    with Speaking(lambda n: 0.1, say=lambda question, url: ("Yes.", {})) as server:
        vlm(lab, "vlm-yes-no", server, PROMPTS, in_flight=2, logprobs=False)
        assert (len(server.asked), server.most) == (5, 2)


@acts("vlm.timeout")
def vlm_timeout(lab: Lab) -> None:
    with Speaking([0.6]) as server, pytest.raises(RewardUnavailable, match=r"no complete response within 0\.2 s"):
        vlm(lab, "vlm-yes-no", server, [DRAWN], timeout=0.2, wait=0)


@acts("vlm.wait")
def vlm_wait(lab: Lab) -> None:
    with impatient(), Speaking([failing(503, {"detail": "busy"})]) as server:
        with pytest.raises(RewardUnavailable, match="after 1 try"):
            vlm(lab, "vlm-yes-no", server, [DRAWN], wait=0)
        assert len(server.asked) == 1


@acts("vlm.tries")
def vlm_tries(lab: Lab) -> None:
    with impatient(), Speaking([failing(500, {"detail": "out of memory"})] * 3) as server:
        with pytest.raises(RewardUnavailable, match="after 3 tries"):
            vlm(lab, "vlm-yes-no", server, [DRAWN], tries=3)
        assert len(server.asked) == 3


@acts("vlm.cache")
def vlm_cache(lab: Lab) -> None:
    """The last answer is kept."""
    with Speaking() as server:
        reward = lab.session(reward=f"vlm-yes-no:{server.name}", vlm={"cache": 1}).reward
        for prompts in (["a red star", "a blue fish"], ["a blue fish"], ["a red star"]):
            total(reward, drawing().repeat(len(prompts), 1, 1, 1), prompts)
        assert len(server.asked) == 3


@acts("vlm.key_env")
def vlm_key_env(lab: Lab) -> None:
    with Speaking() as server, mock.patch.dict(os.environ, {"MY_KEY": "open-sesame"}):
        vlm(lab, "vlm-yes-no", server, [DRAWN], key_env="MY_KEY")
        assert server.headers[0]["authorization"] == "Bearer open-sesame"


# ---------------------------------------------------------------- labelers


def labelers(lab: Lab, app: LabelApp, **settings: Any) -> Any:
    """The reward of the people of an app, as a run with these settings has it."""
    with mock.patch.dict(os.environ, {"TASTEMAKER_LABEL_TOKEN": "secret", "OTHER": "another"}):
        return lab.session(reward=f"label:{app.url}", labelers={"poll": 0.01, **settings}).reward


@acts("labelers.wait")
def labelers_wait(lab: Lab) -> None:
    said = pytest.raises(RewardUnavailable, match=r"have labelled 4 of 5 tasks in")
    with LabelApp(lambda n: 4 if n < 100 else 5) as app, said:
        total(labelers(lab, app, wait=0.2), X, PROMPTS)
    assert app.looks > 2


@acts("labelers.server_wait")
def labelers_server_wait(lab: Lab) -> None:
    """How long an app that is busy is waited for."""
    busy = lambda handler: send(handler, {"detail": "busy"}, 503)  # noqa: E731
    with impatient(), LabelApp(lambda n: busy if n < 100 else 5) as app:
        reward = labelers(lab, app, server_wait=0.2)
        with pytest.raises(RewardUnavailable, match=r"gave no numbers .*`labelers.server_wait` is how long"):
            total(reward, X, PROMPTS)
    assert app.looks > 2


@acts("labelers.poll")
def labelers_poll(lab: Lab) -> None:
    """Seconds between two looks: no time passes here but by sleeping."""
    slept: list[float] = []
    real = anyio.sleep

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await real(0)

    with LabelApp(lambda n: n if n < 3 else 5) as app, mock.patch.object(anyio, "sleep", sleep):
        total(labelers(lab, app, poll=7.0), X, PROMPTS)
    assert slept == [7.0] * 3


@acts("labelers.timeout")
def labelers_timeout(lab: Lab) -> None:
    def late(handler: Any) -> None:
        time.sleep(1.0)

    with impatient(), LabelApp(lambda n: 5 if n else late) as app:
        assert total(labelers(lab, app, timeout=0.3), X, PROMPTS).tolist() == pytest.approx(
            [1, 1 / 2, 1 / 3, 1 / 4, 0.2]
        )
        assert app.looks == 2


@acts("labelers.token_env")
def labelers_token_env(lab: Lab) -> None:
    with LabelApp() as app:
        total(labelers(lab, app, token_env="OTHER"), X, PROMPTS)
    assert {seen["Authorization"] for seen in app.seen} == {"Bearer another"}
