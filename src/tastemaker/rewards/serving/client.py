"""A reward on a server, as a plain reward function: retries, failover, a cache, and bounded waiting.

Whatever goes wrong raises a RewardError and never becomes a number.
"""

from __future__ import annotations

import hashlib
import json
import ssl
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any, Literal, TypeVar

import anyio
import anyio.to_thread
import httpx
import torch
from torch import Tensor

from tastemaker.errors import RewardError
from tastemaker.rewards.serving.cache import AnswerCache
from tastemaker.rewards.serving.protocol import (
    JSON,
    PROTOCOL,
    SAFETENSORS,
    Identity,
    read_answer,
    read_identity,
    write_json,
    write_safetensors,
)
from tastemaker.rewards.serving.retry import (
    BUSY,
    CONNECT,
    CancellableCall,
    RetryPolicy,
    Servers,
    TransientError,
    gather_all,
    retry_after,
    sanitized,
)
from tastemaker.rewards.serving.settings import Remote, endpoints, read_token
from tastemaker.web.tokens import Token

T = TypeVar("T")

ANSWER_BYTES = 2**20
"""Longest response that is read."""
_WRITE = {"png": (write_json, JSON), "safetensors": (write_safetensors, SAFETENSORS)}
_HINTS = {
    401: "is the right token in ${token_env}?",
    403: "is the right token in ${token_env}?",
    404: "is this the address of a `tastemaker reward serve`?",
    413: "make remote.batch smaller, or the server's limits larger",
}


class RemoteReward:
    """The reward that servers offer, of images [B,3,H,W] in [0,1]; one instance, one reward of one version.

    Raises RewardUnavailable where no server answers within `settings.wait` seconds (and one last `timeout`), and
    RewardError where one refuses, answers with something else than a number for each image, or with another reward
    or version than before.
    """

    differentiable = False
    space: Literal["image", "latent"] = "image"

    def __init__(
        self,
        name: str,
        settings: Remote | None = None,
        log: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
    ) -> None:
        self.__name__ = name
        self.settings = settings or Remote()
        self.token: Token | None = read_token(self.settings.token_env)
        servers = Servers(endpoints(name))
        self._retry = RetryPolicy(
            f"the reward {name} gave no numbers", servers, self.settings.wait, self.settings.tries, log, "remote.wait"
        )
        secure = any(url.startswith("https:") for url in servers.urls)
        self._tls: ssl.SSLContext | bool = ssl.create_default_context() if secure else False
        self._identity: Identity | None = None
        self._cache = AnswerCache[float](self.settings.cache)
        self._one_call = threading.Lock()
        self._call = CancellableCall(f"the reward {name}")

    def __call__(self, x: Tensor, prompts: Sequence[str]) -> Tensor:
        x = x.detach().float().cpu().contiguous()
        keys = [_key(image, prompt) for image, prompt in zip(x, prompts, strict=True)]
        with self._one_call:
            known = self._cache.known(keys)
            found = {index: known[key] for index, key in enumerate(keys) if key in known}
            missing = [index for index in range(len(keys)) if index not in found]
            size = self.settings.batch
            groups = [missing[start : start + size] for start in range(0, len(missing), size)]
            if groups:
                found |= self._run(lambda client: self._score(client, x, prompts, groups))
            self._cache.keep((key, found[index]) for index, key in enumerate(keys))
        return torch.tensor([found[index] for index in range(len(keys))], dtype=torch.float32)

    def identity(self) -> Identity:
        """Which reward the servers offer; requested where no response has said so yet. Raises RewardError."""
        with self._one_call:
            known = self._identity or self._run(self._request_identity)
        return known

    def cancel(self) -> None:
        """Ends the call under way in another thread, if there is one; that call raises RewardUnavailable."""
        self._call.cancel()

    def _run(self, work: Callable[[httpx.AsyncClient], Awaitable[T]]) -> T:
        async def main() -> T:
            async with self._client() as client:
                return await work(client)

        return self._call.run(main)

    def _client(self) -> httpx.AsyncClient:
        """A client without the proxies and passwords of the environment, which follows no redirects."""
        limit = self.settings.timeout
        headers = {"Accept": JSON, "Accept-Encoding": "identity"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token.secret}"
        return httpx.AsyncClient(
            headers=headers, verify=self._tls, trust_env=False, follow_redirects=False,
            timeout=httpx.Timeout(limit, connect=min(limit, CONNECT)),
        )  # fmt: skip

    async def _score(
        self, client: httpx.AsyncClient, x: Tensor, prompts: Sequence[str], groups: Sequence[Sequence[int]]
    ) -> dict[int, float]:
        """Rewards by the index of their image."""
        gate = anyio.Semaphore(self.settings.in_flight)
        write, kind = _WRITE[self.settings.format]

        async def one(indices: Sequence[int]) -> list[tuple[int, float]]:
            async with gate:
                texts = [prompts[index] for index in indices]
                body = await anyio.to_thread.run_sync(write, x[list(indices)], texts)
                values = await self._retried(
                    lambda server: client.build_request(
                        "POST", f"{server}/score", content=body, headers={"Content-Type": kind}
                    ),
                    client, lambda content: read_answer(content, len(indices)),
                )  # fmt: skip
                return list(zip(indices, values, strict=True))

        found = await gather_all(partial(one, indices) for indices in groups)
        return dict(chain.from_iterable(found))

    async def _request_identity(self, client: httpx.AsyncClient) -> Identity:
        def _read(content: bytes) -> tuple[None, Identity]:
            info = json.loads(content)
            found = read_identity(info)
            if info.get("protocol") != PROTOCOL:
                raise ValueError(f"it has version {info.get('protocol')} of the protocol, and this client {PROTOCOL}")
            return None, found

        await self._retried(lambda server: client.build_request("GET", f"{server}/info"), client, _read)
        assert self._identity is not None
        return self._identity

    async def _retried(
        self,
        build: Callable[[str], httpx.Request],
        client: httpx.AsyncClient,
        read: Callable[[bytes], tuple[T, Identity]],
    ) -> T:
        """The value in a server's response, tried again for as long as the settings log."""
        return await self._retry.run(lambda server: self._once(server, build, client, read))

    async def _once(
        self, server: str, build: Callable[[str], httpx.Request], client: httpx.AsyncClient,
        read: Callable[[bytes], tuple[T, Identity]],
    ) -> T:  # fmt: skip
        try:
            with anyio.fail_after(self.settings.timeout):
                status, headers, content = await exchange(client, build(server))
            return self._value_of(server, status, headers, content, read)
        except (httpx.RequestError, httpx.InvalidURL, OSError) as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error) or isinstance(error, httpx.InvalidURL):
                raise RewardError(f"the reward server {server} cannot be reached: {self._safe(error)}") from None
            reason = f"{type(error).__name__}: {self._safe(error)}".removesuffix(": ")
            if isinstance(error, (TimeoutError, httpx.TimeoutException)):
                reason = f"no complete response within {self.settings.timeout:g} s"
            raise TransientError(f"{server}: {reason}", "unreachable") from None

    def _value_of(
        self, server: str, status: int, headers: httpx.Headers, content: bytes,
        read: Callable[[bytes], tuple[T, Identity]],
    ) -> T:  # fmt: skip
        """The value in a response. Raises TransientError or RewardError."""
        if status in BUSY:
            raise TransientError(f"{server}: {self._detail(status, content)}", "unreachable", retry_after(headers))
        if status >= 500:
            raise TransientError(f"{server}: {self._detail(status, content)}", "failed", retry_after(headers))
        if status != 200:
            hint = _HINTS.get(status, "")
            advice = f"; {hint.replace('{token_env}', self.settings.token_env)}" if hint else ""
            raise RewardError(f"the reward server {server} refuses: {self._detail(status, content)}{advice}")
        try:
            value, identity = read(content)
        except (ValueError, AttributeError) as error:
            raise TransientError(f"{server} sent an invalid response: {self._safe(error)}", "invalid") from None
        if self._identity is not None and identity != self._identity:
            raise RewardError(
                f"the reward server {server} offers {self._safe(identity)}, but "
                f"{self._safe(self._identity)} before: rewards of several kinds cannot be mixed, let all servers offer "
                "the same"
            )
        self._identity = identity
        return value

    def _detail(self, status: int, content: bytes) -> str:
        try:
            detail = json.loads(content)["detail"]
        except (ValueError, TypeError, KeyError, RecursionError):
            detail = content[:200].decode("utf-8", "replace")
        return f"status {status}: {self._safe(detail)}".removesuffix(": ")

    def _safe(self, text: Any) -> str:
        return sanitized(text, self.token)


async def exchange(client: httpx.AsyncClient, request: httpx.Request) -> tuple[int, httpx.Headers, bytes]:
    """Status, headers and body of a response; of an overlong one the beginning, which is not valid JSON."""
    response = await client.send(request, stream=True)
    try:
        content = b""
        async for part in response.aiter_raw():
            content += part
            if len(content) > ANSWER_BYTES:
                break
        return response.status_code, response.headers, content[:ANSWER_BYTES]
    finally:
        await response.aclose()


def _key(image: Tensor, prompt: str) -> bytes:
    """The cache's key of an image and a prompt. The reward and its version are the same for the whole cache."""
    digest = hashlib.sha256(repr(tuple(image.shape)).encode())
    digest.update(image.numpy().tobytes())
    digest.update(prompt.encode("utf-8", "surrogatepass"))
    return digest.digest()
