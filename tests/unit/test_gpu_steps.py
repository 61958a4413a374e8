"""benchmarks/gpu.py: the steps, how they end, resuming, and the tables. Nothing is measured here."""

from __future__ import annotations

import importlib
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from tastemaker.cli.bench import BenchArgs
from tastemaker.cli.settings import read

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def _on_the_path() -> Iterator[None]:
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    return importlib.import_module("gpu")


@pytest.fixture(scope="module")
def steps() -> ModuleType:
    return importlib.import_module("gpu_steps")


@pytest.fixture(scope="module")
def fit() -> ModuleType:
    return importlib.import_module("gpu_fit")


def step(steps: ModuleType, name: str = "one", **options: Any) -> Any:
    return steps.Step(**{"name": name, "about": "it", "kind": "ratio", "command": ("x.py",), "limit": 10} | options)


def ended(gpu: ModuleType, code: int | None = 0, out: str = '{"a": 1}', seconds: float = 2.0) -> Any:
    return gpu.Ended(code, out, seconds)


# ---------------------------------------------------------------- the plan


@pytest.mark.parametrize("memory", [24.0, None])
def test_every_command_is_one_that_its_program_takes(steps, memory):
    scale = steps.REHEARSAL if memory is None else steps.card(memory)
    plan = steps.plan(scale)
    assert len({one.name for one in plan}) == len(plan)
    for one in plan:
        if "bench" in one.command:
            words = list(one.command[one.command.index("bench") + 1 :])
            args, name = read(BenchArgs, [*words, *one.smaller], "bench")
            assert (args.json, name) == (True, steps.PRESET)
            assert args.settings.optimizer.rows == args.settings.sampling.batch
        if one.kind == "fit":
            words = list(one.command[one.command.index(steps.PRESET) :])
            assert read(BenchArgs, [*words, *one.smaller], "bench")[0].settings.sampling.steps == 2
        scripts = [word for word in one.command if word.endswith(".py")]
        assert all((BENCHMARKS.parent / word).is_file() for word in scripts)


def test_a_setting_is_in_the_step_that_is_named_after_it(steps):
    found = {one.name: one for one in steps.plan(steps.card(80))}

    def settings(name: str) -> Any:
        command = found[name].command
        return read(BenchArgs, list(command[command.index("bench") + 1 :]), "bench")[0].settings

    assert not settings("sdxl").speed.compile
    assert settings("sdxl-compile").speed.compile
    assert settings("sd3-checkpointing").tuning.gradient_checkpointing
    assert settings("sd15-nf4").tuning.base_weights == "nf4"
    assert (settings("sd15-full").tuning.mode, settings("sd15-full").optimizer.eight_bit) == ("full", False)
    assert settings("sd15-full-8bit").optimizer.eight_bit
    assert settings("sd15-fp16").precision == "fp16"
    assert (settings("sd15-rows-32").optimizer.rows, settings("sd15-rows-32").sampling.samples) == (32, 32)
    assert found["sd15-fsdp"].environment["ACCELERATE_USE_FSDP"] == "true"
    assert "sampling.height=512" in found["sd3"].smaller
    assert found["sdxl"].smaller == ()
    # A rehearsal leaves out some numbers of rows, and compiles one model.
    rehearsed = {one.name for one in steps.plan(steps.REHEARSAL)}
    assert {name for name in found if "rows" not in name} - rehearsed == {"sdxl-compile", "sd3-compile"}
    assert rehearsed <= found.keys()


def test_a_small_card_begins_with_one_image_at_once(steps):
    assert [model.rows for model in steps.card(23.6).models] == [8, 1, 1]
    assert [model.rows for model in steps.card(79.6).models] == [8, 2, 2]


# ---------------------------------------------------------------- how a step ends


@pytest.mark.parametrize(
    ("code", "out", "status", "reason"),
    [
        (0, "CUDA out of memory, and caught", "measured", None),
        (None, "", "too long", "ended after 7 s"),
        (1, "Traceback\ntorch.OutOfMemoryError: CUDA out of memory. Tried\n\nlater", "out of memory", "torch.OutOfM"),
        (1, "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when", "out of memory", "RuntimeError: CUDA error"),
        (-signal.SIGKILL, "", "out of memory", "killed by signal 9"),
        (2, "loading\ntastemaker: tuning.base_weights is nf4, which needs\n", "failed", "tastemaker: tuning.base"),
        (3, "", "failed", "exit code 3"),
    ],
)
def test_why_a_step_has_no_figures(gpu, code, out, status, reason):
    found = gpu.judge(ended(gpu, code, out), 7)
    assert found[0] == status
    assert found[1] is None if reason is None else found[1].startswith(reason)


def test_figures_are_read_from_between_what_else_is_printed(gpu, steps):
    text = 'warming up {not this}\n{nor this}\n{\n "a": 1\n}\nW0101 torchrun says goodbye\n'
    assert gpu.answer(step(steps), ended(gpu, 0, text)) == {"a": 1}
    assert gpu.recorded(step(steps), ("x.py",), ended(gpu, 0, "nothing"), 9).status == "failed"


def test_what_pytest_wrote_is_counted(gpu):
    file = """<testsuites><testsuite><testcase name="a"/><testcase name="b"><failure message="no"/></testcase>
        <testcase name="c"><skipped message="no GPU"/></testcase><testcase name="d"/></testsuite></testsuites>"""
    assert gpu.tests(ElementTree.fromstring(file)) == {"passed": 2, "failed": ["b"], "skipped": {"c": "no GPU"}}


def test_a_step_without_what_it_needs_is_skipped_with_the_way_to_make_it(gpu, steps):
    def never(*_: Any) -> Any:
        raise AssertionError("it was run")

    made = gpu.attempt(step(steps, needs=("build/nowhere", "make it")), never, 9)
    assert (made.status, made.reason) == ("skipped", "build/nowhere is not there: make it")


def test_a_smaller_attempt_follows_where_memory_runs_out(gpu, steps):
    limits = []

    def run(_: Any, command: Sequence[str], limit: float) -> Any:
        limits.append(limit)
        return ended(gpu) if "small" in command else ended(gpu, 1, "torch.OutOfMemoryError: too much")

    made = gpu.attempt(step(steps, smaller=("small",)), run, 10)
    assert (made.status, made.found, made.command, made.seconds) == ("measured", {"a": 1}, ("x.py", "small"), 4)
    assert made.reason == "at the full size: torch.OutOfMemoryError: too much"
    assert limits == [10, 8]
    assert gpu.attempt(step(steps), run, 10).status == "out of memory"


# ---------------------------------------------------------------- going on


def test_failures_are_recorded_and_the_rest_goes_on_and_resumes(gpu, steps, tmp_path):
    plan = [step(steps, name) for name in ("good", "bad", "full", "last")]
    answers = {
        "good": ended(gpu), "bad": ended(gpu, 2, "tastemaker: no"), "full": ended(gpu, 1, "MemoryError"),
        "last": ended(gpu),
    }  # fmt: skip
    records: dict[str, Any] = {}
    asked, saved = [], []

    def run(one: Any, *_: Any) -> Any:
        asked.append(one.name)
        return answers[one.name]

    assert gpu.do(plan, records, run, lambda: saved.append(len(records)), 100) == []
    assert saved == [1, 2, 3, 4]
    assert {name: record.status for name, record in records.items()} == {
        "good": "measured", "bad": "failed", "full": "out of memory", "last": "measured"
    }  # fmt: skip
    # What failed is done again, and a step that is another one now.
    assert [one.name for one in gpu.left(plan, records, [])] == ["bad"]
    changed = [*plan[:3], step(steps, "last", command=("y.py",))]
    assert [one.name for one in gpu.left(changed, records, [])] == ["bad", "last"]
    assert [one.name for one in gpu.left(plan, {}, ["la*", "good"])] == ["good", "last"]
    # A file of it is read back as it was, on this machine alone.
    file = tmp_path / "gpu.json"
    machine = {"device": "A", "torch": "1"}
    kept = {name: vars(record) for name, record in records.items()}
    file.write_text(json.dumps({"machine": machine, "steps": kept}))
    assert gpu.load(file, machine) == records
    with pytest.raises(SystemExit, match=r"torch 1 -> 2.*--fresh"):
        gpu.load(file, machine | {"torch": "2"})


def test_no_step_begins_after_the_time_and_what_was_cut_short_is_left(gpu, steps):
    now = [0.0]

    def run(one: Any, _: Sequence[str], limit: float) -> Any:
        now[0] += min(limit, 8)
        return ended(gpu, None if limit < 8 else 0)

    plan = [step(steps, name) for name in ("a", "b", "c")]
    records: dict[str, Any] = {}
    rest = gpu.do(plan, records, run, lambda: None, 12, clock=lambda: now[0])
    assert [one.name for one in rest] == ["b", "c"]
    assert set(records) == {"a"}
    slow = [step(steps, "slow", limit=3)]
    assert gpu.do(slow, records, run, lambda: None, 100, clock=lambda: now[0]) == []
    assert (records["slow"].status, records["slow"].reason) == ("too long", "ended after 3 s")


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_step_is_ended_at_its_limit_with_what_it_started(gpu, steps, tmp_path, device):
    """As on a GPU in a Python of its own, and as in a rehearsal forked."""
    run = gpu.runner(device, tmp_path / "logs")
    given = run(
        step(steps, environment={"MORE": "x"}), ("-c", "import os; print(os.environ['DEVICE'], os.environ['MORE'])"), 99
    )
    assert (given.code, given.out) == (0, f"{device} x\n")
    child = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    found = run(step(steps), ("-c", child), 5)
    assert found.code is None
    status = Path(f"/proc/{int(found.out)}/stat")
    deadline = time.monotonic() + 60
    while status.exists() and status.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert run(step(steps), ("-c", "import sys; sys.exit(3)"), 99).code == 3


def test_a_machine_without_a_gpu_is_told_what_to_do(gpu):
    with pytest.raises(SystemExit, match=r"torch 2\.13\.0\+cpu finds no CUDA device.*DEVICE=cpu"):
        gpu.scale_of("cuda", {"torch": "2.13.0+cpu"})


# ---------------------------------------------------------------- the most that fits


def test_the_search_ends_with_the_first_that_does_not_fit(fit):
    tried = []

    def attempt(rows: int) -> Any:
        tried.append(rows)
        if rows > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return fit.Fit(rows, 1.0 * rows, None, 1.0, 1.0)

    found, too_many = fit.search([1, 2, 4, 8, 16], attempt)
    assert [one.rows for one in found] == [1, 2, 4]
    assert too_many == 8
    assert tried == [1, 2, 4, 8]
    assert fit.search([1, 2], attempt)[1] is None


# ---------------------------------------------------------------- tables


def test_the_tables_hold_the_figures_and_the_reasons(steps):
    table = importlib.import_module("gpu_table").table
    plan = [
        step(steps, "sd15", kind="bench", about="the base"), step(steps, "ratio-bf16"),
        step(steps, "fit-sd15", kind="fit", about="most rows"), step(steps, "tests", kind="tests"),
        step(steps, "trl", kind="trl"), step(steps, "later"), step(steps, "bad", kind="bench"),
    ]  # fmt: skip
    bench = {
        "settings": {"precision": "bf16", "height": 512, "rows": 8}, "images_per_second": 3.14159,
        "rows_per_second": 1234.5, "peak_memory_gib": 12.345, "wall": 9.876, "overhead": 1.0456,
    }  # fmt: skip
    fitted = {
        "largest": 4, "too_many": 6, "limit_gib": 23.0,
        "fits": [{"rows": 4, "peak_gib": 21.5, "estimated_gib": 20.25}],
    }  # fmt: skip
    found = {
        "sd15": bench, "ratio-bf16": {"sum": {"1": 0.5, "8": None}, "mean": {"1": 2e-5, "8": None}},
        "fit-sd15": fitted, "tests": {"passed": 9, "failed": [], "skipped": {"a": "b"}},
        "trl": {"median_seconds": {"ours": 1.0, "trl": 2.0}, "median_ratio": 0.5},
    }  # fmt: skip
    records: dict[str, Any] = {
        name: {"status": "measured", "found": one, "reason": None} for name, one in found.items()
    }
    records["bad"] = {"status": "failed", "found": None, "reason": "tastemaker: no"}
    machine = {"device": "H", "torch": "2", "memory_gib": 80.0, "driver": "5", "cuda": "13"}
    text = table(plan, records, machine)
    lines = text.splitlines()
    assert lines[0] == "H, 80.0 GiB, driver 5, CUDA 13, torch 2"
    assert "| sd15 | the base, bf16 | 512 | 8 | 3.14 | 1234 | 12.35 | 9.88 | 1.046 |" in lines
    assert "| ratio-bf16 | log-probability, sum | 5.0e-01 | out of memory |" in lines
    assert "| ratio-bf16 | log-probability, mean | 2.0e-05 | out of memory |" in lines
    assert "| fit-sd15 | most rows | 4 | 6 | 23 | 21.50 | 20.25 |" in lines
    assert "tests: 9 passed, 0 failed, 1 skipped" in lines
    assert "trl: a round takes ours 1.00 s, trl 2.00 s; ours / trl = 0.500" in lines
    assert lines[-3:] == ["", "- later: not run yet", "- bad: failed: tastemaker: no"]
    assert "a rehearsal" in table(plan, records, {"device": "cpu", "torch": "2"}).splitlines()[0]


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3"])
def test_random_models_of_small_numbers_answer_with_a_deviation_of_one(name):
    models = importlib.import_module("gpu_models")
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        model = vars(models)[f"{name}_reduced"](precision, "cpu", None)
        assert {parameter.dtype for parameter in model.network.parameters()} == {dtype}
        x = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            answer = model.predict(x, torch.tensor([500, 400]), model.encode(["a", "b"], 1.0))
        assert answer.std().item() == pytest.approx(1, abs=0.15)


# By the published checkpoints.
@pytest.mark.parametrize(("name", "count"), [("sd15", 859_520_964), ("sdxl", 2_567_463_684)])
def test_full_size_models_have_the_published_numbers_of_parameters(name, count):
    models = importlib.import_module("gpu_models")
    model = vars(models)[name]("bf16", "meta", None)
    assert sum(parameter.numel() for parameter in model.network.parameters()) == count
