"""The API against its own description, by schemathesis: each role, each route, requests that fit and that do not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from tests.label_client import TOKEN, Served, served

from tastemaker.labelling.settings import Labelling

load_all_checks()
# The other checks are of what this API has not, such as routes that create what others delete.
NAMES = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "response_headers_conformance", "negative_data_rejection",
)  # fmt: skip
ROLES = ("anonymous", "labeler", "admin", "token")


@dataclass
class Tally:
    """What was sent and answered."""

    requests: Counter = field(default_factory=Counter)
    statuses: Counter = field(default_factory=Counter)


def attack(app: Served, role: str, examples: int, tally: Tally) -> None:
    """Sends requests to each operation, and checks each answer. Raises for one that is wrong."""
    name = app.app.state.context.cookie
    schema = schemathesis.openapi.from_asgi(
        "/openapi.json", app.app, headers={"cookie": f"{name}={app.cookie('admin')}"}
    )
    # Requests have the role's own cookie or token, and no others are made up.
    for operations in schema.raw_schema["paths"].values():
        for operation in operations.values():
            operation.pop("security", None)
    own: dict[str, str] = {}
    if role == "token":
        own = {"authorization": f"Bearer {TOKEN.secret}"}
    elif role != "anonymous":
        own = {"cookie": f"{name}={app.cookie(role)}"}
    checks = CHECKS.get_by_names(NAMES)
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in GenerationMode:
            _attack(operation.as_strategy(generation_mode=mode), own, role, checks, examples, tally)


def _attack(strategy, own, role, checks, examples, tally) -> None:
    @hypothesis.settings(
        max_examples=examples, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(strategy)
    def send(case) -> None:
        response = case.call(headers=own)
        tally.requests[role] += 1
        tally.statuses[role, response.status_code] += 1
        assert response.status_code < 500, (case.as_curl_command(), response.text)
        if response.status_code not in (401, 403):
            case.validate_response(response, checks=list(checks))

    try:
        send()
    except hypothesis.errors.Unsatisfiable:
        return  # nothing about the operation can be wrong


@pytest.fixture
def app(tmp_path):
    settings = Labelling(mode="rank", images=3, repeat_rate=0.3)
    with served(tmp_path / "project", settings, tasks=30, hosts=frozenset({"testserver", "localhost"})) as found:
        yield found


def test_answers_are_as_described(app: Served):
    tally = Tally()
    for role in ROLES:
        attack(app, role, 6, tally)
    assert set(tally.requests) == set(ROLES)
    assert sum(tally.requests.values()) >= 300
    # Requests got to where they do something.
    assert tally.statuses["labeler", 200] > 20
    assert tally.statuses["token", 200] > 0
    assert tally.statuses["anonymous", 401] > 50


@pytest.mark.slow
def test_answers_are_as_described_over_ten_thousand_requests(app: Served, capsys):
    tally = Tally()
    for role in ROLES:
        attack(app, role, 160, tally)
    with capsys.disabled():
        print(f"\n{sum(tally.requests.values())} requests: {dict(tally.requests)}; {sorted(tally.statuses.items())}")
    assert sum(tally.requests.values()) >= 10_000
