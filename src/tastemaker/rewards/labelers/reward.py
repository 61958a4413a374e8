"""People as a reward: a run's images are put before the labelers of a labelling app, and their answers waited for.

Whatever goes wrong raises a RewardError and never becomes a number. What labelers have said is kept by the app, under
the content of the images, so that a run that was stopped and resumed finds it there.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import anyio
import anyio.to_thread
import httpx
import torch
from torch import Tensor

from tastemaker.errors import RewardError, RewardUnavailable
from tastemaker.rewards.labelers.settings import Labelers, place, task_sizes
from tastemaker.rewards.serving.client import clients, exchange
from tastemaker.rewards.serving.protocol import JSON, PROTOCOL, read_rewards, write_json
from tastemaker.rewards.serving.retry import (
    BUSY,
    CancellableCall,
    RetryPolicy,
    Servers,
    TransientError,
    retry_after,
    sanitized,
)
from tastemaker.rewards.serving.settings import Token, read_token

T = TypeVar("T")

TRIES = 4
"""How often a request is sent where the app fails (status 500) or its response is invalid."""
LOG_EVERY = 30.0
"""Least seconds between two messages about how many tasks are labelled."""


@dataclass(frozen=True)
class LabelProject:
    """The labelling project that answers, as far as a run needs to know it."""

    uuid: str
    title: str
    mode: str
    images: int
    """Images of a task."""
    overlap: int

    def __str__(self) -> str:
        size = "" if self.images == 1 else f" of {self.images} images"
        return f"labelling project {self.uuid}, mode {self.mode}{size}"


class LabelersReward:
    """The reward that labelers give images [B,3,H,W] in [0,1] of B prompts, in [0,1]; higher is better.

    One call puts all B images before the labelers, so that images of one prompt are compared with each other. Raises
    RewardUnavailable where they do not answer within `settings.wait` seconds, or the app is down for
    `settings.server_wait`; and RewardError where the app refuses.
    """

    differentiable = False
    space: Literal["image", "latent"] = "image"
    whole = True

    def __init__(
        self,
        name: str,
        settings: Labelers | None = None,
        log: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
    ) -> None:
        self.__name__ = name
        self.settings = settings or Labelers()
        self.place = place(name)
        self.log = log
        self._token = read_token(self.settings.token_env, "", "labelling app's admin token") if self._is_url else None
        servers = Servers((self.place,))
        self._retry = RetryPolicy(
            f"the reward {name} gave no numbers", servers, self.settings.server_wait, TRIES, log,
            "labelers.server_wait",
        )  # fmt: skip
        self._client = clients((self.place,), {}, None, self.settings.timeout)
        self._project: LabelProject | None = None
        self._one_call = threading.Lock()
        self._call = CancellableCall(f"the reward {name}")

    def __call__(self, x: Tensor, prompts: Sequence[str]) -> Tensor:
        x = x.detach().float().cpu().contiguous()
        with self._one_call:
            values = self._run(lambda client: self._ask(client, x, prompts))
        return torch.tensor(values, dtype=torch.float32)

    def project(self) -> LabelProject:
        """The project that answers, as the app says now. Raises RewardError."""
        with self._one_call:
            return self._run(self._request_project)

    def identity(self) -> str:
        """Which project answers, wherever it is. Raises RewardError."""
        return str(self._project or self.project())

    def cancel(self) -> None:
        """Ends the call under way in another thread, if there is one; that call raises RewardUnavailable."""
        self._call.cancel()

    @property
    def _is_url(self) -> bool:
        return self.place.startswith(("http://", "https://"))

    def _run(self, work: Callable[[httpx.AsyncClient], Awaitable[T]]) -> T:
        async def main() -> T:
            async with self._client() as client:
                return await work(client)

        return self._call.run(main)

    async def _ask(self, client: httpx.AsyncClient, x: Tensor, prompts: Sequence[str]) -> list[float]:
        """Submits the images and waits until all are labelled."""
        await self._request_project(client)
        body = await anyio.to_thread.run_sync(write_json, x, list(prompts))
        began, said, shown = time.monotonic(), -LOG_EVERY, -1
        answer = await self._request(client, "POST", "/api/batches", body)
        while True:
            state, labelled, tasks, key = _progress(answer)
            if state == "finished":
                if shown >= 0:
                    self.log(f"the labelers have labelled all {tasks} tasks")
                return _rewards(answer, len(prompts))
            if state == "withdrawn":
                raise RewardError(
                    f"the images were withdrawn from the labelers of {self.__name__}: resume the run to ask again"
                )
            waited = time.monotonic() - began
            if waited + self.settings.poll > self.settings.wait:
                raise RewardUnavailable(
                    f"the labelers of {self.__name__} have labelled {labelled} of {tasks} tasks in {waited:.0f} s "
                    "(`labelers.wait` is how long to wait for them; what they have labelled is kept)"
                )
            if labelled != shown and waited - said >= LOG_EVERY:
                where = self._address()[0]
                self.log(f"waiting for labelers at {where}: {labelled} of {tasks} tasks are labelled")
                shown, said = labelled, waited
            await anyio.sleep(self.settings.poll)
            answer = await self._request(client, "GET", f"/api/batches/{key}")

    async def _request_project(self, client: httpx.AsyncClient) -> LabelProject:
        found = _project(await self._request(client, "GET", "/api/batches"))
        if self._project is not None and str(found) != str(self._project):
            raise RewardError(
                f"{self.__name__} is {found} now, but was {self._project} before: rewards of several projects cannot "
                "be mixed"
            )
        self._project = found
        return found

    async def _request(
        self, client: httpx.AsyncClient, method: str, path: str, body: bytes | None = None
    ) -> dict[str, Any]:
        """The JSON object in the app's response, tried again while the app is down."""
        return await self._retry.run(lambda _: self._once(client, method, path, body))

    async def _once(self, client: httpx.AsyncClient, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        # Anew each time: an app that was started again may be at another port.
        url, token = self._address()
        headers = {"Accept": JSON, "Authorization": f"Bearer {token.secret}"}
        headers |= {} if body is None else {"Content-Type": JSON}
        try:
            request = client.build_request(method, url + path, headers=headers, content=body)
            with anyio.fail_after(self.settings.timeout):
                status, received, content = await exchange(client, request)
        except (httpx.RequestError, httpx.InvalidURL, OSError) as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error) or isinstance(error, httpx.InvalidURL):
                raise RewardError(f"the labelling app {url} cannot be reached: {sanitized(error, token)}") from None
            reason = f"{type(error).__name__}: {sanitized(error, token)}".removesuffix(": ")
            if isinstance(error, (TimeoutError, httpx.TimeoutException)):
                reason = f"no complete response within {self.settings.timeout:g} s"
            raise TransientError(f"{url}: {reason}", "unreachable") from None
        detail = f"status {status}: {sanitized(_detail(content), token)}".removesuffix(": ")
        if status in BUSY or status >= 500:
            kind = "unreachable" if status in BUSY else "failed"
            raise TransientError(f"{url}: {detail}", kind, retry_after(received))
        if status in (401, 403):
            source = f"${self.settings.token_env}" if self._is_url else f"{self.place}/admin-token"
            raise RewardError(f"the labelling app {url} refuses the token in {source}: {detail}")
        if status not in (200, 201):
            raise RewardError(f"the labelling app {url} refuses: {detail}")
        try:
            answer = json.loads(content)
            if not isinstance(answer, dict):
                raise ValueError("expected a JSON object")
        except (ValueError, RecursionError) as error:
            raise TransientError(f"{url} sent an invalid response: {sanitized(error, token)}", "invalid") from None
        return answer

    def _address(self) -> tuple[str, Token]:
        """Where the app is now, and its token. Raises TransientError where a project is not served, RewardError."""
        if self._is_url:
            assert self._token is not None
            return self.place, self._token
        folder = Path(self.place).expanduser()
        if not (folder / "project.json").is_file():
            raise RewardError(f"{folder} is no labelling project (`tastemaker label create` makes one)")
        try:
            url = json.loads((folder / "server.json").read_text(encoding="utf-8"))["url"]
            secret = (folder / "admin-token").read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            raise TransientError(
                f"{folder}: the labelling app is not running; start it with `tastemaker label serve {folder}`",
                "unreachable",
            ) from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RewardError(
                f"the address or the token of the labelling app of {folder} cannot be read: {error}"
            ) from error
        return str(url).rstrip("/"), Token(secret)


def require_fit(name: str, project: LabelProject, counts: Sequence[tuple[str, int]]) -> None:
    """Raises RewardError where images of one prompt cannot be put into the project's tasks.

    `counts` are the images of one prompt that there will be, each with the setting that says so.
    """
    for setting, count in counts:
        try:
            task_sizes(project.mode, project.images, count)
        except RewardError as error:
            raise RewardError(f"{setting} is {count}, which does not suit the reward {name}: {error}") from None


def _project(answer: dict[str, Any]) -> LabelProject:
    if answer.get("protocol") != PROTOCOL:
        raise RewardError(
            f"the labelling app has version {answer.get('protocol')} of the protocol, and this client {PROTOCOL}"
        )
    try:
        return LabelProject(
            str(answer["project"]), str(answer["title"]), str(answer["mode"]), int(answer["images"]),
            int(answer["overlap"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise RewardError(f"the labelling app does not say what project it has: {error}") from error


def _progress(answer: dict[str, Any]) -> tuple[str, int, int, str]:
    """State, labelled tasks, all tasks and the key of a batch. Raises RewardError."""
    found = tuple(answer.get(name) for name in ("state", "labelled", "tasks", "key"))
    state, labelled, tasks, key = found
    known = state in ("waiting", "finished", "withdrawn")
    if not known or type(labelled) is not int or type(tasks) is not int or not isinstance(key, str):
        raise RewardError(f"the labelling app's answer is not that of a batch: {sanitized(answer, None)}")
    return state, labelled, tasks, key


def _rewards(answer: dict[str, Any], count: int) -> list[float]:
    try:
        return read_rewards(answer.get("rewards"), count)
    except ValueError as error:
        raise RewardError(f"the labelling app sent no rewards: {error}") from error


def _detail(content: bytes) -> str:
    try:
        detail = json.loads(content)["detail"]
        return detail if isinstance(detail, str) else json.dumps(detail)
    except (ValueError, TypeError, KeyError, RecursionError):
        return content[:200].decode("utf-8", "replace")
