"""Simulated labelers: clients of the labelling app that speak to it over HTTP as a browser does.

What they like and answer is in `taste.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import io
import random
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import torch
from PIL import Image

from tastemaker.data.images import to_tensor
from tastemaker.errors import TastemakerError
from tastemaker.labelling import ranking
from tastemaker.labelling.accounts import admin_token, invite
from tastemaker.labelling.project import Project
from tastemaker.labelling.ranking import Judgement
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.taste import Behaviour, Seen, Taste, Utility, agreement, next_judgement, pause

# ---------------------------------------------------------------- a labeler's browser


class Unanswered(TastemakerError):
    """The labelling app did not answer for as long as one waits for it, or answered what it must not."""


@dataclass(frozen=True)
class Receipt:
    """What the app said of a judgement: see `judgements.Receipt`."""

    status: str
    reason: str | None
    complete: bool


class Browser:
    """A labeler's session with the app: cookie, Origin and the retries of the page. Use it in `async with`."""

    def __init__(self, url: str, wait: float = 60.0) -> None:
        """`wait` is for how many seconds requests are sent again while the app is down or busy."""
        self.url, self.wait = url.rstrip("/"), wait
        headers = {"Origin": self.url, "Sec-Fetch-Site": "same-origin", "User-Agent": "tastemaker label simulate"}
        self.client = httpx.AsyncClient(
            base_url=self.url, headers=headers, trust_env=False, follow_redirects=False, timeout=30
        )

    async def __aenter__(self) -> Browser:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()

    async def join(self, token: str, name: str, password: str) -> bool:
        """Makes an account by an invitation and logs in with it; whether that succeeded."""
        await self.request("GET", f"/join/{token}")
        form = {"name": name, "password": password}
        answer = await self.request("POST", f"/join/{token}", data=form)
        return answer.status_code == 303

    async def log_in(self, name: str, password: str) -> bool:
        """Whether the app takes this password."""
        await self.request("GET", "/login")
        answer = await self.request("POST", "/login", data={"name": name, "password": password})
        return answer.status_code == 303

    async def get(self, path: str) -> Any:
        """The JSON of a response. Raises Unanswered."""
        return _json(await self.request("GET", path))

    async def post(self, path: str, content: Any) -> Any:
        """Sends JSON, returns the JSON of the response. Raises Unanswered."""
        return _json(await self.request("POST", path, json=content))

    async def image(self, sha256: str) -> Image.Image:
        """An image. Raises Unanswered."""
        answer = await self.request("GET", f"/images/{sha256}.png")
        if answer.status_code != 200 or hashlib.sha256(answer.content).hexdigest() != sha256:
            raise Unanswered(f"the image {sha256} came with status {answer.status_code} or with other content")
        with Image.open(io.BytesIO(answer.content), formats=("PNG",)) as image:
            return image.convert("RGB")

    async def send(self, judgements: Sequence[tuple[int, Judgement]]) -> list[Receipt]:
        """Sends judgements (assignment, judgement), again and again until the app has answered. Raises Unanswered."""
        content = [{"assignment": assignment, **ranking.to_fields(one)} for assignment, one in judgements]
        answer = await self.post("/api/judgements", {"judgements": content})
        found = {receipt["id"]: receipt for receipt in answer["receipts"]}
        return [
            Receipt(found[one.id]["status"], found[one.id].get("reason"), found[one.id]["complete"])
            for _, one in judgements
        ]

    async def request(self, method: str, path: str, **content: Any) -> httpx.Response:
        """A response, the request being sent again while the app is down or busy. Raises Unanswered."""
        loop, tries = asyncio.get_running_loop(), 0
        until = loop.time() + self.wait
        while True:
            tries += 1
            try:
                answer = await self.client.request(method, path, **content)
                if answer.status_code not in (429, 502, 503, 504):
                    return answer
                reason = f"status {answer.status_code}"
            except httpx.TransportError as error:
                reason = f"{type(error).__name__}: {error}"
            pause = min(0.1 * 2 ** min(tries - 1, 10), 5.0) * (0.5 + random.random())
            if loop.time() + pause > until:
                raise Unanswered(f"{self.url}{path} did not answer for {self.wait:g} s: {reason}")
            await asyncio.sleep(pause)


def _json(answer: httpx.Response) -> Any:
    if answer.status_code != 200:
        raise Unanswered(
            f"{answer.request.method} {answer.request.url.path} came back with status {answer.status_code}: "
            f"{answer.text[:300]}"
        )
    return answer.json()


# ---------------------------------------------------------------- a labeler at work


@dataclass
class Tally:
    """What simulated labelers did."""

    votes: int = 0
    """Judgements that the app has stored, undos and skips included."""
    tasks: int = 0
    """Tasks completed."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Judgements by kind."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """Comparisons by outcome, `left`, `right`, `tie` and `both_bad`."""
    agreed: int = 0
    """Comparisons, choices and ratings of complete tasks that are as the labeler's own utility has it."""
    compared: int = 0
    """All of them, but for images that the labeler likes equally well."""
    refused: Counter[str] = field(default_factory=Counter)
    """Judgements that the app refused, by reason."""

    def lines(self, seconds: float) -> list[str]:
        """For people."""
        sided = self.outcomes["left"] + self.outcomes["right"]
        found = [
            f"{self.votes} judgements of {self.tasks} tasks in {seconds:.1f} s ({self.votes / seconds:.1f} a second)"
        ]
        if self.compared:
            share = 100 * self.agreed / self.compared
            found.append(f"{share:.1f}% of {self.compared} preferences are as the hidden utility has them")
        if sided:
            found.append(f"{100 * self.outcomes['left'] / sided:.1f}% of {sided} preferences are for the left image")
        if self.kinds["skip"] or self.kinds["undo"]:
            found.append(f"{self.kinds['skip']} tasks skipped, {self.kinds['undo']} judgements taken back")
        found += [f"{count} judgements refused: {reason}" for reason, count in self.refused.items()]
        return found


class Memory:
    """The utilities of images that have been looked at, which all labelers share."""

    def __init__(self, utility: Utility) -> None:
        self.utility, self._known = utility, dict[tuple[str, str], float]()

    async def look(self, prompt: str, images: Mapping[str, Image.Image]) -> dict[str, float]:
        """The utility of images of a prompt, by their SHA-256."""
        new = [name for name in images if (name, prompt) not in self._known]
        if new:
            values = await asyncio.to_thread(self._value, prompt, [images[name] for name in new])
            self._known |= {(name, prompt): value for name, value in zip(new, values, strict=True)}
        return {name: self._known[name, prompt] for name in images}

    def _value(self, prompt: str, images: Sequence[Image.Image]) -> list[float]:
        tensors = [to_tensor(image) for image in images]
        if len({one.shape for one in tensors}) == 1:
            return [float(value) for value in self.utility(torch.stack(tensors), [prompt] * len(tensors))]
        return [float(self.utility(one.unsqueeze(0), [prompt])[0]) for one in tensors]


Sent = Callable[[int, Judgement, Receipt], None]


async def label(
    browser: Browser, taste: Taste, memory: Memory, tally: Tally, *, votes: int | None = None, stay: float = 0.0,
    ahead: int = 5, sent: Sent = lambda assignment, judgement, receipt: None,
) -> None:  # fmt: skip
    """Labels as a logged-in labeler until nothing is left, or `votes` judgements are stored.

    Waits for new tasks for `stay` seconds after the last. `sent` is called with each judgement that the app has
    answered. Raises Unanswered, ConfigError.
    """
    settings = settings_of((await browser.get("/api/me"))["project"])
    loop, stored = asyncio.get_running_loop(), 0
    idle_since: float | None = None
    cached: dict[str, Image.Image] = {}
    while votes is None or stored < votes:
        assigned = (await browser.post("/api/assignments", {"count": ahead}))["assignments"]
        if not assigned:
            idle_since = loop.time() if idle_since is None else idle_since
            if loop.time() - idle_since >= stay:
                return
            await asyncio.sleep(min(1.0, stay))
            continue
        idle_since = None
        for task in assigned:
            for name in task["images"]:
                if name not in cached:
                    cached[name] = await browser.image(name)
        for number, task in enumerate(assigned):
            if votes is not None and stored >= votes:
                # As a page does that is closed: others need not wait for the leases to end.
                left = [one["id"] for one in assigned[number:]]
                await browser.post("/api/assignments/release", {"assignments": left})
                return
            images = {name: cached[name] for name in task["images"]}
            found = await memory.look(task["prompt"], images)
            liking = tuple(taste.liking(name, found[name]) for name in task["images"])
            seen = Seen(task["prompt"], tuple(task["images"]), liking, tuple(task["presentation"]), task["sides"])
            stored += await _label_task(browser, taste, settings, seen, task, tally, sent)
        cached = {name: cached[name] for task in assigned for name in task["images"]}


async def _label_task(
    browser: Browser, taste: Taste, settings: Labelling, seen: Seen, task: Mapping[str, Any], tally: Tally, sent: Sent
) -> int:
    """Completes a task; returns how many judgements the app has stored of it."""
    judgements = [from_fields(one) for one in task["judgements"]]
    stored = 0
    while (new := next_judgement(taste, settings, seen, judgements, lambda: str(uuid.uuid4()))) is not None:
        seconds = pause(taste, seen, len(judgements))
        if seconds:
            await asyncio.sleep(seconds)
        new = replace(new, elapsed_ms=round(1000 * seconds))
        (receipt,) = await browser.send([(task["id"], new)])
        sent(task["id"], new, receipt)
        if receipt.status == "refused":
            tally.refused[str(receipt.reason)] += 1
            return stored
        stored += 1
        judgements.append(new)
        tally.votes += 1
        tally.kinds[new.kind] += 1
        if new.kind == "compare":
            tally.outcomes[str(new.outcome)] += 1
    now = ranking.state(settings, seen.presentation, judgements)
    tally.tasks += now.complete
    agreed, compared = agreement(taste.behaviour, settings, seen, now)
    tally.agreed += agreed
    tally.compared += compared
    return stored


def settings_of(project: Mapping[str, Any]) -> Labelling:
    """What `/api/me` says of the project, as far as judging needs it."""
    return Labelling(
        mode=project["mode"], images=project["images"], transitive=project["transitive"], confirm=project["confirm"],
        ties=project["ties"], both_bad=project["both_bad"], skip=project["skip"], marks=tuple(project["marks"]),
    )  # fmt: skip


def from_fields(content: Mapping[str, Any]) -> Judgement:
    """A judgement out of the app's JSON, the reverse of `ranking.to_fields`."""
    known: dict[str, Any] = {name: content[name] for name in Judgement.__dataclass_fields__ if name in content}
    if (order := known.get("order")) is not None:
        known["order"] = tuple(tuple(group) for group in order)
    return Judgement(**known)


# ---------------------------------------------------------------- many labelers


@dataclass(frozen=True)
class Crowd:
    """Simulated labelers with their accounts."""

    url: str
    names: Sequence[str]
    passwords: Sequence[str]
    invitation: str | None
    """The token of an invitation, for those who have no account yet."""


def invited(project: Project, url: str, labelers: int, seed: int) -> Crowd:
    """`labelers` simulated labelers with a new invitation to a project that is served at `url`.

    Their passwords are the same ones in the next simulation with this seed, which may go on with their tasks.
    """
    now, names = time.time(), labeler_names(labelers, seed)
    with project.database.write() as session:
        token = invite(session, "labeler", "tastemaker label simulate", len(names), now + 3600, now)
    return Crowd(url, names, passwords(admin_token(project.folder).secret, names), token)


def labeler_names(labelers: int, seed: int) -> list[str]:
    """What simulated labelers are called."""
    return [f"simulated {seed}-{number}" for number in range(labelers)]


def passwords(secret: str, names: Sequence[str]) -> list[str]:
    """Of the labelers, the same for the same secret."""
    return [hmac.new(secret.encode(), name.encode(), hashlib.sha256).hexdigest()[:40] for name in names]


INVITATION = re.compile(r"(?P<url>https?://[^/]+)/join/(?P<token>[A-Za-z0-9_-]+)/?")
"""The link of an invitation."""


async def enter(browser: Browser, crowd: Crowd, index: int) -> None:
    """Logs a labeler in, or makes the account where there is none. Raises Unanswered."""
    name, password = crowd.names[index], crowd.passwords[index]
    joined = crowd.invitation is not None and await browser.join(crowd.invitation, name, password)
    if not joined and not await browser.log_in(name, password):
        raise Unanswered(f"the labelling app {crowd.url} lets {name} neither join nor log in")


async def simulate(
    crowd: Crowd, behaviour: Behaviour, utility: Utility, seed: int, *, votes: int | None = None, stay: float = 0.0,
    tally: Tally | None = None,
) -> Tally:  # fmt: skip
    """Lets all labelers label at the same time; see `label`. Raises Unanswered, ConfigError, RewardError."""
    tally, memory = tally or Tally(), Memory(utility)

    async def one(index: int) -> None:
        async with Browser(crowd.url) as browser:
            await enter(browser, crowd, index)
            taste = Taste(behaviour, seed, crowd.names[index])
            await label(browser, taste, memory, tally, votes=votes, stay=stay)

    await _all(one(index) for index in range(len(crowd.names)))
    return tally


async def _all(work: Iterable[Any]) -> None:
    """Runs coroutines together; where one fails, the others are ended first, and its error is raised."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
