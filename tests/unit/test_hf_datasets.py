"""Hugging Face data sets: every row that is damaged is named, images are read as they are stored, classes by name."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

import given
from tastemaker.data.captioned_images import load_captioned
from tastemaker.data.pairs import load_pairs
from tastemaker.data.prompts import load_prompts
from tastemaker.errors import DataError, PromptError

datasets = pytest.importorskip("datasets")
pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def png(number, **options):
    buffer = io.BytesIO()
    given.image(number).save(buffer, "PNG", **options)
    return buffer.getvalue()


IMAGE, TEXT = datasets.Image(), datasets.Value("string")
GOOD = {"bytes": png(1), "path": None}
BROKEN = {
    "truncated": ({"bytes": png(3)[:700], "path": None}, "truncated"),
    "html": ({"bytes": b"<html>404</html>", "path": None}, "begins with b'<html>"),
    "empty": ({"bytes": b"", "path": None}, "it is empty"),
    "missing": (None, "found none"),
    "neither": ({"bytes": None, "path": None}, "found none"),
    "no file": ({"bytes": None, "path": "/nowhere/1.png"}, "there is no image /nowhere/1.png"),
    "URL": ({"bytes": None, "path": "https://example.org/1.png"}, "not downloaded"),
}


@pytest.mark.parametrize(
    ("form", "name"), [*(("parquet", name) for name in BROKEN), ("saved", "truncated"), ("saved", "missing")]
)
def test_a_damaged_image_of_a_data_set_is_named_by_its_row(tmp_path, name, form):
    broken, message = BROKEN[name]
    source = str(tmp_path / ("set" if form == "saved" else "set.parquet"))

    def save(columns):
        features = datasets.Features({key: TEXT if key in ("caption", "preferred") else IMAGE for key in columns})
        if form == "saved":
            datasets.Dataset.from_dict(columns, features=features).save_to_disk(source)
        else:  # by pyarrow: the library would read the files that are named, and embed them
            parquet.write_table(pyarrow.table(columns, schema=features.arrow_schema), source)

    save({"caption": ["x"] * 3, "image": [GOOD, GOOD, broken]})
    captioned = load_captioned(source)
    assert captioned.image(1, 32, 32).shape == (3, 32, 32)
    with pytest.raises(DataError, match=f"set.*, row 2: .*{message}"):
        captioned.image(2, 32, 32)
    save({"caption": ["x"] * 3, "jpg_0": [GOOD, GOOD, GOOD], "jpg_1": [GOOD, GOOD, broken], "preferred": ["1"] * 3})
    pairs = load_pairs(source)
    assert pairs.images(1, 32, 32).shape == (2, 3, 32, 32)
    with pytest.raises(DataError, match=f"set.*, row 2, jpg_1: .*{message}"):
        pairs.images(2, 32, 32)


def test_other_columns_of_images(tmp_path):
    """Bytes, paths from the data set's own folder, and lists, which are no image."""
    (tmp_path / "in").mkdir()
    given.image(1).save(tmp_path / "in/1.png")
    columns = {"image": [png(1)] * 2, "text": ["x"] * 2}
    for place, image in enumerate(([png(1)] * 2, ["1.png", "in\\1.png"], [["1.png"]] * 2)):
        file = tmp_path / ("in" if place == 1 else ".") / f"{place}.parquet"
        datasets.Dataset.from_dict(columns | {"image": image}).to_parquet(file)
    expected = load_captioned(str(tmp_path / "0.parquet")).image(1, 32, 32)
    assert load_captioned(str(tmp_path / "in/1.parquet")).image(0, 32, 32).equal(expected)
    with pytest.raises(DataError, match="row 1: there is no image"):
        load_captioned(str(tmp_path / "in/1.parquet")).image(1, 32, 32)
    with pytest.raises(DataError, match="row 0: expected an image or its path, but found list"):
        load_captioned(str(tmp_path / "2.parquet")).image(0, 32, 32)


def test_depth_and_alpha_in_a_data_set(tmp_path):
    """16 bits: 32896 = 128 * 257; half of black on white is 127. The library keeps both as files."""
    grey = Image.fromarray(np.full((2, 2), 32896, np.uint16))
    images = [grey, Image.new("RGBA", (2, 2), (0, 0, 0, 128)), Image.new("1", (2, 2), 1)]
    features = datasets.Features({"image": IMAGE, "text": TEXT})
    made = datasets.Dataset.from_dict({"image": images, "text": ["x"] * 3}, features=features)
    made.save_to_disk(tmp_path / "set")
    captioned = load_captioned(str(tmp_path / "set"))
    assert [round(255 * captioned.image(n, 2, 2).mean().item()) for n in range(3)] == [128, 127, 255]


def test_classes_are_their_names(tmp_path):
    """`tie` is class 0 here: by number the first row would prefer the first image."""
    verdict = datasets.ClassLabel(names=["tie", "1", "0"])
    features = datasets.Features(
        {"text": datasets.ClassLabel(names=["cat", "dog"]), "image_0": IMAGE, "image_1": IMAGE, "preferred": verdict}
    )
    other = {"bytes": png(2), "path": None}
    columns = {"text": [1, 0, 0], "image_0": [GOOD] * 3, "image_1": [other] * 3, "preferred": [0, 1, 2]}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "set")
    pairs = load_pairs(str(tmp_path / "set"))
    assert (pairs.prompts, pairs.ties) == (("cat", "cat"), 1)
    assert pairs.images(0, 32, 32).equal(pairs.images(1, 32, 32).flip(0))
    assert not pairs.images(0, 32, 32)[0].equal(pairs.images(0, 32, 32)[1])
    assert load_prompts(f"dataset:{tmp_path / 'set'}").weights == (1.0, 2.0)


def test_a_format_that_was_saved_and_an_order(tmp_path):
    made = datasets.Dataset.from_dict({"Text": ["a", "b", "c"], "weight": [1.0, 2.0, 3.0], "n": [1, 2, 3]})
    made.select([2, 0]).with_format("torch").save_to_disk(tmp_path / "set")
    found = load_prompts(f"dataset:{tmp_path / 'set'}")
    assert dict(zip(found.prompts, found.weights, strict=True)) == {"c": 3.0, "a": 1.0}


def test_text_that_is_none(tmp_path):
    """Bytes that are not UTF-8 in a column of text, which arrow does not check, and half a surrogate."""
    text = pyarrow.array([b"a", b"B\xe4r"], pyarrow.binary()).view(pyarrow.string())
    datasets.Dataset(pyarrow.table({"text": text})).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(PromptError, match="row 1: text that is not UTF-8"):
        load_prompts(str(tmp_path / "a.parquet"))


def test_what_the_library_found_is_said(tmp_path):
    """It wraps the reason in an error that does not say it."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train.csv").write_bytes(b"text\nB\xe4r\n")
    with pytest.raises(DataError, match=r"cannot load the data set .*: UnicodeDecodeError"):
        load_captioned(str(tmp_path / "set"))


def test_a_folder_of_images_with_captions_beside_them(tmp_path):
    for number, name in enumerate(("b.PNG", "a.png", "c.d.Jpg")):
        given.image(number).save(tmp_path / name)
    for name, text in (("a.txt", "\ufeffa cat\r\n"), ("b.TXT", "a dog,\r\n in  two lines"), ("c.d.txt", "")):
        (tmp_path / name).write_bytes(text.encode())
    for junk in ("._a.png", "notes.md", "readme.txt"):
        (tmp_path / junk).write_bytes(b"junk")
    captioned = load_captioned(str(tmp_path))
    assert captioned.captions == ("a cat", "a dog, in two lines", "")
    assert captioned.image(0, 32, 32).equal(load_captioned(str(tmp_path)).image(0, 32, 32))
    assert np.array_equal(
        np.asarray(given.image(1)), (captioned.image(0, 32, 32) * 255).permute(1, 2, 0).round().numpy()
    )
    (tmp_path / "b.TXT").unlink()
    with pytest.raises(DataError, match=r"1 of the 3 images in .* no caption, b.PNG among them: expected it in b.txt"):
        load_captioned(str(tmp_path))
    (tmp_path / "b.txt").write_bytes(b"B\xe4r")
    with pytest.raises(DataError, match=r"b.txt is not UTF-8"):
        load_captioned(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.jsonl", '{"file_name": "1.PNG", "text": "a cat"}\r\n'),
        ("Metadata.CSV", "sep=;\r\nfile_name;Caption\r\n1.PNG ; a cat \r\n"),
        ("metadata.json", '[{"FILE_NAME": ".\\\\1.PNG", "prompt": "a cat"}]'),
        ("metadata.tsv", "\ufefffile_name\ttext\n./1.PNG\ta cat\n"),
    ],
)
def test_metadata_as_other_programs_write_it(tmp_path, name, content):
    given.image(1).save(tmp_path / "1.PNG")
    (tmp_path / name).write_bytes(content.encode())
    for source in (tmp_path, tmp_path / name):
        captioned = load_captioned(str(source))
        assert captioned.captions == ("a cat",)
        assert captioned.image(0, 32, 32).shape == (3, 32, 32)
    (tmp_path / name).write_bytes(content.replace("1.PNG", "1.png").encode())
    with pytest.raises(DataError, match=r"there is no image .*1.png; did you mean .*1.PNG"):
        load_captioned(str(tmp_path))
