"""Every built-in reward keeps the contract, here and on a server; and what breaks it is found."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

import tiny_language
from naming import asked, named
from scoring import total
from serving import served
from speaking import Speaking
from tastemaker.cli.main import main
from tastemaker.errors import RewardUnavailable
from tastemaker.rewards.base import as_reward, reward
from tastemaker.rewards.check import check_reward, images
from tastemaker.rewards.jpeg import to_bytes
from tastemaker.rewards.registry import BUILTIN, load_reward
from tastemaker.rewards.serving.settings import Remote
from tastemaker.rewards.vlm.settings import Vlm, is_vlm

PROMPTS = ["a red star", "two blue fish", "a tree above a heart", "a green square", "a blue circle"]
X = images(len(PROMPTS), 64)


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    """A server of a vision-language model, and how rewards ask it."""
    folder = tmp_path_factory.mktemp("vlm")
    lines = [{"prompt": p, "questions": ["What is it?", "How many?"], "answers": ["red", ["1", "2"]]} for p in PROMPTS]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    text = tiny_language.deberta(folder / "deberta")
    with Speaking() as server:
        yield server.name, Vlm(text_model=str(text), text_layer=2, questions=str(folder / "questions.jsonl"), cache=0)


def full(name, folder, speaking):
    """The reward's full name: some need a file, some a server."""
    return f"{name}:{speaking[0]}" if is_vlm(name) else named(name, folder)


def states(findings):
    return [finding.state for finding in findings]


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_built_in_rewards_keep_the_contract(name, tmp_path, speaking):
    function = load_reward(full(name, tmp_path, speaking), vlm=speaking[1])
    findings = check_reward(function, asked(name, PROMPTS))
    assert "failed" not in states(findings), findings
    assert len(findings) == 7
    assert any("has the gradient" in finding.what for finding in findings) == BUILTIN[name].differentiable


# Reading text takes 15 times as long as any other reward, and is the same on a server.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "ocr" else ()) for name in sorted(BUILTIN)]
)
def test_built_in_rewards_keep_the_contract_on_a_server(name, tmp_path, speaking):
    prompts, name, vlm = asked(name, PROMPTS), full(name, tmp_path, speaking), speaking[1]
    here, rounded = load_reward(name, vlm=vlm), to_bytes(X).permute(0, 3, 1, 2).float() / 255
    # A network's answers depend on their batch in the last digits, so that requests are not joined or cut here.
    with served(name, vlm=vlm, join=0.0) as url:
        findings = check_reward(load_reward(url, Remote(cache=0, batch=2)), prompts)
        assert "failed" not in states(findings), findings
        exact = load_reward(url, Remote(format="safetensors"))
        assert total(exact, X, prompts).equal(total(here, X, prompts))
        assert total(load_reward(url), X, prompts).equal(total(here, rounded, prompts))
        assert str(tmp_path) not in str(exact.identity())
        assert speaking[0] not in str(exact.identity())


COMBINED = {
    "soft-colourfulness - 0.1*jpeg-surrogate-incompressibility": True,
    "min(judge-score, 0.5*colourfulness) * jpeg-compressibility": False,
    "clip(judge-score, 0.1, 0.9) + {url}": False,
}


@pytest.mark.parametrize("text", COMBINED)
def test_combinations_keep_the_contract(text):
    with served("colourfulness", join=0.0) as url:
        function = load_reward(text.format(url=url), Remote(cache=0))
        findings = check_reward(function, PROMPTS)
    assert "failed" not in states(findings), findings
    assert any("has the gradient" in finding.what for finding in findings) == COMBINED[text]


def test_combinations_keep_the_contract_on_a_server(tmp_path):
    file = tmp_path / "four+one.png"
    Image.fromarray(to_bytes(X[2:3])[0].numpy()).save(file)
    name = f"0.5*target-image:{file} + judge-score"
    with served(name, join=0.0) as url:
        remote = load_reward(url, Remote(format="safetensors", cache=0))
        assert "failed" not in states(check_reward(remote, PROMPTS))
        assert total(remote, X, PROMPTS).equal(total(load_reward(name), X, PROMPTS))
        assert str(remote.identity()).startswith("((0.5 * target-image:four+one.png) + judge-score) (")
        first = str(remote.identity())
    # Another image is another reward.
    Image.fromarray(to_bytes(X[1:2])[0].numpy()).save(file)
    with served(name) as url:
        assert str(load_reward(url).identity()) != first


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
    found = broken(check_reward(as_reward(function), PROMPTS, size=16))
    assert any(said in what for what in found), found


def test_a_gradient_is_looked_at_along_itself():
    assert "failed" not in states(check_reward(as_reward(brightness), PROMPTS, size=16))


def test_answers_that_are_all_the_same_hide_the_order():
    findings = check_reward(as_reward(lambda x, p: torch.ones(len(x))), PROMPTS, size=16)
    assert broken(findings) == []
    assert any("cannot be checked" in finding.what for finding in findings)


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
