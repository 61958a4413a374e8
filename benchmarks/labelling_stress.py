"""Many simulated labelers at once, who are cut off, click twice and vote twice, and a server killed as it writes.

    python benchmarks/labelling_stress.py [--labelers 50] [--votes 200] [--seed 0] [--database URL] [--kills 20]
        [--seconds 0] [--work DIR]

The server is `tastemaker label serve` in a process of its own, killed with SIGKILL so many times at random moments and
started again. Labelers are clients over HTTP, each of which is ended in the middle of a request now and then, and comes
back. Leases are short, so that tasks of those who are away go to others. Afterwards the database is compared with what
the server acknowledged. Prints one JSON object; exit code 1 unless every acknowledged judgement is there exactly once
and as it was sent, each task has as many labelers as asked for, and no response was an error of the server.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
from PIL import Image

from tastemaker.labelling import ranking
from tastemaker.labelling.accounts import invite
from tastemaker.labelling.judgements import from_row
from tastemaker.labelling.project import NewImage, NewTask, Project, add_tasks, create_project, open_project
from tastemaker.labelling.ranking import Judgement
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.simulate import Browser, Crowd, Memory, Receipt, Tally, enter, label
from tastemaker.labelling.tables import Assignment, JudgementRow, Task
from tastemaker.labelling.taste import Behaviour, Taste

IMAGES = 64
"""Image files, of which tasks have any two: labelling does not depend on how many there are."""
DOUBLE = 0.05
"""Share of the judgements that are sent twice at once, and of those that are sent with two ids."""
OVERLAP = 2


@dataclass(frozen=True)
class Stress:
    """What is done."""

    labelers: int = 50
    votes: int = 200
    """Judgements of each labeler, about: all tasks are labelled, whoever does it."""
    seed: int = 0
    kills: int = 20
    """SIGKILLs of the server."""
    client_life: float = 10.0
    """Mean seconds after which a labeler's client is ended; 0 never does it."""
    lease_seconds: float = 6.0
    seconds: float = 0.0
    """Median seconds before each answer."""


@dataclass
class Seen:
    """What the clients saw."""

    acknowledged: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    """Assignment and content of each judgement with a receipt that says it is stored, by id."""
    refused: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    """Requests by route and status."""
    errors: list[str] = field(default_factory=list)
    """Responses with a status of 500 or above."""
    save: list[float] = field(default_factory=list)
    """Seconds of the requests that store judgements."""
    claim: list[float] = field(default_factory=list)
    """Seconds of the requests for tasks."""
    client_kills: int = 0
    server_kills: int = 0
    doubled: int = 0
    """Judgements that were sent twice at once."""
    double_votes: int = 0
    """Judgements that were sent at once with two ids."""


class RudeBrowser(Browser):
    """A browser whose user clicks twice now and then."""

    def __init__(self, url: str, seen: Seen, dice: random.Random, cookies: httpx.Cookies) -> None:
        super().__init__(url, wait=180.0)
        self.seen, self.dice = seen, dice
        self.client.cookies = cookies
        self.client.event_hooks = {"response": [self._note]}

    async def send(self, judgements: Sequence[tuple[int, Judgement]]) -> list[Receipt]:
        """Sends judgements, some twice at once, and some with another id too."""
        drawn = self.dice.random()
        if drawn < DOUBLE:
            self.seen.doubled += 1
            receipts, _ = await asyncio.gather(self._sent(judgements), self._sent(judgements))
        elif drawn < 2 * DOUBLE:
            self.seen.double_votes += 1
            others = [(assignment, replace(one, id=str(uuid.uuid4()))) for assignment, one in judgements]
            receipts, _ = await asyncio.gather(self._sent(judgements), self._sent(others))
        else:
            receipts = await self._sent(judgements)
        return receipts

    async def _sent(self, judgements: Sequence[tuple[int, Judgement]]) -> list[Receipt]:
        receipts = await super().send(judgements)
        for (assignment, one), receipt in zip(judgements, receipts, strict=True):
            if receipt.status == "refused":
                self.seen.refused[str(receipt.reason)] += 1
            else:
                self.seen.acknowledged[one.id] = (assignment, ranking.to_fields(one))
        return receipts

    async def _note(self, response: httpx.Response) -> None:
        await response.aread()
        path, status = response.request.url.path, response.status_code
        route = "/images" if path.startswith("/images/") else "/join" if path.startswith("/join/") else path
        self.seen.statuses[f"{response.request.method} {route} {status}"] += 1
        if status >= 500:
            self.seen.errors.append(f"{route}: {status}: {response.text[:200]}")
        if status == 200 and path in ("/api/judgements", "/api/assignments"):
            times = self.seen.save if path == "/api/judgements" else self.seen.claim
            times.append(response.elapsed.total_seconds())


class Server:
    """`tastemaker label serve` in a process of its own."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder, self.log = folder, log
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts it, without waiting."""
        words = ["-m", "tastemaker", "label", "serve", str(self.folder), "--port", str(self.port), "--without-link"]
        with self.log.open("ab") as log:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen([sys.executable, *words], stdout=log, stderr=log, env=environment)

    async def answers(self, seconds: float = 120) -> None:
        """Waits until it answers."""
        until = time.monotonic() + seconds
        async with httpx.AsyncClient(trust_env=False) as client:
            while time.monotonic() < until:
                try:
                    if (await client.get(f"{self.url}/health")).status_code == 200:
                        return
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
        raise RuntimeError(f"the server did not start:\n{self.log.read_text()[-2000:]}")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Ends it by a signal, and waits for its end."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(60)


def make_project(folder: Path, stress: Stress, database: str | None) -> Project:
    """A project in which each labeler has about so many pairs to judge."""
    settings = Labelling("pair", overlap=OVERLAP, lease_minutes=stress.lease_seconds / 60, seed=stress.seed)
    project = create_project(folder, settings, database)
    files, dice = [], random.Random(stress.seed)
    for _ in range(IMAGES):
        file = io.BytesIO()
        Image.frombytes("RGB", (16, 16), dice.randbytes(768)).save(file, "PNG")
        files.append(file.getvalue())
    count = stress.labelers * stress.votes // OVERLAP
    new = [NewTask(f"prompt {n % 97}", [NewImage(file) for file in dice.sample(files, 2)]) for n in range(count)]
    add_tasks(project, new)
    return project


async def labeler(index: int, crowd: Crowd, stress: Stress, memory: Memory, tally: Tally, seen: Seen) -> None:
    """One person: labels until nothing is left, is cut off now and then, and comes back as the same."""
    dice = random.Random(f"{stress.seed}:{index}")
    taste = Taste(Behaviour(temperature=0.2, undo=0.03, seconds=stress.seconds), stress.seed, crowd.names[index])
    async with RudeBrowser(crowd.url, seen, dice, httpx.Cookies()) as browser:
        await enter(browser, crowd, index)
        cookies = browser.client.cookies
    while True:
        life = dice.expovariate(1 / stress.client_life) if stress.client_life else None
        try:
            async with RudeBrowser(crowd.url, seen, dice, cookies) as browser:
                # What others hold comes back when their leases have ended.
                stay = 3 * stress.lease_seconds
                await asyncio.wait_for(label(browser, taste, memory, tally, stay=stay, ahead=3), life)
            return
        except asyncio.TimeoutError:
            seen.client_kills += 1
            # Back at once, or when the leases have ended.
            await asyncio.sleep(stress.lease_seconds * dice.random() * (0.1 if dice.random() < 0.7 else 1.5))


async def kill_now_and_then(server: Server, stress: Stress, seen: Seen) -> None:
    """Kills the server at random moments while labelers vote, and starts it again."""
    dice, total = random.Random(f"{stress.seed}:kills"), stress.labelers * stress.votes
    for number in range(stress.kills):
        # Spread over the votes, so that each kill hits a server that is at work.
        due = total * (number + dice.random()) / (stress.kills + 1)
        while len(seen.acknowledged) < due:
            await asyncio.sleep(0.002)
        await asyncio.sleep(dice.random() * 0.05)
        server.kill()
        seen.server_kills += 1
        server.start()
        await server.answers()


async def run(project: Project, stress: Stress, server: Server) -> tuple[Seen, float]:
    """All labelers until nothing is left. Returns what they saw, and the seconds it took."""
    seen, tally = Seen(), Tally()
    # As the judge would take most of the time: any number of an image does.
    memory = Memory(lambda x, prompts: x.mean(dim=(1, 2, 3)).tolist())
    with project.database.write() as session:
        now = time.time()
        token = invite(session, "labeler", "stress", stress.labelers, now + 86400, now)
    names = [f"labeler {index}" for index in range(stress.labelers)]
    crowd = Crowd(server.url, names, [f"password of {name}" for name in names], token)
    began = time.monotonic()
    work = [labeler(index, crowd, stress, memory, tally, seen, httpx.Cookies()) for index in range(stress.labelers)]
    people = asyncio.gather(*work)
    killer = asyncio.ensure_future(kill_now_and_then(server, stress, seen))
    try:
        await people
    finally:
        people.cancel()
        killer.cancel()
        await asyncio.gather(people, killer, return_exceptions=True)
    return seen, time.monotonic() - began


def check(project: Project, seen: Seen) -> list[str]:
    """What is wrong with the database, by what the clients saw; nothing where all is well."""
    wrong = [f"the server failed: {error}" for error in seen.errors[:10]]
    with project.database.read() as session:
        rows = session.scalars(sa.select(JudgementRow).order_by(JudgementRow.id)).all()
        assignments = session.scalars(sa.select(Assignment)).all()
        tasks = session.scalars(sa.select(Task)).all()
        if project.database.sqlite:
            for pragma, good in {"integrity_check": [("ok",)], "foreign_key_check": []}.items():
                found = [tuple(row) for row in session.execute(sa.text(f"PRAGMA {pragma}")).all()]
                wrong += [] if found == good else [f"{pragma}: {found[:3]}"]
    stored = Counter(row.client_id for row in rows)
    wrong += [f"judgement {name} is stored {count} times" for name, count in stored.items() if count > 1]
    by_id = {row.client_id: row for row in rows}
    for name, (assignment, content) in seen.acknowledged.items():
        row = by_id.get(name)
        if row is None:
            wrong.append(f"the acknowledged judgement {name} is lost")
        elif row.assignment_id != assignment or ranking.to_fields(from_row(row)) != content:
            wrong.append(f"the acknowledged judgement {name} is stored otherwise than it was sent")
    by_assignment: dict[int, list[Judgement]] = {}
    for row in rows:
        by_assignment.setdefault(row.assignment_id, []).append(from_row(row))
    complete: Counter[int] = Counter()
    for row in assignments:
        wrong += _replayed(project.settings, row, by_assignment.get(row.id, []))
        complete[row.task_id] += row.finished_at is not None and not row.skipped and not row.surplus
    people = Counter((row.task_id, row.user_id, row.kind) for row in assignments)
    wrong += [f"labeler {who[1]} has task {who[0]} {count} times" for who, count in people.items() if count > 1]
    for task in tasks:
        if not complete[task.id] == task.finished == project.settings.overlap:
            wrong.append(f"task {task.id} has {complete[task.id]} complete assignments, and says {task.finished}")
    return wrong


def _replayed(settings: Labelling, row: Assignment, judgements: Sequence[Judgement]) -> list[str]:
    """Whether the judgements of an assignment, one after the other, lead to the state that is stored of it."""
    wrong, before = [], list[Judgement]()
    for one in judgements:
        reason = ranking.refusal(settings, row.presentation, before, one)
        wrong += [] if reason is None else [f"judgement {one.id} should have been refused: {reason}"]
        before.append(one)
    found = ranking.state(settings, row.presentation, before)
    if (row.finished_at is not None) != found.complete or row.skipped != found.skipped:
        wrong.append(f"assignment {row.id} is not as its judgements say")
    return wrong


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)] if ordered else 0.0


def stressed(folder: Path, stress: Stress, database: str | None = None) -> dict[str, Any]:
    """Makes a project in `folder`, stresses it, and returns the figures with what is wrong."""
    log = folder.with_suffix(".log")
    with make_project(folder, stress, database) as project:
        server = Server(folder, log)
        server.start()
        try:
            asyncio.run(server.answers())
            seen, seconds = asyncio.run(run(project, stress, server))
        finally:
            server.kill(signal.SIGTERM)
    said = log.read_text()
    with open_project(folder) as project:
        wrong = check(project, seen)
        with project.database.read() as session:
            stored = session.scalar(sa.select(sa.func.count()).select_from(JudgementRow))
            surplus = session.scalar(sa.select(sa.func.count()).select_from(Assignment).where(Assignment.surplus))
    wrong += [f"the server wrote: {line}" for line in said.splitlines() if "Traceback" in line or "locked" in line]
    return {
        **asdict(stress), "database": "sqlite" if database is None else "postgresql", "run_seconds": round(seconds, 1),
        "stored": stored, "acknowledged": len(seen.acknowledged),
        "votes_per_second": round(len(seen.acknowledged) / seconds, 1),
        "save_ms": _milliseconds(seen.save), "claim_ms": _milliseconds(seen.claim),
        "server_kills": seen.server_kills, "client_kills": seen.client_kills, "sent_twice": seen.doubled,
        "voted_twice": seen.double_votes, "surplus_assignments": surplus, "refused": dict(seen.refused),
        "requests": dict(sorted(seen.statuses.items())), "wrong": wrong[:20], "wrongs": len(wrong),
    }  # fmt: skip


def _milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    return {f"p{share}": round(1000 * percentile(seconds, share / 100), 1) for share in (50, 95, 99)}


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in asdict(Stress()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--database", help="an empty PostgreSQL database; by default SQLite")
    parser.add_argument("--work", type=Path)
    args = parser.parse_args(words)
    stress = Stress(**{name: getattr(args, name) for name in asdict(Stress())})
    with tempfile.TemporaryDirectory() as temporary:
        figures = stressed((args.work or Path(temporary)) / "project", stress, args.database)
    print(json.dumps(figures, indent=1))
    return 1 if figures["wrongs"] else 0


if __name__ == "__main__":
    sys.exit(main())
