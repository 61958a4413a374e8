"""Given pairs: the formats that are read, what is refused, how they are drawn, and how images are fitted."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import given
from tastemaker.data.captioned_images import fitted, opened
from tastemaker.data.pairs import concatenated, load_pairs, preferred
from tastemaker.errors import ConfigError, DataError
from tastemaker.training.draws import draw_pairs, in_turn


def pixels(number):
    return torch.from_numpy(np.array(given.image(number))).permute(2, 0, 1) / 255


def jpeg(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write(folder, rows, name="pairs.jsonl"):
    given.pairs(folder, 2)
    if name.endswith(".csv"):
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    else:
        lines = [json.dumps(row) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


ROW = {"prompt": "cat", "image_0": "0-0.png", "image_1": "0-1.png", "preferred": 1}


def test_a_folder_gives_the_preferred_image_first(tmp_path):
    pairs = load_pairs(str(given.pairs(tmp_path, 4)))
    assert (len(pairs), pairs.ties, pairs.prompts) == (4, 0, ("cat", "dog", "bear", "owl"))
    for n in range(4):
        better, other = pairs.images(n, 32, 32)
        assert better.equal(pixels(2 * n + n % 2))
        assert other.equal(pixels(2 * n + 1 - n % 2))


@pytest.mark.parametrize("name", ["pairs.jsonl", "list.jsonl", "list.csv"])
def test_ties_are_left_out_and_counted_in_every_kind_of_table(tmp_path, name):
    rows = [ROW | {"preferred": answer} for answer in (1, "tie", 0, "tie")]
    path = write(tmp_path, rows, name)
    pairs = load_pairs(str(tmp_path if name == "pairs.jsonl" else path))
    assert (len(pairs), pairs.ties) == (2, 2)
    assert pairs.images(0, 32, 32)[0].equal(pixels(1))
    assert pairs.images(1, 32, 32)[0].equal(pixels(0))


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"preferred": "0"}, 0), ({"preferred": None}, None), ({"preferred": " Tie "}, None),
        ({"label_0": 1.0, "label_1": 0.0}, 0), ({"label_0": 0, "label_1": 1}, 1),
        ({"label_0": 0.5, "label_1": 0.5}, None), ({"label_0": "0", "label_1": "1"}, 1),
        ({"best_image_uid": "b", "image_0_uid": "a", "image_1_uid": "b"}, 1),
        ({"best_image_uid": "a", "image_0_uid": "a", "image_1_uid": "b"}, 0),
        ({"best_image_uid": "tie", "image_0_uid": "a", "image_1_uid": "b"}, None),
        ({"preferred": 1.0}, 1), ({"preferred": "0.0"}, 0), ({"preferred": float("nan")}, None),
        ({"preferred": ""}, None),
        ({"label_1": True, "label_0": False}, 1), ({"label_0": " 2 ", "label_1": "1e0"}, 0),
        ({"best_image_uid": 2, "image_0_uid": 1, "image_1_uid": "2 "}, 1),
        ({"best_image_uid": None, "image_0_uid": 1, "image_1_uid": 2}, None),
        ({"preferred": 1, "has_label": "0.0"}, None), ({"preferred": 1, "has_label": None, "are_different": "True"}, 1),
        ({"label_0": 1.0, "label_1": 0.0, "has_label": False}, None),
        ({"label_0": 1.0, "label_1": 0.0, "are_different": False}, None),
    ],
)  # fmt: skip
def test_who_is_preferred(row, answer):
    assert preferred(row, "here") == answer


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"preferred": "A"}, "preferred is 'A', but must be 0, 1 or tie"), ({"preferred": 0.5}, "is 0.5"),
        ({"preferred": True}, "is True"), ({"preferred": -1}, "is -1"), ({"preferred": "0,0"}, "is '0,0'"),
        ({"preferred": [1]}, r"is \[1\]"), ({"preferred": 1, "has_label": "maybe"}, "has_label is 'maybe'"),
        ({"label_0": "0,5", "label_1": "1"}, "not numbers"), ({"label_0": None, "label_1": 1}, "not numbers"),
        ({"label_0": float("nan"), "label_1": 1}, "not numbers"), ({"label_0": 1, "label_1": "inf"}, "not numbers"),
        ({"label_0": 10**400, "label_1": 1}, "not numbers"), ({"label_0": [1], "label_1": 1}, "not numbers"),
        ({"best_image_uid": "c", "image_0_uid": "a", "image_1_uid": "b"}, "neither image's uid alone"),
        ({"best_image_uid": "a", "image_0_uid": "a", "image_1_uid": "a"}, "neither image's uid alone"),
    ],
)  # fmt: skip
def test_verdicts_that_are_none(row, message):
    with pytest.raises(DataError, match=rf"here: .*{message}"):
        preferred(row, "here")


@pytest.mark.parametrize("form", ["folder", "saved"])
@pytest.mark.parametrize("by", ["labels", "uid"])
def test_pick_a_pics_columns_in_a_data_set(tmp_path, monkeypatch, form, by):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    columns = {
        "caption": ["cat", "dog", "owl"],
        "jpg_0": [jpeg(given.image(n)) for n in (0, 2, 4)],
        "jpg_1": [jpeg(given.image(n)) for n in (1, 3, 5)],
    }
    if by == "labels":
        columns |= {"label_0": [0.0, 0.5, 1.0], "label_1": [1.0, 0.5, 0.0]}
    else:
        columns |= {"best_image_uid": ["b", "tie", "e"], "image_0_uid": ["a", "c", "e"], "image_1_uid": ["b", "d", "f"]}
    made = datasets.Dataset.from_dict(columns)
    if form == "saved":
        datasets.DatasetDict({"train": made}).save_to_disk(tmp_path / "set")
    else:
        (tmp_path / "set").mkdir()
        made.to_parquet(tmp_path / "set/train-00000.parquet")
    pairs = load_pairs(str(tmp_path / "set"))
    assert (pairs.prompts, pairs.ties) == (("cat", "owl"), 1)
    assert pairs.images(0, 32, 32).equal(torch.stack([pixels(1), pixels(0)]))
    assert pairs.images(1, 32, 32).equal(torch.stack([pixels(4), pixels(5)]))
    with pytest.raises(DataError, match="no split 'test'; it has train"):
        load_pairs(str(tmp_path / "set"), "test")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "cat", "preferred": 0}], "no columns image_0 and image_1, nor jpg_0"),
        ([{k: v for k, v in ROW.items() if k != "preferred"}], "nothing says which image is preferred"),
        ([{k: v for k, v in ROW.items() if k != "prompt"}], "no column prompt or caption or text"),
        ([ROW, {"prompt": "cat"}], r"pairs.jsonl:2: no image_0, which the first row has"),
        ([ROW | {"preferred": 2}], r"pairs.jsonl:1: preferred is 2, but must be 0, 1 or tie"),
        ([ROW | {"preferred": "tie"}] * 3, "has 3 rows and in none of them"),
        ([ROW | {"image_1": "none.png"}], r"pairs.jsonl:1, image_1: there is no image .*none.png"),
        ([ROW | {"image_1": "pairs.jsonl"}], r"pairs.jsonl:1, image_1: the image .*pairs.jsonl cannot be read"),
        ([ROW | {"image_1": "0-1.PNG"}], r"pairs.jsonl:1, image_1: there is no .*; did you mean .*0-1.png"),
        (
            [ROW | {"image_0": "http://example.org/1.png"}],
            r"pairs.jsonl:1, image_0: the image is a URL .*not downloaded",
        ),
        ([ROW, ROW | {"prompt": "a \ud83d"}], r"pairs.jsonl:2: the caption has half of a surrogate pair"),
        ([ROW, "text"], r"pairs.jsonl:2: expected a JSON object"),
        ([ROW | {"image_1": None}], r"pairs.jsonl:1, image_1: expected an image or its path, but found none"),
        ([ROW | {"prompt": 3}], r"pairs.jsonl:1: expected a caption, which is text, but found int"),
        ([{k: v for k, v in ROW.items() if k != "preferred"} | {"label_0": "x", "label_1": 1}], "not numbers"),
    ],
)
def test_unusable_tables_are_refused_in_one_sentence(tmp_path, rows, message):
    write(tmp_path, rows)
    with pytest.raises(DataError, match=message) as caught:
        load_pairs(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "is empty"), ("a.csv", b"", "is empty"), ("a.jsonl", b"[1]\n", "expected a JSON object"),
        ("a.jsonl", b"{\n", "a.jsonl:1: expected a JSON object .* not JSON"),
        ("a.csv", b"prompt\xff\n", "is not UTF-8: line 1"),
        ("a.csv", b"prompt,image_0,image_1,preferred\ncat,a\n", "a.csv:2: expected 4 columns"),
    ],
)  # fmt: skip
def test_files_that_are_no_tables(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_pairs(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("Pairs.CSV", "sep=;\r\nPrompt;Image_0;image_1 ;PREFERRED\r\n cat ;0-0.png;.\\0-1.png;1\r\n;;;\r\n"),
        ("pairs.tsv", "caption\tjpg_0\tjpg_1\tlabel_0\tlabel_1\ncat\t0-0.png\t0-1.png\t0.0\t1.0\n"),
        ("pairs.json", '[{"text": "cat", "image_0": "0-0.png", "image_1": "0-1.png", "preferred": 1}]'),
        ("pairs.ndjson", '{"prompt":"cat","image_0":"0-0.png","image_1":"0-1.png","best_image_uid":"b",'
            '"image_0_uid":"a","image_1_uid":"b"}'),
    ],
)  # fmt: skip
def test_tables_of_other_programs(tmp_path, name, content):
    given.pairs(tmp_path, 1)
    (tmp_path / "pairs.jsonl").unlink()
    (tmp_path / name).write_bytes(content.encode("utf-16" if name.endswith("CSV") else "utf-8"))
    for source in (tmp_path, tmp_path / name):
        pairs = load_pairs(str(source))
        assert pairs.prompts == ("cat",)
        assert pairs.images(0, 32, 32).equal(torch.stack([pixels(1), pixels(0)]))


COLUMNS = {
    "open-image-preferences-v1-binarized": ({"chosen": "0-1.png", "rejected": "0-0.png"}, 1.0),
    "HPDv3": ({"path1": "0-1.png", "path2": "0-0.png", "confidence": 0.9, "model1": "a", "model2": "b"}, 1.0),
    "Rapidata's votes": (
        {"image1": "0-0.png", "image2": "0-1.png", "votes_image1": 2, "votes_image2": 6, "model1": "a"}, 0.25
    ),
    "Rapidata's weighted results": (
        {
            "image1": "0-0.png", "image2": "0-1.png", "weighted_results_image1_preference": 0.4,
            "weighted_results_image2_preference": 1.2,
        },
        0.25,
    ),
}  # fmt: skip
"""By data set: the columns of one pair beside its prompt, of which 0-1.png is preferred, and the first one's share."""


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_of_published_data_sets(tmp_path, name):
    columns, share = COLUMNS[name]
    write(tmp_path, [{"prompt": "cat"} | columns])
    pairs = load_pairs(str(tmp_path))
    assert (pairs.prompts, pairs.ties, pairs.labels) == (("cat",), 0, (1.0,))
    assert pairs.images(0, 32, 32).equal(torch.stack([pixels(1), pixels(0)]))
    soft = load_pairs(str(tmp_path), ties=True)
    assert soft.labels == (pytest.approx(share),)
    order = [pixels(1), pixels(0)] if share == 1 else [pixels(0), pixels(1)]  # the table's
    assert soft.images(0, 32, 32).equal(torch.stack(order))


@pytest.mark.parametrize("name", ["open-image-preferences-v1-binarized", "Rapidata's votes"])
def test_published_data_sets_as_the_datasets_library_has_them(tmp_path, monkeypatch, name):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    files = {"0-0.png": jpeg(given.image(0)), "0-1.png": jpeg(given.image(1))}
    row = {key: files.get(value, value) for key, value in COLUMNS[name][0].items()}
    (tmp_path / "set").mkdir()
    made = datasets.Dataset.from_list([{"prompt": "cat"} | row])
    made.to_parquet(tmp_path / "set/train-00000.parquet")
    pairs = load_pairs(str(tmp_path / "set"))
    assert pairs.prompts == ("cat",)
    assert pairs.images(0, 32, 32).equal(torch.stack([pixels(1), pixels(0)]))


def test_as_many_votes_are_a_tie(tmp_path):
    rows = [
        {"prompt": "cat", "image1": "0-0.png", "image2": "0-1.png", "votes_image1": one, "votes_image2": two}
        for one, two in ((3, 3), (0, 0), (1, 0))
    ]
    write(tmp_path, rows)
    pairs = load_pairs(str(tmp_path))
    assert (len(pairs), pairs.ties) == (1, 2)
    assert load_pairs(str(tmp_path), ties=True).labels == (0.5, 0.5, 1.0)
    write(tmp_path, [rows[0] | {"votes_image2": -1}])
    with pytest.raises(DataError, match="votes_image1 and votes_image2 are 3 and -1, but must not be negative"):
        load_pairs(str(tmp_path))


def two_folders(root, names=("w", "l")):
    """Pairs a and b: images 0 and 2 are preferred to 1 and 3; the captions lie in one folder and in the other."""
    for side, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number, stem in enumerate("ab"):
            given.image(2 * number + side).save(root / name / f"{stem}.{'png' if side else 'bmp'}")
    (root / names[0] / "a.txt").write_text("a cat\n")
    (root / names[1] / "b.txt").write_text("a dog")
    return root


@pytest.mark.parametrize("names", [("w", "l"), ("Win", "Lose")])
def test_folders_of_preferred_and_other_images(tmp_path, names):
    pairs = load_pairs(str(two_folders(tmp_path, names)))
    assert (pairs.prompts, pairs.ties, pairs.labels) == (("a cat", "a dog"), 0, (1.0, 1.0))
    for n in range(2):
        assert pairs.images(n, 32, 32).equal(torch.stack([pixels(2 * n), pixels(2 * n + 1)]))
    before = pairs.digest
    (tmp_path / names[0] / "a.txt").write_text("a bear")
    assert load_pairs(str(tmp_path)).digest != before


def test_folders_that_do_not_fit_together(tmp_path):
    def refused(message):
        with pytest.raises(DataError, match=message) as caught:
            load_pairs(str(tmp_path))
        assert "\n" not in str(caught.value)

    two_folders(tmp_path)
    (tmp_path / "l/a.txt").write_text("another cat")
    refused("are different captions of one pair")
    (tmp_path / "l/a.txt").unlink()
    (tmp_path / "w/a.txt").unlink()
    refused("the pair a has no caption: expected it in .*w/a.txt, or in .*l/a.txt")
    (tmp_path / "w/a.txt").write_text("a cat")
    given.image(5).save(tmp_path / "w/a.png")
    refused("have the same name")
    (tmp_path / "w/a.png").unlink()
    (tmp_path / "w/b.bmp").unlink()
    refused(r"l/b has no image of that name in .*w \(1 of them")
    (tmp_path / "l/b.png").write_text("no image")
    given.image(5).save(tmp_path / "w/b.png")
    refused("b.png cannot be read")
    for file in tmp_path.glob("*/*"):
        file.unlink()
    refused("have no images")


def test_what_is_not_there_or_no_data_set(tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        load_pairs("nowhere.jsonl")
    with pytest.raises(DataError, match="there are no images at nowhere"):
        load_pairs("nowhere")
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match="cannot load the data set"):
        load_pairs(str(tmp_path))


def test_a_image_that_breaks_off_is_named_when_it_is_used(tmp_path):
    pairs = load_pairs(str(given.pairs(tmp_path, 2)))
    file = tmp_path / "1-0.png"
    file.write_bytes(file.read_bytes()[:200])
    pairs.images(0, 32, 32)
    with pytest.raises(DataError, match=r"pairs.jsonl:2: the image .*1-0.png cannot be read"):
        pairs.images(1, 32, 32)


def test_images_are_scaled_and_cut_in_the_middle():
    """Left half black, right half white, three times as wide as high: the middle third has the edge in its middle."""
    wide = Image.new("RGB", (96, 32), "black")
    wide.paste("white", (48, 0, 96, 32))
    cut = fitted(wide, 32, 32)
    assert cut.shape == (3, 32, 32)
    assert cut[:, :, :16].max() == 0
    assert cut[:, :, 16:].min() == 1
    small = fitted(wide, 8, 8)
    assert (small[:, :, 0].max(), small[:, :, 7].min()) == (0, 1)
    assert opened(Image.new("L", (4, 4), 128), "here").mode == "RGB"


def test_no_pair_comes_again_before_all_have_come():
    captions = tuple("abcdefg")
    rounds = [draw_pairs(captions, 3, number, 4) for number in range(1, 8)]
    order = [place for draw in rounds for place in draw.prompt_index]
    for start in range(0, 28, 7):
        assert sorted(order[start : start + 7]) == list(range(7))
    assert order[:7] != order[7:14]
    assert order == in_turn(7, 3, 0, 28)
    assert [draw.prompts for draw in rounds] == [tuple(captions[i] for i in draw.prompt_index) for draw in rounds]
    many = draw_pairs(captions, 3, 1, 21)  # three times in one round: noise of its own each time
    assert len(set(zip(many.prompt_index, many.sample_index, strict=True))) == 21


def test_pairs_and_algorithm_must_fit():
    from tastemaker.algorithms.diffusion_dpo import DiffusionDPO
    from tastemaker.algorithms.mapo import MaPO
    from tastemaker.config.schema import Config, Pairs

    with pytest.raises(ConfigError, match="diffusion-dpo learns from pairs"):
        Config(algorithm=DiffusionDPO())
    with pytest.raises(ConfigError, match="ddpo samples its own images"):
        Config(pairs=Pairs(("folder",)))
    with pytest.raises(ConfigError, match="is probabilities, but the algorithm mapo takes one image"):
        Config(algorithm=MaPO(), pairs=Pairs(("folder",), labels="probabilities"))
    with pytest.raises(ConfigError, match="drop_captions is 1"):
        DiffusionDPO(drop_captions=1)


def test_pairs_of_several_sources_are_those_of_each_one_after_the_other(tmp_path):
    """Of three sets of 3, 1 and 2 pairs the pair 3 is the first of the second, and 5 the last of the third."""
    rows = [{**ROW, "preferred": answer} for answer in (0, "tie")]
    sets = [
        load_pairs(str(given.pairs(tmp_path / "a", 3))),
        load_pairs(str(write(tmp_path / "b", rows))),
        load_pairs(str(given.pairs(tmp_path / "c", 2)), ties=True),
    ]
    whole = concatenated(sets)
    assert len(whole) == 6
    assert whole.prompts == ("cat", "dog", "bear", "cat", "cat", "dog")
    assert whole.ties == 1
    assert whole.labels == (1.0, 1.0, 1.0, 1.0, *sets[2].labels)
    for index, (number, place) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1)]):
        assert whole.sources(index) == sets[number].sources(place)
        assert whole.places(index) == sets[number].places(place)
        assert torch.equal(whole.images(index, 16, 16), sets[number].images(place, 16, 16))
    assert whole.digest != concatenated([sets[1], sets[0], sets[2]]).digest
    assert concatenated(sets[:1]) is sets[0]
