"""The process in which `tastemaker bench --compare` measures one option: `python -m` this module, with a config's file.

It loads the model, makes a round, and says so in a line of JSON on stdout; then it makes a round for each line on
stdin, and says what that took. Where it cannot go on, it says why and ends.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

import torch

from tastemaker.benchmarking.bench import measured_session, peak_memory, plain_round, rates
from tastemaker.benchmarking.floor import calls_of_round
from tastemaker.config.schema import Config
from tastemaker.config.yaml_file import load_config
from tastemaker.errors import TastemakerError


def main(file: str) -> None:
    """Measures the config in `file`."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    try:
        serve(load_config(Path(file), Config()), sys.stdin, answers)
    except (TastemakerError, torch.OutOfMemoryError) as error:
        _answer(answers, {"error": " ".join(str(error).split())})


def serve(config: Config, requests: TextIO, answers: TextIO) -> None:
    """A round for each line of `requests`, after one to warm up, and what they took as lines of `answers`."""
    with measured_session(config) as (session, compiled):
        _answer(answers, {"compile_seconds": compiled()})
        for _ in requests:
            calls = calls_of_round(session)
            made = plain_round(session)
            images, rows = rates(session, calls, made.phases, made.selected)
            memory = peak_memory(session.accelerator.device)
            if session.accelerator.device.type == "cuda":
                torch.cuda.empty_cache()  # the other process may need it
            found = {
                "wall": made.seconds,
                "images_per_second": images,
                "rows_per_second": rows,
                "peak_memory_gib": memory,
            }
            _answer(answers, found)


def _answer(answers: TextIO, content: dict[str, Any]) -> None:
    print(json.dumps(content), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
