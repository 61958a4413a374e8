"""Prompts: built-in lists against the counts of methods.md §9b, files, weights, and what is refused."""

import pytest

from tastemaker.drawings.scene import parse
from tastemaker.errors import PromptError
from tastemaker.prompts import BUILTIN, PromptSet, load_prompts
from tastemaker.training.draws import draw_evaluation, draw_round, share


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("ddpo-animals", 45), ("imagenet-animals", 398), ("ddpo-activities", 135), ("b2-template1-train", 45),
        ("b2-template1-test", 90), ("b2-template2-train", 40), ("b2-template2-test", 40), ("b2-template3-train", 40),
        ("b2-template3-test", 30), ("alignprop-animals", 45), ("alignprop-animals-test", 6), ("thesis-pink", 4),
        ("thesis-diverse", 24), ("thesis-animals", 24),
    ],
)  # fmt: skip
def test_counts_of_the_papers_lists(name, count):
    prompts = load_prompts(name)
    assert len(prompts) == count == BUILTIN[name].count
    assert len(set(prompts.prompts)) == count


def test_imagenet_animals_are_classes_0_to_397():
    prompts = load_prompts("imagenet-animals").prompts
    assert (prompts[0], prompts[88], prompts[291], prompts[397]) == ("tench", "macaw", "lion", "puffer")


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
    with pytest.raises(PromptError, match="there is no prompt file"):
        load_prompts("missing.txt")
    with pytest.raises(PromptError, match="did you mean 'ddpo-animals'"):
        load_prompts("ddpo-animal")


def test_a_round_draws_by_weight_and_is_the_same_every_time():
    prompts = PromptSet(("rare", "common"), (1.0, 9.0))
    draw = draw_round(prompts, seed=0, round=1, samples=4000, per_prompt=2)
    assert draw == draw_round(prompts, 0, 1, 4000, 2)
    assert draw != draw_round(prompts, 0, 2, 4000, 2)
    assert draw.prompts.count("rare") in (400, 402, 398)  # pairs: 200 of 2000, rounded up or down
    # Every picture has a place of its own, hence noise of its own; two of each prompt come together.
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


def test_evaluation_pictures_are_spread_over_the_list_and_apart_from_training():
    prompts = load_prompts("bundled-single")
    draw = draw_evaluation(prompts, 0, 8, 2)
    assert draw.prompt_index == (4, 4, 12, 12, 20, 20, 28, 28, 36, 36, 44, 44, 52, 52, 60, 60)
    assert draw.round not in range(10**9)
