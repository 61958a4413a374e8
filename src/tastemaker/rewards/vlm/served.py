"""A vision-language model on any server that speaks OpenAI's protocol (vLLM, SGLang, Ollama), through its client."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import anyio
import httpx

from tastemaker.errors import RewardError
from tastemaker.rewards.serving.cache import AnswerCache
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
from tastemaker.rewards.vlm.answers import Answer, AnswerToken, Query
from tastemaker.rewards.vlm.settings import ModelAddress, Vlm, read_key

try:
    import openai
except ImportError as error:
    raise RewardError(
        "a vision-language model on a server is called through the openai client, which is not installed: "
        "pip install 'tastemaker[vlm]'"
    ) from error

T = TypeVar("T")

TOP_LOGPROBS = 20
"""Likeliest tokens requested at each position of an answer: as many as OpenAI and vLLM give."""
_HEADERS = {
    "accept", "accept-encoding", "authorization", "connection", "content-length", "content-type", "host", "user-agent",
}  # fmt: skip
_HINTS = {
    400: "does the model take images? if it refuses `logprobs`, give {written}",
    401: "is the right key in ${key_env}?",
    403: "is the right key in ${key_env}?",
    404: "does the address end as the server wants it, mostly in /v1, and has it this model?",
    413: "are the images too large for the server?",
}


class ServedModel:
    """Greedy answers, one image and question a request; as many requests at once as the settings allow.

    Raises RewardUnavailable where no server recovers in time, and RewardError where one refuses or its answers cannot
    be read, with the last of them.
    """

    def __init__(
        self,
        caller: str,
        address: ModelAddress,
        settings: Vlm,
        log: Callable[[str], None],
        logprobs: bool = False,
        written: str = "vlm.logprobs=false",
    ) -> None:
        """`caller` begins messages, as `the reward NAME`; `written` is the setting that does without logprobs."""
        self.address, self.settings, self.logprobs, self.written = address, settings, logprobs, written
        self.key = read_key(settings.key_env)
        servers, failure = Servers(address.urls), f"{caller} gave no answers"
        self._retry = RetryPolicy(failure, servers, settings.wait, settings.tries, log, "vlm.wait")
        secure = any(url.startswith("https:") for url in address.urls)
        self._tls: ssl.SSLContext | bool = ssl.create_default_context() if secure else False
        self._call, self._one_call = CancellableCall(caller), threading.Lock()
        self._cache = AnswerCache[Answer](settings.cache)
        self._has_logprobs: bool | None = None
        """Whether answers come with log-probabilities of their tokens; not known before the first."""

    def __call__(
        self, queries: Sequence[Query], read: Callable[[Answer], T], received: Callable[[int, T], None] | None = None
    ) -> list[T]:
        keys = [_key(query) for query in queries]
        places: dict[bytes, list[int]] = {}
        for place, key in enumerate(keys):
            places.setdefault(key, []).append(place)

        def arrived(key: bytes, answer: Answer) -> None:
            if received is not None:
                for place in places[key]:
                    received(place, read(answer))

        with self._one_call:
            known = self._cache.known(keys)
            for key, answer in known.items():
                arrived(key, answer)
            # The same image with the same question is sent once.
            missing = {key: query for key, query in zip(keys, queries, strict=True) if key not in known}
            if missing:
                answers = self._call.run(lambda: self._ask(missing, read, arrived))
                known |= dict(zip(missing, answers, strict=True))
            self._cache.keep((key, known[key]) for key in keys)
        return [read(known[key]) for key in keys]

    def cancel(self) -> None:
        """Ends the call under way in another thread, if there is one."""
        self._call.cancel()

    async def _ask(
        self, queries: Mapping[bytes, Query], read: Callable[[Answer], Any], arrived: Callable[[bytes, Answer], None]
    ) -> list[Answer]:
        gate = anyio.Semaphore(self.settings.in_flight)

        async def one(key: bytes, query: Query, clients: dict[str, openai.AsyncOpenAI]) -> Answer:
            async with gate:
                answer = await self._retry.run(lambda server: self._once(server, clients[server], query, read))
            arrived(key, answer)
            return answer

        async with self._clients() as clients:
            return await gather_all(partial(one, key, query, clients) for key, query in queries.items())

    @asynccontextmanager
    async def _clients(self) -> AsyncIterator[dict[str, openai.AsyncOpenAI]]:
        """A client for each server, which takes nothing from the environment."""
        async with AsyncExitStack() as stack:
            yield {
                url: await stack.enter_async_context(
                    openai.AsyncOpenAI(
                        base_url=url,
                        # The client requires one. Servers that need none ignore it.
                        api_key=self.key.secret if self.key else "none",
                        admin_api_key="",
                        # Otherwise one out of OPENAI_CUSTOM_HEADERS would replace it.
                        default_headers={"Authorization": f"Bearer {self.key.secret if self.key else 'none'}"},
                        max_retries=0,
                        timeout=openai.Timeout(self.settings.timeout, connect=min(self.settings.timeout, CONNECT)),
                        http_client=openai.DefaultAsyncHttpxClient(
                            verify=self._tls,
                            trust_env=False,
                            follow_redirects=False,
                            event_hooks={"request": [_keep_own_headers]},
                        ),
                    )
                )
                for url in self.address.urls
            }

    async def _once(
        self, server: str, client: openai.AsyncOpenAI, query: Query, read: Callable[[Answer], Any]
    ) -> Answer:
        """One answer that `read` can use. Raises TransientError or RewardError."""
        options: dict[str, Any] = {"logprobs": True, "top_logprobs": TOP_LOGPROBS} if self.logprobs else {}
        try:
            with anyio.fail_after(self.settings.timeout):
                completion = await client.chat.completions.create(
                    model=self.address.model,
                    messages=_messages(query),
                    temperature=0.0,
                    max_tokens=self.settings.tokens,
                    **options,
                )
            answer = _answer(completion)
            read(answer)
            self._same_kind(answer)
            return answer
        except openai.APIStatusError as error:
            raise self._refused(server, error) from None
        except (openai.APITimeoutError, TimeoutError):
            reason = f"{server}: no complete response within {self.settings.timeout:g} s"
            raise TransientError(reason, "unreachable") from None
        except (openai.APIConnectionError, OSError) as error:
            cause = error.__cause__ or error
            if "CERTIFICATE_VERIFY_FAILED" in str(cause):
                raise RewardError(f"the VLM server {server} cannot be reached: {self._safe(cause)}") from None
            reason = f"{type(cause).__name__}: {self._safe(cause)}".removesuffix(": ")
            raise TransientError(f"{server}: {reason}", "unreachable") from None
        except json.JSONDecodeError as error:
            raise TransientError(f"{server} sent a response that is not JSON: {self._safe(error)}", "invalid") from None
        except (openai.APIError, ValueError) as error:
            raise TransientError(
                f"{server} sent a response that cannot be used: {self._safe(error)}", "invalid"
            ) from None

    def _same_kind(self, answer: Answer) -> None:
        """Raises ValueError where only some answers have log-probabilities: they would be different rewards."""
        if not self.logprobs:
            return
        has = bool(answer.tokens)
        if self._has_logprobs is None and not has:
            self._retry.log(f"{self.address.model} gives no log-probabilities: answers are used as they are written")
        if self._has_logprobs not in (None, has):
            raise ValueError(f"log-probabilities come with some answers only: give {self.written} to do without")
        self._has_logprobs = has

    def _refused(self, server: str, error: openai.APIStatusError) -> Exception:
        status = error.status_code
        body = error.body if error.body is not None else error.response.text
        detail = body.get("message") or body.get("detail") or body if isinstance(body, dict) else body
        reason = f"status {status}: {self._safe(detail)}".removesuffix(": ")
        if status in BUSY:
            return TransientError(f"{server}: {reason}", "unreachable", retry_after(error.response.headers))
        if status >= 500:
            return TransientError(f"{server}: {reason}", "failed", retry_after(error.response.headers))
        hint = _HINTS.get(status, "").replace("{key_env}", self.settings.key_env)
        hint = hint.replace("{written}", self.written)
        return RewardError(f"the VLM server {server} refuses: {reason}" + (f"; {hint}" if hint else ""))

    def _safe(self, text: Any) -> str:
        return sanitized(text, self.key)


async def _keep_own_headers(request: httpx.Request) -> None:
    """Removes headers that the client takes from environment variables, which may hold keys for other servers."""
    for name in list(request.headers):
        if name not in _HEADERS and not name.startswith("x-stainless-"):
            del request.headers[name]


def _messages(query: Query) -> Any:
    url = "data:image/jpeg;base64," + base64.b64encode(query.image).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": query.question}]
    return [{"role": "user", "content": parts}]


def _answer(completion: Any) -> Answer:
    """The answer in a completion, which the client does not check. Raises ValueError."""
    try:
        choice = completion.choices[0]
        text, reason = choice.message.content, choice.finish_reason
        refusal = getattr(choice.message, "refusal", None)
    except (AttributeError, TypeError, IndexError, KeyError):
        raise ValueError(f"expected a chat completion, got {completion!r}") from None
    if refusal:
        raise ValueError(f"the model refuses: {refusal}")
    if text is not None and not isinstance(text, str):
        raise ValueError(f"its message is not a text: {text!r}")
    return Answer(text or "", _tokens(getattr(choice, "logprobs", None)), reason if isinstance(reason, str) else "")


def _tokens(logprobs: Any) -> tuple[AnswerToken, ...]:
    """The log-probabilities of an answer's tokens; empty where the server gives none. Raises ValueError."""
    content = getattr(logprobs, "content", None)
    if not content:
        return ()
    try:
        return tuple(_token(token) for token in content)
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"its log-probabilities cannot be read: {content!r}") from None


def _token(token: Any) -> AnswerToken:
    logprobs = [(other.token, other.logprob) for other in token.top_logprobs or ()]
    if token.token not in [text for text, _ in logprobs]:
        logprobs.append((token.token, token.logprob))
    for text, value in logprobs:
        if not isinstance(text, str) or not isinstance(value, (int, float)) or math.isnan(value) or value > 1e-3:
            raise ValueError
    return AnswerToken(token.token, tuple(logprobs))


def _key(query: Query) -> bytes:
    digest = hashlib.sha256(query.question.encode("utf-8", "surrogatepass"))
    return digest.digest() + hashlib.sha256(query.image).digest()
