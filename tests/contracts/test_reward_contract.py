"""Every built-in reward keeps the contract, here and on a server; and what breaks it is found."""

from __future__ import annotations

import pytest
import torch

from naming import named
from serving import served
from tastemaker.cli.main import main
from tastemaker.errors import RewardUnavailable
from tastemaker.rewards.check import check_reward, pictures
from tastemaker.rewards.contract import reward, score
from tastemaker.rewards.endpoints import Remote
from tastemaker.rewards.jpeg import to_bytes
from tastemaker.rewards.registry import BUILTIN, load_reward

PROMPTS = ["a red star", "two blue fish", "a tree above a heart", "a green square", "a blue circle"]
X = pictures(len(PROMPTS), 64)


def states(findings):
    return [finding.state for finding in findings]


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_built_in_rewards_keep_the_contract(name, tmp_path):
    function = load_reward(named(name, tmp_path))
    findings = check_reward(function, PROMPTS)
    assert "failed" not in states(findings), findings
    assert len(findings) == 7
    assert any("has the gradient" in finding.what for finding in findings) == BUILTIN[name].differentiable


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_built_in_rewards_keep_the_contract_on_a_server(name, tmp_path):
    name = named(name, tmp_path)
    here, rounded = load_reward(name), to_bytes(X).permute(0, 3, 1, 2).float() / 255
    # A network's answers depend on their batch in the last digits, so that requests are not joined or cut here.
    with served(name, join=0.0) as url:
        findings = check_reward(load_reward(url, Remote(cache=0, batch=2)), PROMPTS)
        assert "failed" not in states(findings), findings
        exact = load_reward(url, Remote(format="safetensors"))
        assert score(exact, X, PROMPTS).equal(score(here, X, PROMPTS))
        assert score(load_reward(url), X, PROMPTS).equal(score(here, rounded, PROMPTS))
        assert str(tmp_path) not in str(exact.identity())


class Counter:
    count = 0.0

    def __call__(self, x, prompts):
        self.count += 1
        return x.mean(dim=(1, 2, 3)) + self.count


@reward(differentiable=True)
def flat(x, prompts):
    return x.detach().mean(dim=(1, 2, 3))


@reward(differentiable=True)
def cut_off(x, prompts):
    return x.detach().mean(dim=(1, 2, 3)) + 0 * x.mean(dim=(1, 2, 3))


@reward(differentiable=True)
def backward(x, prompts):
    """Its value rises where its gradient falls."""
    mean = x.mean(dim=(1, 2, 3))
    return 2 * mean.detach() - mean


@reward(differentiable=True)
def brightness(x, prompts):
    return (x**2).mean(dim=(1, 2, 3))


def painted(x, prompts):
    x += 1
    return x.mean(dim=(1, 2, 3))


def broken(findings):
    return [finding.what for finding in findings if finding.state == "failed"]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x, p: x.mean(dim=(1, 2, 3)).sort().values, "does not keep the order"),
        (lambda x, p: x.mean(dim=(1, 2, 3)) - x.mean(), "depends on the batch: alone"),
        (Counter(), "is not deterministic"),
        (painted, "changes the images it is given"),
        (lambda x, p: x.mean(dim=(2, 3)), "shape [5, 3]"),
        (lambda x, p: x.mean(dim=(1, 2, 3)).log() * float("nan"), "returned nan"),
        (lambda x, p: 1 / 0, "ZeroDivisionError"),
        (flat, "declares a gradient and has none"),
        (cut_off, "which is zero for 5 of 5"),
        (backward, "has a gradient that is not its own"),
    ],
)
def test_what_breaks_the_contract_is_found(function, said):
    found = broken(check_reward(function, PROMPTS, size=16))
    assert any(said in what for what in found), found


def test_a_gradient_is_looked_at_along_itself():
    assert "failed" not in states(check_reward(brightness, PROMPTS, size=16))


def test_answers_that_are_all_the_same_hide_the_order():
    findings = check_reward(lambda x, p: torch.ones(len(x)), PROMPTS, size=16)
    assert broken(findings) == []
    assert any("cannot be seen" in finding.what for finding in findings)


def test_a_server_that_is_down_is_no_finding():
    with pytest.raises(RewardUnavailable):
        check_reward(load_reward("http://127.0.0.1:9", Remote(wait=0)), PROMPTS, size=16)


def test_doctor_says_a_line_for_each(capsys, tmp_path, monkeypatch):
    (tmp_path / "my_broken_taste.py").write_text("def lopsided(x, p): return (x - x.mean()).mean(dim=(1, 2, 3))\n")
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--reward", "colourfulness", "--size", "16"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["ok", "note"] + ["ok"] * 4 + ["note"]
    assert main(["doctor", "--reward=my_broken_taste:lopsided"]) == 1
    assert "1 part of the contract broken" in capsys.readouterr().out
    assert main(["doctor", "--reward", "http://127.0.0.1:9", "remote.wait=0"]) == 69
    assert "http://127.0.0.1:9: ConnectError" in capsys.readouterr().err
