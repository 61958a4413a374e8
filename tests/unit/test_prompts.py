"""Prompts: built-in lists against the counts in the papers, files, weights, and what is refused."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tastemaker.data.prompts import BUILTIN, PromptSet, load_prompts
from tastemaker.data.templates import drawn
from tastemaker.drawings.scene import parse
from tastemaker.errors import PromptError
from tastemaker.training.draws import draw_evaluation, draw_round, share


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("ddpo-animals", 45), ("imagenet-animals", 398), ("ddpo-activities", 135), ("b2-template1-train", 45),
        ("b2-template1-test", 90), ("b2-template2-train", 40), ("b2-template2-test", 40), ("b2-template3-train", 40),
        ("b2-template3-test", 30), ("alignprop-animals", 45), ("alignprop-animals-test", 6), ("thesis-pink", 4),
        ("thesis-diverse", 24), ("thesis-animals", 24), ("ddpo-counting", 154), ("alignprop-animals-train", 45),
        ("thesis-pink-test", 512), ("thesis-pink-bare", 4), ("thesis-pink-bare-test", 64), ("dpok-test", 8),
        ("dpok-rabbit", 1), ("alignprop-removal", 1), ("alignprop-figures", 2), ("ddpo-unseen", 4),
    ],
)  # fmt: skip
def test_counts_of_the_papers_lists(name, count):
    prompts = load_prompts(name)
    assert len(prompts) == count == BUILTIN[name].count
    assert len(set(prompts.prompts)) == count


def test_imagenet_animals_are_classes_0_to_397():
    """Spot names by their ILSVRC-2012 class index; 151 to 268 are dogs, as in the public DDPO code."""
    prompts = load_prompts("imagenet-animals").prompts
    known = {
        0: "tench", 1: "goldfish", 7: "cock", 25: "European fire salamander", 84: "peacock", 88: "macaw",
        100: "black swan", 150: "sea lion", 151: "Chihuahua", 268: "Mexican hairless", 269: "timber wolf",
        281: "tabby", 291: "lion", 319: "dragonfly", 340: "zebra", 366: "gorilla", 388: "giant panda", 397: "puffer",
    }  # fmt: skip
    assert {place: prompts[place] for place in known} == known


def test_papers_splits_are_apart_and_words_make_the_lists():
    for train, test in (
        ("b2-template1-train", "b2-template1-test"), ("b2-template2-train", "b2-template2-test"),
        ("b2-template3-train", "b2-template3-test"), ("alignprop-animals-train", "alignprop-animals-test"),
        ("ddpo-activities", "ddpo-unseen"), ("thesis-pink", "thesis-pink-test"),
        ("thesis-pink-bare", "thesis-pink-bare-test"),
    ):  # fmt: skip
        assert not set(load_prompts(train).prompts) & set(load_prompts(test).prompts), test
    # The lists of B2-DiffuRL always have "a", so that three of the 135 differ in their article.
    made, printed = (set(load_prompts(name).prompts) for name in ("a(n) [animal] [activity]", "ddpo-activities"))
    assert made - printed == {f"an ant {activity}" for activity in ("riding a bike", "playing chess", "washing dishes")}
    assert set(load_prompts("ddpo-counting").prompts) == set(load_prompts("[number] [counted-animals]").prompts)
    assert load_prompts("ddpo-counting").prompts[7 * 14] == "two wolves"
    assert "A photograph of an elephant wearing red sunglasses." in load_prompts("thesis-pink-test").prompts


@pytest.mark.parametrize("name", ["single", "attributes", "count", "pair"])
def test_bundled_lists_are_split_three_to_one(name):
    whole, train, test = (load_prompts(f"bundled-{name}{part}").prompts for part in ("", "-train", "-test"))
    assert len(test) * 4 == len(whole)
    assert sorted(train + test) == sorted(whole)
    for part in (train, test):
        things = [thing for prompt in part for thing in parse(prompt).things]
        kinds, colours = Counter(thing.kind for thing in things), Counter(thing.colour for thing in things)
        assert len(kinds) == len(colours) == 8
        assert len(set(kinds.values())) == 1  # each as often as any other
    assert set(load_prompts("bundled-eight").prompts) <= set(load_prompts("bundled-single-train").prompts)
    if name != "pair":
        # What is kept for testing is an object in a colour, so that no list gives away another's.
        held = [parse(prompt).things[0] for prompt in load_prompts("bundled-single-test").prompts]
        pairs = {(thing.kind, thing.colour) for thing in held}
        assert {(t.kind, t.colour) for prompt in test for t in parse(prompt).things} == pairs


def test_bundled_lists_are_of_the_judges_grammar_and_balanced():
    for name in ("bundled-eight", "bundled-single", "bundled-attributes", "bundled-count", "bundled-pair"):
        requests = [parse(prompt) for prompt in load_prompts(name).prompts]
        assert all(requests), name
        kinds = [thing.kind for request in requests for thing in request.things]
        assert max(map(kinds.count, kinds)) == min(map(kinds.count, kinds)), name
    for request in [parse(prompt) for prompt in load_prompts("bundled-pair").prompts]:
        assert request.things[0].kind != request.things[1].kind
        assert request.things[0].colour != request.things[1].colour


def test_lists_for_models_of_classes_and_of_nothing():
    """The names of the drawings' classes; and one prompt for a model that looks at none."""
    assert load_prompts("bundled-kinds").prompts == (
        "circle", "square", "triangle", "star", "heart", "tree", "house", "fish"
    )  # fmt: skip
    assert len(load_prompts("none")) == 1


def test_text_and_jsonl_files(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffa cat\n\n  ein Bär \n", encoding="utf-8")
    assert load_prompts(str(tmp_path / "a.txt")) == PromptSet(("a cat", "ein Bär"), (1.0, 1.0))
    (tmp_path / "b.jsonl").write_text('{"prompt": "a cat"}\n{"prompt": "a dog", "weight": 3}\n')
    prompts = load_prompts(str(tmp_path / "b.jsonl"))
    assert prompts.probabilities == [0.25, 0.75]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b"\n  \n", "is empty"),
        ("a.txt", b"a cat\nB\xe4r\n", "not UTF-8"),
        ("a.jsonl", b"a cat\n", r"a.jsonl:1: expected .* not JSON"),
        ("a.jsonl", b'{"prompt": "a"}\n{"text": "a cat"}\n', r"a.jsonl:2: expected"),
        ("a.jsonl", b'{"prompt": "a cat", "weight": 0}\n', "weight is 0"),
        ("a.jsonl", b'{"prompt": "a cat", "weight": NaN}\n', "weight is nan"),
        ("a.jsonl", b'{"prompt": " "}\n', r"a.jsonl:1"),
    ],
)
def test_unusable_files_are_refused_in_one_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptError, match=message) as caught:
        load_prompts(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_missing_and_misspelt():
    with pytest.raises(PromptError, match="there is no file"):
        load_prompts("missing.txt")
    with pytest.raises(PromptError, match="did you mean 'ddpo-animals'"):
        load_prompts("ddpo-animal")


def test_csv_files(tmp_path):
    (tmp_path / "a.csv").write_text('\ufeffprompt,weight,note\n"a cat, sitting",2,x\na dog,,y\n a dog ,3,z\n', "utf-8")
    # One prompt in two rows has the weight of both.
    assert load_prompts(str(tmp_path / "a.csv")) == PromptSet(("a cat, sitting", "a dog"), (2.0, 4.0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("image,weight\nx,1\n", "no column prompt or caption or text; the columns are image, weight"),
        ("prompt,weight\na cat,much\n", "a.csv:2: expected a prompt and a weight, but the weight is 'much'"),
        ("prompt,weight\na cat,-1\n", "but the weight is '-1': it must be a number greater than 0"),
        ("prompt\n\na cat\n' '\n", None),
        ("caption,note\n ,x\n", "a.csv:2: expected a caption, but the caption is ''"),
        ("prompt\na cat, a dog\n", "expected 1 columns"),
    ],
)
def test_unusable_csv_files(tmp_path, content, message):
    (tmp_path / "a.csv").write_text(content)
    if message is None:
        assert len(load_prompts(str(tmp_path / "a.csv"))) == 2
        return
    with pytest.raises(PromptError, match=message):
        load_prompts(str(tmp_path / "a.csv"))


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return datasets


def test_data_sets(datasets, tmp_path):
    """Saved by the library, with splits or without; a folder of parquet or csv files; one parquet file."""
    columns = {"caption": ["a cat", "a dog", "a cat"], "weight": [1.0, 1.0, 0.5], "other": [1, 2, 3]}
    made, expected = datasets.Dataset.from_dict(columns), PromptSet(("a cat", "a dog"), (1.5, 1.0))
    test = datasets.Dataset.from_dict({"caption": ["a fox"]})
    made.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": made, "test": test}).save_to_disk(tmp_path / "two")
    (tmp_path / "parquet").mkdir()
    made.to_parquet(tmp_path / "parquet/train.parquet")
    (tmp_path / "csv").mkdir()
    made.to_csv(tmp_path / "csv/data.csv", index=False)
    for name in ("one", "two", "two:train", "parquet", "parquet/train.parquet", "csv"):
        assert load_prompts(f"dataset:{tmp_path / name}") == expected, name
    assert load_prompts(f"dataset:{tmp_path / 'two'}:test").prompts == ("a fox",)
    assert load_prompts(f"[big|small] [dataset:{tmp_path / 'one'}]").weights == (1.5, 1.0, 1.5, 1.0)


def test_unusable_data_sets(datasets, tmp_path):
    datasets.Dataset.from_dict({"title": ["a cat"]}).save_to_disk(tmp_path / "title")
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["a", None]})}).save_to_disk(tmp_path / "none")
    for name, message in {
        f"{tmp_path}/title": "no column prompt or caption or text; the columns are title",
        f"{tmp_path}/none": "row 1: expected a text, but the text is None",
        f"{tmp_path}/none:test": "has no split 'test'; it has train",
        f"{tmp_path}/missing": "there are no prompts at",
        "": "names no data set",
    }.items():
        with pytest.raises(PromptError, match=message) as caught:
            load_prompts(f"dataset:{name}")
        assert "\n" not in str(caught.value)


def test_templates_are_products(tmp_path):
    (tmp_path / "things.jsonl").write_text('{"prompt": "owl"}\n{"prompt": "unicorn", "weight": 3}\n')
    found = load_prompts(f"A(n) [red | orange] [{tmp_path}/things.jsonl] and a(n) [eagle|hour]")
    assert found.prompts == (
        "A red owl and an eagle", "A red owl and an hour", "A red unicorn and an eagle", "A red unicorn and an hour",
        "An orange owl and an eagle", "An orange owl and an hour", "An orange unicorn and an eagle",
        "An orange unicorn and an hour",
    )  # fmt: skip
    assert found.weights == (1.0, 1.0, 3.0, 3.0) * 2
    assert load_prompts("a(n) [unicorn|European|FBI agent|heir]").prompts == (
        "a unicorn", "a European", "an FBI agent", "an heir"
    )  # fmt: skip
    assert load_prompts("[bundled-colour] [bundled-kind]").prompts[:2] == ("red circle", "red square")


def test_some_of_many_are_drawn_without_making_all():
    """398^4 * 45 prompts: the first few of a shuffle, always the same, each once, and as random as they look."""
    huge = "[imagenet-animals] [imagenet-animals] [imagenet-animals] [imagenet-animals] [animal]"
    with pytest.raises(PromptError, match=r"has 1,129,132,224,720 prompts, more than 100,000: draw some .*'1000 of "):
        load_prompts(huge)
    first, second = load_prompts(f"3000 of {huge}").prompts, load_prompts(f"3001-4000 of {huge}").prompts
    assert (len(set(first)), len(set(second)), len(set(first) & set(second))) == (3000, 1000, 0)
    assert load_prompts(f"10 of {huge}").prompts == first[:10]
    animals = Counter(prompt.rsplit(" ", 1)[1] for prompt in first)
    # 67 each are expected, with a deviation of 8.
    assert len(animals) == 45
    assert max(abs(count - 3000 / 45) for count in animals.values()) < 5 * 8.1


def test_some_of_a_list_are_a_split_of_it():
    parts = [set(load_prompts(f"{part} of imagenet-animals").prompts) for part in ("300", "301-398")]
    assert parts[0] | parts[1] == set(load_prompts("imagenet-animals").prompts)
    assert not parts[0] & parts[1]
    assert sum(range(10)) == sum(drawn(10, 1, 10))
    assert len(load_prompts("2 of a(n) [animal]")) == 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a [] cat", r"has empty brackets \[\]"),
        ("a [animl]", r"unknown words \[animl\]: did you mean 'animal'"),
        ("a [red||blue]", "has an empty choice"),
        ("a [missing.txt]", "there is no file missing.txt"),
        ("46 of [animal]", "takes prompts up to number 46, but '\\[animal\\]' has only 45"),
        ("0 of ddpo-animals", "takes the prompts 1 to 0"),
        ("5-4 of ddpo-animals", "takes the prompts 5 to 4"),
        ("5 of ddpo-animal", "did you mean 'ddpo-animals'"),
        ("a red star", "unknown prompts 'a red star'"),
        ("", "no prompts are given: give --prompts a list of `tastemaker ls prompts`, a .txt"),
    ],
)
def test_unusable_templates(source, message):
    with pytest.raises(PromptError, match=message) as caught:
        load_prompts(source)
    assert "\n" not in str(caught.value)


def test_a_file_may_have_brackets_or_numbers_in_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a[1].txt").write_text("a cat\n")
    (tmp_path / "2 of mine.txt").write_text("a dog\n")
    assert load_prompts("a[1].txt").prompts == ("a cat",)
    assert load_prompts("2 of mine.txt").prompts == ("a dog",)


def test_a_round_draws_by_weight_and_is_the_same_every_time():
    prompts = PromptSet(("rare", "common"), (1.0, 9.0))
    draw = draw_round(prompts, seed=0, round=1, samples=4000, per_prompt=2)
    assert draw == draw_round(prompts, 0, 1, 4000, 2)
    assert draw != draw_round(prompts, 0, 2, 4000, 2)
    assert draw.prompts.count("rare") in (400, 402, 398)  # pairs: 200 of 2000, rounded up or down
    # Every image has a place of its own, hence noise of its own; two of each prompt come together.
    assert len(set(zip(draw.prompt_index, draw.sample_index, strict=True))) == 4000
    assert draw.prompts.count("rare") % 2 == 0


def test_a_whole_list_comes_once_and_a_longer_one_without_repeats():
    single = load_prompts("bundled-single")
    assert sorted(draw_round(single, 0, 3, 64, 1).prompt_index) == list(range(64))
    assert len(set(draw_round(single, 0, 3, 40, 1).prompt_index)) == 40


def test_the_expectation_of_a_draw_is_its_weight():
    """Weight 3 of 10 with 2 draws: 0.6 expected; the mean of 4000 rounds is within 5 standard errors (< 0.04)."""
    prompts = PromptSet(("a", "b", "c"), (3.0, 5.0, 2.0))
    counts = [draw_round(prompts, 0, number, 2, 1).prompt_index.count(0) for number in range(4000)]
    assert sum(counts) / 4000 == pytest.approx(0.6, abs=0.04)


def test_the_order_is_shuffled_so_that_updates_mix_prompts():
    draw = draw_round(load_prompts("bundled-single"), 0, 1, 64, 8)
    assert len(set(draw.prompts[:16])) > 2


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_each_update_equally(world):
    """16 samples in 2 updates: every update's 8 places are split into `world` equal parts, each place once."""
    parts = [share(16, 2, rank, world) for rank in range(world)]
    assert sorted(place for part in parts for place in part) == list(range(16))
    for part in parts:
        assert sum(place < 8 for place in part) == 8 // world
    if world == 2:
        assert parts == [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]]


def test_evaluation_images_are_spread_over_the_list_and_apart_from_training():
    prompts = load_prompts("bundled-single")
    draw = draw_evaluation(prompts, 0, 8, 2)
    # 64 / 1.618 = 39.6, and 39 is the nearest that is coprime: 0, 39, 78 - 64 = 14, 53, 28, 67 - 64 = 3, 42, 17.
    assert draw.prompt_index == (0, 0, 3, 3, 14, 14, 17, 17, 28, 28, 39, 39, 42, 42, 53, 53)
    assert draw.round not in range(10**9)


@pytest.mark.parametrize(
    ("name", "count", "word"),
    [("bundled-count-train", 48, "two three four"), ("ddpo-counting", 49, "two three four five six seven eight")],
)
def test_evaluation_prompts_have_every_number_of_a_template(name, count, word):
    """The lists go through the numbers first, and even distances had one of them in all prompts: three, or five."""
    prompts = load_prompts(name)
    found = Counter(prompts.prompts[place].split()[0] for place in prompts.spread(count))
    numbers = word.split()
    assert found == dict.fromkeys(numbers, count // len(numbers))


@given(count=st.integers(1, 400), times=st.integers(1, 12), period=st.integers(2, 12))
def test_no_period_of_a_list_is_preferred(count, times, period):
    """Each of a period's places comes up or down to the nearest whole number of times, and no prompt twice."""
    places = PromptSet(("a",) * (times * period), (1.0,) * (times * period)).spread(count)
    assert places == sorted(set(places))
    assert len(places) == min(count, times * period)
    found = Counter(place % period for place in places)
    assert {found[place] for place in range(period)} <= {len(places) // period, -(-len(places) // period)}


def test_evaluation_prompts_come_from_all_over_a_list():
    """In each tenth of 1,000 prompts there are some of 50: 5 on average."""
    places = PromptSet(("a",) * 1000, (1.0,) * 1000).spread(50)
    assert min(Counter(place // 100 for place in places).values()) >= 4
