"""A project from its making to its export, by the commands and over HTTP as a browser speaks, on both databases."""

from __future__ import annotations

import io
import json
import re
import uuid

import httpx
import sqlalchemy as sa
from PIL import Image

from label_serving import serving
from tastemaker.cli import label_create, label_export, label_stats
from tastemaker.labelling.project import open_project
from tastemaker.labelling.tables import Assignment, JudgementRow

COLOURS = ("red", "blue")


def visitor(url: str) -> httpx.Client:
    headers = {"Origin": url, "Sec-Fetch-Site": "same-origin"}
    return httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=20)


def sent(client: httpx.Client, assignment: int, **fields) -> dict:
    """The receipt of a judgement, which is sent twice and must be stored once."""
    body = {"judgements": [{"id": str(uuid.uuid4()), "assignment": assignment, **fields}]}
    (first,), (again,) = (client.post("/api/judgements", json=body).json()["receipts"] for _ in range(2))
    assert (first["status"], again["status"]) == ("saved", "already saved")
    return first


def test_create_serve_vote_and_export(database, tmp_path, capsys):
    """Three tasks of a red and a blue image: red, then blue corrected to red, then a tie."""
    images, folder = tmp_path / "images", tmp_path / "project"
    images.mkdir()
    with (images / "metadata.jsonl").open("w") as file:
        for number in range(3):
            for shade, colour in enumerate(COLOURS):
                pixels = [255 - number if index == 2 * shade else 0 for index in range(3)]
                Image.new("RGB", (8, 8), tuple(pixels)).save(images / f"{number}-{colour}.png")
                file.write(json.dumps({"file_name": f"{number}-{colour}.png", "text": f"prompt {number}"}) + "\n")
    options = [] if database is None else ["--database", database]
    assert label_create.run([str(folder), "--images", str(images), "--validation", "0", *options]) == 0
    assert (folder / "labels.db").exists() == (database is None)

    with serving(folder) as served, visitor(served.url) as admin, visitor(served.url) as ann:
        assert admin.post("/login", data={"token": served.token}).headers["location"] == "/admin"
        page = admin.post("/admin/invitations", data={"note": "ann", "max_uses": 1}).text
        (link,) = re.findall(r'value="(http[^"]+/join/[^"]+)"', page)
        joined = ann.post(link, data={"name": "ann", "password": "correct horse"})
        assert (joined.status_code, joined.headers["location"]) == (303, "/label")
        tasks = ann.post("/api/assignments", json={"count": 5}).json()["assignments"]
        assert [task["prompt"] for task in tasks] == ["prompt 0", "prompt 1", "prompt 2"]
        red = {task["id"]: reddest(ann, task["images"]) for task in tasks}
        one, two, three = (task["id"] for task in tasks)
        compare = {"kind": "compare", "left": 0, "right": 1}
        sent(ann, one, **compare, outcome=("left", "right")[red[one]])
        wrong = sent(ann, two, **compare, outcome=("right", "left")[red[two]])
        sent(ann, two, **compare, outcome=("left", "right")[red[two]], supersedes=wrong["id"])
        sent(ann, three, **compare, outcome="tie")
        assert ann.post("/api/assignments", json={"count": 5}).json()["progress"]["done"] == 3
        assert "3 of 3" in admin.get("/admin").text

    # What was acknowledged is there for who opens the project anew.
    with open_project(folder) as project, project.database.read() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(JudgementRow)) == 4
        assert session.scalar(sa.select(sa.func.count()).where(Assignment.finished_at.is_not(None))) == 3
    capsys.readouterr()
    assert label_stats.run([str(folder)]) == 0
    assert "3 of 3 tasks done, 3 of 3 answers" in capsys.readouterr().out
    out = tmp_path / "out"
    assert label_export.run([str(folder), "--format", "pairs", "--table", "jsonl", "--out", str(out)]) == 0
    rows = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert [row["caption"] for row in rows] == ["prompt 0", "prompt 1"]  # the tie is left out
    for row in rows:
        with Image.open(out / row[f"jpg_{int(row['label_1'])}"]) as better:
            assert better.convert("RGB").getpixel((0, 0))[0] > 100


def reddest(client: httpx.Client, names: list[str]) -> int:
    """Which of a task's two images, fetched from the server, is the red one."""
    files = [client.get(f"/images/{name}.png").content for name in names]
    reds = [Image.open(io.BytesIO(file)).convert("RGB").getpixel((0, 0))[0] for file in files]
    return reds.index(max(reds))
