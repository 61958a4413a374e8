"""The routes of batches at the real app, and people as a reward through them."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager

import httpx
import pytest
import torch

from label_serving import serving
from scoring import total
from tastemaker.cli.main import main
from tastemaker.errors import RewardError, RewardUnavailable
from tastemaker.labelling.project import create_project
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.simulate import Browser, Unanswered, enter, simulate
from tastemaker.labelling.taste import Behaviour
from tastemaker.rewards.check import check_reward
from tastemaker.rewards.labelers.settings import Labelers
from tastemaker.rewards.registry import load_reward
from tastemaker.rewards.serving.protocol import JSON, SAFETENSORS, write_json, write_safetensors

EXACT = Behaviour(temperature=0.0)
QUICK = Labelers(wait=60, server_wait=20, poll=0.05)
X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
# Rounded as PNG does it; in the unit of the utility below.
REDNESS = ((X * 255).round() / 255)[:, 0].mean(dim=(1, 2))


def redness(x, prompts):
    return x[:, 0].mean(dim=(1, 2)).tolist()


@contextmanager
def labelling(served, labelers=2, behaviour=EXACT, utility=redness):
    """Simulated people who label whatever comes until the block ends."""
    loop, tasks = asyncio.new_event_loop(), []
    crowd = served.crowd(labelers, seed=time.monotonic_ns())

    def run():
        asyncio.set_event_loop(loop)
        tasks.append(loop.create_task(simulate(crowd, behaviour, utility, 0, stay=1000.0)))
        try:
            loop.run_until_complete(tasks[0])
        except (asyncio.CancelledError, Unanswered):
            pass
        finally:
            loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(lambda: tasks[0].cancel())
        thread.join(30)


@contextmanager
def project(folder, settings, database=None):
    create_project(folder, settings, database).close()
    with serving(folder) as served:
        yield served


@pytest.fixture
def client(tmp_path):
    with project(tmp_path / "p", Labelling("pair")) as served:
        headers = {"Authorization": f"Bearer {served.token}"}
        with httpx.Client(base_url=served.url, headers=headers) as found:
            yield found


def post(client, body, kind=JSON, **headers):
    return client.post("/api/batches", content=body, headers={"content-type": kind} | headers)


# ---------------------------------------------------------------- routes


def test_a_batch_over_http(client):
    info = client.get("/api/batches").json()
    assert (info["protocol"], info["mode"], info["images"], info["overlap"]) == (1, "pair", 2, 1)
    assert info["limits"]["images"] == 1024
    sent = post(client, write_json(X, ["a", "b", "b", "a"]))
    content = sent.json()
    key = content.pop("key")
    assert content == {"state": "waiting", "tasks": 2, "labelled": 0, "rewards": None}
    assert client.get(f"/api/batches/{key}").json() == sent.json()
    # Exact images are rounded as PNG rounds them, so that both are one batch.
    assert post(client, write_safetensors(X, ["a", "b", "b", "a"]), SAFETENSORS).json() == sent.json()
    assert client.delete(f"/api/batches/{key}").json()["state"] == "withdrawn"
    assert post(client, write_json(X, ["a", "b", "b", "a"])).json() == sent.json()


@pytest.mark.parametrize(
    ("body", "kind", "status", "said"),
    [
        (b"{", JSON, 400, "the body is not JSON"),
        (b"{}", JSON, 400, "expected a JSON object"),
        (write_json(X[:1], ["a"]), JSON, 400, "1 image of one prompt cannot be put into tasks of mode pair"),
        (b'{"prompts": ["a"], "images": ["eA=="]}', JSON, 400, "image 0 is not a PNG file"),
        (b"abc", SAFETENSORS, 400, "the body is not safetensors"),
        (b"abc", "text/plain", 415, "the content type"),
        (write_json(X[:1, :, :1, :1].expand(1025, 3, 1, 1), ["a"] * 1025), JSON, 413, "1025 images, but"),
    ],
    ids=["json", "fields", "pair", "png", "safetensors", "kind", "many"],
)  # fmt: skip
def test_what_is_refused(client, body, kind, status, said):
    answer = post(client, body, kind)
    assert answer.status_code == status
    assert said in answer.json()["detail"]


def test_who_may_not(client):
    for authorization in ("", "Bearer wrong", "Basic abc"):
        assert post(client, b"{}", Authorization=authorization).status_code == 401
        for method in ("GET", "DELETE"):
            answer = client.request(method, "/api/batches/" + "0" * 64, headers={"Authorization": authorization})
            assert answer.status_code == 401
    assert client.get("/api/batches/" + "0" * 64).status_code == 404
    assert client.delete("/api/batches/" + "0" * 64).status_code == 404
    assert client.get("/api/batches/..%2f..%2fetc").status_code in (404, 422)
    # The token is for programs, and for nothing else.
    assert client.get("/api/me").status_code == 401


def test_a_labeler_may_not(tmp_path):
    with project(tmp_path / "p", Labelling("pair")) as served:

        async def ask():
            async with Browser(served.url) as browser:
                await enter(browser, served.crowd(1), 0)
                return [
                    (await browser.request("GET", "/api/batches")).status_code,
                    (await browser.request("POST", "/api/batches", json={})).status_code,
                    (await browser.request("DELETE", "/api/batches/" + "0" * 64)).status_code,
                ]

        assert asyncio.run(ask()) == [403, 403, 403]


# ---------------------------------------------------------------- people as a reward


@pytest.mark.parametrize(
    ("settings", "prompts", "expected"),
    [
        # The threshold is 0.5.
        (Labelling("rate", overlap=2), ["a", "b", "c", "d"], (REDNESS >= 0.5).float().tolist()),
        (Labelling("pair"), ["a", "b", "a", "b"], None),
        (Labelling("best", 4), ["a"] * 4, (REDNESS.max() == REDNESS).float().tolist()),
        (Labelling("rank", 4), ["a"] * 4, (REDNESS.argsort().argsort() / 3).tolist()),
    ],
    ids=["rate", "pair", "best", "rank"],
)
def test_labelers_reward_images(database, tmp_path, settings, prompts, expected):
    if expected is None:  # two pairs: images 0 and 2, 1 and 3
        expected = [float(REDNESS[i] > REDNESS[(i + 2) % 4]) for i in range(4)]
    with project(tmp_path / "p", settings, database) as served, labelling(served):
        reward = load_reward(f"label:{tmp_path / 'p'}", labelers=QUICK)
        assert total(reward, X, prompts).tolist() == pytest.approx(expected)
        assert str(served.project.uuid) in str(reward.identity())


def test_labelers_of_thumbs_keep_the_contract_of_rewards(tmp_path, monkeypatch):
    """Order, batches, determinism: with labelers who say the same whenever they are asked, by the app's address."""
    with project(tmp_path / "p", Labelling("rate")) as served, labelling(served):
        monkeypatch.setenv("TASTEMAKER_LABEL_TOKEN", served.token)
        reward = load_reward(f"label:{served.url}", labelers=QUICK)
        findings = check_reward(reward, ["a", "b", "c"], size=16)
    assert [finding.what for finding in findings if finding.state == "failed"] == []
    assert any("bit for bit the same" in finding.what for finding in findings)


def test_a_wrong_token(tmp_path, monkeypatch):
    with project(tmp_path / "p", Labelling("rate")) as served:
        monkeypatch.setenv("TASTEMAKER_LABEL_TOKEN", "wrong")
        reward = load_reward(f"label:{served.url}", labelers=QUICK)
        with pytest.raises(RewardError, match=r"refuses the token in \$TASTEMAKER_LABEL_TOKEN: status 401"):
            total(reward, X, list("abcd"))


def test_pairs_need_two_images_of_a_prompt(tmp_path):
    with project(tmp_path / "p", Labelling("pair")):
        reward = load_reward(f"label:{tmp_path / 'p'}", labelers=QUICK)
        with pytest.raises(RewardError, match=r"refuses: status 400: 1 image of one prompt .*sampling.per_prompt"):
            total(reward, X, list("abcd"))


def test_nobody_labels(tmp_path):
    with project(tmp_path / "p", Labelling("rate")):
        reward = load_reward(f"label:{tmp_path / 'p'}", labelers=Labelers(wait=0.3, poll=0.05))
        with pytest.raises(RewardUnavailable, match="have labelled 0 of 4 tasks"):
            total(reward, X, list("abcd"))


def test_the_server_is_started_again_while_a_run_waits(tmp_path):
    """At another port; what was labelled before stays."""
    folder, found, logged = tmp_path / "p", [], []
    with project(folder, Labelling("rate")) as served:
        reward = load_reward(f"label:{folder}", labelers=QUICK, log=logged.append)
        thread = threading.Thread(target=lambda: found.append(total(reward, X, list("abcd"))))
        thread.start()
        asyncio.run(asyncio.wait_for(_two_votes(served), 30))
        first = served.port
    with serving(folder) as served, labelling(served):
        thread.join(60)
        assert served.port != first
    (values,) = found
    assert values.tolist() == (REDNESS >= 0.5).float().tolist()
    assert logged[0].startswith("waiting for labelers at http://127.0.0.1:")


async def _two_votes(served):
    """Two of the four tasks, by somebody who then leaves; the tasks may still be on their way."""
    assert (await simulate(served.crowd(1), EXACT, redness, 0, votes=2, stay=20.0)).votes == 2


def test_what_was_withdrawn_is_an_error_and_asked_for_again(tmp_path):
    folder = tmp_path / "p"
    with project(folder, Labelling("rate")) as served:
        reward = load_reward(f"label:{folder}", labelers=QUICK)
        with httpx.Client(base_url=served.url, headers={"Authorization": f"Bearer {served.token}"}) as client:
            key = post(client, write_json(X, list("abcd"))).json()["key"]

            def withdraw():
                time.sleep(0.3)
                client.delete(f"/api/batches/{key}")

            thread = threading.Thread(target=withdraw)
            thread.start()
            with pytest.raises(RewardError, match="were withdrawn from the labelers"):
                total(reward, X, list("abcd"))
            thread.join()
        with labelling(served):
            assert total(reward, X, list("abcd")).tolist() == (REDNESS >= 0.5).float().tolist()


def test_doctor_at_a_real_project(tmp_path, capsys):
    with project(tmp_path / "p", Labelling("best", 4, title="Animals")):
        assert main(["doctor", "--reward", f"label:{tmp_path / 'p'}"]) == 0
    said = capsys.readouterr().out
    assert "answers: 'Animals', labelling project" in said
    assert "mode best of 4 images" in said
