"""What the verbs hand to the functions behind them, what `ls` and `doctor` print, and exit codes."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tastemaker
from tastemaker.cli import doctor, ls
from tastemaker.cli.main import main
from tastemaker.config.presets import PRESETS
from tastemaker.config.schema import Config, Sampling
from tastemaker.config.yaml_file import dump_config
from tastemaker.errors import DivergedError

SOURCE = Path(tastemaker.__file__).parent.parent
PRESET = "ddpo-compressibility"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("TASTEMAKER_DEBUG", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def behind(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Puts functions in the place of a module's, and returns the list of what they are called with."""

    def put(module: str, *names: str, answer: Any = None) -> list[Any]:
        calls: list[Any] = []

        def function(*args: Any, **kwargs: Any) -> Any:
            calls.append((args, kwargs))
            if isinstance(answer, BaseException):
                raise answer
            return answer

        fake: Any = types.ModuleType(module)
        for name in names:
            setattr(fake, name, function)
        monkeypatch.setitem(sys.modules, module, fake)
        return calls

    return put


def make_run(folder: Path, config: Config | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(config or Config()), encoding="utf-8")
    return folder


def test_exit_code_is_the_error_s_own(behind: Callable[..., list[Any]], capsys: pytest.CaptureFixture[str]):
    behind("tastemaker.training.run", "train", answer=DivergedError("the loss is not finite\nin round 3"))
    assert main(["train", PRESET]) == 3
    assert capsys.readouterr().err == "tastemaker: the loss is not finite in round 3\n"


def test_interrupt(behind: Callable[..., list[Any]]):
    behind("tastemaker.training.run", "train", answer=KeyboardInterrupt())
    assert main(["train", PRESET]) == 130


def test_train_calls_run(behind: Callable[..., list[Any]]):
    calls = behind("tastemaker.training.run", "train")
    assert main(["train", PRESET, "--seed", "3"]) == 0
    ((config, out), kwargs) = calls[0]
    assert (config.seed, out) == (3, Path(f"runs/{PRESET}-1"))
    assert kwargs == {"command": f"tastemaker train {PRESET} --seed 3"}


def test_train_takes_the_first_free_folder(behind: Callable[..., list[Any]]):
    calls = behind("tastemaker.training.run", "train")
    Path(f"runs/{PRESET}-1").mkdir(parents=True)
    Path(f"runs/{PRESET}-3").mkdir(parents=True)
    main(["train", PRESET])
    main(["train", PRESET, "--out", "elsewhere/x"])
    assert [args[1] for args, _ in calls] == [Path(f"runs/{PRESET}-2"), Path("elsewhere/x")]


def test_several_processes_need_one_folder(
    behind: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    calls = behind("tastemaker.training.run", "train")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    make_run(Path("one"))
    for words in (["sample", "--prompt", "a cat"], ["mix", "one", "one", "--alpha", "0.5"]):
        assert main(words) == 2
        assert "give --out DIR" in capsys.readouterr().err
    make_run(Path("begun-by-rank-0"))
    assert main(["train", PRESET, "--out", "begun-by-rank-0"]) == 0
    # They agree on the first one's (tests/invariants/test_processes.py).
    assert main(["train", PRESET]) == 0
    assert [args[1] for args, _ in calls] == [Path("begun-by-rank-0"), Path(f"runs/{PRESET}-1")]


def test_resume_calls_run(behind: Callable[..., list[Any]]):
    calls = behind("tastemaker.training.run", "resume")
    make_run(Path("a-run"))
    assert main(["resume", "a-run"]) == 0
    assert main(["resume", "a-run", "--rounds", "9"]) == 0
    assert [args for args, _ in calls] == [(Path("a-run"), None), (Path("a-run"), 9)]


def test_report_of_one_and_of_several(behind: Callable[..., list[Any]], capsys: pytest.CaptureFixture[str]):
    calls = behind("tastemaker.report.page", "write_report", "compare_report", answer=Path("some.html"))
    runs = [make_run(Path(name)) for name in ("a", "b")]
    assert main(["report", "a"]) == 0
    assert main(["report", "a", "b"]) == 0
    assert main(["report", "a", "b", "--out", "x.html"]) == 0
    assert [args for args, _ in calls] == [(runs[0],), (runs, Path("comparison.html")), (runs, Path("x.html"))]
    assert capsys.readouterr().out == "some.html\n" * 3


def test_sample_takes_defaults_and_prompts(behind: Callable[..., list[Any]], capsys: pytest.CaptureFixture[str]):
    calls = behind("tastemaker.evaluation.images", "write_samples", answer=Path("sheet.png"))
    assert (
        main(["sample", "--prompt", "a=b", "--prompt", "c d", "--steps", "9", "--model", "x", "--sde-type", "cps"]) == 0
    )
    assert calls[0] == (
        (),
        {
            "model": "x",
            "adapter": None,
            "prompts": ("a=b", "c d"),
            "n": 4,
            "seed": 0,
            "sampling": Sampling(steps=9, sde_type="cps"),
            "out": Path("runs/sample-1"),
        },
    )
    Path("list.txt").write_text("one\ntwo\n")
    assert main(["sample", "--prompts", "list.txt"]) == 0
    assert (calls[1][1]["prompts"], calls[1][1]["sampling"].steps) == (("one", "two"), 50)
    assert capsys.readouterr().out == "sheet.png\n" * 2


def test_sample_from_a_run_takes_the_run_s_settings(behind: Callable[..., list[Any]]):
    calls = behind("tastemaker.evaluation.images", "write_samples", answer=Path("sheet.png"))
    run = make_run(Path("a-run"), PRESETS["ddpo-compressibility"].config)
    (run / "adapter").mkdir()
    for adapter in ("a-run", "a-run/adapter"):
        assert main(["sample", "--adapter", adapter, "--prompt", "x", "--guidance", "2"]) == 0
    for (_, given), adapter in zip(calls, ("a-run", "a-run/adapter"), strict=True):
        assert (given["model"], given["adapter"]) == ("bundled", adapter)
        assert given["sampling"] == replace(PRESETS["ddpo-compressibility"].config.sampling, guidance=2.0)


def test_ls_has_a_line_for_each(capsys: pytest.CaptureFixture[str]):
    assert main(["ls", "presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(PRESETS)
    assert main(["ls"]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if not line.startswith(" ")] == [f"{kind}:" for kind in ls.KINDS]
    assert "jpeg-compressibility" in out
    assert "398" in out


def test_ls_draws_a_table_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(ls, "KINDS", {"rewards": lambda: {"[bold]name": "does [x]"}})
    assert main(["ls"]) == 0
    out = capsys.readouterr().out
    assert "[bold]name" in out  # square brackets are text, not rich's markup
    assert "does [x]" in out


# ---------------------------------------------------------------- doctor


def test_doctor_asks_for_what_the_package_asks_for():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((SOURCE.parent / "pyproject.toml").read_text())["project"]
    wanted = dict(requirement.lower().split(">=") for requirement in project["dependencies"])
    assert wanted == doctor.REQUIRED
    assert project["requires-python"] == f">={'.'.join(map(str, doctor.PYTHON))}"


def test_doctor_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    fine, absent = doctor.Line("ok", "fine"), doctor.Line("absent", "extra", "pip install extra")
    monkeypatch.setattr(doctor, "findings", lambda: iter([fine, absent]))
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == "ok       fine\nabsent   extra\n         -> pip install extra\n"
    monkeypatch.setattr(doctor, "findings", lambda: iter([fine, doctor.Line("missing", "part", "get it")]))
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.endswith("-> get it\n\n1 required thing is missing.\n")


@pytest.mark.parametrize(
    ("found", "state"),
    [
        (None, "missing"),
        ("0.35.9", "missing"),
        ("0.36", "ok"),
        ("0.36.0.dev0", "ok"),
        ("1.0+cpu", "ok"),
        ("0.100", "ok"),
    ],
)
def test_doctor_compares_versions(found: str | None, state: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "_version", lambda name: found)
    line = doctor.package("diffusers", "0.36")
    assert line.state == state
    assert line.fix == ("" if state == "ok" else "pip install 'diffusers>=0.36'")


def test_doctor_misses_assets_and_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert doctor.assets(tmp_path).state == "missing"
    (tmp_path / "model_index.json").write_text("{}")
    assert doctor.assets(tmp_path).state == "missing"
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert doctor.assets(tmp_path).state == "ok"
    assert next(doctor.folder(tmp_path / "runs")).state == "ok"
    assert not (tmp_path / "runs").exists()
    monkeypatch.setattr(doctor, "ROOM_GB", float("inf"))
    assert [line.state for line in doctor.folder(tmp_path)] == ["ok", "low"]


def test_doctor_says_where_it_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    line = next(iter(doctor.folder(tmp_path / "runs")))
    assert (line.state, line.what) == ("missing", f"{tmp_path} cannot be written: Permission denied")


def test_doctor_survives_a_broken_torch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    line = doctor.device()
    assert line.state == "missing"
    assert "torch cannot be imported: ModuleNotFoundError" in line.what


def test_require_run_suggests_nothing_far_away(capsys: pytest.CaptureFixture[str]):
    assert main(["resume", "nowhere"]) == 2
    assert capsys.readouterr().err == "tastemaker: nowhere does not exist; start one with `tastemaker train`\n"
