"""Requests to rollout engines: images, and what adapter and weights an engine has.

An engine that is down, slow or faulty is waited for as a reward server is (rewards/serving/retry.py), in bounded time.
The addresses for adapters and checksums are those of sgl-project/sglang as of September 2026:
`POST /v1/set_lora` and `GET /v1/list_loras` (runtime/entrypoints/openai/common_api.py; what the latter lists is in
runtime/pipelines_core/lora_pipeline.py, `get_lora_status`) and `POST /get_weights_checksum`
(runtime/entrypoints/post_training/weights_api.py). An engine reads an adapter again only where its path is a new one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import httpx

from tastemaker.config.engine_settings import TOKEN_ENV, RolloutEngine, engine_addresses
from tastemaker.diffusion.sampler import do_nothing
from tastemaker.errors import EngineError, EngineUnavailable
from tastemaker.rewards.serving.client import answered, clients, detail
from tastemaker.rewards.serving.retry import (
    CancellableCall,
    RetryPolicy,
    Servers,
    TransientError,
    gather_all,
    sanitized,
)
from tastemaker.rewards.serving.settings import read_token
from tastemaker.rollout_engine.messages import (
    JSON,
    MSGPACK,
    RolloutAnswer,
    RolloutRequest,
    longest_answer,
    read_answer,
    read_status,
)

T = TypeVar("T")

NICKNAME, MODULE = "tastemaker", "transformer"
"""What the adapter is called there, and the network that it is for."""
_LOOK = 0.2
"""Seconds between two looks at whether the run should stop."""
_HINTS = {
    401: "is the right token in ${token_env}?",
    403: "is the right token in ${token_env}?",
    404: "is this the address of an SGLang Diffusion server with the rollout API?",
    422: "its version of the rollout API may be another one than this version of tastemaker knows",
}


class EngineClient:
    """The rollout engines in `urls`, which are to serve the same model.

    All methods raise EngineUnavailable where an engine does not answer within `settings.wait` seconds (and one last
    `timeout`), and EngineError where it refuses, or answers with something else than what was asked for.
    """

    def __init__(
        self,
        urls: str,
        settings: RolloutEngine,
        log: Callable[[str], None],
        check: Callable[[], None] = do_nothing,
    ) -> None:
        self.urls, self.settings = engine_addresses(urls), settings
        self._token = read_token(settings.token_env, TOKEN_ENV, "rollout engine's token")
        headers = {"Content-Type": JSON, "Accept": f"{MSGPACK}, {JSON}"}
        self._client = clients(self.urls, headers, self._token, settings.timeout)
        self._log, self._check = log, check
        self._servers = Servers(self.urls)
        self._call = CancellableCall("the rollout engine")

    def generate(self, requests: Sequence[RolloutRequest], shape: Sequence[int]) -> list[RolloutAnswer]:
        """The images of the requests, with latents of `shape`, from all engines together."""
        return self._run(lambda client: self._images(client, self._servers, requests, shape))

    def generate_at(self, url: str, request: RolloutRequest, shape: Sequence[int]) -> RolloutAnswer:
        """The image of a request from one engine."""
        return self._run(lambda client: self._images(client, Servers((url,)), [request], shape))[0]

    def load_adapter(self, file: Path) -> None:
        """Has every engine load an adapter in place of the one before."""
        content = {
            "lora_nickname": NICKNAME, "lora_path": str(file), "target": MODULE, "strength": 1.0,
            # Merged into weights of half precision, small updates would be rounded away. Older engines skip this.
            "merge_mode": "dynamic",
        }  # fmt: skip
        self._everywhere(lambda client, url: self._status(client, url, "/v1/set_lora", content))

    def adapters(self) -> dict[str, str | None]:
        """The path of the adapter that acts on each engine's network, by the engine's address."""
        return self._everywhere(self._adapter)

    def checksums(self) -> dict[str, str]:
        """SHA-256 of each engine's network as it has it, adapters included. To read all weights takes it seconds."""
        return self._everywhere(self._checksum)

    def _run(self, work: Callable[[httpx.AsyncClient], Awaitable[T]]) -> T:
        """The result of requests, during which it is looked again and again whether the run should stop."""
        results: list[T] = []

        async def main() -> list[T]:
            done = anyio.Event()

            async def asked() -> None:
                async with self._client() as client:
                    try:
                        results.append(await work(client))
                    finally:
                        done.set()

            async def watched() -> None:
                while not done.is_set():
                    with anyio.move_on_after(_LOOK):
                        await done.wait()
                    self._check()

            await gather_all([asked, watched])
            return results

        return self._call.run(main)[0]

    def _everywhere(self, ask: Callable[[httpx.AsyncClient, str], Awaitable[T]]) -> dict[str, T]:
        """What every engine answers, by its address."""
        found = self._run(lambda client: gather_all(partial(ask, client, url) for url in self.urls))
        return dict(zip(self.urls, found, strict=True))

    async def _images(
        self, client: httpx.AsyncClient, servers: Servers, requests: Sequence[RolloutRequest], shape: Sequence[int]
    ) -> list[RolloutAnswer]:
        gate = anyio.Semaphore(self.settings.in_flight)
        retry = self._retry(servers, "gave no image")

        async def one(request: RolloutRequest) -> RolloutAnswer:
            async with gate:
                body, limit = request.body(), longest_answer(request, shape)
                return await retry.run(
                    lambda url: self._once(
                        client, url, "POST", "/rollout/generate", body, limit,
                        lambda content: read_answer(content, request, shape),
                    )
                )  # fmt: skip

        return await gather_all(partial(one, request) for request in requests)

    async def _adapter(self, client: httpx.AsyncClient, url: str) -> str | None:
        found = await self._status(client, url, "/v1/list_loras")
        active = found.get("active")
        listed = active.get(MODULE) if isinstance(active, dict) else None
        paths = [one.get("path") for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
        return ",".join(map(str, paths)) or None

    async def _checksum(self, client: httpx.AsyncClient, url: str) -> str:
        found = await self._status(client, url, "/get_weights_checksum", {"module_names": [MODULE]})
        checksum = found.get(MODULE)
        if not isinstance(checksum, str) or not re.fullmatch("[0-9a-f]{64}", checksum):
            said = sanitized(checksum if checksum is not None else found, self._token)
            raise EngineError(
                f"the rollout engine {url} gives no checksum of its {MODULE}, but {said}: start it with a "
                "text-to-image model that has one"
            )
        return checksum

    async def _status(
        self, client: httpx.AsyncClient, url: str, path: str, content: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """What one engine answers to a question with a JSON object for an answer."""
        body = None if content is None else json.dumps(content).encode()
        retry = self._retry(Servers((url,)), f"did not answer {path}")
        return await retry.run(
            lambda server: self._once(
                client, server, "GET" if body is None else "POST", path, body, 2**20, read_status
            )
        )  # fmt: skip

    def _retry(self, servers: Servers, failure: str) -> RetryPolicy:
        return RetryPolicy(
            f"the rollout engine {failure}", servers, self.settings.wait, self.settings.tries, self._log,
            "rollout_engine.wait", EngineError, EngineUnavailable,
        )  # fmt: skip

    async def _once(
        self, client: httpx.AsyncClient, url: str, method: str, path: str, body: bytes | None, limit: int,
        read: Callable[[bytes], T],
    ) -> T:  # fmt: skip
        status, content = await answered(
            client, lambda: client.build_request(method, url + path, content=body), url, "rollout engine",
            self.settings.timeout, self._token, EngineError, limit,
        )  # fmt: skip
        if status != 200:
            hint = _HINTS.get(status, "")
            advice = f"; {hint.replace('{token_env}', self.settings.token_env)}" if hint else ""
            raise EngineError(f"the rollout engine {url} refuses: {detail(status, content, self._token)}{advice}")
        try:
            return await anyio.to_thread.run_sync(read, content)
        except ValueError as error:
            said = sanitized(error, self._token)
            raise TransientError(f"{url} sent an invalid response: {said}", "invalid") from None
