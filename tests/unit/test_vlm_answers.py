"""What is read out of an answer of a vision-language model, by hand; and what cannot be."""

from __future__ import annotations

import math

import inflect
import pytest

from tastemaker.data.prompts import load_prompts
from tastemaker.errors import ConfigError, RewardError
from tastemaker.rewards.vlm.answers import Answer, AnswerToken, contains, rating, yes_probability
from tastemaker.rewards.vlm.rewards import Expected, counted, read_questions
from tastemaker.rewards.vlm.settings import ModelAddress, Vlm, is_vlm, parse_address, without_servers


def word(said, **chances):
    return AnswerToken(said, tuple((text.replace("_", " "), math.log(chance)) for text, chance in chances.items()))


def test_the_chance_of_yes_is_against_no_over_all_spellings():
    # 0.5 + 0.1 for yes, 0.2 for no: 0.6 / 0.8
    answer = Answer(" Yes, it does.", (word("Yes", Yes=0.5, _yes=0.1, NO=0.2, Yesterday=0.1), word(",", no=1.0)))
    assert yes_probability(answer) == pytest.approx(0.75)


def test_the_chance_is_of_the_first_word_wherever_it_stands():
    answer = Answer("**No**", (word("**", yes=0.9), word("No", No=0.7, Yes=0.3)))
    assert yes_probability(answer) == pytest.approx(0.3)


def test_without_chances_yes_is_one_and_no_is_nothing():
    assert [yes_probability(Answer(text)) for text in ("yes", "YES.", '"No"', "No, there is yes written on it")] == [
        1,
        1,
        0,
        0,
    ]
    # The word is cut, so that no token's chance is its own.
    assert yes_probability(Answer("yes", (word("y", y=0.6, n=0.4), word("es", es=1.0)))) == 1


@pytest.mark.parametrize("text", ["", "  \n", "Perhaps.", "Not at all", "yesterday", "nothing", "The answer is yes"])
def test_what_is_neither_yes_nor_no_is_no_number(text):
    with pytest.raises(ValueError, match="empty answer" if not text.strip() else "begins with yes or no.*" + text):
        yes_probability(Answer(text))


def test_a_rating_is_the_mean_over_the_chances_of_the_numbers():
    # (4 * 0.5 + 5 * 0.25 + 3 * 0.05) / 0.8 = 3.4 / 0.8; the 9 is not on the scale
    answer = Answer("Rating: 4", (word("Rating: ", x=1.0), word(" 4", _4=0.5, **{"5": 0.25, "3": 0.05, "9": 0.2})))
    assert rating(answer, 1, 5) == pytest.approx(4.25)


def test_a_long_scale_takes_the_number_that_is_written():
    # "1" may be the beginning of "10".
    assert rating(Answer("10", (word("1", **{"1": 0.9, "2": 0.1}), word("0", **{"0": 1.0}))), 1, 10) == 10


@pytest.mark.parametrize(
    ("text", "value"),
    [("4", 4), ("4.", 4), ("4.5", 4.5), ("4/5", 4), ("I give it 2 out of 5.", 2), ("3, yes: 3", 3), ("5 / 5", 5)],
)
def test_ratings_as_they_are_written(text, value):
    assert rating(Answer(text), 1, 5) == value


@pytest.mark.parametrize(
    "text", ["four", "6", "0", "-3", "3 or 4", "On a scale from 1 to 5: 4", "4/10", "B4", "", "1e3"]
)
def test_what_is_no_rating_is_no_number(text):
    with pytest.raises(ValueError, match="empty answer" if not text else "expected .* from 1 to 5"):
        rating(Answer(text), 1, 5)


def test_what_is_expected_is_contained_to_the_letter():
    """ddpo-pytorch, rewards.py: `ans in resp`."""
    assert contains(Answer("There are two cats."), ("two",))
    assert contains(Answer("There are two cats."), ("cat",))
    assert contains(Answer("2 cats"), ("two", "2"))
    assert contains(Answer("The bobcat is twofold"), ("two",))
    assert not contains(Answer("There are Two Cats."), ("two", "cat", "2"))


def test_a_prompt_is_asked_for_its_number_and_its_animal():
    """ddpo-pytorch, data/prompts.py, `counting`, which makes the prompts out of a number in words and a plural."""
    assert counted("two wolves") == (
        Expected("How many wolves are there in this image?", ("two",)),
        Expected("What animal is in this image?", ("wolf",)),
    )
    assert counted("3 blue fish") == (
        Expected("How many blue fish are there in this image?", ("3",)),
        Expected("What animal is in this image?", ("blue fish",)),
    )
    engine = inflect.engine()
    for prompt in load_prompts("ddpo-counting").prompts:
        how_many, what = counted(prompt)
        number, plural = prompt.split(" ", 1)
        assert how_many.answers == (number,)
        assert engine.plural(what.answers[0]) == plural
    assert counted("one cat")[1].answers == ("cat",)
    for prompt in ("a cat", "two", ""):
        with pytest.raises(RewardError, match=r"takes a number and a noun"):
            counted(prompt)


def test_questions_of_ones_own(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"prompt": "a cat", "questions": ["What?", "Where?"], "answers": ["cat", ["here", "there"]]}\n\n')
    assert read_questions(str(path)) == {"a cat": (Expected("What?", ("cat",)), Expected("Where?", ("here", "there")))}
    for line in (
        "{", "[]", '{"prompt": "a"}', '{"prompt": "a", "questions": ["b"], "answers": []}',
        '{"prompt": "a", "questions": [], "answers": []}', '{"prompt": "a", "questions": ["b"], "answers": [[]]}',
        '{"prompt": "a", "questions": ["b"], "answers": [[""]]}', '{"prompt": 1, "questions": ["b"], "answers": ["c"]}',
    ):  # fmt: skip
        path.write_text(line)
        with pytest.raises(RewardError, match=r"q\.jsonl"):
            read_questions(str(path))
    with pytest.raises(RewardError, match="cannot be read"):
        read_questions(str(tmp_path / "none"))


def test_a_model_and_its_servers():
    assert parse_address("llava-hf/llava-1.5-7b-hf") == ModelAddress("llava-hf/llava-1.5-7b-hf")
    assert parse_address("a@b@http://h:1/v1/") == ModelAddress("a@b", ("http://h:1/v1",))
    assert parse_address("m@http://h:1/v1,https://i/v1").urls == ("http://h:1/v1", "https://i/v1")
    with pytest.raises(RewardError, match=r"no model: give MODEL@http://h/v1"):
        parse_address("http://h/v1")
    with pytest.raises(RewardError, match="must not hold a name or password"):
        parse_address("m@http://me:secret@h/v1")
    assert without_servers("vlm-rating:a/b@http://h:1/v1") == "vlm-rating:a/b"
    assert without_servers("target-image:a@http://h") == "target-image:a@http://h"
    assert is_vlm("vlm-strict:x")
    assert not is_vlm("vlm:x")


@pytest.mark.parametrize(
    "wrong", [{"scale": (5, 1)}, {"scale": (-1, 3)}, {"tokens": 0}, {"wait": -1}, {"text_layer": -1}]
)
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(ConfigError, match=f"vlm.{next(iter(wrong))} is"):
        Vlm(**wrong)
    with pytest.raises(ConfigError, match="not the name of an environment variable"):
        Vlm(key_env="sk-123")
