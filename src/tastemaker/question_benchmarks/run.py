"""A benchmark from images to results, in a folder in which it can be gone on with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tastemaker.errors import ConfigError, RewardError, StorageError
from tastemaker.question_benchmarks.answers import FILE, Answered, append, appending, read_answers
from tastemaker.question_benchmarks.benchmark import Benchmark, ImageScores, Prompt, Question
from tastemaker.question_benchmarks.images import Picture, find_pictures, sample_missing, sampled_pictures
from tastemaker.question_benchmarks.judge import JudgeModel
from tastemaker.question_benchmarks.nearest import Nearest, load_nearest
from tastemaker.question_benchmarks.results import Results, figures, write_results
from tastemaker.question_benchmarks.rows import mapping
from tastemaker.question_benchmarks.sampling import Sampling
from tastemaker.question_benchmarks.scoring import Scored, require_usable, score
from tastemaker.question_benchmarks.settings import JUDGE, SETTINGS, TEXT_MODEL, WRITTEN, Calls
from tastemaker.rewards.vlm.answers import Answer, Query, VisionLanguageModel
from tastemaker.rewards.vlm.rewards import load_vlm
from tastemaker.rewards.vlm.settings import parse_address
from tastemaker.runs import atomic
from tastemaker.runs.folders import check_new_folder
from tastemaker.runs.locking import only_writer

AT_ONCE = 256
"""Questions that are handed to the model together; as many images at most are in memory."""

Log = Callable[[str], None]
Advance = Callable[[str, int, int], None]
"""Called with what goes on, `images` or `answers`, how many of them there are by then, and how many there will be."""


def _no_progress(what: str, done: int, total: int) -> None:
    """Where nobody looks at the progress."""


@dataclass(frozen=True)
class Given:
    """Images that are there."""

    path: Path
    n: int | None = None
    grid: int = 1


@dataclass(frozen=True)
class Plan:
    """What is asked about what, by whom, and where the answers go."""

    benchmark: Benchmark
    images: Sampling | Given
    vlm: str
    """`judge`, or what `rewards.vlm.settings.parse_address` takes."""
    out: Path
    calls: Calls = field(default_factory=Calls)
    written: bool = False
    """Count answers as they are written where the benchmark is of probabilities."""

    text_model: str = TEXT_MODEL
    """The sentence encoder that finds the choice nearest to an answer in free form."""

    @property
    def vlm_name(self) -> str:
        """Without its servers, which may change."""
        return parse_address(self.vlm).model

    @property
    def logprobs(self) -> bool:
        return self.benchmark.scoring == "probability" and not self.written

    @property
    def figures(self) -> dict[str, Any]:
        """What the answers depend on, as JSON."""
        prompts = json.dumps([asdict(prompt) for prompt in self.benchmark.prompts]).encode()
        images = self.images.figures if isinstance(self.images, Sampling) else {"path": str(self.images.path)}
        return {
            "benchmark": self.benchmark.name,
            "source": self.benchmark.source,
            "prompts": len(self.benchmark.prompts),
            "questions": hashlib.sha256(prompts).hexdigest(),
            "vlm": self.vlm_name,
            "written": self.written,
            "tokens": self.calls.tokens,
            "images": images,
            **({"text_model": self.text_model} if self.benchmark.free_form else {}),
        }


def run(plan: Plan, advance: Advance = _no_progress, log: Log | None = None) -> Results:
    """Samples or finds the images, asks what has not been answered yet, and writes the results.

    Raises ConfigError where the folder holds another benchmark or another process writes to it, and what sampling,
    images and the model raise. Images and answers that are there by then stay, and a further call goes on with them.
    """
    given = plan.images
    found = find_pictures(given.path, plan.benchmark.prompts, given.n, given.grid) if isinstance(given, Given) else None
    claim(plan)
    with only_writer(plan.out):
        return _answer(plan, found, advance, log)


def _answer(plan: Plan, found: list[Picture] | None, advance: Advance, log: Log | None) -> Results:
    """What `run` does in the folder that it has claimed; `found` are the images, where they were given."""
    images = plan.images
    vlm = None if plan.vlm != JUDGE and not parse_address(plan.vlm).urls else _load_vlm(plan, log)
    if isinstance(images, Sampling):
        folder = plan.out / "images"
        sample_missing(
            folder, plan.benchmark.prompts, images.n, images.seed, images.load, steps=images.steps,
            guidance=images.guidance, eta=images.eta, sde_type=images.sde_type, batch=images.batch,
            advance=lambda done, total: advance("images", done, total),
        )  # fmt: skip
        pictures, name = sampled_pictures(folder, plan.benchmark.prompts, images.n), images.name
    else:
        pictures, name = found or [], str(images.path)
    # A model in this process is loaded now, when the memory of the one that made the images is free.
    answered = _ask(plan, pictures, lambda: vlm or _load_vlm(plan, log), advance)
    results = summarised(plan.benchmark, name, plan.vlm_name, plan.written, answered)
    write_results(results, plan.out)
    return results


def claim(plan: Plan) -> None:
    """Makes the folder, or checks that it holds the same benchmark. Raises ConfigError, StorageError."""
    path, now = plan.out / SETTINGS, json.loads(json.dumps(plan.figures))
    answers = plan.out / FILE
    begun = (answers.is_file() and answers.stat().st_size > 0) or any((plan.out / "images").glob("*.png"))
    if path.is_file() and begun:
        try:
            then = mapping(json.loads(path.read_text(encoding="utf-8")), str(path))
        except ValueError as error:
            raise ConfigError(f"{path} is not what was written here: give another folder with --out") from error
        if then != now:
            changed = ", ".join(_changes(then, now))
            raise ConfigError(
                f"{plan.out} holds answers of another kind ({changed}): give another folder with --out, or the same "
                "settings to go on with it"
            )
        return
    if not path.is_file():
        check_new_folder(plan.out)
    try:
        plan.out.mkdir(parents=True, exist_ok=True)
        atomic.replace_atomic(path, (json.dumps(now, indent=1) + "\n").encode())
    except OSError as error:
        raise StorageError(f"cannot make the folder {plan.out}: {error.strerror or error}") from error


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    found = []
    for name in dict.fromkeys([*then, *now]):
        before, after = then.get(name), now.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += _changes(before, after)
        elif before != after:
            found.append(f"{name} {before} -> {after}")
    return found


def _load_vlm(plan: Plan, log: Log | None) -> VisionLanguageModel:
    if plan.vlm == JUDGE:
        return JudgeModel()
    caller = f"the model {plan.vlm}"
    return load_vlm(caller, plan.vlm, plan.calls.settings(), log, plan.logprobs, WRITTEN)


@dataclass(frozen=True)
class _Asked:
    """A question about an image."""

    picture: Picture
    digest: str
    prompt: Prompt
    question: Question

    @property
    def key(self) -> tuple[str, str, str, str]:
        """As `Answered.key`."""
        return self.digest, self.prompt.id, self.question.id, self.question.text

    def answered(self, scored: Scored) -> Answered:
        return Answered(self.picture.name, *self.key, scored.text, scored.score, scored.note)


def _ask(
    plan: Plan, pictures: Sequence[Picture], load: Callable[[], VisionLanguageModel], advance: Advance
) -> list[tuple[Picture, list[Answered]]]:
    """Each image with its answers, in the questions' order. Raises RewardError, DataError or StorageError."""
    path, prompts = plan.out / FILE, plan.benchmark.prompts
    known = {one.key: one for one in read_answers(path)}
    asked = {
        picture: [_Asked(picture, digest, prompts[picture.prompt], one) for one in prompts[picture.prompt].questions]
        for picture, digest in ((picture, picture.digest) for picture in pictures)
    }
    total = sum(map(len, asked.values()))
    missing = [one for several in asked.values() for one in several if one.key not in known]
    done = total - len(missing)
    advance("answers", done, total)
    if missing:
        vlm, nearest = load(), load_nearest(plan.text_model) if plan.benchmark.free_form else None
        with appending(path) as file:

            def keep(one: Answered) -> None:
                nonlocal done
                known[one.key] = one
                append(file, one)
                done += 1
                advance("answers", done, total)

            for start in range(0, len(missing), AT_ONCE):
                try:
                    _ask_some(plan, vlm, missing[start : start + AT_ONCE], keep, nearest)
                except RewardError as error:
                    raise type(error)(
                        f"{error}; {done} of {total} answers are in {path}: the same command with --out {plan.out} "
                        "goes on with the others"
                    ) from error
    return [(picture, [known[one.key] for one in several]) for picture, several in asked.items()]


def _ask_some(
    plan: Plan,
    vlm: VisionLanguageModel,
    some: Sequence[_Asked],
    keep: Callable[[Answered], None],
    nearest: Nearest | None,
) -> None:
    """Asks some questions, and keeps each answer as it comes."""
    scoring, written = plan.benchmark.scoring, plan.written
    pictures = {one.digest: one.picture for one in some}
    files = {digest: picture.file(lossless=plan.vlm == JUDGE) for digest, picture in pictures.items()}

    def received(index: int, answer: Answer) -> None:
        one = some[index]
        keep(one.answered(score(answer, one.question, scoring, written, nearest)))

    queries = [Query(files[one.digest], one.question.text) for one in some]
    vlm(queries, lambda answer: require_usable(answer, scoring, written), received)


def summarised(
    benchmark: Benchmark,
    images_of: str,
    vlm: str,
    written: bool,
    answered: Sequence[tuple[Picture, Sequence[Answered]]],
) -> Results:
    """The results from all answers."""
    images = [
        ImageScores(benchmark.prompts[picture.prompt], {one.question: one.score for one in answers})
        for picture, answers in answered
    ]
    every = [one for _, answers in answered for one in answers]
    return Results(
        benchmark=benchmark.name,
        source=benchmark.source,
        whole=benchmark.whole,
        images_of=images_of,
        vlm=vlm,
        written=written,
        prompts=len(benchmark.prompts),
        images=len(answered),
        answers=len(every),
        no_choice=sum(one.note == "no choice" for one in every),
        not_listed=sum(one.note == "not listed" for one in every),
        figures=figures(benchmark.measures(images)),
    )
