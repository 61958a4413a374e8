"""The reward server against requests that are wrong, too large, hostile, or many."""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import httpx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from scoring import total
from serving import port_of, redness, served
from tastemaker.cli.main import main
from tastemaker.errors import RewardError
from tastemaker.rewards.registry import load_reward
from tastemaker.rewards.serving.protocol import (
    JSON,
    SAFETENSORS,
    Limits,
    RequestError,
    read_json,
    read_safetensors,
    write_json,
    write_safetensors,
)
from tastemaker.rewards.serving.server import CONCURRENT_BODIES
from tastemaker.rewards.serving.settings import Remote, Token

X = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SMALL = Limits(body=20_000, images=4, pixels=1024, prompt=20)


def image(mode="RGB", size=(8, 8), **options):
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG", **options)
    return file.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width, height):
    """A PNG whose header promises many pixels; its few bytes would unfold to all of them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    rows = zlib.compress(b"\0" * 100_000, 9)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def body(*files, prompts=None):
    coded = [base64.b64encode(file).decode() for file in files]
    return json.dumps({"prompts": prompts or ["a"] * len(files), "images": coded}).encode()


def tensors(header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def entry(**changes):
    return {
        "__metadata__": {"prompts": '["a"]'},
        "images": {"dtype": "F32", "shape": [1, 3, 2, 2], "data_offsets": [0, 48]} | changes,
    }


@pytest.fixture(scope="module")
def url():
    with served(redness, limits=SMALL) as address:
        yield address


WRONG = {
    "not json": (JSON, b"{", 400, "is not JSON"),
    "deep json": (JSON, b"[" * 15_000, 400, "is not JSON"),
    "not utf-8": (JSON, b'{"prompts": "\xff"}', 400, "is not JSON"),
    "another object": (JSON, b'{"prompts": []}', 400, "expected a JSON object"),
    "a list": (JSON, b"[]", 400, "expected a JSON object"),
    "nothing": (JSON, b'{"prompts": [], "images": []}', 400, "no images"),
    "prompts that are none": (JSON, b'{"prompts": [1], "images": ["aaaa"]}', 400, "a list of texts"),
    "images that are none": (JSON, b'{"prompts": ["a"], "images": [null]}', 400, "must be a list of PNG files"),
    "not as many": (JSON, body(image(), prompts=["a", "b"]), 400, "2 prompts for 1 images"),
    "not base64": (JSON, b'{"prompts": ["a"], "images": ["a*b!"]}', 400, "is not base64"),
    "no png": (JSON, body(b"GIF89a" + b"\0" * 50), 400, "image 0 is not a PNG"),
    "half a png": (JSON, body(image(), image()[:45], prompts=["a", "b"]), 400, "image 1 cannot be decoded"),
    "transparent": (JSON, body(image("RGBA")), 400, "without transparency"),
    "palette": (JSON, body(image("P")), 400, "without transparency or palette"),
    "16 bits": (JSON, body(image("I;16")), 400, "16 bits a channel"),
    "a transparent colour": (JSON, body(image(transparency=(1, 2, 3))), 400, "image 0 has a transparent colour"),
    "a transparent level": (JSON, body(image("L", transparency=3)), 400, "image 0 has a transparent colour"),
    "half a surrogate": (JSON, body(image(), prompts=["a \ud83d"]), 400, "prompt 0: the prompt has half of a"),
    "a NUL": (JSON, body(image(), image(), prompts=["a", "\0"]), 400, "prompt 1: the prompt has a NUL"),
    "another half": (
        SAFETENSORS, save({"images": X[:1]}, metadata={"prompts": '["\\udc00"]'}), 400, "half of a surrogate",
    ),
    "bytes as floats": (SAFETENSORS, save({"images": 255 * X[:1]}, metadata={"prompts": '["a"]'}), 400, "in [0, 1]"),
    "two sizes": (JSON, body(image(), image(size=(9, 8))), 400, "several sizes"),
    "too many": (JSON, body(*[image()] * 5), 413, "5 images, but a request may have 4"),
    "too many pixels": (JSON, body(*[image(size=(20, 20))] * 3), 413, "1200 pixels, but a request may have 1024"),
    "a bomb": (JSON, body(bomb(60_000, 60_000)), 413, "3600000000 pixels"),
    "a bomb of no width": (JSON, body(bomb(0, 9)), 400, "has no pixels"),
    "a long prompt": (JSON, body(image(), prompts=["a" * 21]), 413, "21 characters, but may have 20"),
    "another type": ("text/plain", b"x", 415, "expected application/json or application/x-safetensors"),
    "pickle": ("application/octet-stream", b"\x80\x04.", 415, "the content type is"),
    "short": (SAFETENSORS, b"\x01", 400, "is not safetensors"),
    "a header beyond the body": (SAFETENSORS, b"\xff" * 8 + b"{}", 400, "its header should have"),
    "a header that is none": (SAFETENSORS, tensors(b"[1]"), 400, "no JSON object"),
    "other tensors": (SAFETENSORS, save({"x": X}), 400, "expected one tensor `images`"),
    "no prompts": (SAFETENSORS, save({"images": X}), 400, "metadata with `prompts`"),
    "prompts not json": (
        SAFETENSORS, save({"images": X}, metadata={"prompts": "a b c"}), 400, "no JSON list of texts",
    ),
    "two axes": (SAFETENSORS, tensors(entry(shape=[3, 4]), bytes(48)), 400, "must be F32 of shape [B,3,H,W]"),
    "half precision": (SAFETENSORS, tensors(entry(dtype="F16"), bytes(48)), 400, "must be F32"),
    "negative": (SAFETENSORS, tensors(entry(shape=[1, 3, -2, -2]), bytes(48)), 400, "must be F32 of shape"),
    "a shape of words": (SAFETENSORS, tensors(entry(shape=["1", 3, 2, 2]), bytes(48)), 400, "must be F32 of shape"),
    "data elsewhere": (SAFETENSORS, tensors(entry(data_offsets=[0, 4000]), bytes(48)), 400, "is not safetensors"),
    "data missing": (SAFETENSORS, tensors(entry(), bytes(40)), 400, "is not safetensors"),
    "promised pixels": (SAFETENSORS, tensors(entry(shape=[1, 3, 2**20, 2**20]), bytes(48)), 413, "pixels"),
    "not finite": (SAFETENSORS, tensors(entry(), struct.pack("<12f", *[float("nan")] * 12)), 400, "not finite"),
    "too long": (JSON, b" " * 20_001, 413, "20001 bytes, but may have 20000"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_wrong_requests_get_a_sentence(url, what):
    kind, content, status, said = WRONG[what]
    response = httpx.post(f"{url}/score", content=content, headers={"Content-Type": kind})
    assert response.status_code == status, response.text
    assert said in response.json()["detail"]
    assert len(response.content) < 1000


@given(st.sampled_from([read_json, read_safetensors]), st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_requests_are_read_or_refused_and_nothing_else(read, data):
    good = (write_json if read is read_json else write_safetensors)(X[:2], ["a", "b"])
    damaged = bytearray(good)
    for place in data.draw(st.lists(st.integers(0, len(good) - 1), max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)) | st.just(len(good)))
    try:
        asked = read(bytes(damaged[:cut]), Limits())
    except RequestError as error:
        assert error.status in (400, 413)  # noqa: PT017 - not every damage is refused
    else:
        assert len(asked.x) == len(asked.prompts)
        assert asked.x.isfinite().all()


def test_what_is_written_is_what_is_read():
    asked = read_safetensors(write_safetensors(X, ["a", "ü", ""]), Limits())
    assert asked.x.equal(X)
    assert asked.prompts == ["a", "ü", ""]
    asked = read_json(write_json(X, ["a", "ü", ""]), Limits())
    torch.testing.assert_close(asked.x, X, atol=0.5 / 255 + 1e-6, rtol=0)
    assert read_json(write_json(asked.x, ["a"] * 3), Limits()).x.equal(asked.x)
    grey = read_json(body(image("L")), Limits())
    assert grey.x.shape == (1, 3, 8, 8)


def test_a_png_is_turned_as_its_exif_data_say():
    """Orientation 6: the upper left corner as stored is the upper right one as seen."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    stored = Image.new("RGB", (3, 2))
    stored.putpixel((0, 0), (255, 255, 255))
    stored.save(file, "PNG", exif=exif)
    turned = read_json(body(file.getvalue()), Limits()).x
    assert turned.shape == (1, 3, 3, 2)
    assert turned[0, :, 0, 1].eq(1).all()
    assert turned.sum() == 3
    with pytest.raises(RequestError, match="several sizes"):
        read_json(body(file.getvalue(), image(size=(3, 2))), Limits())


def test_a_length_that_is_not_given_or_not_kept(url):
    def chunks():
        yield b"{}"

    response = httpx.post(f"{url}/score", content=chunks(), headers={"Content-Type": JSON})
    assert response.status_code == 411
    with socket.create_connection(("127.0.0.1", port_of(url)), timeout=10) as connection:
        connection.sendall(b"POST /score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n")
        connection.sendall(b"Content-Length: 1000\r\n\r\n{}")
    assert httpx.get(f"{url}/health").json() == {"status": "ok", "waiting": 0}


def test_health_and_info(url):
    told = httpx.get(f"{url}/info").json()
    assert told["reward"] == "redness"
    assert (told["protocol"], told["formats"], told["limits"]) == (1, [JSON, SAFETENSORS], asdict(SMALL))
    assert httpx.get(f"{url}/docs").status_code == httpx.get(f"{url}/openapi.json").status_code == 404
    assert httpx.get(f"{url}/score").status_code == 405


def test_only_with_the_token_and_before_anything_is_read(monkeypatch):
    with served(redness, token=Token("right")) as url:
        assert httpx.get(f"{url}/health").status_code == 200
        for given in (None, "Bearer wrong", "right", "Bearer right ", "bearer", "Bearer rigth"):
            headers = {} if given is None else {"Authorization": given.strip() + " x" * given.endswith(" ")}
            assert httpx.get(f"{url}/info", headers=headers).status_code == 401
            response = httpx.post(f"{url}/score", content=b"?" * 100, headers=headers)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
        with pytest.raises(RewardError, match=r"401: the token is missing or wrong.*TASTEMAKER_REWARD_TOKEN"):
            total(load_reward(url), X, "abc")
        monkeypatch.setenv("TASTEMAKER_REWARD_TOKEN", "right")
        assert total(load_reward(url, Remote(format="safetensors")), X, "abc").equal(redness(X, "abc"))


def test_a_server_of_this_machine_answers_to_its_own_names_only(url):
    for name, status in {"localhost": 200, "127.0.0.1:1": 200, "evil.example": 403, "evil.example:80": 403}.items():
        assert httpx.get(f"{url}/health", headers={"Host": name}).status_code == status


def test_a_reward_that_fails_is_a_500_and_only_for_who_spoilt_it():
    calls = []

    def picky(x, prompts):
        calls.append(list(prompts))
        if "bad" in prompts:
            raise ValueError("this one\nI do not like")
        return redness(x, prompts)

    def ask(prompt):
        content = write_safetensors(X[:1], [prompt])
        return httpx.post(f"{url}/score", content=content, headers={"Content-Type": SAFETENSORS}, timeout=20)

    with served(picky, join=2.0) as url, ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(ask, ["good", "bad", "fine"]))
    assert [answer.status_code for answer in answers] == [200, 500, 200]
    assert answers[1].json()["detail"] == "the reward picky raised ValueError: this one I do not like"
    assert len(calls[0]) == 3


@pytest.mark.parametrize("wrong", [lambda x, p: x.mean(), lambda x, p: x.mean(dim=(1, 2, 3)) / 0])
def test_a_reward_that_answers_nonsense_is_a_500(wrong):
    with served(wrong) as url:
        content = write_json(X, list("abc"))
        assert httpx.post(f"{url}/score", content=content, headers={"Content-Type": JSON}).status_code == 500


def test_requests_that_wait_are_joined_up_to_a_limit_and_by_size():
    calls, begin = [], threading.Event()

    def watched(x, prompts):
        calls.append(tuple(x.shape))
        if len(calls) == 1:
            begin.wait(10)
        return redness(x, prompts)

    def ask(x):
        return total(load_reward(url, Remote(format="safetensors", batch=64)), x, ["a"] * len(x))

    wide, many = torch.rand(2, 3, 8, 9), torch.rand(9, 3, 8, 8)
    with served(watched, join=0.05, max_batch=6) as url, ThreadPoolExecutor(8) as threads:
        first = threads.submit(ask, X)
        while not calls:
            time.sleep(0.01)
        later = [threads.submit(ask, x) for x in (X[:2], X[1:], wide, X, wide / 2)]
        while httpx.get(f"{url}/health").json()["waiting"] < 11:
            time.sleep(0.01)
        begin.set()
        assert first.result().equal(redness(X, "abc"))
        for x, answer in zip((X[:2], X[1:], wide, X, wide / 2), later, strict=True):
            assert answer.result().equal(redness(x, "")), x.shape
        assert calls[0] == (3, 3, 8, 8)
        assert sorted(call[0] for call in calls[1:] if call[3] == 9) == [4]
        assert sum(call[0] for call in calls[1:] if call[3] == 8) == 7
        assert len(calls) == 4
        # More images in one request than a call may have.
        calls.clear()
        calls.append(())
        assert ask(many).equal(redness(many, ""))
        assert [call[0] for call in calls[1:]] == [6, 3]


def test_joining_can_be_turned_off():
    calls = []

    def watched(x, prompts):
        calls.append(len(x))
        time.sleep(0.05)
        return redness(x, prompts)

    with served(watched, join=0.0) as url:
        ask = load_reward(url, Remote(format="safetensors", batch=1, in_flight=3))
        assert total(ask, X, "abc").equal(redness(X, "abc"))
    assert calls == [1, 1, 1]


def test_what_nobody_waits_for_is_not_scored_and_a_full_house_says_so():
    calls, go_on = [], threading.Event()

    def stuck(x, prompts):
        calls.append(list(prompts))
        go_on.wait(20)
        return redness(x, prompts)

    def ask(prompt, timeout=20.0):
        content = write_safetensors(X[:1], [prompt])
        return httpx.post(f"{url}/score", content=content, headers={"Content-Type": SAFETENSORS}, timeout=timeout)

    # 4 * 64 = 256 pixels may wait: four images of 8 x 8.
    with served(stuck, join=0.0, limits=Limits(pixels=64)) as url, ThreadPoolExecutor(8) as threads:
        first = threads.submit(ask, "first")
        while not calls:
            time.sleep(0.01)
        left = threads.submit(ask, "left", 0.2)
        with pytest.raises(httpx.ReadTimeout):
            left.result()
        waiting = [threads.submit(ask, "waits") for _ in range(3)]
        while httpx.get(f"{url}/health").json()["waiting"] < 4:
            time.sleep(0.01)
        full = ask("one too many")
        assert (full.status_code, full.headers["retry-after"]) == (503, "1")
        time.sleep(1.0)  # the server looks after those who left twice a second
        go_on.set()
        assert first.result().status_code == 200
        assert [request.result().status_code for request in waiting] == [200] * 3
    assert calls == [["first"], ["waits"], ["waits"], ["waits"]]
    assert CONCURRENT_BODIES > 1


# ---------------------------------------------------------------- the verb


def test_the_verb_refuses_what_it_cannot_serve(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("TASTEMAKER_REWARD_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "served_latents.py").write_text(
        "from tastemaker.rewards.base import reward\n@reward(space='latent')\ndef f(x, p): return x.sum((1,2,3))\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for words, said in {
            ("jpeg-compresibility",): "did you mean 'jpeg-compressibility'",
            ("served_latents:f",): "only rewards on images can be used here",
            ("colourfulness", "--port", port): f"cannot listen at 127.0.0.1 port {port}",
            ("colourfulness", "--token-env", "NO_SUCH"): "NO_SUCH",
        }.items():
            assert main(["reward", "serve", *words]) == 2
            assert said in capsys.readouterr().err
