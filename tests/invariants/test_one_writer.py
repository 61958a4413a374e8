"""Two commands on one folder: the second is refused, and leaves the folder as it is."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tastemaker.cli.main import main
from tastemaker.errors import ConfigError
from tastemaker.runs.locking import only_writer

TINY = [
    "--rounds", "1", "sampling.steps=2", "sampling.samples=2", "sampling.per_prompt=2", "optimizer.updates=1",
    "optimizer.rows=4", "evaluation.prompts=1", "evaluation.per_prompt=2", "evaluation.kl_images=0",
]  # fmt: skip


def test_a_second_writer_is_refused_until_the_first_has_ended(tmp_path):
    with only_writer(tmp_path):
        with pytest.raises(ConfigError, match=f"another process is writing to {tmp_path}: wait until"):
            only_writer(tmp_path).__enter__()
        (tmp_path / "within").mkdir()
        with only_writer(tmp_path / "within"):  # a run in a folder of iterations
            pass
    with pytest.raises(KeyError), only_writer(tmp_path):
        raise KeyError
    with only_writer(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["within"]


def test_a_process_that_is_killed_lets_go(tmp_path):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        with only_writer(tmp_path):
            os.write(write, b"locked")
            signal.pause()
    assert os.read(read, 6) == b"locked"
    with pytest.raises(ConfigError, match="another process is writing"), only_writer(tmp_path):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with only_writer(tmp_path):
        pass


def test_commands_refuse_a_folder_in_use(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = ["--model", str(checkpoint), *TINY]
    assert main(["train", "ddpo-compressibility", *given, "--out", "run"]) == 0
    commands = {
        "run": ["resume", "run", "--rounds", "2"],
        "evaluation": ["evaluate", "run", "--rewards", "colourfulness", "--out", "evaluation"],
        "answers": ["ask", "bundled", "run", "--take", "1", "--n", "1", "--out", "answers"],
        "iterations": ["iterate", "ddpo-compressibility", "--simulate", "--out", "iterations"],
    }
    for name, words in commands.items():
        folder = Path(name)
        folder.mkdir(exist_ok=True)
        with only_writer(folder):
            capsys.readouterr()
            assert main(words) == 2, name
            said = capsys.readouterr().err
            assert f"tastemaker: another process is writing to {name}: wait" in said, said
        if name == "run":
            assert (folder / "report.html").is_file()
            assert not list(folder.glob("checkpoints/*2*"))
        else:
            assert not list(folder.rglob("*.png")), name
