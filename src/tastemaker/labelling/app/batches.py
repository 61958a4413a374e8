"""The HTTP API of training runs that ask the project's labelers: images in, rewards out when all are labelled.

For programs that send the administrator's token. What they send is read as a reward server reads it.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Path, Request
from fastapi.concurrency import run_in_threadpool
from PIL import Image
from pydantic import BaseModel, ConfigDict

from tastemaker.errors import DataError
from tastemaker.labelling import batches
from tastemaker.labelling.app.access import access
from tastemaker.labelling.app.api import REFUSALS, UNKNOWN
from tastemaker.labelling.app.context import Context
from tastemaker.labelling.batches import BatchState
from tastemaker.rewards.jpeg import to_bytes
from tastemaker.rewards.serving.protocol import JSON, PROTOCOL, READ, SAFETENSORS, Limits, RequestError

PATH = "/api/batches"
LIMITS = Limits(body=192 * 2**20, images=1024, pixels=2**26)
"""Of one batch: 1024 images, or 256 of 512 x 512 pixels. A whole round comes at once."""

Key = Annotated[str, Path(pattern="^[0-9a-f]{64}$")]


class ProjectInfo(BaseModel):
    """What a run needs to know of the project."""

    model_config = ConfigDict(extra="forbid")

    protocol: int
    project: str
    title: str
    mode: Literal["pair", "rank", "best", "rate"]
    images: int
    overlap: int
    formats: list[str]
    limits: dict[str, int]


class BatchShown(BaseModel):
    """How far the labelling of a batch is. `rewards` are there when it is finished."""

    model_config = ConfigDict(extra="forbid")

    key: str
    state: Literal["waiting", "finished", "withdrawn"]
    tasks: int
    labelled: int
    rewards: list[float] | None


_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        JSON: {
            "schema": {
                "type": "object",
                "properties": {
                    "prompts": {"type": "array", "items": {"type": "string"}, "minItems": 1},
                    "images": {
                        "type": "array", "minItems": 1,
                        "items": {"type": "string", "format": "byte", "description": "A PNG file in base64."},
                    },
                },
                "required": ["prompts", "images"],
                "additionalProperties": False,
            }
        },
        SAFETENSORS: {"schema": {"type": "string", "format": "binary"}},
    },
}  # fmt: skip


def add_batches(app: FastAPI, context: Context) -> None:
    """Adds the routes under /api/batches."""
    # Images take much more memory as numbers than in their files.
    decoding = threading.Semaphore(1)

    @app.get(PATH, **access("token"), responses=REFUSALS)
    def describe() -> ProjectInfo:
        """The project, and what a batch may have."""
        settings = context.settings
        return ProjectInfo(
            protocol=PROTOCOL, project=context.project.uuid, title=settings.title, mode=settings.mode,
            images=settings.task_size, overlap=settings.overlap, formats=list(READ),
            limits=dataclasses.asdict(LIMITS),
        )  # fmt: skip

    def add(kind: str, body: bytes) -> BatchState:
        with decoding:
            content = READ[kind](body, LIMITS)
            images = [Image.fromarray(image) for image in to_bytes(content.x).numpy()]
        return batches.submit(context.project, content.prompts, images, time.time())

    @app.post(PATH, responses=REFUSALS, openapi_extra={**access("token")["openapi_extra"], "requestBody": _BODY})
    async def submit(request: Request) -> BatchShown:
        """Puts images before the labelers, unless they are there already: a batch is known by its content."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in READ:
            raise HTTPException(415, f"the content type is {kind[:100]!r}, expected {' or '.join(READ)}")
        try:
            found = await run_in_threadpool(add, kind, await request.body())
        except RequestError as error:
            raise HTTPException(error.status, str(error)) from None
        except DataError as error:
            raise HTTPException(400, str(error)) from None
        return _shown(found)

    @app.get(PATH + "/{key}", **access("token"), responses=REFUSALS | UNKNOWN)
    def look_up(key: Key) -> BatchShown:
        """How far a batch is, and its rewards when all of it is labelled."""
        with context.project.database.read() as session:
            found = batches.look_up(session, context.settings, key)
        return _shown(found)

    @app.delete(PATH + "/{key}", **access("token"), responses=REFUSALS | UNKNOWN)
    def withdraw(key: Key) -> BatchShown:
        """Asks labelers no more for what is missing of a batch. Submitted again, it is asked for again."""
        with context.project.database.write() as session:
            found = batches.withdraw(session, context.settings, key)
        return _shown(found)


def _shown(found: BatchState | None) -> BatchShown:
    if found is None:
        raise HTTPException(404, "there is no batch of this key")
    rewards = None if found.rewards is None else list(found.rewards)
    return BatchShown(key=found.key, state=found.state, tasks=found.tasks, labelled=found.labelled, rewards=rewards)
