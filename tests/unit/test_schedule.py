"""The learning rate's warm-up by hand."""

from types import SimpleNamespace

import pytest
import torch

from tastemaker.training.checkpoint import State
from tastemaker.training.config import Config, Optimizer
from tastemaker.training.update import set_rate


@pytest.mark.parametrize(
    ("round_", "done", "rate"), [(0, 0, 0.2), (0, 1, 0.4), (1, 0, 0.6), (1, 1, 0.8), (2, 0, 1.0), (9, 1, 1.0)]
)
def test_the_rate_rises_over_the_warm_up_and_stays(round_, done, rate):
    """lr 1, warm-up 4, two updates a round: update n (from 0) has rate (n + 1) / 5 until n = 4."""
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1.0)
    config = Config(optimizer=Optimizer(lr=1.0, updates=2, warmup=4))
    optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)]})
    rates = [(1.0, 4), (10.0, 0)]  # a value network's, without a warm-up of its own
    set_rate(SimpleNamespace(config=config, state=State(round=round_), optimizer=optimizer, rates=rates), done)
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(rate), 10.0]
