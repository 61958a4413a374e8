"""Benchmarks by what a user gives: NAME:SOURCE, or a published file that is recognised by what is in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tastemaker.data.tables import near_match, read_records, shown
from tastemaker.errors import DataError, nearest
from tastemaker.question_benchmarks import bundled, dpg, geneval2, oneig, tifa, vqascore
from tastemaker.question_benchmarks.benchmark import Benchmark


@dataclass(frozen=True)
class Format:
    """A form that benchmarks are published in."""

    summary: str
    read: Callable[[str], Benchmark]
    """From what follows the name and a colon. Raises DataError or PromptError."""
    published: str
    """What to give, and where it is from."""
    argument: str = "FILE"
    """What follows the name and a colon, for people."""


def _of_path(read: Callable[[Path], Benchmark]) -> Callable[[str], Benchmark]:
    return lambda source: read(Path(source).expanduser())


FORMATS = {
    "geneval2": Format(
        "GenEval 2: Soft-TIFA, by skill and number of atoms",
        _of_path(geneval2.read),
        "geneval2_data.jsonl of github.com/facebookresearch/GenEval2",
    ),
    "dpg": Format(
        "DPG-Bench, DSG-1k: questions with dependencies, by category",
        _of_path(dpg.read),
        "dpg_bench.csv of github.com/TencentQQGYLab/ELLA, or dsg-1k-anns.csv of github.com/j-min/DSG",
    ),
    "tifa": Format(
        "TIFA v1.0: questions with choices, by element type",
        _of_path(tifa.read),
        "tifa_v1.0_question_answers.json of github.com/Yushi-Hu/tifa",
    ),
    "tifa-free-form": Format(
        "TIFA v1.0 without showing choices: answers are taken for the nearest one",
        _of_path(tifa.read_free_form),
        "tifa_v1.0_question_answers.json of github.com/Yushi-Hu/tifa",
    ),
    "oneig": Format(
        "OneIG-Bench: alignment, questions with dependencies",
        _of_path(oneig.read),
        "the folder of github.com/OneIG-Bench/OneIG-Benchmark",
        "FOLDER",
    ),
    "oneig-zh": Format(
        "OneIG-Bench in Chinese",
        _of_path(oneig.read_chinese),
        "the folder of github.com/OneIG-Bench/OneIG-Benchmark",
        "FOLDER",
    ),
    "genai-bench": Format(
        "GenAI-Bench: VQAScore by skill",
        _of_path(vqascore.read_genai_bench),
        "genai_image.json of huggingface.co/datasets/BaiqiL/GenAI-Bench-1600, with genai_skills.json beside it",
    ),
    "vqascore": Format(
        "VQAScore of any prompts", vqascore.read, "prompts, as --prompts of `tastemaker sample` takes", "PROMPTS"
    ),
    "bundled": Format(
        "the bundled model's world: objects, attributes, counts and relations",
        bundled.read,
        "prompts of the bundled model's grammar; `bundled` alone takes some of each kind",
        "PROMPTS",
    ),
}
"""By name."""


def load_benchmark(given: str) -> Benchmark:
    """A benchmark by `bundled`, `NAME:SOURCE`, or the path of a published file or folder.

    Raises DataError or PromptError, with the file, row and column of what is wrong.
    """
    if given == "bundled":
        return bundled.read()
    name, _, source = given.partition(":")
    if name in FORMATS and not os.path.lexists(given):
        if not source:
            raise DataError(f"give what {name} is in, as {name}:PATH: {FORMATS[name].published}")
        return FORMATS[name].read(source)
    path = Path(given).expanduser()
    if os.path.isdir(path):
        if (path / "OneIG-Bench.csv").is_file():
            return oneig.read(path)
        raise DataError(f"the folder {shown(path)} is no benchmark: of folders OneIG-Bench's is known, OneIG-Bench.csv")
    if not os.path.isfile(path):
        near = near_match(path)
        hint = f"did you mean {shown(near)}?" if near else nearest(name, list(FORMATS))
        raise DataError(f"there is no benchmark {given!r}, and no file of this name; {hint}")
    return FORMATS[_recognised(path)].read(given)


def _recognised(path: Path) -> str:
    """The name of the form that a file is in, by the columns of its first row. Raises DataError."""
    columns = {
        "geneval2": {"prompt", "vqa_list"}, "dpg": {"item_id", "proposition_id"}, "tifa": {"caption", "question"},
    }  # fmt: skip
    where, row = read_records(path)[0]
    if isinstance(row, dict):
        for name, needed in columns.items():
            if needed <= set(row):
                return name
        first = next(iter(row.values()), None)
        if isinstance(first, dict) and "prompt" in first:
            return "genai-bench"
        if isinstance(first, dict) and "dependency" in first:
            raise DataError(
                f"{path} has OneIG-Bench's questions without its prompts: give {FORMATS['oneig'].published}"
            )
    found = f"the columns are {shown(', '.join(map(str, row)))[:200]}" if isinstance(row, dict) else f"it is {row!r}"
    raise DataError(
        f"{where}: not the form of a benchmark that is known ({', '.join(FORMATS)}); {found}; to have a missing column "
        "named, say which it is, as in dpg:PATH"
    )
