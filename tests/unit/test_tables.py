"""Tables and lists as other programs write them: what is read, and one sentence with the row for what is not."""

from __future__ import annotations

import codecs
import csv
import json

import pytest

from tastemaker.data.prompts import PromptSet, checked_prompts, load_prompts
from tastemaker.data.tables import read_records, read_table, renamed
from tastemaker.errors import DataError, PromptError

TWO = PromptSet(("a red star", "Bär; groß, rot"), (1.0, 2.5))

WRITTEN = {
    "comma.csv": 'prompt,weight\na red star,1\n"Bär; groß, rot",2.5\n',
    "CAPITALS.CSV": 'PROMPT,Weight\na red star,1\n"Bär; groß, rot",2.5\n',
    "semicolon.csv": 'prompt;weight\na red star;1\n"Bär; groß, rot";2.5\n',
    "tab.csv": "prompt\tweight\na red star\t1\nBär; groß, rot\t2.5\n",
    "tab.tsv": "prompt\tweight\na red star\t1\nBär; groß, rot\t2.5\n",
    "bar.csv": "prompt|weight\na red star|1\nBär; groß, rot|2.5\n",
    "excel.csv": '\ufeffsep=;\r\nprompt;weight\r\na red star;1\r\n"Bär; groß, rot";2.5\r\n',
    "two-marks.csv": '\ufeff\ufeffprompt,weight\na red star,1\n"Bär; groß, rot",2.5\n',
    "blanks.csv": ' Prompt , weight \n a red star , 1 \n "Bär; groß, rot", 2.5\n\n  \n,\n',
    "mac.csv": 'prompt,weight\ra red star,1\r"Bär; groß, rot",2.5\r',
    "more-columns.csv": ',text,prompt,weight,,\n0,x,a red star,1,,\n1,y,"Bär; groß, rot",2.5,,\n',
    "in-a-header.csv": 'prompt,weight,note (a;b;c)\na red star,1,x\n"Bär; groß, rot",2.5,y\n',
    "lines.jsonl": '{"prompt": "a red star"}\n\n{"Caption": "x", "prompt": " Bär; groß, rot ", "weight": 2.5}\n',
    "LINES.JSONL": '\ufeff{"Prompt": "a red star"}\r\n{"Prompt": "Bär; groß, rot", "WEIGHT": "2.5"}\r\n',
    "escaped.ndjson": '{"caption":"a red star"}\n{"caption":"B\\u00e4r; gro\\u00df, rot","weight":2.5}',
    "array.json": '[{"text": "a red star", "weight": null}, {"text": "Bär; groß, rot", "weight": 2.5}]',
    "array.jsonl": '\n[\n {"text": "a red star", "weight": 1},\n {"text": "Bär; groß, rot", "weight": 2.5}\n]\n',
    "columns.json": '{"prompt": ["a red star", "Bär; groß, rot"], "weight": [1, 2.5]}',
    "lines.json": '{"prompt": "a red star"}\n{"prompt": "Bär; groß, rot", "weight": 2.5}\n',
    "for-people.jsonl": '{\n "prompt": "a red star"\n}\n{\n "prompt": "Bär; groß, rot",\n "weight": 2.5\n}\n',
    "repeated.jsonl": '{"prompt": "a red star"}\n' + '{"prompt": "Bär; groß, rot", "weight": 1.25}\n' * 2,
}


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_tables_of_prompts(tmp_path, name, encoding):
    own = "utf-8" if WRITTEN[name].startswith("\ufeff") else encoding  # some have a mark already
    (tmp_path / name).write_bytes(WRITTEN[name].encode(own))
    assert load_prompts(str(tmp_path / name)) == TWO
    assert load_prompts(f"dataset:{tmp_path / name}") == TWO


@pytest.mark.parametrize("mark", [codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE])
def test_either_order_of_bytes(tmp_path, mark):
    coding = "utf-16-le" if mark == codecs.BOM_UTF16_LE else "utf-16-be"
    (tmp_path / "a.csv").write_bytes(mark + WRITTEN["tab.csv"].encode(coding))
    assert load_prompts(str(tmp_path / "a.csv")) == TWO


BREAKS = "a\x0bb\x0cc\x1cd\x1de\x1ef\x85g\u2028h\u2029i"
"""Characters at which `str.splitlines` cuts."""


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_at_line_breaks_only(tmp_path, end):
    (tmp_path / "a.TXT").write_bytes(f"{BREAKS}{end}{end} second {end}{end}".encode())
    assert load_prompts(str(tmp_path / "a.TXT")).prompts == (BREAKS, "second")
    row = json.dumps({"prompt": BREAKS}, ensure_ascii=False).replace("\\u000b", "\x0b")
    kept = row.replace("\\f", "\u2028")  # control characters must be escaped in JSON, these need not be
    (tmp_path / "a.jsonl").write_bytes(f'{kept}{end}{{"prompt": "second"}}{end}'.replace("\x0b", "\\u000b").encode())
    assert load_prompts(str(tmp_path / "a.jsonl")).prompts == (BREAKS.replace("\x0c", "\u2028"), "second")
    (tmp_path / "a.csv").write_bytes(f"prompt,weight{end}{BREAKS},2{end}second,3{end}".encode())
    assert load_prompts(str(tmp_path / "a.csv")) == PromptSet((BREAKS, "second"), (2.0, 3.0))


def test_cells_with_line_breaks_quotation_marks_and_any_length(tmp_path):
    long = "a cat " * 50_000  # csv's own limit is 131,072 characters
    limit = csv.field_size_limit()
    for end in ("\n", "\r\n"):
        content = f'prompt,weight{end}"a cat{end}on ""two"" lines",2{end}{long},1{end}x,-1{end}'
        (tmp_path / "a.csv").write_bytes(content.encode())
        with pytest.raises(PromptError, match=r"a.csv:5: .* the weight is '-1'"):
            load_prompts(str(tmp_path / "a.csv"))
        (tmp_path / "a.csv").write_bytes(content.replace("-1", "1").encode())
        assert load_prompts(str(tmp_path / "a.csv")).prompts == (f'a cat{end}on "two" lines', long.strip(), "x")
    assert csv.field_size_limit() == limit


def test_texts_are_left_as_they_are(tmp_path):
    """Composed and decomposed letters, zero-width characters and emoji, of which each is another text."""
    texts = (
        "caf\u00e9",
        "cafe\u0301",
        "a\u200bb",
        "a\ufeffb",
        "a\u200d\U0001f525",
        "tab\tin",
        "{braces} [brackets] <b>",
    )
    (tmp_path / "a.txt").write_text("\n".join(texts), "utf-8")
    (tmp_path / "a.json").write_text(json.dumps(texts), "utf-8")
    for name in ("a.txt", "a.json"):
        assert load_prompts(str(tmp_path / name)).prompts == texts


def test_a_prompt_in_several_lines_is_one(tmp_path):
    (tmp_path / "a.txt").write_text("a cat\na dog\na cat \n")
    assert load_prompts(str(tmp_path / "a.txt")) == PromptSet(("a cat", "a dog"), (2.0, 1.0))


REFUSED = {
    "latin.csv": ("prompt\na star\nBär\n".encode("latin-1"), "is not UTF-8: line 3 has the byte 0xe4"),
    "latin.txt": ("a\r\nb\rBär".encode("cp1252"), "is not UTF-8: line 3 has the byte 0xe4"),
    "latin.jsonl": ('{"prompt": "Bär"}'.encode("latin-1"), "is not UTF-8: line 1"),
    "surrogate.txt": (b"a star\na \xed\xa0\xbd star\n", "is not UTF-8: line 2 has the byte 0xed"),
    "cut.txt": ("a star\nBä".encode()[:-1], "is not UTF-8: line 2"),
    "no-mark.csv": ("prompt\na star\n".encode("utf-16-le"), "line 1 has a NUL character"),
    "nul.txt": (b"a star\n\na\0b\n", "line 3 has a NUL character"),
    "odd.csv": (codecs.BOM_UTF16_LE + b"a\0b", "is not UTF-16"),
    "half.jsonl": (b'{"prompt": "x"}\n{"prompt": "a \\ud83d star"}\n', r":2: the prompt has half of .* \(\\ud83d\)"),
    "half.json": (b'["x", "a \\udc00 star"]', r"entry 2: the prompt has half of a surrogate pair \(\\udc00\)"),
    "nul.jsonl": (b'{"prompt": "a\\u0000b"}\n', ":1: the prompt has a NUL character at character 2"),
    "twice.csv": (b"prompt,weight,prompt\na,1,b\n", ":1: two columns have the name 'prompt'"),
    "twice.jsonl": (b'{"prompt": "a"}\n{"prompt": "a", "prompt": "b"}\n', ":2: the key 'prompt' is there twice"),
    "none.csv": (b"prompt\na\nNaN\n", ":3: the prompt is 'NaN', which stands for a value that is missing"),
    "null.csv": (b"weight;prompt\n1;null\n", ":2: the prompt is 'null'"),
    "empty.csv": (b"prompt,weight\na,1\n,2\n", ":3: expected a prompt and a weight, but the prompt is ''"),
    "short.csv": (b"prompt,weight\na\n", ":2: expected 2 columns, but found 1"),
    "long.csv": (b"prompt,weight\na,1\nb,c,1\n", ":3: expected 2 columns, but found 3"),
    "no-header.csv": (b"a star,1\na cat,2\n", "no column prompt or caption or text; the columns are a star, 1"),
    "header.csv": (b"prompt,weight\n", "is empty"),
    "quoted.csv": (b'prompt,weight\n"a" ,1\n', ":2: not CSV: ',' expected after"),
    "escaped.csv": (b'prompt,weight\n"a \\"red\\" star",1\n', ":2: not CSV: ',' expected after"),
    "open.csv": (b'prompt,weight\n"a,1\nb,2\n', "not CSV: unexpected end of data"),
    "comma.csv": (b"prompt;weight\na;0,5\n", "the weight is '0,5': .* greater than 0 with a decimal point"),
    "true.jsonl": (b'{"prompt": "a", "weight": true}', "the weight is True"),
    "list.jsonl": (b'{"prompt": "a", "weight": [1]}', r"the weight is \[1\]"),
    "minus.jsonl": (b'{"prompt": "a", "weight": -0.0}', "the weight is -0.0"),
    "large.jsonl": (b'{"prompt": "a", "weight": 1e999}', "the weight is inf"),
    "huge.jsonl": (b'{"prompt": "a", "weight": 1' + b"0" * 400 + b"}", "it must be a number greater than 0"),
    "digits.jsonl": (b'{"prompt": "a", "weight": 1' + b"0" * 5000 + b"}", ":1: expected a JSON object"),
    "nan.csv": (b"prompt,weight\na,nan\n", "the weight is 'nan'"),
    "inf.csv": (b"prompt,weight\na,Infinity\n", "the weight is 'Infinity'"),
    "sum.csv": (b"prompt,weight\na,1e308\nb,1e308\n", "are too large or too small"),
    "number.jsonl": (b'{"prompt": 42}', "but the prompt is 42"),
    "null.jsonl": (b'{"prompt": null}', "but the prompt is None"),
    "nan.jsonl": (b'{"prompt": NaN}', "but the prompt is nan"),
    "nested.jsonl": (b'{"prompt": {"text": "a"}}', "but the prompt is {'text': 'a'}"),
    "listed.jsonl": (b'{"prompt": ["a", "b"], "id": 1}', r"but the prompt is \['a', 'b'\]"),
    "numbers.json": (b"[1, 2]", r'entry 1: expected {"prompt": "...", "weight": 1}, but found 1'),
    "frame.json": (b'{"prompt": {"0": "a", "1": "b"}}', "but the prompt is {'0': 'a', '1': 'b'}"),
    "deep.jsonl": (b"[" * 100_000, "not JSON"),
    "deeper.jsonl": (b'{"a":' * 100_000, "not JSON"),
    "cut.json": (b'[{"prompt": "a"},\n{"prompt": "b"', "cut.json:2: not JSON"),
    "cut.jsonl": (b'{"prompt": "a"}\n{"prompt": "b"\n', "cut.jsonl:2: expected a JSON object a line, but"),
    "other.jsonl": (b'{"prompt": "a"}\n{"caption": "b"}\n', ":2: expected a prompt, but the prompt is None"),
    "empty.json": (b"[]", "is empty"),
    "blank.csv": (b" \n,\n", "is empty"),
    "lines.txt": (b" \n\t\r\n\xef\xbb\xbf\n", "is empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_named_in_one_sentence(tmp_path, name):
    content, message = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptError, match=message) as caught:
        load_prompts(str(tmp_path / name))
    said = str(caught.value)
    assert "\n" not in said
    assert name in said
    assert len(said) < 1000 or name == "huge.jsonl"
    said.encode()  # half a surrogate cannot be printed


def test_names_that_differ_in_case_and_other_files(tmp_path):
    (tmp_path / "List.TXT").write_text("a cat")
    (tmp_path / "list.csv.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(PromptError, match=r"there is no file .*list.txt; did you mean .*List.TXT"):
        load_prompts(str(tmp_path / "list.txt"))
    for other in (tmp_path / "list.csv.gz", tmp_path):
        with pytest.raises(PromptError, match=r"is not read as prompts: give a .txt"):
            load_prompts(str(other))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(PromptError, match=r"folder.csv cannot be read: Is a directory"):
        load_prompts(str(tmp_path / "folder.csv"))
    for odd in ("", " ", "a\0b.txt", "x" * 5000 + ".txt", "x" * 5000, "dataset:" + "x" * 5000, "a\ud83d [red|blue]"):
        with pytest.raises(PromptError) as caught:
            load_prompts(odd)
        assert "\n" not in str(caught.value)


def test_brackets_that_do_not_fit():
    for template in ("a [[animal]]", "a [animal]]", "a [red|[green]] star", "a ]animal[ and [animal]", "[animal] ["):
        with pytest.raises(PromptError, match="bracket without its pair"):
            load_prompts(template)
    for other in ("a [cat", "a cat]", "a {animal}", "a ]x["):
        with pytest.raises(PromptError, match="unknown prompts"):
            load_prompts(other)


def test_weights_of_templates_whose_product_is_no_number(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,weight\na,1e-200\n")
    with pytest.raises(PromptError, match="too large or too small"):
        load_prompts(f"[{tmp_path}/a.csv] [{tmp_path}/a.csv]")


def test_prompts_given_one_by_one():
    assert checked_prompts(["a cat", ""]) == ("a cat", "")
    for bad in ("a \ud83d star", "a\0b", 3, None):
        with pytest.raises(PromptError, match="prompt 2: "):
            checked_prompts(["fine", bad])


def test_records_and_column_names(tmp_path):
    (tmp_path / "a.jsonl").write_text('"a text"\n{"A ": 1}\n')
    assert read_records(tmp_path / "a.jsonl") == [
        (f"{tmp_path}/a.jsonl:1", "a text"),
        (f"{tmp_path}/a.jsonl:2", {"a": 1}),
    ]
    with pytest.raises(DataError, match=r'a.jsonl:1: expected a JSON object, but found "a text"'):
        read_table(tmp_path / "a.jsonl")
    # Who is called so already keeps the name; of two others nobody gets it.
    assert renamed(["Prompt", "prompt", "A", "a ", "ID"]) == {
        "Prompt": "Prompt", "prompt": "prompt", "A": "A", "a ": "a ", "ID": "id"
    }  # fmt: skip


def test_parquet(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.Dataset.from_dict({"Prompt ": list(TWO.prompts), "WEIGHT": TWO.weights}).to_parquet(tmp_path / "a.PARQUET")
    assert load_prompts(str(tmp_path / "a.PARQUET")) == TWO
    (tmp_path / "b.parquet").write_bytes(b"PAR1junk")
    with pytest.raises(PromptError, match=r"cannot load the data set .*b.parquet: Arrow") as caught:
        load_prompts(str(tmp_path / "b.parquet"))
    assert "\n" not in str(caught.value)
    with pytest.raises(PromptError, match=r"there are no prompts at .*c.parquet"):
        load_prompts(str(tmp_path / "c.parquet"))
