"""The HTTP API of the labelling page. Everything but the statistics is for labelers.

Nothing here says what made an image, nor that a task is a gold or a repeated one.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import FastAPI, HTTPException, Path, Query

from tastemaker.labelling import assignments, judgements, ranking
from tastemaker.labelling.app import schemas
from tastemaker.labelling.app.access import Caller, access
from tastemaker.labelling.app.context import Context
from tastemaker.labelling.app.markdown import to_html
from tastemaker.labelling.app.schemas import Mistakes, Refusal
from tastemaker.labelling.assignments import Assigned
from tastemaker.labelling.progress import progress_of
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.tables import User

REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "The body cannot be read."},
    401: {"model": Refusal, "description": "The caller is not logged in."},
    403: {"model": Refusal, "description": "The caller may not do this, or the request comes from another site."},
    408: {"model": Refusal, "description": "The body did not arrive in time."},
    413: {"model": Refusal, "description": "The body is too long."},
    415: {"model": Refusal, "description": "The content type is another one than application/json."},
    422: {"model": Mistakes, "description": "The request is not as described."},
    503: {"model": Refusal, "description": "The database does not answer."},
}
"""Responses that every route of the API may give."""
UNKNOWN: dict[int | str, dict[str, Any]] = {404: {"model": Refusal, "description": "There is none of this name."}}
"""Besides, those of routes whose path names one thing."""


def add_api(app: FastAPI, context: Context) -> None:
    """Adds the routes under /api that are for labelers."""
    _add_me(app, context)
    _add_assignments(app, context)

    @app.post("/api/judgements", **access("labeler"), responses=REFUSALS)
    def save(body: schemas.Judgements, caller: Caller) -> schemas.Receipts:
        """Adds judgements, in their order, and gives a receipt for each."""
        sent = [(one.assignment, _judgement(one)) for one in body.judgements]
        with context.project.database.write() as session:
            receipts = judgements.save(session, context.settings, caller.id, sent, time.time())
        return schemas.Receipts(receipts=[schemas.Receipt(**dataclasses.asdict(receipt)) for receipt in receipts])

    @app.get("/api/history", **access("labeler"), responses=REFUSALS, response_model=schemas.History,
             response_model_exclude_unset=True)  # fmt: skip
    def history(
        caller: Caller,
        count: Annotated[int, Query(ge=1, le=assignments.MOST_AT_ONCE)] = assignments.MOST_AT_ONCE,
        before: Annotated[int | None, Query(ge=1, le=2**53 - 1)] = None,
    ) -> dict[str, Any]:
        """The caller's tasks that have judgements, the latest first: those before the assignment `before`."""
        with context.project.database.read() as session:
            found = assignments.recent(session, caller.id, count, before)
        return {"assignments": [_shown(one) for one in found]}


def _add_me(app: FastAPI, context: Context) -> None:
    @app.get("/api/me", **access("labeler"), responses=REFUSALS)
    def me(caller: Caller) -> schemas.Me:
        """The caller, and how tasks are labelled."""
        settings = context.settings
        with context.project.database.read() as session:
            keys = session.execute(sa.select(User.keys).where(User.id == caller.id)).scalar_one()
            progress = progress_of(session, settings, caller.id, time.time())
        return schemas.Me(
            name=caller.name, role=caller.role, project=_project(context.project.uuid, settings), keys=keys,
            progress=schemas.Progress(**dataclasses.asdict(progress)),
        )  # fmt: skip

    @app.put("/api/keys", **access("labeler"), responses=REFUSALS)
    def change_keys(body: schemas.Keys, caller: Caller) -> schemas.Keys:
        """Sets the caller's own keys."""
        with context.project.database.write() as session:
            session.execute(sa.update(User).where(User.id == caller.id).values(keys=body.keys))
        return body


def _add_assignments(app: FastAPI, context: Context) -> None:
    @app.post("/api/assignments", **access("labeler"), responses=REFUSALS, response_model=schemas.Assignments,
              response_model_exclude_unset=True)  # fmt: skip
    def claim(body: schemas.Count, caller: Caller) -> dict[str, Any]:
        """Tasks for the caller: those begun before, then further ones. Their leases begin anew."""
        with context.project.database.write() as session:
            now = time.time()
            found = assignments.claim(session, context.settings, caller.id, body.count, now)
        # Counting takes longer, and others need not wait for it.
        with context.project.database.read() as session:
            progress = progress_of(session, context.settings, caller.id, now)
        return {"assignments": [_shown(one) for one in found], "progress": dataclasses.asdict(progress)}

    @app.get("/api/assignments/{assignment}", **access("labeler"), responses=REFUSALS | UNKNOWN,
             response_model=schemas.Assignment, response_model_exclude_unset=True)  # fmt: skip
    def look_up(assignment: Annotated[int, Path(ge=1, le=2**53 - 1)], caller: Caller) -> dict[str, Any]:
        """One of the caller's tasks with what the caller has said on it."""
        with context.project.database.read() as session:
            found = assignments.find(session, caller.id, assignment)
        if found is None:
            raise HTTPException(404, "there is no such task among yours")
        return _shown(found)

    @app.post("/api/assignments/renew", **access("labeler"), responses=REFUSALS)
    def renew(body: schemas.AssignmentIds, caller: Caller) -> schemas.AssignmentIds:
        """Begins the leases of assignments anew, and returns those that the caller still has."""
        with context.project.database.write() as session:
            kept = assignments.renew(session, context.settings, caller.id, body.assignments, time.time())
        return schemas.AssignmentIds(assignments=kept)

    @app.post("/api/assignments/release", **access("labeler"), responses=REFUSALS)
    def release(body: schemas.AssignmentIds, caller: Caller) -> schemas.Nothing:
        """Gives up assignments that were fetched and not begun. The content type may be text/plain, of a beacon."""
        with context.project.database.write() as session:
            assignments.release(session, caller.id, body.assignments, time.time())
        return schemas.Nothing()


def _project(uuid: str, settings: Labelling) -> schemas.ProjectShown:
    return schemas.ProjectShown(
        uuid=uuid, title=settings.title, question=settings.shown_question,
        instructions_html=to_html(settings.instructions), mode=settings.mode, images=settings.task_size,
        transitive=settings.transitive, confirm=settings.confirm, ties=settings.ties, both_bad=settings.both_bad,
        skip=settings.skip, marks=list(settings.marks), lease_minutes=settings.lease_minutes,
    )  # fmt: skip


def _judgement(sent: schemas.Sent) -> ranking.Judgement:
    order = None if sent.order is None else tuple(tuple(group) for group in sent.order)
    return ranking.Judgement(
        sent.id, sent.kind, sent.left, sent.right, sent.outcome, sent.image, order, sent.confirmed, sent.on,
        sent.supersedes, sent.elapsed_ms,
    )  # fmt: skip


def _shown(assigned: Assigned) -> dict[str, Any]:
    return {
        "id": assigned.id, "prompt": assigned.prompt, "question": assigned.question, "images": list(assigned.images),
        "presentation": list(assigned.presentation), "sides": assigned.sides,
        "judgements": [ranking.to_fields(one) for one in assigned.judgements], "lease_until": assigned.lease_until,
    }  # fmt: skip
