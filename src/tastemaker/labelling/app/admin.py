"""The pages for administrators: how the project goes, who may label it, its settings and exports."""

from __future__ import annotations

import dataclasses
import io
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path as FilePath
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import FastAPI, Form, Path, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse

from tastemaker.errors import ConfigError, DataError
from tastemaker.labelling import accounts, batches
from tastemaker.labelling.app.access import Caller, access
from tastemaker.labelling.app.api import REFUSALS
from tastemaker.labelling.app.context import Context
from tastemaker.labelling.app.templating import render
from tastemaker.labelling.export import EXPORTS, ExportOptions, export_project
from tastemaker.labelling.project import change_settings
from tastemaker.labelling.statistics import Statistics, statistics, to_json
from tastemaker.labelling.tables import Invitation, User

MOST_DAYS, MOST_USES = 365, 1000
"""Of an invitation."""
_CHUNK = 2**18

Number = Annotated[int, Path(ge=1, le=2**53 - 1)]
Key = Annotated[str, Path(pattern="^[0-9a-f]{64}$")]


def add_admin(app: FastAPI, context: Context) -> None:
    """Adds the routes."""
    _add_overview(app, context)
    _add_invitations(app, context)
    _add_users(app, context)
    _add_batches(app, context)
    _add_settings(app, context)
    _add_export(app, context)


def _page(context: Context, name: str, caller: accounts.Person, status: int = 200, **values: Any) -> HTMLResponse:
    values = {"problem": None, "notice": None} | values
    page = render(f"admin_{name}.html", title=context.settings.title, person=caller, here=name, **values)
    return HTMLResponse(page, status)


def _sentence(error: Exception) -> str:
    text = str(error)
    return text[:1].upper() + text[1:] + "."


# ---------------------------------------------------------------- how the project goes


def _add_overview(app: FastAPI, context: Context) -> None:
    def found() -> Statistics:
        with context.project.database.read() as session:
            return statistics(session, context.settings, time.time())

    @app.get("/api/stats", **access("admin"), responses=REFUSALS)
    def stats() -> dict[str, Any]:
        """How the project goes: progress, agreement, and how each labeler labels."""
        return to_json(found())

    @app.get("/admin", **access("admin"), include_in_schema=False)
    def overview(caller: Caller) -> HTMLResponse:
        return _page(context, "overview", caller, stats=found(), settings=context.settings, show=_SHOWN)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _interval(share: Any) -> str:
    """The interval of a share in per cent, and how many cases it is of."""
    return f"{100 * share.low:.0f}–{100 * share.high:.0f}; of {share.of}"


def _number(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")  # adding zero to -0.0 gives 0.0


def _duration(hours: float | None) -> str:
    if hours is None:
        return "not known: nobody has labelled in the last hour"
    if hours < 1:
        return f"{60 * hours:.0f} minutes"
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.1f} days"


def _minute(seconds: float | None) -> str:
    return "–" if seconds is None else datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M")


def _moment(seconds: float) -> str:
    return f"{_minute(seconds)} UTC"


_SHOWN: dict[str, Callable[..., str]] = {
    "percent": _percent,
    "interval": _interval,
    "number": _number,
    "duration": _duration,
    "minute": _minute,
    "moment": _moment,
}
"""How numbers are written."""


# ---------------------------------------------------------------- invitations


def _add_invitations(app: FastAPI, context: Context) -> None:
    def show(caller: accounts.Person, status: int = 200, **values: Any) -> HTMLResponse:
        now = time.time()
        with context.project.database.read() as session:
            rows = session.scalars(sa.select(Invitation).order_by(Invitation.id.desc())).all()
            listed = [
                {
                    "id": row.id, "note": row.note, "role": row.role, "uses": row.uses, "max_uses": row.max_uses,
                    "expires": row.expires, "state": _state(row, now),
                }
                for row in rows
            ]  # fmt: skip
        values = {"link": None} | values
        return _page(context, "invitations", caller, status, invitations=listed, show=_SHOWN, most_days=MOST_DAYS,
                     most_uses=MOST_USES, **values)  # fmt: skip

    @app.get("/admin/invitations", **access("admin"), include_in_schema=False)
    def invitations(caller: Caller) -> HTMLResponse:
        return show(caller)

    @app.post("/admin/invitations", **access("admin"), include_in_schema=False)
    def invite(
        request: Request,
        caller: Caller,
        note: Annotated[str, Form(max_length=accounts.MOST_NOTE)] = "",
        role: Annotated[str, Form(pattern="^(labeler|admin)$")] = "labeler",
        max_uses: Annotated[int, Form(ge=1, le=MOST_USES)] = 1,
        days: Annotated[int, Form(ge=1, le=MOST_DAYS)] = 14,
    ) -> HTMLResponse:
        if not _is_storable(note):
            return show(caller, 400, problem="The note has characters that cannot be shown.")
        now = time.time()
        with context.project.database.write() as session:
            chosen: accounts.Role = "admin" if role == "admin" else "labeler"
            secret = accounts.invite(session, chosen, note.strip(), max_uses, now + 86400 * days, now)
        address = context.address or f"{request.url.scheme}://{request.headers['host']}"
        return show(caller, link=f"{address}/join/{secret}")

    @app.post("/admin/invitations/{invitation}/revoke", **access("admin"), include_in_schema=False)
    def revoke(invitation: Number) -> RedirectResponse:
        with context.project.database.write() as session:
            accounts.revoke(session, invitation)
        return RedirectResponse("/admin/invitations", 303)


def _state(row: Invitation, now: float) -> str:
    if row.revoked:
        return "revoked"
    if row.expires <= now:
        return "expired"
    return "used up" if row.uses >= row.max_uses else "open"


def _is_storable(text: str) -> bool:
    """Whether the database takes a text: PostgreSQL has no NUL, and UTF-8 no surrogates."""
    return "\0" not in text and text.encode("utf-8", "replace").decode() == text


# ---------------------------------------------------------------- users


def _add_users(app: FastAPI, context: Context) -> None:
    def show(caller: accounts.Person, status: int = 200, **values: Any) -> HTMLResponse:
        with context.project.database.read() as session:
            # Databases differ in how they compare capital and small letters.
            rows = sorted(session.scalars(sa.select(User)), key=lambda row: row.name.casefold())
            listed = [
                {
                    "id": row.id, "name": row.name, "role": row.role, "disabled": row.disabled,
                    "by_token": row.password_hash is None, "created": row.created,
                }
                for row in rows
            ]  # fmt: skip
        values = {"password": None, "of": None} | values
        return _page(context, "users", caller, status, users=listed, show=_SHOWN, **values)

    @app.get("/admin/users", **access("admin"), include_in_schema=False)
    def users(caller: Caller) -> HTMLResponse:
        return show(caller)

    def change(caller: accounts.Person, user: int, disabled: bool) -> Response:
        if user == caller.id:
            return show(caller, 400, problem="You cannot disable your own account.")
        try:
            with context.project.database.write() as session:
                accounts.set_disabled(session, user, disabled)
        except ConfigError as error:
            return show(caller, 400, problem=_sentence(error))
        return RedirectResponse("/admin/users", 303)

    @app.post("/admin/users/{user}/disable", **access("admin"), include_in_schema=False)
    def disable(caller: Caller, user: Number) -> Response:
        return change(caller, user, True)

    @app.post("/admin/users/{user}/enable", **access("admin"), include_in_schema=False)
    def enable(caller: Caller, user: Number) -> Response:
        return change(caller, user, False)

    @app.post("/admin/users/{user}/reset", **access("admin"), include_in_schema=False)
    def reset(caller: Caller, user: Number) -> HTMLResponse:
        password = accounts.random_password()
        with context.hashing:
            hashed = accounts.hashed_password(password)
        try:
            with context.project.database.write() as session:
                accounts.new_password(session, user, hashed)
                name = session.execute(sa.select(User.name).where(User.id == user)).scalar_one()
        except ConfigError as error:
            return show(caller, 400, problem=_sentence(error))
        return show(caller, password=password, of=name)


# ---------------------------------------------------------------- images of training runs


def _add_batches(app: FastAPI, context: Context) -> None:
    def show(caller: accounts.Person, status: int = 200, **values: Any) -> HTMLResponse:
        with context.project.database.read() as session:
            listed = batches.summaries(session, context.settings)
        return _page(context, "batches", caller, status, batches=listed, show=_SHOWN, **values)

    @app.get("/admin/batches", **access("admin"), include_in_schema=False)
    def list_batches(caller: Caller) -> HTMLResponse:
        return show(caller)

    @app.post("/admin/batches/{key}/withdraw", **access("admin"), include_in_schema=False)
    def withdraw(caller: Caller, key: Key) -> Response:
        with context.project.database.write() as session:
            found = batches.withdraw(session, context.settings, key)
        if found is None:
            return show(caller, 404, problem="There is no batch of this key.")
        return RedirectResponse("/admin/batches", 303)


# ---------------------------------------------------------------- settings


def _add_settings(app: FastAPI, context: Context) -> None:
    def show(caller: accounts.Person, status: int = 200, **values: Any) -> HTMLResponse:
        values = {"given": dataclasses.asdict(context.settings)} | values
        return _page(context, "settings", caller, status, settings=context.settings, **values)

    @app.get("/admin/settings", **access("admin"), include_in_schema=False)
    def settings(caller: Caller, saved: str = "") -> HTMLResponse:
        return show(caller, notice="The settings are saved." if saved else None)

    @app.post("/admin/settings", **access("admin"), include_in_schema=False)
    def save(
        caller: Caller,
        title: Annotated[str, Form(max_length=1000)],
        overlap: Annotated[int, Form()],
        gold_rate: Annotated[float, Form()],
        repeat_rate: Annotated[float, Form()],
        lease_minutes: Annotated[float, Form()],
        question: Annotated[str, Form(max_length=5000)] = "",
        instructions: Annotated[str, Form(max_length=100_000)] = "",
    ) -> Response:
        given = {
            "title": title.strip(), "question": question.strip() or None,
            "instructions": instructions.replace("\r\n", "\n"), "overlap": overlap, "gold_rate": gold_rate,
            "repeat_rate": repeat_rate, "lease_minutes": lease_minutes,
        }  # fmt: skip
        try:
            if not all(_is_storable(text) for text in (title, question, instructions)):
                raise ConfigError("a text has characters that cannot be stored")
            with context.changing:
                context.project = change_settings(context.project, **given)
        except ConfigError as error:
            return show(caller, 400, problem=_sentence(error), given=given)
        return RedirectResponse("/admin/settings?saved=1", 303)


# ---------------------------------------------------------------- exports


def _add_export(app: FastAPI, context: Context) -> None:
    @app.get("/admin/export", **access("admin"), include_in_schema=False)
    def export_page(caller: Caller) -> HTMLResponse:
        return _page(context, "export", caller, formats=EXPORTS)

    @app.post("/admin/export", **access("admin"), include_in_schema=False)
    def export(
        caller: Caller,
        form: Annotated[str, Form(alias="format", max_length=40)] = EXPORTS[0],
        split: Annotated[str, Form(pattern="^(train|validation)?$")] = "",
        pseudonyms: Annotated[bool, Form()] = False,
    ) -> Response:
        options = ExportOptions(split=split or None, pseudonyms=pseudonyms)
        folder = tempfile.TemporaryDirectory(prefix="tastemaker-export-")  # until all is sent
        try:
            out = FilePath(folder.name) / "export"
            export_project(context.project, out, form, options)
        except BaseException as error:
            folder.cleanup()
            if isinstance(error, ConfigError | DataError):
                return _page(context, "export", caller, 400, formats=EXPORTS, problem=_sentence(error))
            raise
        name = f"{form}-{time.strftime('%Y-%m-%d')}.zip"
        headers = {"content-disposition": f'attachment; filename="{name}"'}
        return StreamingResponse(_zipped(out, folder), media_type="application/zip", headers=headers)


class _Pipe(io.RawIOBase):
    """A file to write to, whose bytes are taken away as they come."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.parts.append(bytes(data))
        return len(self.parts[-1])

    def taken(self) -> bytes:
        data = b"".join(self.parts)
        self.parts.clear()
        return data


def _zipped(out: FilePath, folder: tempfile.TemporaryDirectory) -> Iterator[bytes]:
    """A folder as a ZIP file, in parts. Removes the temporary folder at the end."""
    with folder:
        pipe = _Pipe()
        with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED) as archive:  # images are compressed already
            for path in sorted(out.rglob("*")):
                if not path.is_file():
                    continue
                with path.open("rb") as source, archive.open(str(path.relative_to(out)), "w") as target:
                    while part := source.read(_CHUNK):
                        target.write(part)
                        yield pipe.taken()
        yield pipe.taken()
