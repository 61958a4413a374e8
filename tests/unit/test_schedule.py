"""The learning rate's warm-up by hand, and its schedules against diffusers' own."""

from types import SimpleNamespace

import pytest
import torch
from diffusers.optimization import get_scheduler

from tastemaker.config.schema import Config, Optimizer
from tastemaker.errors import ConfigError
from tastemaker.runs.checkpoint import State
from tastemaker.training.lr_schedule import multiple
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


def rates(config, round_=0, done=0, updates=0):
    """The rates of the model and of a value network with a rate of 1 and no warm-up, as set before an update."""
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1.0)
    optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)]})
    state = State(round=round_, updates=updates)
    own = [(config.optimizer.lr, config.optimizer.warmup), (1.0, 0)]
    set_rate(SimpleNamespace(config=config, state=state, optimizer=optimizer, rates=own), done)
    return [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize("name", ["linear", "cosine", "piecewise_constant"])
@pytest.mark.parametrize("warmup", [0, 3])
def test_after_the_warm_up_the_rate_is_diffusers(name, warmup):
    """5 rounds of 2 passes of 2 updates: 20 updates, stepped one by one as diffusers' training scripts do."""
    rules = "1:4,0.1:9,0.5" if name == "piecewise_constant" else ""
    options = Optimizer(lr=0.25, updates=2, inner_epochs=2, warmup=warmup, lr_scheduler=name, step_rules=rules)
    config = Config(rounds=5, optimizer=options)
    theirs = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.25)
    scheduler = get_scheduler(name, theirs, step_rules=rules, num_warmup_steps=warmup, num_training_steps=20)
    seen = []
    for update in range(20):
        rate, value = rates(config, *divmod(update, 4))
        assert value == 1.0  # the schedule is the model's
        if update >= warmup or name == "piecewise_constant":
            assert rate == pytest.approx(theirs.param_groups[0]["lr"] * min(1, (update + 1) / (warmup + 1)))
        else:
            assert rate == pytest.approx(0.25 * (update + 1) / (warmup + 1))
        seen.append(rate)
        theirs.step()
        scheduler.step()
    # By hand: at update 19, 1 of 20 - warm-up is left of a line, and cos^2(pi / 2 * 19/20) = 0.00616 of a cosine.
    last = {"linear": 0.25 / (20 - warmup), "piecewise_constant": 0.125}
    assert seen[-1] == pytest.approx(last.get(name, seen[-1]))
    if name == "cosine" and not warmup:
        assert seen[-1] == pytest.approx(0.25 * 0.0061558, rel=1e-4)
    if name == "piecewise_constant" and not warmup:
        assert seen == pytest.approx([0.25] * 4 + [0.025] * 5 + [0.125] * 11)


def test_updates_of_selected_images_count_what_was_done():
    """Warm-up 4: 6 updates came before this round, whatever its number; then the second one of this round."""
    config = Config(optimizer=Optimizer(lr=1.0, images_per_update=8, warmup=9))
    assert rates(config, round_=50, done=1, updates=6)[0] == pytest.approx(8 / 10)


def test_a_constant_rate_knows_no_end():
    assert multiple(Config(rounds=1), 10**6) == 1.0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr_scheduler": "piecewise_constant"}, "step_rules is empty"),
        ({"lr_scheduler": "piecewise_constant", "step_rules": " "}, "step_rules is empty"),
        ({"step_rules": "0.4:6400,1"}, "set it to piecewise_constant"),
        ({"lr_scheduler": "linear", "step_rules": "1:10,0.1"}, "set it to piecewise_constant"),
        ({"lr_scheduler": "linear", "images_per_update": 8}, "use constant or piecewise_constant"),
        ({"lr_scheduler": "cosine", "images_per_update": 8}, "use constant or piecewise_constant"),
        ({"images_per_update": 0}, "must be greater than 0"),
        ({"images_per_update": 600, "inner_epochs": 2}, "give at most 512"),
        ({"images_per_update": 8, "minibatch": "states"}, "set it to images"),
        *(
            ({"lr_scheduler": "piecewise_constant", "step_rules": rules}, "must be multiples of the learning rate")
            for rules in ("0.4:6400", "0.4:6400,", "0.4,1", "x:10,1", "1:ten,1", "1:20,0.5:10,1", "1:10,0.5:10,1",
                          "-1:10,1", "nan:10,1", "1:10,inf", "1:0,1", "1:1.5,1", "1:10;1")
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_scheduled_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        Config(optimizer=Optimizer(**options))


@pytest.mark.parametrize("rules", ["0.4:6400,1", "1", " 1:10 , 0.1 ", "1e-1:5,.5:6,2.", "0:10,1"])
def test_rules_that_diffusers_reads_are_taken(rules):
    multiple(Config(optimizer=Optimizer(lr_scheduler="piecewise_constant", step_rules=rules)), 3)
