"""From answers to the benchmarks' figures, by numbers worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from scipy.stats import gmean

import tiny_language
from tastemaker.errors import RewardError
from tastemaker.evaluation.statistics import bootstrap_mean
from tastemaker.question_benchmarks.benchmark import ImageScores, Measure, Prompt, Question, with_parents
from tastemaker.question_benchmarks.formats import load_benchmark
from tastemaker.question_benchmarks.nearest import load_nearest
from tastemaker.question_benchmarks.results import Results, figures, markdown
from tastemaker.question_benchmarks.scoring import choose, normalised, require_usable, score, spellings
from tastemaker.rewards.vlm.answers import Answer, AnswerToken

DATA = Path(__file__).parents[1] / "data/question_benchmarks"
YES = Question("1", "?", ("Yes",))
FOUR = Question("1", "?", ("four",), ("three", "four"))


def answer(**chances):
    """An answer whose first token has these chances; __four is " four"."""
    listed = tuple((token.replace("__", " "), math.log(chance)) for token, chance in chances.items())
    return Answer(listed[0][0], (AnswerToken(listed[0][0], listed), AnswerToken("Yes", (("Yes", 0.0),))))


@pytest.mark.parametrize(
    ("question", "given", "expected", "note"),
    [
        # All spellings of the first token are added up, and what is left is not made up for: 0.5 + 0.2 + 0.1.
        (YES, answer(Yes=0.5, __Yes=0.2, No=0.1, yes=0.1), 0.8, ""),
        (YES, answer(No=0.9, Yes=0.01), 0.01, ""),
        (YES, answer(YES=0.9, No=0.1), 0, "not listed"),  # as evaluation.py, which has Yes and yes alone
        (YES, answer(No=1.0), 0, "not listed"),
        (FOUR, answer(**{"4": 0.3, "four": 0.2, "__Four": 0.1, "five": 0.1, "44": 0.1}), 0.6, ""),
        (FOUR, answer(three=0.7, four=0.3), 0.3, ""),
        (YES, answer(Yes=0.7, yes=0.7), 1, ""),  # rounding must not make more than 1 of it
    ],
)
def test_probability_of_the_expected_answer(question, given, expected, note):
    found = score(given, question, "probability", False)
    assert found.score == pytest.approx(expected)
    assert found.note == note


def test_without_probabilities():
    plain = Answer("Yes, it does.")
    with pytest.raises(RewardError, match=r"gives no log-probabilities: .*give --written"):
        require_usable(plain, "probability", False)
    assert require_usable(plain, "probability", True) is plain
    assert require_usable(plain, "choice", False) is plain
    assert score(plain, YES, "probability", True).score == 1
    assert score(Answer("Four."), FOUR, "probability", True).score == 1
    assert score(Answer("3"), FOUR, "probability", True).score == 0
    with pytest.raises(ValueError, match="an empty answer"):
        require_usable(Answer("  "), "choice", False)


def test_spellings():
    assert spellings("four") == {"four", "Four", "4"}
    assert spellings("Yes") == {"Yes", "yes"}


@pytest.mark.parametrize(
    ("text", "choices", "expected"),
    [
        ("Yes.", ("yes", "no"), "yes"), ("yes", ("yes", "no"), "yes"), ("**No**", ("yes", "no"), "no"),
        ("No, there is no star; yes, there is a circle.", ("yes", "no"), "no"), ("Perhaps", ("yes", "no"), None),
        ("Nobody", ("yes", "no"), None), ("I would say yes", ("yes", "no"), "yes"), ("yes or no", ("yes", "no"), "yes"),
        ("three", ("1", "2", "3", "4"), "3"), ("There are 3 of them.", ("1", "2", "3", "4"), "3"),
        ("3 or 4, between 1 and 5", ("1", "4"), None), ("13", ("1", "3"), None),
        ("It is off white", ("off white", "white", "red"), "off white"), ("white", ("off white", "white"), "white"),
        ("The beach", ("a beach", "park"), "a beach"), ("red and blue", ("blue", "red"), "red"),
        ("the red one", ("red", "a red one"), "a red one"),
        ("a surfer's board", ("surfer", "surfer's board"), "surfer's board"),
    ],
)  # fmt: skip
def test_which_choice_an_answer_is(text, choices, expected):
    assert choose(text, choices) == expected


def test_choices_count_where_they_are_expected():
    question = Question("1", "?", ("3", "many"), ("1", "3", "many"))
    found = [score(Answer(text), question, "choice", False) for text in ("Three!", "1", "many stars", "who knows")]
    assert [(one.score, one.note) for one in found] == [(1, ""), (0, ""), (1, ""), (0, "no choice")]
    assert [one.text for one in found] == ["Three!", "1", "many stars", "who knows"]
    assert normalised("  An  Off-White, (two) cats! ") == "off-white 2 cats"


def test_an_answer_in_other_words_is_the_nearest_choice(tmp_path):
    """Against embeddings of one text at a time, without padding; a small network with random weights."""
    from transformers import AutoModel, AutoTokenizer

    path = str(tiny_language.deberta(tmp_path / "deberta"))
    nearest = load_nearest(path)
    tokenizer, network = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()

    @torch.no_grad()
    def embedded(text):
        return network(**tokenizer([text], return_tensors="pt")).last_hidden_state[0].mean(dim=0)

    choices = ("black", "green", "yellowish brown", "blue")
    found = set()
    for answer in ("pale green", "b", "brownish, I should say", "no colour that I know", "xyz"):
        cosines = [torch.cosine_similarity(embedded(answer), embedded(choice), dim=0).item() for choice in choices]
        found.add(nearest(answer, choices))
        assert nearest(answer, choices) == choices[cosines.index(max(cosines))]
    assert len(found) > 1
    question = Question("1", "?", ("green",), ("green", "black"))
    asked = []
    take = lambda text, choices: asked.append(text) or "green"  # noqa: E731
    assert score(Answer("It is green."), question, "choice", False, take).score == 1
    assert not asked  # what is one of the choices needs no nearest
    scored = score(Answer("lime"), question, "choice", False, take)
    assert (scored.score, scored.note, asked) == (1, "", ["lime"])
    with pytest.raises(RewardError, match=r"the sentence encoder '.*nowhere' cannot be loaded .--text-model"):
        load_nearest(str(tmp_path / "nowhere"))


def images(benchmark, *scores):
    """An image for each list of scores, with the index of its prompt first."""
    found = []
    for index, *values in scores:
        prompt = benchmark.prompts[index]
        ids = [question.id for question in prompt.questions]
        found.append(ImageScores(prompt, dict(zip(ids, values, strict=True))))
    return found


def means(measures):
    return {f"{one.heading}/{one.name}": pytest.approx(sum(one.values) / len(one.values)) for one in measures}


def test_geneval2_by_hand():
    found = load_benchmark(str(DATA / "geneval2.jsonl"))
    measures = found.measures(images(found, (0, 0.5, 1.0, 0.25), (1, 1.0, 0.81, 0.16, 0.4), (1, 1.0, 0.0, 1.0, 1.0)))
    # GM: cube root of 0.125 = 0.5; fourth root of 0.05184 = 0.4772; 0. AM: 1.75/3, 2.37/4, 3/4.
    assert measures[0].values == pytest.approx((0.5, 0.05184**0.25, 0))
    assert measures[0].values[1] == pytest.approx(gmean([1.0, 0.81, 0.16, 0.4]))
    assert measures[1].values == pytest.approx((1.75 / 3, 2.37 / 4, 0.75))
    assert [one.name for one in measures[:2]] == ["Soft-TIFA GM", "Soft-TIFA AM"]
    assert measures[0].prompts == ("0", "1", "1")
    # Skills: count 0.5, 1, 1; attribute 1, 0.81, 0; object 0.25, 0.4, 1; position 0.16, 1. Atoms: GM of the prompts.
    assert means(measures[2:]) == {
        "skill/count": 2.5 / 3, "skill/attribute": 1.81 / 3, "skill/object": 1.65 / 3, "skill/position": 0.58,
        "atoms/3": 0.5, "atoms/4": 0.05184**0.25 / 2,
    }  # fmt: skip


def test_dpg_by_hand():
    found = load_benchmark(str(DATA / "dpg.csv"))
    # 1 star, 2 < 1 red, 3 circle, 4 < 1 and 3 left, 5 < 4 pointing.
    measures = found.measures(images(found, (0, 1, 0, 1, 1, 1), (0, 0, 1, 1, 1, 1), (1, 1)))
    # First image: 4 of 5. Second: the star is missing, so neither it, 2 nor 4 count, and 5 falls with 4: 1 of 5.
    assert measures[0].values == pytest.approx((0.8, 0.2, 1))
    # Categories have the answers as they are: entity 1, 1, 0, 1; attribute 0, 1, 1, 1; relation 1, 1; global 1.
    assert means(measures[1:]) == {
        "category/entity": 0.75, "category/attribute": 0.75, "category/relation": 1, "category/global": 1,
        "detailed category/entity - whole": 0.75, "detailed category/attribute - color": 0.5,
        "detailed category/relation - spatial": 1, "detailed category/attribute - state": 1,
        "detailed category/global - -": 1,
    }  # fmt: skip


def test_oneig_by_hand():
    found = load_benchmark(str(DATA / "oneig"))
    # 1 stars, 2 < 1 two, 3 < 2 red, 4 anime; then 1 < 2 red, 2 star.
    measures = found.measures(images(found, (0, 0, 1, 1, 1), (0, 1, 0, 1, 0), (1, 1, 0), (1, 1, 1)))
    # Parents count by their own answers: of the first image 2 falls and 3 stays (1/2), of the second 3 falls (1/4).
    assert measures[0].values == pytest.approx((0.5, 0.25, 0, 1))
    assert means(measures[1:]) == {"class/anime": 0.375, "class/object": 0.5}


def test_a_parents_zero_goes_on_in_turn_only():
    chain = tuple(Question(str(n), "?", ("yes",), depends_on=(str(n - 1),) if n > 1 else ()) for n in (1, 2, 3))
    image = ImageScores(Prompt("p", "p", chain), {"1": 0.0, "2": 1.0, "3": 1.0})
    assert with_parents(image, in_turn=True) == {"1": 0, "2": 0, "3": 0}
    assert with_parents(image, in_turn=False) == {"1": 0, "2": 0, "3": 1}
    assert image.scores == {"1": 0.0, "2": 1.0, "3": 1.0}
    # A question that comes before its parent sees the parent's own answer (compute_dpg_bench.py goes through in order).
    backwards = ImageScores(Prompt("p", "p", chain[::-1]), image.scores)
    assert with_parents(backwards, in_turn=True) == {"3": 1, "2": 0, "1": 0}


def test_tifa_by_hand():
    found = load_benchmark(str(DATA / "tifa.json"))
    measures = found.measures(images(found, (0, 1, 0, 1), (1, 0)))
    assert measures[0].values == pytest.approx((2 / 3, 0))
    assert means(measures[1:]) == {"element type/object": 0.5, "element type/counting": 0, "element type/color": 1}


def test_genai_bench_by_hand():
    found = load_benchmark(str(DATA / "genai_image.json"))
    measures = found.measures(images(found, (0, 0.9), (1, 0.2)))
    assert measures[0].values == (0.9, 0.2)
    assert means(measures[1:]) == {"skill/attribute": 0.9, "skill/all": 0.55, "skill/counting": 0.2}


def test_bundled_by_hand():
    found = load_benchmark("bundled:a [red|blue] circle")
    measures = found.measures(images(found, (0, 1, 1, 1, 1), (0, 1, 1, 1, 0)))
    assert [one.name for one in measures] == ["all right", "answers", "count", "object", "attribute"]
    assert means(measures) == {
        "/all right": 0.5, "/answers": 0.875, "category/count": 1, "category/object": 1, "category/attribute": 0.5,
    }  # fmt: skip


def test_intervals_are_over_prompts():
    measure = Measure("", "m", (0.0, 0.2, 1.0, 0.8, 0.4, 0.6), ("a", "a", "b", "b", "c", "c"))
    (figure,) = figures([measure])
    wanted = bootstrap_mean(measure.values, measure.prompts)
    assert (figure.mean, figure.low, figure.high) == (wanted.estimate, wanted.low, wanted.high)
    assert (figure.values, figure.prompts) == (6, 3)
    single = bootstrap_mean(measure.values, range(6))
    assert figure.high - figure.low > single.high - single.low


def test_a_page_of_results():
    (main, other) = figures([Measure("", "m", (0.25, 0.75), ("a", "b")), Measure("kind", "x|y", (1.0,), ("a",))])
    results = Results("dpg", "dpg.csv", False, "runs/x", "qwen", True, 2, 2, 3, 1, 0, (main, other))
    page = markdown(results)
    assert "# dpg: runs/x" in page
    assert "2 prompts of dpg.csv (not all of its prompts), 2 images, 3 answers of qwen." in page
    assert "| m | 50.0 % |" in page
    assert "| kind | mean | 95 % interval | values | prompts |" in page
    assert "| x\\|y | 100.0 % | 100.0 to 100.0 | 1 | 1 |" in page
    assert "(`--written`)" in page
    assert "none of their question's choices, and count as wrong: 1." in page
    assert "likeliest" not in page
    assert results["m"] is main
    assert results["kind/x|y"] is other
    with pytest.raises(KeyError):
        results["z"]
