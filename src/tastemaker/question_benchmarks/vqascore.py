"""VQAScore (Lin et al. 2024, arXiv 2404.01291) of any prompts, and GenAI-Bench (Li et al. 2024), which is judged by it.

GenAI-Bench is genai_image.json and, beside it, genai_skills.json of huggingface.co/datasets/BaiqiL/GenAI-Bench-1600:

    {"00001": {"id": "00001", "prompt": "A baker pulling freshly baked bread out of an oven.", "models": {...}}}
    {"counting": [12, 40], "basic": [1, 2]}
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tastemaker.data.prompts import load_prompts
from tastemaker.errors import DataError
from tastemaker.question_benchmarks.benchmark import (
    Benchmark,
    ImageScores,
    Measure,
    Prompt,
    Question,
    by_prompt_category,
    of_images,
)
from tastemaker.question_benchmarks.rows import mapping, name, read_object, text

ASKED = 'Does this figure show "{}"? Please answer yes or no.'
"""t2v_metrics, clip_t5_model.py, `default_question_template`."""
SKILL, SKILLS_FILE = "skill", "genai_skills.json"


def read(source: str) -> Benchmark:
    """VQAScore of the prompts that `--prompts` takes. Raises PromptError."""
    listed = load_prompts(source).prompts
    prompts = tuple(Prompt(str(index), prompt, (_question(prompt),)) for index, prompt in enumerate(listed))
    return Benchmark("vqascore", source, prompts, "probability", 1, measures)


def read_genai_bench(path: Path) -> Benchmark:
    """GenAI-Bench in genai_image.json, with the skills where genai_skills.json lies beside it. Raises DataError."""
    rows = read_object(path)
    skills: dict[str, list[str]] = {}
    if (beside := path.with_name(SKILLS_FILE)).is_file():
        for skill, numbers in read_object(beside).items():
            if not isinstance(numbers, list):
                raise DataError(f"{beside}, entry {skill}: expected a list of prompts, but found {numbers!r}")
            for one in numbers:
                number = name(one, skill, str(beside)).zfill(5)
                if number not in rows:
                    raise DataError(f"{beside}, entry {skill}: {path.name} has no prompt {number}")
                skills.setdefault(number, []).append(skill)
    prompts = []
    for number, entry in rows.items():
        where = f"{path}, entry {number}"
        prompt = text(mapping(entry, where), "prompt", where)
        prompts.append(Prompt(number, prompt, (_question(prompt),), {SKILL: tuple(skills.get(number, ()))}))
    return Benchmark("genai-bench", str(path), tuple(prompts), "probability", 1, measures)


def measures(images: Sequence[ImageScores]) -> list[Measure]:
    """The probability of yes, of all images and by the skills of prompts."""
    return [of_images("", "VQAScore", images, _score), *by_prompt_category(SKILL, images, _score)]


def _score(image: ImageScores) -> float:
    return next(iter(image.scores.values()))


def _question(prompt: str) -> Question:
    return Question("1", ASKED.format(prompt), ("Yes",))
