"""A real HTTP server that speaks OpenAI's protocol, and answers from what the judge sees in the image."""

from __future__ import annotations

import asyncio
import base64
import io
import math
import re
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from PIL import Image

from tastemaker.drawings.judge import compare, see
from tastemaker.drawings.scene import parse
from tastemaker.rewards.caption import captions
from tastemaker.web.listening import listen

MODEL = "judge"
NUMBERS = ("no things", "one", "two", "three", "four")
Chances = dict[str, float]


def image(url: str) -> Any:
    """The image [1,3,H,W] in [0,1] of a data URL with a JPEG."""
    head, _, data = url.partition(",")
    assert head == "data:image/jpeg;base64", head
    with Image.open(io.BytesIO(base64.b64decode(data)), formats=("JPEG",)) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(pixels / 255).permute(2, 0, 1)[None]


def eyes(question: str, url: str) -> tuple[str, Chances]:
    """What somebody says who sees as the judge does, and the chances of the first word."""
    scene = see(image(url))[0]
    about = re.search(r'"(.*)"', question)
    request = parse(about[1]) if about else None
    if request is not None:
        share = np.mean(list(compare(request, scene).attributes.values()))
        if "number" in question:
            rating = 1 + round(4 * float(share))
            return str(rating), {str(rating): 0.6, "3": 0.3, "so": 0.1} if rating != 3 else {"3": 0.9, "so": 0.1}
        chance = 0.05 + 0.9 * float(share)
        return ("Yes." if chance > 0.5 else "No."), {"Yes": 0.9 * chance, " yes": 0.1 * chance, "No": 1 - chance}
    if question.startswith("How many"):
        return f"There are {NUMBERS[len(scene.things)]}.", {"There": 1.0}
    told = captions(scene)[0]
    return f"It shows {told}.", {"It": 1.0}


class Speaking:
    """Answers chat completions; the n-th, counted from 0, with `script(n)` instead where that gives a response.

    A response may be a number of seconds, after which the answer comes, or a text, which is the answer.
    """

    def __init__(
        self, script: Callable[[int], Any] | Sequence[Any] = (), port: int = 0, logprobs: bool = True,
        say: Callable[[str, str], tuple[str, Chances]] = eyes,
    ) -> None:  # fmt: skip
        self.logprobs, self.say, self.running = logprobs, say, 0
        self.begin(script)
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        app.post("/v1/chat/completions")(self.complete)
        self.listener: socket.socket = listen("127.0.0.1", port)
        config = uvicorn.Config(app, log_level="error", access_log=False, lifespan="off", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]}, daemon=True)
        self.thread.start()

    def begin(self, script: Callable[[int], Any] | Sequence[Any]) -> None:
        """Counts anew, for this script."""
        self.script = script if callable(script) else lambda n: script[n] if n < len(script) else None
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most = 0

    async def complete(self, request: Request) -> Response:
        body, number = await request.json(), len(self.asked)
        self.asked.append(body)
        self.headers.append(dict(request.headers))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            given = self.script(number)
            if isinstance(given, (int, float)):
                await asyncio.sleep(given)
                given = None
            return given if isinstance(given, Response) else JSONResponse(self.completion(body, given))
        finally:
            self.running -= 1

    def completion(self, body: dict[str, Any], text: str | None = None) -> dict[str, Any]:
        """As vLLM writes it."""
        image, question = body["messages"][0]["content"]
        assert body["temperature"] == 0
        assert body["model"] == MODEL
        chances: Chances = {}
        if text is None:
            text, chances = self.say(question["text"], image["image_url"]["url"])
        told = None
        if self.logprobs and body.get("logprobs") and chances:
            top = [{"token": token, "logprob": math.log(chance)} for token, chance in chances.items()]
            rest = {"token": ".", "logprob": 0.0, "top_logprobs": []}
            told = {"content": [max(top, key=lambda one: one["logprob"]) | {"top_logprobs": top}, rest]}
        message = {"role": "assistant", "content": text}
        return {
            "id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": MODEL,
            "choices": [{"index": 0, "message": message, "logprobs": told, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }  # fmt: skip

    @property
    def port(self) -> int:
        return self.listener.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def name(self) -> str:
        """What follows a reward's name and a colon."""
        return f"{MODEL}@{self.url}"

    def close(self) -> None:
        """From now on nobody listens."""
        self.server.should_exit = True
        self.thread.join(10)
        self.listener.close()

    def __enter__(self) -> Speaking:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def failing(status: int, body: Any = None, **headers: str) -> Response:
    """A response that is no answer; a body of bytes is sent as it is."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if isinstance(body, bytes):
        return Response(body, status, named, media_type="application/json")
    return JSONResponse(body, status, named)
