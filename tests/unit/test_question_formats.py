"""Benchmarks of questions as they are published: what is read, what is asked, and what is refused, with its place."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tastemaker.drawings.judge import compare
from tastemaker.drawings.scene import Scene, Thing, parse
from tastemaker.errors import DataError, PromptError, RewardError, TastemakerError
from tastemaker.question_benchmarks import bundled
from tastemaker.question_benchmarks.benchmark import take
from tastemaker.question_benchmarks.formats import FORMATS, load_benchmark
from tastemaker.question_benchmarks.judge import answer

DATA = Path(__file__).parents[1] / "data/question_benchmarks"
NAMES = {
    "geneval2.jsonl": "geneval2", "dpg.csv": "dpg", "tifa.json": "tifa", "oneig": "oneig",
    "genai_image.json": "genai-bench",
}  # fmt: skip


@pytest.mark.parametrize(("file", "name"), NAMES.items())
def test_a_published_file_is_recognised_and_the_same_by_its_name(file, name):
    found = load_benchmark(str(DATA / file))
    assert found.name == name
    named = load_benchmark(f"{name}:{DATA / file}")
    assert found.prompts == named.prompts
    assert found.whole


def questions(benchmark, prompt=0):
    return benchmark.prompts[prompt].questions


def test_geneval2():
    found = load_benchmark(str(DATA / "geneval2.jsonl"))
    assert (found.scoring, found.per_prompt, found.questions) == ("probability", 1, 7)
    assert [prompt.text for prompt in found.prompts] == ["two red stars", "a red star on the left of a blue circle"]
    assert found.prompts[0].categories == {"atoms": ("3",)}
    first, second, _ = questions(found)
    assert first.text == "How many stars are in the image? Answer in one word."
    assert (first.expected, first.choices[:4]) == (("two",), ("zero", "one", "two", "three"))
    assert (second.expected, second.choices, second.categories) == (
        ("Yes",), ("yes", "no"), {"skill": ("attribute",)},
    )  # fmt: skip


def test_dpg():
    found = load_benchmark(str(DATA / "dpg.csv"))
    assert (found.scoring, found.per_prompt) == ("choice", 4)
    assert [(prompt.id, prompt.text) for prompt in found.prompts] == [
        ("partiprompts1", "a red star, on the left of a circle"), ("drawtext_2", "a photo"),
    ]  # fmt: skip
    assert [question.depends_on for question in questions(found)] == [(), ("1",), (), ("1", "3"), ("4",)]
    assert questions(found)[3].text == "Is the star on the left of the circle? Please answer yes or no."
    assert questions(found)[1].categories == {
        "category": ("attribute",), "detailed category": ("attribute - color",),
    }  # fmt: skip
    assert questions(found, 1)[0].categories == {"category": ("global",), "detailed category": ("global - -",)}


def test_tifa():
    found = load_benchmark(str(DATA / "tifa.json"))
    assert (found.scoring, found.per_prompt) == ("choice", 1)
    assert [(prompt.id, len(prompt.questions)) for prompt in found.prompts] == [("coco_1", 3), ("drawbench_8", 1)]
    counted = questions(found)[1]
    assert counted.text == (
        "Answer the multiple-choice question. Question: how many stars are in the picture? Choices: 1, 2, 3, 4 Answer:"
    )
    assert (counted.expected, counted.choices) == (("3",), ("1", "2", "3", "4"))
    assert counted.categories == {"element type": ("counting",)}
    bare = load_benchmark(f"tifa-free-form:{DATA / 'tifa.json'}")
    assert bare.free_form
    assert questions(bare)[1].text == "how many stars are in the picture?"
    assert (questions(bare)[1].choices, questions(bare)[1].expected) == (counted.choices, counted.expected)


def test_oneig():
    found = load_benchmark(str(DATA / "oneig"))
    assert (found.scoring, found.per_prompt) == ("choice", 4)
    # Text rendering has no questions of alignment.
    assert [(prompt.id, prompt.text) for prompt in found.prompts] == [
        ("anime/000", "Two stars, anime style."), ("object/000", "A red star."),
    ]  # fmt: skip
    assert questions(found)[1].text == "Are there two stars?. Please answer 'Yes' or 'No' only."
    assert [question.depends_on for question in questions(found)] == [(), ("1",), ("2",), ()]
    assert found.prompts[1].categories == {"class": ("object",)}
    without = DATA / "oneig/scripts/alignment/Q_D/object.json"
    assert json.loads(without.read_text())["000"]["dependency"] == '{"1": [2]}'  # a question may have no parents named
    assert [question.depends_on for question in questions(found, 1)] == [("2",), ()]
    chinese = load_benchmark(f"oneig-zh:{DATA / 'oneig'}")
    assert [(prompt.id, prompt.text) for prompt in chinese.prompts] == [("multilingualism/000", "一颗红色的星星")]


def test_genai_bench_and_vqascore(tmp_path):
    found = load_benchmark(str(DATA / "genai_image.json"))
    assert (found.scoring, found.per_prompt) == ("probability", 1)
    (question,) = questions(found)
    assert question.text == 'Does this figure show "A "red" star {shining}."? Please answer yes or no.'
    assert [prompt.categories for prompt in found.prompts] == [
        {"skill": ("attribute", "all")}, {"skill": ("counting", "all")},
    ]  # fmt: skip
    shutil.copy(DATA / "genai_image.json", tmp_path)
    assert load_benchmark(str(tmp_path / "genai_image.json")).prompts[0].categories == {"skill": ()}
    (tmp_path / "own.txt").write_text("a dog\na cat\n")
    own = load_benchmark(f"vqascore:{tmp_path / 'own.txt'}")
    assert [question.text for prompt in own.prompts for question in prompt.questions] == [
        f'Does this figure show "a {animal}"? Please answer yes or no.' for animal in ("dog", "cat")
    ]


def geneval2(**changes):
    row = {
        "prompt": "two stars", "atom_count": 2, "vqa_list": [["How many stars are in the image?", "two"]],
        "skills": ["count"],
    } | changes  # fmt: skip
    return json.dumps({name: value for name, value in row.items() if value is not None}) + "\n"


HEAD = "item_id,text,proposition_id,dependency,tuple,question_natural_language\n"


def tifa(**changes):
    row = {
        "id": "a", "caption": "c", "question": "q?", "choices": ["yes", "no"], "answer": "yes", "element_type": "t",
    } | changes  # fmt: skip
    return json.dumps([{name: value for name, value in row.items() if value is not None}])


def oneig(question, dependency):
    return json.dumps({"000": {"question": json.dumps(question), "dependency": json.dumps(dependency)}})


REFUSED = {
    "no column": ("geneval2", geneval2() + geneval2(skills=None), "x:2: no column skills; the columns are prompt,"),
    "fewer skills": ("geneval2", geneval2(skills=[]), "x:1, column skills: expected a list of 1"),
    "no answer": ("geneval2", geneval2(vqa_list=[["How many?"]]), "x:1, column vqa_list: expected a question and its"),
    "no number": (
        "geneval2", geneval2(vqa_list=[["How many?", "some"]]),
        r"x:1, column vqa_list: the answer to 'How many\?' is 'some', but must be one of zero, one",
    ),
    "not yes": ("geneval2", geneval2(vqa_list=[["Is it?", "No"]]), "column vqa_list: .* must be Yes"),
    "not a number of atoms": ("geneval2", geneval2(atom_count="2"), "x:1, column atom_count: expected a whole number"),
    "not JSON": ("geneval2", "{", "x:1: expected a JSON object a line"),
    "an empty file": ("geneval2", "", "x is empty"),
    "no tuple": ("dpg", "item_id,text\na,b\n", "x:2: no column proposition_id; the columns are item_id, text"),
    "dangling": (
        "dpg", HEAD + "a,b,1,0,e - w (s),Is it?\na,b,2,7,e - w (s),Is it?\n",
        "x:3, column dependency: question 2 depends on question 7, which the prompt does not have; it has 1, 2",
    ),
    "twice": ("dpg", HEAD + "a,b,1,0,e,q\na,b,1,0,e,q\n", "x:3, column proposition_id: item a has a question 1"),
    "no id": ("dpg", HEAD + "a,b,one,0,e,q\n", "x:2, column proposition_id: expected a whole number, but found 'one'"),
    "no parent": ("dpg", HEAD + "a,b,1,none,e,q\n", "x:2, column dependency: expected a whole number"),
    "two texts": ("dpg", HEAD + "a,b,1,0,e,q\na,c,2,0,e,q\n", "x:3, column text: item a has another text at x:2"),
    "empty question": ("dpg", HEAD + "a,b,1,0,e,\n", "x:2, column question_natural_language: expected a text, but it"),
    "no choice": ("tifa", tifa(answer="maybe"), "x, entry 1, column answer: 'maybe' is none of the choices 'yes'"),
    "no choices": ("tifa", tifa(choices="yes"), "entry 1, column choices: expected a list"),
    "no type": ("tifa", tifa(element_type=None), "entry 1: no column element_type; the columns are id, caption"),
    "no caption": ("tifa", tifa(caption=3), "entry 1, column caption: expected a caption, which is text, but found"),
    "an array": ("genai-bench", "[1]", "x: expected a JSON object, but found list"),
    "broken": ("genai-bench", '{"00001":', "x: not JSON that can be read .line 1"),
    "no prompt": ("genai-bench", '{"00001": {"id": "00001"}}', "x, entry 00001: no column prompt"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_is_wrong_is_named_with_its_file_row_and_column(case, tmp_path):
    name, content, message = REFUSED[case]
    path = tmp_path / {"dpg": "x.csv", "geneval2": "x.jsonl"}.get(name, "x.json")
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load_benchmark(f"{name}:{path}")
    said = str(caught.value).replace(str(path), "x")
    assert re.search(message, said), said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("question", "dependency", "message"),
    [
        ({"1": "Is it?"}, {"1": [2]}, "entry 000, column dependency: question 1 depends on question 2, which the"),
        ({"1": "Is it?"}, {"1": [0], "2": [1]}, "entry 000, column dependency: there is no question 2"),
        ({"1": "Is it?"}, {"1": 0}, "entry 000, column dependency: expected a list of questions, but found 0"),
        ({}, {}, "entry 000, column question: there are no questions"),
        ([], {}, "entry 000, column question: expected a JSON object"),
    ],
)
def test_what_is_wrong_with_oneigs_questions(question, dependency, message, tmp_path):
    shutil.copytree(DATA / "oneig", tmp_path / "oneig")
    file = tmp_path / "oneig/scripts/alignment/Q_D/anime.json"
    file.write_text(oneig(question, dependency))
    with pytest.raises(DataError, match=f"{re.escape(str(file))}, {message}"):
        load_benchmark(str(tmp_path / "oneig"))


def test_questions_without_their_prompt_and_the_other_way_round(tmp_path):
    shutil.copytree(DATA / "oneig", tmp_path / "oneig")
    file = tmp_path / "oneig/scripts/alignment/Q_D/anime.json"
    file.write_text(file.read_text().replace('"000"', '"001"'))
    with pytest.raises(DataError, match=r"anime.json, entry 001: OneIG-Bench.csv has no prompt 001 of anime"):
        load_benchmark(str(tmp_path / "oneig"))
    with pytest.raises(DataError, match=r"anime.json has OneIG-Bench's questions without its prompts: give the folder"):
        load_benchmark(str(file))
    shutil.rmtree(tmp_path / "oneig/scripts")
    with pytest.raises(DataError, match="has no files of questions"):
        load_benchmark(str(tmp_path / "oneig"))


def test_what_is_no_benchmark(tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"other.csv:2: not the form of a benchmark .* the columns are a, b"):
        load_benchmark(str(tmp_path / "other.csv"))
    with pytest.raises(DataError, match=r"there is no benchmark 'genevall2', and no file of this name; .*'geneval2'"):
        load_benchmark("genevall2")
    with pytest.raises(DataError, match=r"give what dpg is in, as dpg:PATH: dpg_bench.csv of"):
        load_benchmark("dpg")
    with pytest.raises(DataError, match="is no benchmark: of folders OneIG-Bench's is known"):
        load_benchmark(str(tmp_path))
    for name in set(FORMATS) - {"vqascore", "bundled"}:
        with pytest.raises(TastemakerError, match="there is no file"):
            load_benchmark(f"{name}:{tmp_path / 'missing.json'}")


def test_prompts_are_taken_from_all_over_the_benchmark():
    whole = load_benchmark("bundled")
    some = take(whole, 8)
    assert len(some.prompts) == 8
    assert not some.whole
    assert {int(prompt.id) // 16 for prompt in some.prompts} == {0, 1, 2, 3}  # of each of the four lists
    assert take(whole, 64) is whole


def texts(prompt):
    request = parse(prompt)
    assert request is not None
    return [(question.text, question.expected[0]) for question in bundled.questions(request)]


def test_questions_that_follow_from_a_prompt():
    assert texts("three red stars on a striped background") == [
        ("How many objects are in the image?", "three"), ("Are there any stars in the image?", "yes"),
        ("How many stars are in the image?", "three"), ("Are all the stars red?", "yes"),
        ("Is the background striped?", "yes"),
    ]  # fmt: skip
    assert texts("a big orange fish above a circle") == [
        ("How many objects are in the image?", "two"),
        ("Are there any fish in the image?", "yes"), ("How many fish are in the image?", "one"),
        ("Are there any circles in the image?", "yes"), ("How many circles are in the image?", "one"),
        ("Is there a big fish in the image?", "yes"), ("Is there an orange fish in the image?", "yes"),
        ("Is there a big orange fish above a circle in the image?", "yes"),
    ]  # fmt: skip
    # Two of a kind: one star must have all that the prompt asks of it.
    assert texts("a striped red star and a blue star")[3:] == [
        ("Is there a striped red star in the image?", "yes"), ("Is there a blue star in the image?", "yes"),
    ]  # fmt: skip
    with pytest.raises(PromptError, match="'a dog' is not of the bundled model's grammar"):
        bundled.read("a [dog|cat]")


STAR, CIRCLE = Thing("star", "red", 0.3, 0.5, 0.2), Thing("circle", "blue", 0.7, 0.5, 0.2, "striped")


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("How many objects are in the image?", "two"), ("How many stars are in the image?", "one"),
        ("How many fish are in the image?", "zero"), ("Are there any circles in the image?", "Yes"),
        ("Are there any fish in the image?", "No"), ("Is there a striped circle in the image?", "Yes"),
        ("Is there a striped star in the image?", "No"), ("Are all the stars red?", "Yes"),
        ("Are all the fish red?", "No"), ("Is the background white?", "Yes"), ("Is the background red?", "No"),
        ("Is the background plain?", "Yes"), ("Is the background striped?", "No"),
        ("Is there a red star on the left of a circle in the image?", "Yes"),
        ("Is there a circle on the right of a star in the image?", "Yes"),
        ("Is there a circle on the left of a star in the image?", "No"),
        ("Is there a red circle on the right of a star in the image?", "No"),
        ("Is there a star and a circle in the image?", "Yes"),
    ],
)  # fmt: skip
def test_the_judge_answers_by_what_it_sees(question, expected):
    assert answer(Scene((STAR, CIRCLE), "white"), question) == expected


@pytest.mark.parametrize("question", ["Is it art?", "How many dogs are in the image?", "Is there a dog in the image?"])
def test_the_judge_does_not_guess(question):
    with pytest.raises(RewardError, match=r"the judge does not understand the question '.*--vlm MODEL@http"):
        answer(Scene((STAR, CIRCLE), "white"), question)


def test_all_answers_are_right_where_the_verdict_is():
    """On scenes that each prompt of the lists describes, and on those of other prompts."""
    import random

    from tastemaker.drawings.scene import sample_scene

    rng = random.Random(0)
    scenes = [sample_scene(rng) for _ in range(200)]
    agreed = {True: 0, False: 0}
    for index, (scene, request) in enumerate(scenes):
        for other in (scene, scenes[(index + 1) % len(scenes)][0], Scene(scene.things[:1], scene.ground, "plain")):
            right = all(
                answer(other, question.text).lower() == question.expected[0] for question in bundled.questions(request)
            )
            assert right == compare(request, other).correct, (request, other)
            agreed[right] += 1
    assert min(agreed.values()) >= 100, agreed
