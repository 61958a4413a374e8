"""Outputs that cannot show every character, or that are gone: nothing that works ends because of them."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from tastemaker.cli import ls
from tastemaker.cli.main import main
from tastemaker.printing import Output, escaped_output, print_lines, readable
from tastemaker.training.progress import Display

STAR = "\u2b50"


class Dead:
    """As of a notebook whose kernel has ended."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise RuntimeError("gone")

    flush = isatty = write


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


def without_reader() -> io.TextIOWrapper:
    read, write = os.pipe()
    os.close(read)
    return io.TextIOWrapper(os.fdopen(write, "wb", buffering=0), write_through=True)


def test_what_an_encoding_lacks_is_escaped():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    output = Output(stream)
    assert output.write(f"a {STAR}\n") == 4
    output.flush()
    assert stream.buffer.getvalue() == b"a \\u2b50\n"
    assert not output.isatty()


@pytest.mark.parametrize("make", [lambda: None, closed, Dead, without_reader])
def test_a_stream_that_fails_is_left_alone(make):
    stream = make()
    output = Output(stream)
    for _ in range(2):
        assert output.write("text\n") == 5
        output.flush()
    assert not output.isatty()
    assert output.stream is None
    if isinstance(stream, io.TextIOWrapper):
        stream.close()


def test_a_stream_with_nothing_but_write_is_enough():
    class Bare(list):
        write = list.append

    stream = Bare()
    output = Output(stream)  # type: ignore[arg-type]
    output.write("text")
    output.flush()
    assert (stream, output.encoding, output.isatty()) == (["text"], "utf-8", False)


def test_names_of_files_are_written_as_the_bytes_that_they_are(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    with escaped_output():
        print(os.fsdecode(b"out-\xff") + STAR, flush=True)
    # 0xff as it came, and the star, which no byte of the command line stands for, by its number.
    assert stream.buffer.getvalue() == b"out-\xff\\u2b50\n"
    assert stream.errors == "strict"


@pytest.mark.parametrize("make", [lambda: None, closed, Dead, without_reader])
def test_a_run_shows_what_it_can(monkeypatch, make):
    stream = make()
    monkeypatch.setattr(sys, "stdout", stream)
    display = Display(1)
    with display:
        display.log(f"a {STAR}")
        with display.phase("sample", 1):
            display.advance()
        display.round_done({"round": 1, "reward/mean": 0.5, "reward/std": 0.1})
    print_lines("a path")
    if isinstance(stream, io.TextIOWrapper):
        stream.close()


def test_a_round_is_one_line_of_ascii(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    display = Display(1)
    display.round_done({"round": 1, "reward/mean": 0.5, "reward/std": 0.1})
    assert stream.buffer.getvalue().startswith(b"round 1  reward 0.500  std 0.100  left 0:00")


def test_readable_text_has_an_encoding():
    # UTF-8 that a C locale did not decode, a byte that is no text, and half of a pair of surrogates.
    name = b"\xc3\xa4-\xff".decode("ascii", "surrogateescape")
    assert readable(name + "\ud83d") == "\u00e4-\\xff\\ud83d"
    assert readable(f"a {STAR}") == f"a {STAR}"


def test_a_list_that_cannot_be_written_is_an_error(monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["ls"]) == 4
        monkeypatch.undo()
    assert capsys.readouterr().err == "tastemaker: No space left on device\n"


@pytest.mark.parametrize(("verb", "code"), [("ls", 141), ("report", 0)])
def test_a_reader_who_leaves_ends_what_only_prints(monkeypatch, tmp_path, verb, code):
    if verb == "report":
        monkeypatch.setattr("tastemaker.cli.report.require_run", lambda path: path)
        monkeypatch.setattr("tastemaker.report.page.write_report", lambda run: run / "report.html")
    stream = without_reader()
    monkeypatch.setattr(sys, "stdout", stream)
    assert main([verb, *([str(tmp_path)] if verb == "report" else [])]) == code
    stream.close()  # which Python does at its end: what was left to write must be gone


def test_an_error_of_the_system_is_one_sentence(monkeypatch, capsys):
    def fails(words: list[str]) -> int:
        raise PermissionError(13, "Permission denied", "/some/where")

    monkeypatch.setattr(ls, "run", fails)
    assert main(["ls"]) == 4
    assert capsys.readouterr().err == "tastemaker: Permission denied: /some/where\n"


def test_a_mistake_has_its_exit_code_where_nobody_can_read_of_it(monkeypatch):
    for stream in (closed(), Dead(), without_reader()):
        monkeypatch.setattr(sys, "stderr", stream)
        assert main(["trian"]) == 2
        if isinstance(stream, io.TextIOWrapper):
            stream.close()


def test_no_file_of_a_run_is_opened_without_its_encoding():
    """Python's own is the locale's. `open` of bytes, of images and of descriptors has none."""
    import tastemaker

    source = Path(tastemaker.__file__).parent
    for path in source.rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if any(call in line for call in (".read_text(", ".write_text(", " open(")) and "def " not in line:
                binary = any(mark in line for mark in ('"rb"', '"wb"', "Image.open"))
                # samples.py writes over two lines.
                assert "encoding=" in line or binary or line.rstrip().endswith("("), f"{path}: {line}"
