"""A round on an accelerator, in each precision. Run with `pytest -m gpu`; skipped where there is none."""

import json

import pytest
import torch

from tastemaker.cli.main import main

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_round_in_each_precision(checkpoint, tmp_path, precision):
    words = [
        "train", "ddpo-compressibility", "--model", str(checkpoint), "--out", str(tmp_path / "run"), "--rounds", "2",
        "--precision", precision, "sampling.steps=5", "sampling.samples=16", "evaluation.prompts=1",
    ]  # fmt: skip
    assert main(words) == 0
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    deviations = [record["ratio_deviation/first"] for record in records if "round" in record]
    assert max(deviations) < (1e-5 if precision == "fp32" else 1e-2)
