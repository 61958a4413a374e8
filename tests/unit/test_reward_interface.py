"""What a function declares is read once, several rewards are scored on one path, and the contract can be tested."""

from __future__ import annotations

import dataclasses
import threading

import pytest
import torch

from tastemaker.errors import RewardError
from tastemaker.rewards.base import (
    FunctionReward,
    Reward,
    as_reward,
    combined,
    leaf_scores,
    reward,
    score,
    score_all,
    wrap,
)
from tastemaker.rewards.check import require_contract
from tastemaker.rewards.combination import Combination
from tastemaker.rewards.expression import parse, parts
from tastemaker.rewards.registry import load_reward

X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
PROMPTS = list("abcd")


class Remote:
    """A user's object that asks something elsewhere, and counts what is read of it."""

    def __init__(self):
        self.reads, self.calls = [], []

    def __getattribute__(self, name):
        if not name.startswith("_") and name not in ("reads", "calls"):
            self.reads.append(name)
        return object.__getattribute__(self, name)

    differentiable = True
    space = "image"

    def identity(self):
        return 7

    def cancel(self):
        self.calls.append("cancel")

    def __call__(self, images, prompts):
        self.calls.append(len(prompts))
        return images.mean(dim=(1, 2, 3))


def test_marks_are_read_once_by_the_wrapper():
    function = Remote()
    found = wrap(function, "mine")
    read = sorted(set(function.reads))
    function.reads.clear()
    assert (found.name, found.differentiable, found.space, found.concurrent) == ("mine", True, "image", True)
    assert found.identity() == "7"
    assert as_reward(found) is found
    assert wrap(found, "another") is found
    (grad,) = torch.autograd.grad(score(found, leaf := X.clone().requires_grad_(), PROMPTS).total.sum(), leaf)
    assert torch.allclose(grad, torch.full_like(grad, 1 / 192))
    score_all({"a": found, "b": Combination("mine + mine", parse("mine + mine"), {"mine": found})}, X, PROMPTS)
    found.cancel()
    assert function.reads == []
    assert {"differentiable", "space", "identity", "cancel"} <= set(read)
    assert function.calls == [4, 4, 4, "cancel"]


def test_a_plain_function_has_the_defaults():
    found = as_reward(lambda images, prompts: [0.5] * len(prompts))
    assert isinstance(found, FunctionReward)
    assert dataclasses.asdict(dataclasses.replace(found, function=print)) == {
        "function": print, "name": "<lambda>", "differentiable": False, "space": "image", "identity": found.identity,
        "cancel": found.cancel, "concurrent": False, "whole": False, "may_be_flat": False, "settings": {},
        "of_images": None, "latent_shape": None, "require_latents": found.require_latents,
    }  # fmt: skip
    assert found.identity() is None
    assert found.cancel() is None
    assert (found.parts, found.without_gradient, found.unmeasured) == ({}, ["<lambda>"], [])
    assert found(X, PROMPTS).tolist() == [0.5] * 4
    assert not isinstance(lambda images, prompts: 0, Reward)
    assert isinstance(load_reward("0.5*colourfulness"), Reward)


def test_a_decorated_function_stays_a_function():
    @reward(differentiable=True, space="latent")
    def brightness(images, prompts):
        return images.mean(dim=(1, 2, 3))

    assert brightness(X, PROMPTS).equal(X.mean(dim=(1, 2, 3)))
    found = as_reward(brightness)
    assert (found.name, found.differentiable, found.space) == ("brightness", True, "latent")


class Brightness:
    def __call__(self, images, prompts):
        return images.mean(dim=(1, 2, 3))


def marked(**marks):
    made = Brightness()
    for name, value in marks.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (3, "the reward 'int' is no function, but int"),
        (Brightness, r"the reward 'Brightness' is a class: .* as in `my_reward = Brightness\(\)`"),
        (marked(space="pixels"), "has space = 'pixels', but it must be 'image' or 'latent'"),
        (marked(differentiable="yes"), "has differentiable = 'yes', but it must be True or False"),
    ],
)
def test_what_cannot_be_a_reward_is_refused(function, message):
    with pytest.raises(RewardError, match=message):
        as_reward(function)


def test_attributes_that_cannot_be_read_are_one_sentence():
    class Odd(Brightness):
        @property
        def space(self):
            raise SystemExit(4)

    with pytest.raises(RewardError, match=r"^reading the attributes of the reward 'Odd' called sys.exit\(4\)"):
        wrap(Odd())


def counted(values):
    """A reward that gives each image one value, and the sizes of its calls."""
    calls = []

    def function(images, prompts):
        calls.append(len(prompts))
        return torch.full((len(prompts),), values)

    return wrap(function), calls


def combination(text, **rewards):
    tree = parse(text)
    return Combination(text, tree, {name: rewards[name] for name in parts(tree)})


def test_a_function_in_several_combinations_is_called_once():
    (a, called_a), (b, called_b), (c, called_c) = counted(2.0), counted(3.0), counted(5.0)
    rewards = {
        "first": combination("a + b", a=a, b=b), "second": combination("a * c", a=a, c=c), "b": b
    }  # fmt: skip
    found = score_all(rewards, X, PROMPTS)
    assert (called_a, called_b, called_c) == ([4], [4], [4])
    assert {name: one.total.tolist() for name, one in found.items()} == {
        "first": [5.0] * 4, "second": [10.0] * 4, "b": [3.0] * 4
    }  # fmt: skip
    assert {name: sorted(one.parts) for name, one in found.items()} == {
        "first": ["a", "b"], "second": ["a", "c"], "b": []
    }  # fmt: skip


def test_answers_of_several_batches_give_the_rewards_of_all():
    """As a run does it: statistics are measured on all images, whatever the batches were."""
    function = load_reward("standardise(soft-colourfulness) + 0.1*jpeg-compressibility")
    rewards = {"it": function, "size": load_reward("jpeg-compressibility")}
    pieces = [leaf_scores(rewards, X[i : i + 2], PROMPTS[i : i + 2]) for i in (0, 2)]
    whole = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
    assert isinstance(function, Combination)
    function.measure(whole)
    found = combined(rewards, whole, PROMPTS)
    assert function.statistics["soft-colourfulness"][0] == pytest.approx(whole["soft-colourfulness"].mean().item())
    by_hand = whole["soft-colourfulness"].double()
    by_hand = (by_hand - by_hand.mean()) / by_hand.std(correction=0) + 0.1 * found["size"].total
    torch.testing.assert_close(found["it"].total.double(), by_hand, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(score(function, X, PROMPTS).total, found["it"].total)


def test_gradients_follow_the_images_and_the_mode():
    mean = wrap(lambda images, prompts: images.mean(dim=(1, 2, 3)))
    leaf = X.clone().requires_grad_()
    assert score(mean, leaf, PROMPTS).total.requires_grad
    assert not score(mean, X, PROMPTS).total.requires_grad
    with torch.no_grad():
        assert not score(mean, leaf, PROMPTS).total.requires_grad
    with pytest.raises(RewardError, match="<lambda> is not differentiable: its answer has no gradient"):
        score(wrap(lambda images, prompts: [1.0] * len(prompts)), leaf, PROMPTS)


def test_a_function_that_is_called_in_a_thread_has_its_gradient_too():
    threads = []

    def remote(images, prompts):
        threads.append(threading.current_thread())
        return images.square().sum(dim=(1, 2, 3))

    elsewhere = FunctionReward(remote, "remote", differentiable=True, concurrent=True)
    function = combination("a + 2*b", a=elsewhere, b=wrap(lambda images, prompts: images.sum(dim=(1, 2, 3))))
    leaf = X.clone().requires_grad_()
    (grad,) = torch.autograd.grad(score(function, leaf, PROMPTS).total.sum(), leaf)
    torch.testing.assert_close(grad, 2 * X + 2)
    assert threads[0] is not threading.main_thread()


def test_the_contract_for_other_packages():
    energy = reward(differentiable=True)(lambda images, prompts: images.square().mean((1, 2, 3)))
    findings = require_contract(energy, PROMPTS, 16)
    assert {finding.state for finding in findings} == {"ok", "note"}
    with pytest.raises(RewardError, match=r"reward <lambda> breaks its contract: does not keep the order.*; depends"):
        require_contract(lambda images, prompts: images.mean((1, 2, 3)).sort().values - images.mean(), PROMPTS, 16)


def test_the_contract_sees_a_part_that_changes_its_images():
    def painting(images, prompts):
        images += 1
        return images.mean(dim=(1, 2, 3))

    function = combination("a + b", a=wrap(painting), b=wrap(lambda images, prompts: images.mean(dim=(1, 2, 3))))
    with pytest.raises(RewardError, match="breaks its contract: changes the images it is given"):
        require_contract(function, PROMPTS, 16)
