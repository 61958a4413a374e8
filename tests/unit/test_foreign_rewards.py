"""Whatever a reward of somebody else's does, it ends in its number or in one sentence, and the run's images stay."""

import asyncio
import contextlib
import decimal
import fractions
import functools
import io
import locale
import logging
import os
import signal
import sys
import threading
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from scoring import total
from serving import served
from tastemaker.cli.main import main
from tastemaker.errors import RewardError, RewardUnavailable
from tastemaker.rewards.base import as_reward, leaf_scores, reward
from tastemaker.rewards.check import check_reward
from tastemaker.rewards.registry import load_reward
from tastemaker.rewards.user_code import NO_ARGUMENTS, described

X = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a", "b", "c"]
MEAN = X.mean(dim=(1, 2, 3))


def mean(x, prompts):
    return x.mean(dim=(1, 2, 3))


def refused(function, match):
    """One sentence, without gradient, and where the images require one."""
    with pytest.raises(RewardError, match=match) as found:
        total(function, X, PROMPTS)
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 1000
    with pytest.raises(RewardError, match=match):
        total(function, X.clone().requires_grad_(), PROMPTS)


# ---------------------------------------------------------------- what it raises


class Own(BaseException):
    """Not an Exception."""


class Unsayable(Exception):
    def __str__(self):
        raise ValueError("no")


RAISED = {
    "exit with words": (SystemExit("no API key"), r"taste called sys.exit\('no API key'\)"),
    "exit with a number": (SystemExit(3), r"taste called sys.exit\(3\)"),
    "exit with 0": (SystemExit(0), r"taste called sys.exit\(0\)"),
    "exit": (SystemExit(), r"taste called sys.exit\(\)"),
    "exit as argparse does": (SystemExit(2), r"sys.exit\(2\).*if it reads the command line"),
    "its own": (Own("mine"), "taste raised Own: mine"),
    "GeneratorExit": (GeneratorExit("g"), "raised GeneratorExit: g"),
    "StopIteration": (StopIteration(3), "raised StopIteration: 3"),
    "CancelledError": (asyncio.CancelledError(), "raised CancelledError$"),
    "MemoryError": (MemoryError(), "raised MemoryError$"),
    "RecursionError": (RecursionError("deep"), "raised RecursionError: deep"),
    "lines": (ValueError("one\n\n two\r\x1b[31m three\x00"), r"ValueError: one two \[31m three$"),
    "half a surrogate": (ValueError("a\ud800b"), "ValueError: a b$"),
    "endless": (ValueError("x" * 10**6), "ValueError: x+[.]{3}$"),
    "no text": (Unsayable(), "Unsayable: .its text cannot be shown: ValueError"),
}


@pytest.mark.parametrize("what", RAISED)
def test_whatever_is_raised_is_one_sentence(what):
    error, match = RAISED[what]

    def taste(x, prompts):
        raise error

    refused(taste, match)
    refused(taste, match)  # also the second time
    with served(taste) as url, pytest.raises(RewardError, match="taste"):
        total(load_reward(url, remote()), X, PROMPTS)


def remote():
    from tastemaker.rewards.serving.settings import Remote

    return Remote(tries=1, wait=0)


def test_ctrl_c_is_ctrl_c_and_an_error_of_ours_is_itself():
    def interrupted(x, prompts):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        total(interrupted, X, PROMPTS)
    with served(interrupted) as url:  # nobody pressed it there
        for _ in range(2):
            with pytest.raises(RewardError, match="KeyboardInterrupt"):
                total(load_reward(url, remote()), X, PROMPTS)

    def away(x, prompts):
        raise RewardUnavailable("gone")

    with pytest.raises(RewardUnavailable, match=r"^gone$"):
        total(away, X, PROMPTS)


def test_real_recursion_warnings_as_errors_and_wrong_arguments():
    def deep(x, prompts):
        return deep(x, prompts)

    def warned(x, prompts):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.warn("careful", stacklevel=1)

    refused(deep, "deep raised RecursionError: maximum recursion depth")
    refused(warned, "warned raised UserWarning: careful")
    refused(lambda x: x, r"<lambda> raised TypeError: .*takes 1 positional argument but 2 were given")
    refused(functools.partial(mean, other=3), "partial raised TypeError")


# ---------------------------------------------------------------- what it returns

NUMBERS = [0.5, -2.0, 3.0]


class Rows:
    """What other packages' arrays are to numpy."""

    def __array__(self, dtype=None, copy=None):
        return np.array(NUMBERS, dtype=dtype)


RETURNED = {
    "list": NUMBERS, "tuple": tuple(NUMBERS), "float64": torch.tensor(NUMBERS).double(),
    "float16": torch.tensor(NUMBERS).half(), "bfloat16": torch.tensor(NUMBERS).bfloat16(), "array": np.array(NUMBERS),
    "array of float16": np.array(NUMBERS, np.float16), "other bytes": np.array(NUMBERS, ">f4"),
    "turned round": np.array(NUMBERS[::-1])[::-1], "longdouble": np.array(NUMBERS, np.longdouble),
    "numpy's numbers": [np.float32(value) for value in NUMBERS], "tensors": [torch.tensor(value) for value in NUMBERS],
    "mixed": [torch.tensor(0.5), -2, np.float64(3)], "objects": np.array(NUMBERS, object),
    "series": pd.Series(NUMBERS, index=[7, 8, 9]), "decimals": [decimal.Decimal(str(value)) for value in NUMBERS],
    "fractions": [fractions.Fraction(value) for value in NUMBERS], "parameter": nn.Parameter(torch.tensor(NUMBERS)),
    "graph": torch.tensor(NUMBERS, requires_grad=True) * 1, "sparse": torch.tensor(NUMBERS).to_sparse(),
    "other": Rows(), "unmasked": np.ma.array(NUMBERS),
}  # fmt: skip


@pytest.mark.parametrize("what", RETURNED)
def test_numbers_of_all_kinds_are_numbers(what):
    found = total(lambda x, p: RETURNED[what], X, PROMPTS)
    assert found.tolist() == NUMBERS
    assert (found.dtype, found.device.type, found.requires_grad) == (torch.float32, "cpu", False)
    found += 1  # it is the run's own
    assert total(lambda x, p: RETURNED[what], X, PROMPTS).tolist() == NUMBERS


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ([True, False, True], [1, 0, 1]),
        (torch.tensor([True, False, True]), [1, 0, 1]),
        (np.array([1, 2, 255], np.uint8), [1, 2, 255]),
        (torch.tensor([1, 2, 3]), [1, 2, 3]),
        (range(3), [0, 1, 2]),
        ([2**70, -1, 0], [2.0**70, -1, 0]),
        ([1e38, 1e-38, 3e38], torch.tensor([1e38, 1e-38, 3e38]).tolist()),
    ],
)
def test_whole_numbers_and_truths_too(answer, expected):
    assert total(lambda x, p: answer, X, PROMPTS).tolist() == expected


async def waiting(x, prompts):
    return [0.0] * len(prompts)


def yielding(x, prompts):
    yield from (0.0, 1.0, 2.0)


WRONG = {
    "nothing": (None, "returned NoneType, but must return 3 numbers"),
    "a dict": ({"a": 1, "b": 2, "c": 3}, "returned dict, but must return 3 numbers"),
    "a set": ({1.0, 2.0, 3.0}, "returned set"),
    "texts": (["1", "2", "3"], "returned list, but must return 3 numbers"),
    "a text": ("123", "returned str"),
    "one text": ([1.0, "2", 3.0], "returned list"),
    "one missing": ([1.0, None, 3.0], "NoneType is no number"),
    "complex": (torch.tensor([1j, 2j, 3j]), "complex numbers have no order"),
    "an array of complex": (np.array([1j, 2j, 3j]), "complex128 are no real numbers"),
    "masked complex": (np.ma.array([1j, 2j, 3j]), "complex128 are no real numbers"),
    "dates": (np.array(["2020-01-01"] * 3, "datetime64[D]"), "no real numbers"),
    "ragged": ([[1.0], [1.0, 2.0], 3.0], "returned list"),
    "ddpo-pytorch's pair": (([1.0, 2.0, 3.0], {}), "returned tuple"),
    "tensors of several shapes": ([torch.ones(1), torch.ones(2), torch.ones(3)], "returned list"),
    "meta": (torch.ones(3, device="meta"), "meta device has no values"),
    "a column": (torch.ones(3, 1), r"returned shape \[3, 1\] for 3 images"),
    "columns": ([torch.ones(1)] * 3, r"returned shape \[3, 1\]"),
    "one number": (1.0, r"returned shape \[\] for 3 images"),
    "one tensor": (torch.tensor(1.0), r"returned shape \[\] for 3 images"),
    "too few": ([1.0, 2.0], r"returned shape \[2\] for 3 images"),
    "none": ([], r"returned shape \[0\]"),
    "a masked one": (np.ma.array(NUMBERS, mask=[0, 1, 0]), r"returned nan for 1 of 3.*prompt 'b'"),
    "pandas' missing": (pd.Series([1.0, None, 3.0]), "returned nan for 1 of 3"),
    "pandas' NA": (pd.Series([1, None, 3], dtype="Int64"), "returned nan for 1 of 3"),
    "infinite": (torch.tensor([1.0, float("-inf"), 3.0]), "returned -inf for 1 of 3.*must be finite"),
    "half precision's infinity": (torch.tensor([1.0, 1e5, 3.0]).half(), "returned inf for 1 of 3"),
    "huge": (torch.tensor([1.0, 1e39, 3.0], dtype=torch.float64), "returned 1e[+]39 for 1 of 3.*float32 cannot hold"),
    "a huge array": (np.array([1.0, -1e300, 3.0]), "returned -1e[+]300 .*float32 cannot hold"),
    "a huge list": ([1.0, 1e39, 3.0], "returned 1e[+]39 .*float32 cannot hold"),
    "huge tensors": ([torch.tensor(1e39, dtype=torch.float64)] * 3, "returned 1e[+]39 for 3 of 3.*cannot hold"),
    "a huge integer": ([1, 10**400, 3], "returned list.*too large"),
    "huge integers": ([1, 10**39, 3], "returned 1e[+]39 .*float32 cannot hold"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_number_is_one_sentence(what):
    answer, match = WRONG[what]
    refused(lambda x, p: answer, match)


def test_functions_that_are_no_plain_ones():
    refused(waiting, "waiting is an async function: make it a plain one")
    refused(yielding, "yielding returned a generator, but must return 3 numbers")
    refused(nn.Identity(), r"Identity raised TypeError|Identity returned shape")
    assert total(functools.partial(lambda k, x, p: mean(x, p) + k, 1), X, PROMPTS).allclose(MEAN + 1)


def test_a_list_of_tensors_keeps_its_gradient():
    leaf = X.clone().requires_grad_()
    marked = reward(differentiable=True)(lambda x, p: [image.square().sum() for image in x])
    (slope,) = torch.autograd.grad(total(marked, leaf, PROMPTS).sum(), leaf)
    torch.testing.assert_close(slope, 2 * X)


# ---------------------------------------------------------------- what it changes

CHANGES = {
    "clamp_": lambda x: x.clamp_(0, 0.5), "zero_": lambda x: x.zero_(), "x[:]": lambda x: x.__setitem__(slice(None), 7),
    "+=": lambda x: x.__iadd__(1), "data": lambda x: x.data.fill_(3), "resize_": lambda x: x.detach().resize_(1),
    "numpy": lambda x: x.detach().numpy().__setitem__(slice(None), 7), "grad": lambda x: x.detach().requires_grad_(),
    "set_": lambda x: x.detach().set_(torch.zeros(1)), "copy_": lambda x: x.copy_(x.flip(0)),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_the_runs_images_and_prompts_stay(what):
    """Through a score, in a combination where another reward comes after, and on a graph."""
    x, prompts = X.clone(), list(PROMPTS)

    def taste(x, prompts):
        found = mean(x, prompts).detach().clone() + 0 * x.sum()
        with torch.no_grad():
            CHANGES[what](x)
        prompts.clear()
        return found

    assert total(taste, x, prompts).allclose(MEAN)
    found = leaf_scores({"first": as_reward(taste), "second": as_reward(mean)}, x, prompts)
    assert found["second"].equal(MEAN)
    leaf = X.clone().requires_grad_()
    with contextlib.suppress(RewardError):  # a change of what its own gradient needs
        total(taste, leaf * 1, prompts)
    for held in (x, leaf.detach()):
        assert held.equal(X)
    assert prompts == PROMPTS
    assert not x.requires_grad


def test_what_it_keeps_changes_nothing_later():
    kept, go, done = [], threading.Event(), threading.Event()
    answer = torch.empty(3)

    def taste(x, prompts):
        kept.append(x)
        threading.Thread(target=lambda: (go.wait(10), x.zero_(), done.set())).start()
        return answer.copy_(x.mean(dim=(1, 2, 3)))  # the same tensor each time, as with a buffer

    x = X.clone()
    first = total(taste, x, PROMPTS)
    second = total(taste, 2 * x, PROMPTS)
    go.set()
    done.wait(10)
    answer.fill_(9)
    assert x.equal(X)
    assert first.equal(MEAN)
    assert second.allclose(2 * MEAN)


@reward(differentiable=True)
def clamping(x, prompts):
    """In place on the graph, before and after what the gradient needs."""
    x.mul_(2).clamp_(0, 1)
    return x.square().sum(dim=(1, 2, 3))


@reward(differentiable=True)
def spoiling(x, prompts):
    found = x.square().sum(dim=(1, 2, 3))
    x.zero_()
    return found


class Leaving(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sum(dim=(1, 2, 3))

    @staticmethod
    def backward(ctx, *slopes):
        sys.exit("bye")


@reward(differentiable=True)
def leaving(x, prompts):
    return Leaving.apply(x)


def test_changes_in_place_on_the_graph_have_their_gradient_or_one_sentence():
    """clamp(2x)^2 has the slope 8x below 1/2, and none above."""
    leaf = X.clone().requires_grad_()
    shown = leaf * 1
    (slope,) = torch.autograd.grad(total(clamping, shown, PROMPTS).sum(), leaf, retain_graph=True)
    torch.testing.assert_close(slope, torch.where(X < 0.5, 8 * X, 0))
    assert shown.equal(X)
    with pytest.raises(RewardError, match=r"in its backward pass, the reward spoiling raised RuntimeError: .*inplace"):
        total(spoiling, shown, PROMPTS).sum().backward(retain_graph=True)
    assert shown.equal(X)
    with pytest.raises(RewardError, match=r"in its backward pass, the reward leaving called sys.exit\('bye'\)"):
        total(leaving, shown, PROMPTS).sum().backward()
    for function, said in ((spoiling, "in its backward pass"), (leaving, "sys.exit")):
        findings = [
            finding.what for finding in check_reward(as_reward(function), PROMPTS, size=16) if finding.state == "failed"
        ]
        assert any(said in what for what in findings), findings


def test_a_reward_sees_all_images_of_its_batch_on_the_way_back():
    """Weights of each image's reward go through the reward's own graph: of x_1 x_2, both have the other's value."""
    leaf = torch.tensor([2.0, 3.0, 5.0]).view(3, 1, 1, 1).requires_grad_()
    marked = reward(differentiable=True)(lambda x, p: x.flatten() * x.flatten().roll(1))
    (slope,) = torch.autograd.grad((total(marked, leaf, PROMPTS) * torch.tensor([1.0, 10.0, 100.0])).sum(), leaf)
    # r = (2*5, 3*2, 5*3): d/dx_1 = 5 + 10*3, d/dx_2 = 10*2 + 100*5, d/dx_3 = 2 + 100*3.
    assert slope.flatten().tolist() == [35, 520, 302]


def settings():
    """What a run depends on."""
    return {
        "dtype": torch.get_default_dtype(), "device": torch.get_default_device(), "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(), "threads": torch.get_num_threads(), "folder": os.getcwd(),
        "precision": torch.get_float32_matmul_precision(), "determinism": torch.get_deterministic_debug_mode(),
        "anomalies": torch.is_anomaly_enabled(), "cudnn": torch.backends.cudnn.benchmark, "numpy": np.geterr(),
        "errors": sum(entry[0] == "error" for entry in warnings.filters), "locale": locale.setlocale(locale.LC_ALL),
        "out": sys.stdout, "err": sys.stderr, "arguments": list(sys.argv), "ctrl-c": signal.getsignal(signal.SIGINT),
        "sigterm": signal.getsignal(signal.SIGTERM),
    }  # fmt: skip


def ignore_or_not(number):
    """Another handler than the present one: jobs in the background begin with Ctrl-C ignored."""
    signal.signal(number, signal.SIG_DFL if signal.getsignal(number) is signal.SIG_IGN else signal.SIG_IGN)


HELD = []
"""What would end by itself if nobody had it."""
DISTURBANCES = {
    "dtype": lambda: torch.set_default_dtype(torch.float64), "device": lambda: torch.set_default_device("meta"),
    "gradients": lambda: torch.set_grad_enabled(not torch.is_grad_enabled()),
    "inference": lambda: (HELD.append(torch.inference_mode()), HELD[-1].__enter__()),
    "threads": lambda: torch.set_num_threads(3),
    "folder": lambda: os.chdir("/"), "precision": lambda: torch.set_float32_matmul_precision("medium"),
    "determinism": lambda: torch.use_deterministic_algorithms(True),
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True),
    "cudnn": lambda: setattr(torch.backends.cudnn, "benchmark", True), "numpy": lambda: np.seterr(all="raise"),
    "errors": lambda: warnings.filterwarnings("error", message="never said"),
    "locale": lambda: locale.setlocale(locale.LC_ALL, "C.UTF-8"), "out": lambda: setattr(sys, "stdout", None),
    "err": lambda: setattr(sys, "stderr", io.StringIO()), "arguments": lambda: sys.argv.append("--more"),
    "ctrl-c": lambda: ignore_or_not(signal.SIGINT), "sigterm": lambda: ignore_or_not(signal.SIGTERM),
}  # fmt: skip


@pytest.mark.parametrize("what", DISTURBANCES)
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_settings_of_the_process_are_put_back(what):
    before = settings()

    def taste(x, prompts):
        found, inside = mean(x, prompts), settings()
        DISTURBANCES[what]()
        assert what == "locale" or settings()[what] != inside[what]  # that may be C.UTF-8 already
        return found

    assert total(taste, X, PROMPTS).equal(MEAN)
    assert settings() == before
    leaf = X.clone().requires_grad_()
    total(taste, leaf, PROMPTS)
    assert settings() == before


def test_settings_are_put_back_by_the_last_of_several_threads():
    before, begun, go = settings(), threading.Event(), threading.Event()

    def slow(x, prompts):
        torch.set_default_dtype(torch.float64)
        begun.set()
        go.wait(10)
        return mean(x, prompts)

    thread = threading.Thread(target=lambda: total(slow, X, PROMPTS))
    thread.start()
    begun.wait(10)
    total(mean, X, PROMPTS)  # begins and ends within the other
    go.set()
    thread.join()
    assert settings() == before


def test_a_folder_that_is_gone_is_left(tmp_path):
    def taste(x, prompts):
        (tmp_path / "work").mkdir()
        os.chdir(tmp_path / "work")
        (tmp_path / "work").rmdir()
        return mean(x, prompts)

    before = os.getcwd()
    assert total(taste, X, PROMPTS).equal(MEAN)
    assert os.getcwd() == before


def test_output_that_was_closed_is_opened_again(capfd, monkeypatch):
    for name, number in {"stdout": 1, "stderr": 2}.items():
        monkeypatch.setattr(sys, name, os.fdopen(os.dup(number), "w"))

    def taste(x, prompts):
        sys.stdout.close()
        sys.stderr.close()
        return mean(x, prompts)

    total(taste, X, PROMPTS)
    print("to the one")
    print("to the other", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        stream.close()
    assert capfd.readouterr() == ("to the one\n", "to the other\n")


def test_what_no_run_depends_on_is_the_rewards_own():
    """Random generators go on, or a reward that draws would draw the same in every call; and so does logging."""

    def taste(x, prompts):
        return torch.rand(3)

    assert not total(taste, X, PROMPTS).equal(total(taste, X, PROMPTS))
    level = logging.getLogger().level
    try:
        total(lambda x, p: (logging.getLogger().setLevel(5), mean(x, p))[1], X, PROMPTS)
        assert logging.getLogger().level == 5
    finally:
        logging.getLogger().setLevel(level)


# ---------------------------------------------------------------- its module

MODULES = {
    "exits": ("import sys; sys.exit('set MY_KEY first')", r"sys.exit\('set MY_KEY first'\)"),
    "exits quietly": ("raise SystemExit", r"called sys.exit\(\)"),
    "parses": (
        "import argparse\np = argparse.ArgumentParser()\np.add_argument('--weights')\np.parse_args()\n",
        r"called sys.exit\(2\).*if it reads the command line",
    ),
    "raises": ("raise BaseException('odd')", "raised BaseException: odd"),
    "is no Python": ("def taste(:", "raised SyntaxError"),
    "is not there": (None, "raised ModuleNotFoundError: No module named"),
    "needs what is not here": ("import no_such_package", "No module named 'no_such_package'"),
    "is a circle": ("from {name} import taste", "raised ImportError"),
    "has none": ("def tast(x, p): return [0.0] * len(p)", "has no function 'taste'; did you mean 'tast'"),
    "has a number": ("taste = 3", "is no function, but int"),
    "has None": ("taste = None", "has no function 'taste'"),
    "has a class": ("class taste: pass", "is a class: give a function, or an object"),
    "fails to look": ("def __getattr__(name): raise SystemExit(4)", r"sys.exit\(4\)"),
    "is not text": (b"\xff\xfe\x00", "raised (SyntaxError|ValueError)"),
}  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of the user's, from which a console script is started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    monkeypatch.setattr(sys, "argv", ["tastemaker", "train", "--out", "secret"])
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize("what", MODULES)
def test_a_module_that_is_none_is_one_sentence(what, here, capsys):
    content, match = MODULES[what]
    name = "module_that_" + what.replace(" ", "_")
    if isinstance(content, str):
        (here / f"{name}.py").write_text(content.replace("{name}", name))
    elif content is not None:
        (here / f"{name}.py").write_bytes(content)
    before = settings()
    with pytest.raises(RewardError, match=match) as found:
        load_reward(f"{name}:taste")
    assert "\n" not in str(found.value)
    assert settings() == before
    assert main(["doctor", "--reward", f"{name}:taste"]) == 2


def test_a_module_does_not_read_our_command_line_nor_change_the_process(here):
    (here / "options_of_its_own.py").write_text(
        "import argparse, os, signal, sys, warnings, torch\n"
        "p = argparse.ArgumentParser()\np.add_argument('--out', default='mine')\n"
        "out = p.parse_known_args()[0].out\nwords = sys.argv[1:]\n"
        "torch.set_default_dtype(torch.float64)\nos.chdir('/')\nwarnings.simplefilter('error')\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\nsys.stdout = None\n"
        "def taste(x, prompts):\n    late = p.parse_known_args()[0].out\n"
        "    return [float(out == late == 'mine')] * len(prompts)\n"
    )
    before = settings()
    taste = load_reward("options_of_its_own:taste")
    assert settings() == before
    assert total(taste, X, PROMPTS).tolist() == [1, 1, 1]
    assert sys.modules["options_of_its_own"].words == [NO_ARGUMENTS]
    assert sys.argv == ["tastemaker", "train", "--out", "secret"]


def test_names_of_other_modules(here):
    """A file of the folder comes first while it is loaded, and not afterwards: `import wave` means Python's own."""
    (here / "wave.py").write_text("def taste(x, prompts): return [1.0] * len(prompts)\n")
    (here / "random.py").write_text("def taste(x, prompts): return [1.0] * len(prompts)\n")
    (here / "redness.py").write_text("class Of:\n    taste = staticmethod(lambda x, p: [2.0] * len(p))\n")
    with pytest.raises(RewardError, match=r"'random' has no function 'taste'.*not random.py in this folder"):
        load_reward("random:taste")
    with pytest.raises(RewardError, match=r"modules are named without \.py"):
        load_reward("redness.py:taste")
    assert total(load_reward("redness:Of.taste"), X, PROMPTS).tolist() == [2, 2, 2]
    assert sys.path[-1] == str(here)
    kept = sys.modules.pop("wave", None)
    try:
        import wave

        assert not hasattr(wave, "taste")
    finally:
        if kept is not None:
            sys.modules["wave"] = kept


def test_ctrl_c_while_a_module_is_loaded(here):
    (here / "module_interrupted.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_reward("module_interrupted:taste")
    assert main(["doctor", "--reward", "module_interrupted:taste"]) == 130


def test_words_of_errors():
    assert described(KeyError("a")) == "KeyError: 'a'"
    assert described(ValueError()) == "ValueError"
    assert described(ValueError("x" * 600)).endswith("xxx...")
