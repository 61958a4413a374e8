"""Prompts that are too long for the text encoder: read as diffusers reads them, and said once."""

import logging

import torch

import tiny
from tastemaker.models import load_model
from tastemaker.models.library_logging import quiet
from tastemaker.models.prompt_length import longer


def test_a_prompt_that_is_too_long_is_cut_as_in_diffusers_and_said_once(tmp_path, caplog, capfd):
    """The tiny tokenizer has a token a letter and reads 16: begin, 14 letters, end."""
    model = load_model(str(tiny.folder(tmp_path / "model")), "fp32", torch.device("cpu"))
    fits, cut = "a b c d e f g h i j k l m n", "a b c d e f g h i j k l m n o p"
    with quiet():
        assert longer(model.pipeline.tokenizer, [fits, cut], 16) == [(cut, 18)]
    with caplog.at_level(logging.WARNING, "tastemaker"):
        text = model.encode([fits, cut], 1.0)["text"]
        model.clear_prompt_cache()
        model.encode([cut, "q " * 30], 1.0)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "18 tokens, of which the text encoder reads the first 16" in said[0]
    assert "truncated" not in capfd.readouterr().err
    # What is left of the longer prompt is the shorter one.
    assert text[0].equal(text[1])
