"""`tastemaker label export`, `import`, `stats` and `backup`."""

from __future__ import annotations

import json

import pytest

from label_projects import add_user, claimed, image, judged, make_project
from tastemaker.cli import label_backup, label_export, label_import, label_stats, label_withdraw
from tastemaker.errors import ConfigError
from tastemaker.labelling import batches
from tastemaker.labelling.project import open_project
from tastemaker.labelling.settings import Labelling


@pytest.fixture
def folder(tmp_path):
    with make_project(tmp_path / "p", Labelling(overlap=2, validation=0.0), tasks=2) as project:
        for name, better in (("ann", (0, 1)), ("bob", (0, None))):
            user = add_user(project, name)
            for assigned, winner in zip(claimed(project, user, 2, 0.0), better, strict=True):
                judged(project, user, assigned, 0.0, lambda i, w=winner: 0.0 if w is None else float(i == w))
    return tmp_path / "p"


def test_export(folder, tmp_path, capsys):
    assert label_export.run([str(folder)]) == 0
    assert f"{tmp_path / 'p-native'}/judgement.jsonl: 4 rows" in capsys.readouterr().out
    argv = ["--format", "rapidata", "--table", "jsonl", "--conflicts", "unanimous", "--labelers", "ann", "bob",
            "--pseudonyms", "--include-surplus", "--split", "train"]  # fmt: skip
    assert label_export.run([str(folder), *argv, "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert f"{tmp_path / 'out/train.jsonl'}: 2 rows" in out
    assert "left out: 1 comparisons without a winner" in out
    text = (tmp_path / "out/train.jsonl").read_text()
    assert "labeler-" in text
    assert "ann" not in text


def test_import(folder, tmp_path, capsys):
    assert label_export.run([str(folder), "--format", "pairs"]) == 0
    assert label_import.run([str(tmp_path / "new"), str(tmp_path / "p-pairs"), "--format", "pairs"]) == 0
    assert f"{tmp_path / 'new'}: 2 tasks, 3 answers and 2 labelers added" in capsys.readouterr().out
    for n in (0, 1):
        image(n).save(tmp_path / f"{n}.png")
    (tmp_path / "gold.csv").write_text("prompt,image_0,image_1,preferred\na cat,0.png,1.png,0\n")
    assert label_import.run([str(folder), str(tmp_path / "gold.csv"), "--format", "gold"]) == 0
    assert "1 tasks, 0 answers and 0 labelers added" in capsys.readouterr().out


def test_backup(folder, tmp_path, capsys):
    assert label_backup.run([str(folder), str(tmp_path / "copy")]) == 0
    assert f"{tmp_path / 'copy'}: 2 tasks, 4 judgements and 4 images in " in capsys.readouterr().out
    with open_project(tmp_path / "copy") as copy, open_project(folder) as project:
        assert copy.uuid == project.uuid


def test_stats(folder, capsys):
    assert label_stats.run([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "2 of 2 tasks done, 4 of 4 answers; 4 votes, 0 skipped, 0 surplus" in out
    # Values 1 1 and -1 0: n(1) = 2, n(0) = 1, n(-1) = 1; distances 0 to 1 1.5, -1 to 0 1, -1 to 1 2.5. Observed
    # 2 * 1 / 4, expected 2 * (2 * 2.25 + 1 + 2 * 6.25) / 12: alpha = 1 - 0.5 / 3 = 0.83.
    assert "Krippendorff's alpha 0.83" in out
    bob = next(line for line in out.splitlines() if "bob" in line)
    assert "50 (9-91)" in bob  # one tie of two: the Wilson interval of 1 / 2
    assert label_stats.run([str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["progress"]["tasks_done"] == 2
    assert [one["name"] for one in found["labelers"]] == ["ann", "bob"]


def test_statistics_of_a_project_without_answers(tmp_path, capsys):
    make_project(tmp_path / "p", Labelling(), tasks=1).close()
    assert label_stats.run([str(tmp_path / "p")]) == 0
    assert "agreement: not known before two labelers have answered the same tasks" in capsys.readouterr().out


@pytest.mark.parametrize("command", [label_export, label_import, label_backup, label_stats, label_withdraw])
def test_what_is_missing_is_said(command, tmp_path):
    with pytest.raises(ConfigError, match="give "):
        command.run([])
    given = [str(tmp_path / "nothing"), str(tmp_path / "x")]
    if command is label_import:
        return
    with pytest.raises(ConfigError, match="is no labelling project"):
        command.run(given[: 2 if command is label_backup else 1])


def test_withdraw(tmp_path, capsys):
    """Three batches wait, of which one is withdrawn by its key, and then all others."""
    folder = str(tmp_path / "p")
    with make_project(tmp_path / "p", Labelling(mode="rate"), tasks=0) as project:
        keys = [batches.submit(project, ["a"], [image(number)], float(number)).key for number in range(3)]
    assert len({key[:4] for key in keys}) == 3
    assert label_withdraw.run([folder]) == 0
    assert capsys.readouterr().out.split("\n") == [f"{key[:12]}  0 of 1 tasks labelled" for key in keys[::-1]] + [""]
    with pytest.raises(ConfigError, match="no batch that waits has a key that begins with 'xyz'; those that wait: "):
        label_withdraw.run([folder, "xyz"])
    with pytest.raises(ConfigError, match="3 batches that wait have a key that begins with ''"):
        label_withdraw.run([folder, ""])
    with pytest.raises(ConfigError, match="not both"):
        label_withdraw.run([folder, keys[0], "--all"])

    def states() -> list[str]:
        with open_project(tmp_path / "p") as project, project.database.read() as session:
            return [one.state for one in batches.summaries(session, project.settings)][::-1]

    assert states() == ["waiting"] * 3
    assert label_withdraw.run([folder, keys[1][:4]]) == 0
    assert capsys.readouterr().out == f"withdrawn: {keys[1][:12]}  0 of 1 tasks labelled\n"
    assert states() == ["waiting", "withdrawn", "waiting"]
    assert label_withdraw.run([folder, "--all"]) == 0
    assert states() == ["withdrawn"] * 3
    capsys.readouterr()
    assert label_withdraw.run([folder]) == 0
    assert capsys.readouterr().out == "no batch waits for labelers\n"


def test_wrong_choices(folder):
    with pytest.raises(ConfigError, match="--table cannot be"):
        label_export.run([str(folder), "--table", "csv"])
    with pytest.raises(ConfigError, match="the format 'pair' is unknown; did you mean 'pairs'"):
        label_export.run([str(folder), "--format", "pair"])
