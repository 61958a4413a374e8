"""Comparisons of models by people: what is made, what answers say, and when a study may stop."""

from __future__ import annotations

import csv
import io
import json
import random
import stat
from collections import Counter
from pathlib import Path

import choix
import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image

from compared_models import answer, compared, flat, image_folder, noise
from label_projects import add_user, claimed, saved
from tastemaker.errors import ConfigError, DataError
from tastemaker.evaluation.statistics import bradley_terry, wilson
from tastemaker.human_evaluation.analysis import best_share, decision, preference
from tastemaker.human_evaluation.create import PROMPTS_TOGETHER, FromImages, FromModel, check_models, plan, rows_of
from tastemaker.human_evaluation.outcomes import Choice, Outcome
from tastemaker.human_evaluation.report import lead
from tastemaker.human_evaluation.result import read_result, write_result
from tastemaker.human_evaluation.strengths import strengths
from tastemaker.human_evaluation.study import (
    ComparedModel,
    Question,
    Stopping,
    Study,
    asked,
    read_study,
    write_study,
)
from tastemaker.human_evaluation.tables import by_prompt
from tastemaker.labelling.copying import copy_project
from tastemaker.labelling.image_files import image_path
from tastemaker.labelling.project import COMPARISON, NewImage, open_project
from tastemaker.labelling.ranking import Judgement
from tastemaker.labelling.tables import ImageRow, Task, TaskImage

# ---------------------------------------------------------------- what is made


def test_the_questions_are_those_of_the_papers():
    pair, best = (asked(("fidelity", "alignment"), mode) for mode in ("pair", "best"))
    assert [one.text for one in pair] == [
        "Which image quality appears better?", "Which image is more consistent with the text?"
    ]  # fmt: skip
    assert best[1].text == "Which image fits the prompt best?"
    assert asked(["style = Which is nicer? a=b"], "pair") == (Question("style", "Which is nicer? a=b"),)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["colour"], "the question 'colour' is none of fidelity and alignment"),
        (["style="], "has 0 characters"),
        (["a|b=Which?"], "none of"),
        (["fidelity", "fidelity"], "two questions are called 'fidelity'"),
        ([], "give one question"),
    ],
)
def test_questions_that_cannot_be_asked(given: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        asked(given, "pair")


def test_the_plan_has_every_pair_once_for_each_question():
    rows = [(f"prompt {index // 2}", index % 2) for index in range(50)]
    found = plan(rows, 2, 3, "pair", random.Random(0))
    assert Counter((one.row, one.question, tuple(sorted(one.models))) for one in found) == {
        (row, question, pair): 1 for row in range(50) for question in (0, 1) for pair in ((0, 1), (0, 2), (1, 2))
    }
    # Of 100 tasks of each pair about half have the model that is named first at the first position: 4 deviations.
    first = Counter(tuple(sorted(one.models)) for one in found if one.models[0] < one.models[1])
    assert all(30 <= count <= 70 for count in first.values())
    # One question is asked of 10 prompts with 2 seeds and 3 pairs, before the next one is.
    questions = [one.question for one in found]
    block = PROMPTS_TOGETHER * 2 * 3
    assert len(set(questions[:block])) == 1
    assert questions[block : 2 * block] == [1 - questions[0]] * block
    assert {rows[one.row][0] for one in found[:block]} == {rows[one.row][0] for one in found[block : 2 * block]}
    assert found != plan(rows, 2, 3, "pair", random.Random(1))
    assert [len(one.models) for one in plan(rows, 1, 3, "best", random.Random(0))] == [3] * 50


def sampled(name: str) -> FromModel:
    def load():
        raise AssertionError("no image is sampled")

    return FromModel(ComparedModel(name, name), load)


def given(name: str, *rows: tuple[str, int]) -> FromImages:
    return FromImages(ComparedModel(name, name), {row: NewImage(flat(0)) for row in rows})


def test_prompts_and_seeds():
    models = [sampled("a"), sampled("b")]
    assert rows_of(models, ["x", "y", "x"], 2) == [("x", 0), ("x", 1), ("y", 0), ("y", 1)]
    assert rows_of(models, ["x"], None) == [("x", 0)]
    with pytest.raises(ConfigError, match="give prompts"):
        rows_of(models, None, 1)
    a, b = given("a", ("y", 1), ("x", 0), ("y", 0)), given("b", ("x", 0), ("y", 1), ("y", 2))
    assert rows_of([a, b], None, None) == [("y", 1), ("x", 0)]
    assert rows_of([a, sampled("m")], None, None) == [("y", 0), ("y", 1), ("x", 0)]
    assert rows_of([a, b], ["x"], None) == [("x", 0)]
    assert rows_of([a, b], None, 1) == [("x", 0)]
    with pytest.raises(DataError, match=r"no images of the same prompts and seeds$"):
        rows_of([a, given("c", ("z", 0))], None, None)
    with pytest.raises(DataError, match="among those that were chosen"):
        rows_of([a, b], ["z"], None)


def test_models_that_cannot_be_compared():
    one, two = ComparedModel("a", "x"), ComparedModel("b", "y")
    check_models([one, two])
    for wrong, message in (
        ([one], "one is given"), ([one, two, ComparedModel("c", "z"), ComparedModel("d", "w")], "4 are given"),
        ([one, ComparedModel("a", "y")], "two models are called 'a'"), ([one, ComparedModel("b", "x")], "both x"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            check_models(wrong)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Study]:
    """A comparison of flat and noisy images of 6 prompts with 2 seeds."""
    folder = tmp_path_factory.mktemp("pair")
    models = [image_folder(folder / "flat", flat, 6, 2), image_folder(folder / "noise", noise, 6, 2)]
    return folder, compared(folder / "p", models)


def test_the_database_and_the_files_do_not_say_who_made_an_image(pair: tuple[Path, Study]):
    folder, study = pair
    assert len(study.tasks) == 24
    with open_project(folder / "p") as project, project.database.read() as session:
        assert set(session.execute(sa.select(TaskImage.model, sa.cast(TaskImage.origin, sa.String)))) == {("", "{}")}
        sizes = {row.size for row in session.scalars(sa.select(ImageRow))}
        assert len(sizes) == 1, "flat and noisy images have files of the same size"
        names = list(session.scalars(sa.select(ImageRow.sha256)))
        text = "".join(map(repr, session.execute(sa.select(Task.__table__)).all()))
    assert "flat" not in text
    for name in names:
        data = image_path(folder / "p", name).read_bytes()
        assert {data[at + 4 : at + 8] for at in chunks(data)} == {b"IHDR", b"IDAT", b"IEND"}
    assert stat.S_IMODE((folder / "p" / COMPARISON).stat().st_mode) == 0o600


def chunks(data: bytes) -> list[int]:
    """Where the chunks of a PNG file begin."""
    found, at = [], 8
    while at < len(data):
        found.append(at)
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return found


def test_the_comparison_says_who_made_an_image(pair: tuple[Path, Study]):
    folder, study = pair
    assert read_study(folder / "p") == study
    with open_project(folder / "p") as project, project.database.read() as session:
        for task in study.tasks:
            row = session.scalar(sa.select(Task).where(Task.number == task.number))
            assert row is not None
            assert row.question == study.questions[task.question].text
            images = session.scalars(
                sa.select(TaskImage.sha256).where(TaskImage.task_id == row.id).order_by(TaskImage.position)
            )
            for model, name in zip(task.models, images, strict=True):
                with Image.open(image_path(folder / "p", name)) as image:
                    colours = len(image.getcolors(1000) or [])
                assert (colours == 1) == (model == 0)
    assert {task.models for task in study.tasks} == {(0, 1), (1, 0)}


def test_a_backup_has_the_comparison(pair: tuple[Path, Study], tmp_path: Path):
    folder, study = pair
    with open_project(folder / "p") as project:
        copy_project(project, tmp_path / "copy")
    assert read_study(tmp_path / "copy") == study


def test_images_that_give_themselves_away_or_are_the_same(tmp_path: Path):
    a = image_folder(tmp_path / "a", flat, 2)
    large = image_folder(tmp_path / "large", lambda value: noise(value).resize((20, 16)), 2)
    with pytest.raises(DataError, match=r"a has 16 x 16 pixels and large 20 x 16; scale all by --height and --width"):
        compared(tmp_path / "p", [a, large])
    with pytest.raises(DataError, match="the images of a and same are the same for all prompts and seeds"):
        compared(tmp_path / "p", [a, image_folder(tmp_path / "same", flat, 2)])
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ('{"format": 9}', "has format 9"),
        ('{"format": 1}', "KeyError"),
        ("[]", "cannot be read"),
    ],
)
def test_a_comparison_that_cannot_be_read(tmp_path: Path, content: str, message: str):
    (tmp_path / COMPARISON).write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_study(tmp_path)
    with pytest.raises(ConfigError, match="is no comparison of models"):
        read_study(tmp_path / "nothing")


# ---------------------------------------------------------------- what answers say


def said(values: str, first: int = 0, second: int = 1) -> list[Outcome]:
    """Outcomes as `p0 ann 1`, in lines."""
    found = []
    for line in values.splitlines():
        prompt, labeler, value = line.split()
        found.append(Outcome(0, first, second, float(value), prompt, 0, ord(labeler[0]), 0, False))
    return found


def test_a_preference_by_hand():
    """2 wins, 1 tie and 1 loss: 2.5 of 4."""
    found = preference(0, 0, 1, said("p ann 1\np bob 1\nq ann 0.5\nq bob 0"), {"p"}, 0.95, 0.95)
    assert (found.wins, found.ties, found.losses, found.prompts, found.labelers) == (2, 1, 1, 2, 2)
    assert found.rate is not None
    assert found.rate.estimate == 0.625
    assert found.wilson == wilson(2.5, 4)
    assert found.prompts_complete == 1
    empty = preference(0, 0, 1, [], set(), 0.95, 0.95)
    assert (empty.rate, empty.sequential, empty.decided) == (None, None, False)


def test_five_labelers_speak_for_others():
    """6 prompts; half of the labelers prefer the one model always, and half the other."""

    def of(names: str):
        answers = [f"p{prompt} {name} {index % 2}" for prompt in range(6) for index, name in enumerate(names)]
        return preference(0, 0, 1, said("\n".join(answers)), set(), 0.95, 0.95)

    few, many = of("abcd"), of("abcdef")
    assert few.rate is not None
    assert many.rate is not None
    # By prompt all are alike, which leaves 6 trials of 1/2. By labeler 6 clusters of +-3: V = 6/5 (6 9) / 36^2 = 1/20,
    # less that of single answers, 36/35 (36 / 4) / 36^2 = 1/140: 3/70, with 5 degrees of freedom, whose t is 2.570582.
    assert few.rate == wilson(3, 6)
    t, n = 2.570582, 0.25 / (3 / 70)
    assert many.rate.high - 0.5 == pytest.approx(t / (1 + t**2 / n) * (3 / 70 + t**2 / (4 * n**2)) ** 0.5, abs=1e-5)


def test_a_prompt_is_one_observation_once_it_has_all_its_answers():
    """10 prompts with two wins each are 10 observations, after which 1/2 is refused (test_statistics); 9 are not."""
    found = said("\n".join(f"p{index} {name} 1" for name in ("ann", "bob") for index in range(10)))
    sequential, count = decision(found, {f"p{index}" for index in range(10)}, 0.95)
    assert sequential is not None
    assert (count, sequential.decided_at) == (10, 10)
    sequential, count = decision(found, {f"p{index}" for index in range(9)}, 0.95)
    assert sequential is not None
    assert (count, sequential.decided_at) == (9, None)
    assert decision(found, set(), 0.95) == (None, 0)


def test_prompts_are_observed_in_the_order_in_which_they_were_completed():
    """q is complete before p, although p was begun first: wins of q, then losses of p."""
    found = said("p ann 0\nq ann 1\nq bob 1\np bob 0")
    first, _ = decision(found, {"p", "q"}, 0.5)
    other, _ = decision(said("q ann 1\nq bob 1\np ann 0\np bob 0"), {"p", "q"}, 0.5)
    turned, _ = decision(said("p ann 0\np bob 0\nq ann 1\nq bob 1"), {"p", "q"}, 0.5)
    assert first == other != turned


def decided_studies(studies: int, prompts: int) -> float:
    """The share of studies in which some preference is decided at some time, where no model is better.

    3 models, 2 questions, 2 labelers, prompts with tastes of their own.
    """
    random_ = np.random.default_rng(0)
    wrong = 0
    for _ in range(studies):
        taste = random_.uniform(0.1, 0.9, (6, prompts))
        values = (random_.random((6, prompts, 2)) < taste[:, :, None]).mean(axis=2)
        for row in values:
            found = [Outcome(0, 0, 1, value, str(index), 0, 0, 0, False) for index, value in enumerate(row)]
            sequential, _ = decision(found, {str(index) for index in range(prompts)}, 1 - 0.05 / 6)
            assert sequential is not None
            if sequential.decided_at is not None:
                wrong += 1
                break
    return wrong / studies


def test_studies_without_a_difference_quickly():
    """100 studies; three deviations of a binomial above 5 %."""
    assert decided_studies(100, 40) <= 0.115


@pytest.mark.slow
def test_studies_without_a_difference():
    assert decided_studies(2000, 100) <= 0.05


def test_shares_of_the_best_by_hand():
    """a, a b together, none, b: a is the best of 1 + 1/2 of 4."""
    given = [(0,), (0, 1), (), (1,)]
    found = [Choice(0, best, f"p{index}", 0, index % 2, index) for index, best in enumerate(given)]
    assert best_share(found, 0, 0.95).share.estimate == 0.375
    assert best_share(found, 0, 0.95).wilson == wilson(1.5, 4)
    assert best_share(found, 2, 0.95).share.estimate == 0


def test_strengths_are_those_of_all_comparisons_together():
    pairs = [(0, 1), (0, 1), (1, 0), (1, 2), (0, 2), (2, 0), (2, 1)]
    found = [
        Outcome(0, min(pair), max(pair), float(pair[0] < pair[1]), str(index), 0, 0, index, False)
        for index, pair in enumerate(pairs)
    ]
    expected = choix.opt_pairwise(3, pairs, tol=1e-12)
    assert [one.estimate for one in strengths(found, 3, 0.95).models] == pytest.approx(expected, abs=1e-5)


def test_answers_that_are_the_same_add_nothing_to_what_is_known_of_strengths():
    """4 labelers who answer alike: intervals are as of one of them, where the likelihood's would be half as wide."""
    values = [1, 1, 0, 0.5, 1, 0, 1, 1, 0.5, 0]
    one = said("\n".join(f"p{index} ann {value}" for index, value in enumerate(values)))
    four = said("\n".join(f"p{i} {name} {value}" for name in "abcd" for i, value in enumerate(values)))
    width = [(found := strengths(rows, 2, 0.95).models[0]).high - found.low for rows in (one, four)]
    assert width[1] == pytest.approx(width[0], rel=0.02)
    table = np.array([[0, 5], [3, 0]]), np.array([[0, 2], [2, 0]])
    # Independent answers: 10 / 9 for the deviation's own mean, and Student's t in place of the normal quantile.
    own = bradley_terry(*table).strengths[0]
    assert width[0] == pytest.approx((own.high - own.low) * (10 / 9) ** 0.5 * 2.26216 / 1.95996, rel=0.02)


def test_strengths_that_are_unbounded_are_said_so():
    found = strengths(said("p ann 1\nq ann 1"), 2, 0.95)
    assert found.models == ()
    assert "unbounded" in found.reason


def strengths_cover(studies: int) -> float:
    """How often the middle one of three models, whose strength is 0, has 0 in its interval.

    40 prompts, each answered by 5 labelers; prompts and labelers have tastes of their own.
    """
    random_, hits = np.random.default_rng(0), 0
    log_pi = np.array([0.4, 0.0, -0.4])
    for _ in range(studies):
        prompt, labeler = random_.normal(0, 0.6, (40, 3)), random_.normal(0, 0.2, (5, 3))
        found = []
        for p in range(40):
            for q in range(5):
                liking = log_pi + prompt[p] + labeler[q]
                first, second = sorted(random_.choice(3, 2, replace=False))
                wins = random_.random() < 1 / (1 + np.exp(liking[second] - liking[first]))
                found.append(Outcome(0, int(first), int(second), float(wins), str(p), 0, q, 0, False))
        middle = strengths(found, 3, 0.95).models[1]
        hits += middle.low <= 0 <= middle.high
    return hits / studies


def test_intervals_of_strengths_quickly():
    """60 studies: at 95 % two deviations are 89 to 100 %."""
    assert strengths_cover(60) >= 0.89


@pytest.mark.slow
def test_intervals_of_strengths():
    assert 0.93 <= strengths_cover(2000) <= 0.97


def test_rows_by_prompt():
    found = by_prompt(said("p ann 0\np bob 0.5\nq ann 1"))
    assert [(row.prompt, row.wins, row.ties, row.losses, row.rate) for row in found] == [
        ("q", 1, 0, 0, 1.0), ("p", 0, 1, 1, 0.25)
    ]  # fmt: skip


# ---------------------------------------------------------------- whole studies


def like_the_first(model: int, question: str, task: int) -> float:
    """Always the model that is named first."""
    return -model


def test_a_study_from_its_answers_to_its_files(pair: tuple[Path, Study], tmp_path: Path):
    folder, study = pair
    with open_project(folder / "p") as project:
        copy_project(project, tmp_path / "p")
    with pytest.raises(DataError, match=r"^nobody has answered a task of the comparison yet$"):
        read_result(tmp_path / "p")
    first = study.tasks[0].question
    answer(tmp_path / "p", {"ann": like_the_first}, most=3)
    name = study.questions[1 - first].name
    with pytest.raises(DataError, match=f"^nobody has answered the question '{name}' yet$"):
        read_result(tmp_path / "p")
    answer(tmp_path / "p", {"bob": like_the_first}, most=11)
    found = read_result(tmp_path / "p")
    # 12 tasks of each question: all of the first one, and 2 of the other.
    assert [one.answers for one in found.result.asked] == ([12, 2] if first == 0 else [2, 12])
    assert all((each.wins, each.losses) == (one.answers, 0) for one in found.result.asked for each in one.preferences)
    assert not found.result.may_stop
    assert found.result.reason.startswith("14 of 24 answers are given; undecided: flat or noise (fidelity)")
    out = tmp_path / "result"
    names = {path.name for path in write_result(found, out)}
    assert names == {
        "result.json", "result.csv", "result.md", "result.html", "preferences.svg", "preferences.png"
    }  # fmt: skip
    for text in ((out / name).read_text() for name in names if not name.endswith("png")):
        assert "prompt 0" not in text, "which of an earlier task's images was whose"
        assert "data:image" not in text
    answer(tmp_path / "p", {"zacharias": like_the_first})
    found = read_result(tmp_path / "p")
    assert (found.result.may_stop, found.result.reason) == (True, "every task has its answers")
    assert {path.name for path in write_result(found, out)} - names == {"prompts.csv"}
    page = (out / "result.html").read_text()
    assert "prompt 0" in page
    assert "data:image/png" in page
    assert "zacharias" not in page, "results have no names of labelers"
    content = json.loads((out / "result.json").read_text())
    assert content["results"][0]["preferences"][0]["rate"]["estimate"] == 1.0
    assert content["results"][0]["strengths_missing"]
    rows = list(csv.DictReader(io.StringIO((out / "result.csv").read_text())))
    assert [(row["question"], row["wins"], row["rate"]) for row in rows] == [
        ("fidelity", "12", "1.0"), ("alignment", "12", "1.0")
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="is a file"):
        write_result(found, out / "result.md")
    less = read_result(tmp_path / "p", ["bob"])
    assert less.result.answers == 24 - 11
    with pytest.raises(ConfigError, match="has no labeler 'bb'; did you mean 'bob'"):
        read_result(tmp_path / "p", ["bb"])


def test_the_better_model_is_the_one_that_is_liked(tmp_path: Path):
    """Labelers like the second model's images for fidelity and the first one's for alignment."""
    models = [image_folder(tmp_path / "a", flat, 4), image_folder(tmp_path / "b", noise, 4)]
    compared(tmp_path / "p", models, seed=3)
    answer(tmp_path / "p", {"ann": lambda model, question, task: model if question == "fidelity" else -model})
    found = read_result(tmp_path / "p")
    assert [each.rate and each.rate.estimate for one in found.result.asked for each in one.preferences] == [0.0, 1.0]
    assert [sentence.split(" in ")[0] for sentence in lead(found.study, found.result)] == [
        "Fidelity: b is preferred to a", "Alignment: a is preferred to b"
    ]  # fmt: skip


@pytest.mark.parametrize(("when", "most", "reason"), [
    ("decided", None, "every preference is decided"), ("complete", None, None),
    ("complete", 15, "each question has its 15 answers"),
])  # fmt: skip
def test_when_a_study_may_stop(tmp_path: Path, when, most: int | None, reason: str | None):
    """20 prompts, 19 of them answered, all wins: a single preference is decided after 10."""
    models = [image_folder(tmp_path / "a", flat, 20), image_folder(tmp_path / "b", noise, 20)]
    compared(tmp_path / "p", models, questions=["alignment"], stopping=Stopping(when, most))
    answer(tmp_path / "p", {"ann": like_the_first}, most=19)
    found = read_result(tmp_path / "p").result
    assert found.asked[0].preferences[0].decided_at == 10
    assert (found.may_stop, found.reason) == ((True, reason) if reason else (False, "19 of 20 answers are given"))


def test_several_decisions_share_the_level(tmp_path: Path):
    """Two questions: each is decided at 97.5 %, after log(2/.025)/log(1.5) = 10.8 wins, where one alone takes 10."""
    models = [image_folder(tmp_path / "a", flat, 12), image_folder(tmp_path / "b", noise, 12)]
    compared(tmp_path / "p", models)
    answer(tmp_path / "p", {"ann": like_the_first})
    found = read_result(tmp_path / "p").result
    assert [each.decided_at for one in found.asked for each in one.preferences] == [11, 11]


def test_the_same_image_twice_is_a_tie_whatever_is_answered(tmp_path: Path):
    """The models differ on prompt 1 alone."""
    a = image_folder(tmp_path / "a", flat, 2)
    b = image_folder(tmp_path / "b", lambda value: flat(value * 9), 2)
    compared(tmp_path / "p", [a, b], questions=["fidelity"])
    answer(tmp_path / "p", {"ann": like_the_first})
    found = read_result(tmp_path / "p")
    one = found.result.asked[0].preferences[0]
    assert (one.wins, one.ties, one.losses, one.identical) == (1, 1, 0, 1)
    assert found.result.identical == 1
    write_result(found, tmp_path / "out")
    assert "1 of 2 tasks show an image twice" in (tmp_path / "out" / "result.html").read_text()


def three(tmp_path: Path, mode: str, **settings) -> Study:
    """Three models, the last of which made the second one's image of prompt 0."""
    a, b = image_folder(tmp_path / "a", flat, 2), image_folder(tmp_path / "b", noise, 2)
    c = image_folder(tmp_path / "c", lambda value: noise(value if value == 0 else 50), 2)
    return compared(tmp_path / "p", [a, b, c], mode, ["alignment"], **settings)


def counts(folder: Path) -> dict[tuple[int, int], tuple[int, int, int]]:
    one = read_result(folder).result.asked[0]
    return {(each.first, each.second): (each.wins, each.ties, each.losses) for each in one.preferences}


def test_the_best_of_three(tmp_path: Path):
    """b is the best: it beats a twice and c on prompt 1; on prompt 0 it is c's image, which beats a too."""
    three(tmp_path, "best")
    answer(tmp_path / "p", {"ann": lambda model, question, task: float(model == 1)})
    assert counts(tmp_path / "p") == {(0, 1): (0, 0, 2), (0, 2): (0, 0, 1), (1, 2): (1, 1, 0)}
    one = read_result(tmp_path / "p").result.asked[0]
    assert [best.share.estimate for best in one.best] == [0, 0.75, 0.25]
    write_result(found := read_result(tmp_path / "p"), tmp_path / "out")
    (sentence,) = lead(found.study, found.result)
    assert sentence.startswith("Alignment: the best of all is b in 75.0 % (")
    assert "| alignment | b | 75.0 % |" in (tmp_path / "out" / "result.md").read_text()
    assert (tmp_path / "out" / "best.svg").is_file()


def test_none_of_three(tmp_path: Path):
    """Where no image is good, all are equal."""
    three(tmp_path, "best", both_bad=True)
    with open_project(tmp_path / "p") as project:
        user = add_user(project, "ann")
        for index, assigned in enumerate(claimed(project, user, 2, 0.0)):
            name = f"00000000-0000-0000-0000-{index:012d}"
            assert saved(project, user, assigned.id, Judgement(name, "best", image=None), 0.0).status == "saved"
    assert counts(tmp_path / "p") == dict.fromkeys([(0, 1), (0, 2), (1, 2)], (0, 2, 0))
    assert read_result(tmp_path / "p").result.asked[0].none_good == 2


def test_the_order_of_three(tmp_path: Path):
    """c before b before a; on prompt 0 b and c are the same image."""
    three(tmp_path, "rank")
    answer(tmp_path / "p", {"ann": lambda model, question, task: float(model)})
    assert counts(tmp_path / "p") == {(0, 1): (0, 0, 2), (0, 2): (0, 0, 2), (1, 2): (0, 1, 1)}


def test_each_two_of_three(tmp_path: Path):
    study = three(tmp_path, "pair", ties=True)
    assert len(study.tasks) == 6
    answer(tmp_path / "p", {"ann": lambda model, question, task: min(model, 1)})
    assert counts(tmp_path / "p") == {(0, 1): (0, 0, 2), (0, 2): (0, 0, 2), (1, 2): (0, 2, 0)}


def test_labelers_who_agree(tmp_path: Path):
    models = [image_folder(tmp_path / "a", flat, 4), image_folder(tmp_path / "b", noise, 4)]
    compared(tmp_path / "p", models, questions=["fidelity"], overlap=2)
    answer(tmp_path / "p", dict.fromkeys(("ann", "bob"), lambda model, question, task: model if task % 2 else -model))
    found = read_result(tmp_path / "p").result.asked[0].agreement
    assert found is not None
    assert found.value == 1.0


def test_a_comparison_of_another_project(pair: tuple[Path, Study], tmp_path: Path):
    _, study = pair
    other = compared(tmp_path / "p", list(study.models))
    write_study(tmp_path / "p", Study(study.uuid, other.models, other.questions, other.tasks))
    with pytest.raises(ConfigError, match="belongs to another project"):
        read_result(tmp_path / "p")


def test_tasks_that_are_none_of_the_comparison_s_are_left_out(pair: tuple[Path, Study], tmp_path: Path):
    folder, study = pair
    with open_project(folder / "p") as project:
        copy_project(project, tmp_path / "p")
    answer(tmp_path / "p", {"ann": like_the_first})
    kept = tuple(task for task in study.tasks if task.seed == 0)
    write_study(tmp_path / "p", Study(study.uuid, study.models, study.questions, kept))
    found = read_result(tmp_path / "p").result
    assert (found.answers, found.others) == (12, 12)
