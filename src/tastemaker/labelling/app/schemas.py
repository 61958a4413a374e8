"""What the API reads and writes. Everything that is read is bounded, and unknown fields are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from tastemaker.labelling import ranking
from tastemaker.labelling.assignments import MOST_AT_ONCE
from tastemaker.labelling.settings import MAX_IMAGES

MOST_JUDGEMENTS = 50
"""Most judgements of a request."""
MOST_KEYS = 60
_LARGEST = 2**31 - 1
"""Of the database's numbers."""

Id = Annotated[int, Field(ge=1, le=2**53 - 1)]
"""An id that JavaScript's numbers hold."""
Uuid = Annotated[str, Field(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$", max_length=36)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$", max_length=64)]
Position = Annotated[int, Field(ge=0, lt=MAX_IMAGES)]
"""An image of a task."""
Group = Annotated[list[Position], Field(max_length=MAX_IMAGES)]


def _at_most_largest(value: Any) -> Any:
    """A page may stand open for weeks."""
    return min(value, _LARGEST) if type(value) is int else value


class Read(BaseModel):
    """Base of what is read."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Judgement(Read):
    """One act of a labeler on a task; which fields matter depends on `kind`."""

    id: Uuid
    """Made by the client: what is sent twice is stored once."""
    kind: ranking.Kind
    left: Position | None = None
    right: Position | None = None
    outcome: Annotated[str, Field(max_length=30)] | None = None
    image: Position | None = None
    order: Annotated[list[Group], Field(max_length=MAX_IMAGES)] | None = None
    """From the best to the worst; images of one list are equally good."""
    confirmed: bool = False
    on: bool = True
    supersedes: Uuid | None = None
    """The earlier judgement that this one takes the place of, or takes back."""
    elapsed_ms: Annotated[int, BeforeValidator(_at_most_largest), Field(ge=0, le=2**53 - 1)] | None = None
    """Milliseconds since the images were shown."""


class Sent(Judgement):
    """A judgement with the assignment that it is of."""

    assignment: Id


class Judgements(Read):
    """Judgements, in their order."""

    judgements: Annotated[list[Sent], Field(min_length=1, max_length=MOST_JUDGEMENTS)]


class Count(Read):
    """How many tasks are asked for."""

    count: Annotated[int, Field(ge=1, le=MOST_AT_ONCE)] = 5


class AssignmentIds(Read):
    """Assignments by their ids."""

    assignments: Annotated[list[Id], Field(max_length=100)]


Action = Annotated[str, Field(pattern="^[a-z0-9_]{1,40}$", max_length=40)]
Key = Annotated[str, Field(pattern=r"^[!-~]?[ -~\u00a1-\u024f\u0370-\u03ff\u0400-\u04ff]{0,39}$", max_length=40)]
"""A key as browsers name it (`ArrowLeft`, `Shift+1`); an empty one takes an action's key away."""


class Keys(Read):
    """Keys by action, where they differ from the usual ones."""

    keys: Annotated[dict[Action, Key], Field(max_length=MOST_KEYS)]


class Receipt(BaseModel):
    """What became of a judgement. `saved` says that it is on the server's disk."""

    id: str
    status: Literal["saved", "already saved", "refused"]
    reason: str | None
    complete: bool


class Receipts(BaseModel):
    """One receipt for each judgement, in their order."""

    receipts: list[Receipt]


class Assignment(BaseModel):
    """A task in the hands of its labeler."""

    id: Id
    prompt: str
    question: str | None
    images: list[Sha256]
    """By position."""
    presentation: list[Position]
    """Positions in the order of showing and inserting."""
    sides: str
    """Which image of each two is on the left (`ranking.left_right`)."""
    judgements: list[Judgement]
    """What the labeler has said on it, oldest first."""
    lease_until: float
    """Until then the task is kept for the labeler; seconds since 1970-01-01 UTC."""


class Progress(BaseModel):
    """Counts of tasks."""

    done: int
    available: int
    tasks: int
    tasks_done: int


class Assignments(BaseModel):
    """Tasks, with how far the labeler and the project are."""

    assignments: list[Assignment]
    progress: Progress


class History(BaseModel):
    """Tasks that the labeler has judged, the latest first."""

    assignments: list[Assignment]


class ProjectShown(BaseModel):
    """How tasks are labelled."""

    uuid: str
    title: str
    question: str
    instructions_html: str
    mode: Literal["pair", "rank", "best", "rate"]
    images: int
    transitive: bool
    confirm: bool
    ties: bool
    both_bad: bool
    skip: bool
    marks: list[str]
    lease_minutes: float


class Me(BaseModel):
    """The labeler, and what is labelled."""

    name: str
    role: Literal["labeler", "admin"]
    project: ProjectShown
    keys: dict[str, str]
    progress: Progress


class Nothing(BaseModel):
    """An empty object."""


class Refusal(BaseModel):
    """Why a request was refused."""

    detail: str


class Mistake(BaseModel):
    """What is wrong with a part of a request."""

    loc: list[str | int]
    """Where."""
    msg: str
    type: str


class Mistakes(BaseModel):
    """What is wrong with a request."""

    detail: list[Mistake]
