"""Many labelers who are cut off, click twice and vote twice, and a server that is killed while it writes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import labelling_stress
from labelling_stress import Seen, Stress, check, make_project, stressed

from labelled import answers, labelers
from tastemaker.labelling import assignments, ranking
from tastemaker.labelling.judgements import save
from tastemaker.labelling.tables import JudgementRow, Task

SHORT = Stress(labelers=6, votes=12, kills=1, client_life=3.0, lease_seconds=2.0)


def well(figures):
    assert figures["wrong"] == []
    assert figures["acknowledged"] >= 0.95 * figures["labelers"] * figures["votes"]
    # 5xx would stand in `wrong`; nothing but these came back.
    assert {status.rpartition(" ")[2] for status in figures["requests"]} <= {"200", "303"}
    assert figures["server_kills"] == figures["kills"]
    assert min(figures["client_kills"], figures["sent_twice"], figures["voted_twice"]) > 0


@pytest.mark.slow
def test_no_acknowledged_vote_is_lost_and_none_doubled(database, tmp_path):
    well(stressed(tmp_path / "project", SHORT, database))


@pytest.mark.slow
def test_fifty_labelers_of_two_hundred_votes(database, tmp_path):
    figures = stressed(tmp_path / "project", Stress(), database)
    well(figures)
    print({name: figures[name] for name in ("database", "votes_per_second", "save_ms", "claim_ms", "server_kills")})


def test_what_is_wrong_is_found(tmp_path):
    """The check does see a judgement that is lost or changed, and a task that has too few or too many labelers."""
    with make_project(tmp_path / "project", Stress(labelers=2, votes=4), None) as project:
        lost = check(project, Seen(acknowledged={"lost": (1, {})}))
        assert lost[0] == "the acknowledged judgement lost is lost"
        assert "task 1 has 0 complete assignments, and says 0" in lost

        seen = Seen()
        for user in labelers(project, 2):
            with project.database.write() as session:
                for task in assignments.claim(session, project.settings, user, 20, 0.0):
                    made = [(task.id, one) for one in answers(project.settings, task)]
                    save(session, project.settings, user, made, 0.0)
                    seen.acknowledged |= {one.id: (task.id, ranking.to_fields(one)) for _, one in made}
        assert check(project, seen) == []
        with project.database.write() as session:
            row = session.get(JudgementRow, 1)
            row.outcome = "tie"
            session.get(Task, 2).finished = 1
        wrong = check(project, seen)
        assert any("is stored otherwise than it was sent" in line for line in wrong)
        assert "task 2 has 2 complete assignments, and says 1" in wrong
        seen.errors.append("/api/judgements: 503: database is locked")
        assert check(project, seen)[0] == "the server failed: /api/judgements: 503: database is locked"


def test_percentiles():
    """Of 1 to 100, 95% are at most 95."""
    values = list(range(1, 101))
    assert [labelling_stress.percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
