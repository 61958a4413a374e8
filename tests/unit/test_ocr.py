"""Legible text: its measure by hand, what prompts ask for, and images with text drawn into them."""

import builtins
from random import Random

import pytest
import torch
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from scoring import total
from tastemaker.errors import RewardError
from tastemaker.rewards import ocr as module
from tastemaker.rewards.registry import load_reward


def drawn(text, size=(176, 176)):
    """[3,H,W]: black letters on white, a little blurred by smoothing only. A square, as the reader enlarges the shorter
    side of what it is given."""
    image = Image.new("RGB", size, "white")
    font = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", 24)
    ImageDraw.Draw(image).multiline_text((14, 40), text, "black", font)
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(*size[::-1], 3).permute(2, 0, 1) / 255


@pytest.mark.parametrize(
    ("found", "wanted", "expected"),
    [
        ("Hello World", "hello world", 1.0),
        ("HelloWorld", "Hello World", 1.0),
        ("say HELLO now", "Hello", 1.0),  # a part of what is read
        ("helo", "hello", 1 - 1 / 5),  # one letter lacks
        ("jello", "hello", 1 - 1 / 5),
        ("", "hello", 0.0),
        ("something else altogether", "zq", 0.0),  # no more than n
        ("he1lo w0rld", "Hello World", 1 - 2 / 10),  # spaces count for nothing
    ],
)
def test_legibility_by_hand(found, wanted, expected):
    pytest.importorskip("rapidfuzz")
    assert module.legibility(found, wanted) == pytest.approx(expected)


def test_legibility_is_flow_grpos_measure():
    """Its listing, with an edit distance written out."""
    pytest.importorskip("rapidfuzz")

    def distance(a, b):
        row = list(range(len(b) + 1))
        for i, x in enumerate(a, 1):
            row, last = [i], row
            for j, y in enumerate(b, 1):
                row.append(min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (x != y)))
        return row[-1]

    random = Random(0)
    for _ in range(200):
        found, wanted = ("".join(random.choices("ab C", k=random.randint(1, 8))) for _ in range(2))
        wanted += "b"
        recognised, prompt = found.replace(" ", "").lower(), wanted.replace(" ", "").lower()
        dist = 0 if prompt in recognised else distance(recognised, prompt)
        assert module.legibility(found, wanted) == pytest.approx(1 - min(dist, len(prompt)) / len(prompt))


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ('a shop with "Fresh Bread" over it', "Fresh Bread"),
        ("a shop with “Fresh Bread” over it", "Fresh Bread"),
        ('"one" and "two"', "one"),
    ],
)
def test_what_is_asked_for(prompt, text):
    assert module.quoted(prompt) == text


@pytest.mark.parametrize(
    "prompt", ["a red star", 'a sign that says ""', 'a sign that says " "', 'open "quotes', "it's 'x'"]
)
def test_prompts_without_a_text_are_refused(prompt):
    with pytest.raises(RewardError, match="needs prompts with the text to be shown in quotation marks"):
        total(load_reward("ocr"), torch.rand(1, 3, 32, 32), [prompt])


def test_drawn_text_is_read():
    for package in ("rapidocr", "onnxruntime", "rapidfuzz"):
        pytest.importorskip(package)
    x = torch.stack([drawn("Hello World"), drawn("Hello\nWorld"), drawn("Help World"), drawn(""), drawn("Hello World")])
    prompts = ['a sign that says "Hello World"'] * 4 + ['a sign that says "Good Night"']
    values = total(load_reward("ocr"), x, prompts).tolist()
    assert values[:4] == pytest.approx([1.0, 1.0, 0.8, 0.0])
    assert values[4] < 0.4


def test_colours_are_not_swapped(monkeypatch):
    """The reader is given RGB images as such."""
    seen = []
    monkeypatch.setattr(module, "_reader", lambda: lambda image: seen.append(image.getpixel((0, 0))) or "hi")
    pytest.importorskip("rapidfuzz")
    x = torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    assert total(load_reward("ocr"), x, ['"hi"']).tolist() == [1.0]
    assert seen == [(255, 128, 0)]


def test_a_missing_extra_says_how_to_get_it(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest):
        if name == "rapidocr":
            raise ImportError("No module named 'rapidocr'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    module._reader.cache_clear()
    with pytest.raises(RewardError, match=r"pip install 'tastemaker\[ocr\]'"):
        total(load_reward("ocr"), torch.rand(1, 3, 32, 32), ['"hi"'])
