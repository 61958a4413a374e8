"""A reward on a server, as a plain reward function: retries, failover, a cache, and bounded waiting.

Whatever goes wrong raises a RewardError and never becomes a number.
"""

from __future__ import annotations

import hashlib
import json
import ssl
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, Literal, TypeVar

import anyio
import anyio.to_thread
import httpx
import torch
from torch import Tensor

from tastemaker.errors import RewardError, TastemakerError
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
        self._client = clients(servers.urls, {"Accept": JSON}, self.token, self.settings.timeout)
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
        status, content = await answered(
            client, lambda: build(server), server, "reward server", self.settings.timeout, self.token, RewardError
        )
        if status != 200:
            hint = _HINTS.get(status, "")
            advice = f"; {hint.replace('{token_env}', self.settings.token_env)}" if hint else ""
            raise RewardError(f"the reward server {server} refuses: {detail(status, content, self.token)}{advice}")
        return self._value_of(server, content, read)

    def _value_of(self, server: str, content: bytes, read: Callable[[bytes], tuple[T, Identity]]) -> T:
        """The value in a response. Raises TransientError or RewardError."""
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

    def _safe(self, text: Any) -> str:
        return sanitized(text, self.token)


def clients(
    urls: Sequence[str], headers: Mapping[str, str], token: Token | None, timeout: float
) -> Callable[[], httpx.AsyncClient]:
    """What makes clients for servers, without the proxies and passwords of the environment, which follow no redirects.

    `timeout` is in seconds, of each part of a request.
    """
    tls = ssl.create_default_context() if any(url.startswith("https:") for url in urls) else False

    def made() -> httpx.AsyncClient:  # a partial's repr would show the token
        own = {} if token is None else {"Authorization": f"Bearer {token.secret}"}
        return httpx.AsyncClient(
            headers={**headers, "Accept-Encoding": "identity"} | own, verify=tls, trust_env=False,
            follow_redirects=False, timeout=httpx.Timeout(timeout, connect=min(timeout, CONNECT)),
        )  # fmt: skip

    return made


async def answered(
    client: httpx.AsyncClient,
    build: Callable[[], httpx.Request],
    server: str,
    what: str,
    timeout: float,
    token: Token | None,
    error: type[TastemakerError],
    limit: int = ANSWER_BYTES,
) -> tuple[int, bytes]:
    """Status and body of a response, of at most `limit` bytes and within `timeout` seconds.

    Raises TransientError where none came, or the server was busy or failed, and `error` where it cannot be reached at
    all; `what` names the kind of server in messages.
    """
    try:
        with anyio.fail_after(timeout):
            status, headers, content = await exchange(client, build(), limit)
    except (httpx.RequestError, httpx.InvalidURL, OSError) as failure:
        said = sanitized(failure, token)
        if "CERTIFICATE_VERIFY_FAILED" in str(failure) or isinstance(failure, httpx.InvalidURL):
            raise error(f"the {what} {server} cannot be reached: {said}") from None
        reason = f"{type(failure).__name__}: {said}".removesuffix(": ")
        if isinstance(failure, (TimeoutError, httpx.TimeoutException)):
            reason = f"no complete response within {timeout:g} s"
        raise TransientError(f"{server}: {reason}", "unreachable") from None
    if status in BUSY or status >= 500:
        kind = "unreachable" if status in BUSY else "failed"
        raise TransientError(f"{server}: {detail(status, content, token)}", kind, retry_after(headers))
    return status, content


def detail(status: int, content: bytes, token: Token | None) -> str:
    """What a response that is an error says: its status, and FastAPI's `detail` or the beginning of its body."""
    try:
        said = json.loads(content)["detail"]
    except (ValueError, TypeError, KeyError, RecursionError):
        said = content[:200].decode("utf-8", "replace")
    return f"status {status}: {sanitized(said, token)}".removesuffix(": ")


async def exchange(
    client: httpx.AsyncClient, request: httpx.Request, limit: int = ANSWER_BYTES
) -> tuple[int, httpx.Headers, bytes]:
    """Status, headers and body of a response; of one longer than `limit` bytes the beginning, which is not valid."""
    response = await client.send(request, stream=True)
    try:
        content = bytearray()
        async for part in response.aiter_raw():
            content += part
            if len(content) > limit:
                break
        return response.status_code, response.headers, bytes(content[:limit])
    finally:
        await response.aclose()


def _key(image: Tensor, prompt: str) -> bytes:
    """The cache's key of an image and a prompt. The reward and its version are the same for the whole cache."""
    digest = hashlib.sha256(repr(tuple(image.shape)).encode())
    digest.update(image.numpy().tobytes())
    digest.update(prompt.encode("utf-8", "surrogatepass"))
    return digest.digest()
