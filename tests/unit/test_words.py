"""Words of the command line that the locale does not decode."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tastemaker.cli.main import main
from tastemaker.cli.settings import read
from tastemaker.cli.text import as_source, as_text, decoded
from tastemaker.cli.train import TrainArgs
from tastemaker.config.schema import Config, Evaluation
from tastemaker.errors import ConfigError

STAR = b"\xe2\xad\x90".decode("ascii", "surrogateescape")
"""A star as Python reads it from the command line in the C locale."""
BAD = os.fsdecode(b"\xff")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def test_text_is_utf8_whatever_the_locale_is():
    assert as_text("a red star", "--prompt") == "a red star"
    assert as_text("größe", "--prompt") == "größe"
    assert as_text(f"a red {STAR}", "--prompt") == "a red \u2b50"


@pytest.mark.parametrize("word", [f"a{BAD}", "a\ud83d", "\ude00a"])
def test_what_is_no_text_is_refused(word: str):
    with pytest.raises(ConfigError, match=r"^--prompt is '.*\\ud.*', which is not text in UTF-8$"):
        as_text(word, "--prompt")


def test_names_of_files_stay_the_bytes_that_they_are():
    name = os.fsdecode(b"\xc3\xbc-\xff.txt")
    Path(name).touch()
    for source in (name, f"dataset:{name}", f"100 of {name}"):
        assert as_source(source, "--prompts") == source
    with pytest.raises(ConfigError):
        as_source(f"no-{name}", "--prompts")
    assert as_source(f"[{STAR}|moon]", "--prompts") == "[\u2b50|moon]"


def test_settings_that_are_text_are_decoded():
    vlm = replace(Config().vlm, question=f"A {STAR}?")
    given = Config(
        prompts=f"[{STAR}]", reward=f"concept-removal:{STAR}", vlm=vlm,
        evaluation=Evaluation(unseen=f"a [{STAR}]", rewards=(f"judge-removal:{STAR}",)),
    )  # fmt: skip
    found = decoded(given)
    assert (found.prompts, found.reward, found.vlm.question) == ("[\u2b50]", "concept-removal:\u2b50", "A \u2b50?")
    assert (found.evaluation.unseen, found.evaluation.rewards) == ("a [\u2b50]", ("judge-removal:\u2b50",))
    assert decoded(Config()) == Config()


def test_train_reads_them():
    args, _ = read(TrainArgs, ["ddpo-compressibility", "--prompts", f"[{STAR}|moon]"], "train")
    assert args.settings.prompts == "[\u2b50|moon]"


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "--prompt", f"a{BAD}"], ["sample", "--prompts", f"a{BAD}"],
        ["train", "ddpo-compressibility", "--prompts", f"[a{BAD}|b]"],
        ["train", "ddpo-compressibility", "--reward", f"a{BAD}"], ["reward", "serve", f"a{BAD}"],
        ["doctor", "--reward", f"a{BAD}"],
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert main(words) == 2
    assert "which is not text in UTF-8" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
