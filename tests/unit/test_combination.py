"""Rewards put together: what a name may say, values and gradients by hand, and what is measured on the base model."""

from __future__ import annotations

import math
import threading

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from scoring import total
from serving import Scripted, served
from tastemaker.cli.main import main
from tastemaker.errors import ConfigError, RewardError
from tastemaker.rewards.base import leaf_scores, reward, score, wrap
from tastemaker.rewards.combination import Combination
from tastemaker.rewards.expression import (
    Clip,
    Constant,
    Minimum,
    Part,
    Product,
    Standardise,
    Sum,
    labels,
    parse,
    parts,
    to_text,
    weighted_terms,
    without_addresses,
)
from tastemaker.rewards.registry import load_reward
from tastemaker.rewards.serving.settings import Remote

A, B, C = Part("a"), Part("b"), Part("c")


def minus(node):
    return Product((Constant(-1.0), node))


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("a + b", Sum((A, B))),
        ("a - b", Sum((A, minus(B)))),
        ("a -b", Sum((A, minus(B)))),
        ("a - 1", Sum((A, Constant(-1.0)))),
        ("-a", minus(A)),
        ("0.5*a", Product((Constant(0.5), A))),
        ("a * 2e-1 * b", Product((A, Constant(0.2), B))),
        ("a + b * c", Sum((A, Product((B, C))))),
        ("(a + b) * c", Product((Sum((A, B)), C))),
        ("a - (b - c)", Sum((A, minus(Sum((B, minus(C))))))),
        ("min(a, 2*b, c)", Minimum((A, Product((Constant(2.0), B)), C))),
        ("clip(a, -inf, .3)", Clip(A, -math.inf, 0.3)),
        ("standardise(a) + standardise(a + b)", Sum((Standardise(A), Standardise(Sum((A, B)))))),
        # Names keep what is in them: it is the spaces around an operator that make it one.
        ("clip-score + x:f", Sum((Part("clip-score"), Part("x:f")))),
        ("target-image:/p/four+one.png + a", Sum((Part("target-image:/p/four+one.png"), A))),
        ("2*http://host:1/ - a", Sum((Product((Constant(2.0), Part("http://host:1/"))), minus(A)))),
        ("min(remote:http://h:1,http://h:2, a)", Minimum((Part("remote:http://h:1,http://h:2"), A))),
        ("min(target-image:f(1).png, a)", Minimum((Part("target-image:f(1).png"), A))),
        ("'target-image:/my images/a + b.png' * a", Product((Part("target-image:/my images/a + b.png"), A))),
        ('"a\'s" + b', Sum((Part("a's"), B))),
        ("mint + minimum", Sum((Part("mint"), Part("minimum")))),
        # What combines nothing is one name, as ever.
        ("jpeg-compressibility", Part("jpeg-compressibility")),
        ("target-image:/my images/four.png", Part("target-image:/my images/four.png")),
        ("target-image:/p/four (1).png", Part("target-image:/p/four (1).png")),
        ("remote:http://h:1, http://h:2", Part("remote:http://h:1, http://h:2")),
        ("a+b", Part("a+b")),
        ("", Part("")),
        ("3", Part("3")),
    ],
)
def test_what_a_name_says(text, tree):
    assert parse(text) == tree
    assert parse(to_text(tree)) == tree


def test_a_file_whose_path_looks_like_a_difference_is_a_file(tmp_path):
    path = tmp_path / "four - copy.png"
    assert isinstance(parse(f"target-image:{path}"), Sum)
    Image.new("RGB", (4, 4), "white").save(path)
    assert parse(f"target-image:{path}") == Part(f"target-image:{path}")
    assert total(load_reward(f"target-image:{path}"), torch.ones(1, 3, 4, 4), ["x"]).item() == pytest.approx(0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a +", "expected a reward or a number where it ends"),
        ("a + * b", r"expected a reward or a number where there is '\* b'"),
        ("(a + b", r"expected \) where it ends"),
        ("a + b)", r"expected \+, -, \* or the end where there is '\)'"),
        ("a + my images", "put a name with spaces in quotes"),
        ("2 * 3", "names no reward"),
        ("inf*a", "only a clip's bounds may be inf"),
        ("clip(a, 1, 1)", r"clips to \[1, 1\]: the first must be the smaller"),
        ("clip(a, 1)", "a comma, a space and a bound"),
        ("clip(a, b, 1)", "expected a number where there is 'b, 1"),
        ("min(a, b", r"or \), where it ends"),
        ("a + 'b", 'no end to the name that begins at "\'b"'),
        ("(" * 60 + "a", "more than 50 nested brackets"),
        ("- " * 60 + "a", "more than 50 nested brackets"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(text, message):
    with pytest.raises(RewardError, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


PIECES = ["a", "min(", "clip(", "standardise(", "(", ")", ", ", " + ", " - ", "*", "1", "'", " "]


@example(" - amin(")
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_any_text_is_a_tree_or_refused(text):
    try:
        tree = parse(text)
    except RewardError:
        return
    if not isinstance(tree, Part):
        assert parse(to_text(tree)) == tree


def test_labels_tell_parts_apart_without_paths_and_addresses():
    names = ["judge", "judge-2", "judge", "x:/home/me/four.png", "x:~/four.png", "http://h:1", "remote:http://h:2"]
    assert labels(names) == [
        "judge", "judge-2", "judge-3", "x:four.png", "x:four.png-2", "remote", "remote-2"
    ]  # fmt: skip
    assert labels(["min(http://h:1, a)"]) == ["min(remote, a)"]
    assert without_addresses("2*http://h:1 + a") == "((2 * remote) + a)"
    assert without_addresses("2*b + a") == "2*b + a"


# Red, green and blue of three images of one colour each.
COLOURS = torch.tensor([[0.2, 0.6, 1.0], [0.5, 0.1, 0.3], [1.0, 1.0, 0.0]])


def flat_images():
    return COLOURS[:, :, None, None].expand(3, 3, 4, 4).contiguous()


@reward(differentiable=True)
def red(x, prompts):
    return x[:, 0].mean(dim=(1, 2))


@reward(differentiable=True)
def green(x, prompts):
    return x[:, 1].mean(dim=(1, 2))


@reward(differentiable=True)
def blue(x, prompts):
    return x[:, 2].mean(dim=(1, 2))


def hard(x, prompts):
    return x[:, 2].mean(dim=(1, 2)).round()


FUNCTIONS = {"red": red, "green": green, "blue": blue, "hard": hard}


def combined(text, **more):
    tree = parse(text)
    return Combination(text, tree, {name: wrap((FUNCTIONS | more)[name], name) for name in parts(tree)})


def answers(function, x, prompts="abc"):
    """Of the parts, by name."""
    return leaf_scores({"it": function}, x, prompts)


@pytest.mark.parametrize(
    ("text", "expected", "slopes"),
    [
        ("red + 0.5*green - blue", (-0.5, 0.25, 1.5), [(1, 0.5, -1)] * 3),
        ("2 - red", (1.8, 1.5, 1.0), [(-1, 0, 0)] * 3),
        ("red * green", (0.12, 0.05, 1.0), [(0.6, 0.2, 0), (0.1, 0.5, 0), (1, 1, 0)]),
        ("red * red", (0.04, 0.25, 1.0), [(0.4, 0, 0), (1, 0, 0), (2, 0, 0)]),
        # At a tie, the third image's, each has half of the gradient.
        ("min(red, green)", (0.2, 0.1, 1.0), [(1, 0, 0), (0, 1, 0), (0.5, 0.5, 0)]),
        ("clip(2*red, 0.5, 1.5)", (0.5, 1.0, 1.5), [(0, 0, 0), (2, 0, 0), (0, 0, 0)]),
        ("(red + green) * blue", (0.8, 0.18, 0.0), [(1, 1, 0.8), (0.3, 0.3, 0.6), (0, 0, 2)]),
    ],
)
def test_values_and_gradients_by_hand(text, expected, slopes):
    function = combined(text)
    x = flat_images().requires_grad_()
    values = total(function, x, "abc")
    torch.testing.assert_close(values.detach(), torch.tensor(expected))
    torch.testing.assert_close(total(function, x, "abc"), torch.tensor(expected))
    # Of an image's 16 pixels each has a sixteenth.
    (slope,) = torch.autograd.grad(values.sum(), x)
    torch.testing.assert_close(slope.sum(dim=(2, 3)), torch.tensor(slopes, dtype=torch.float32))


def test_standardising_uses_the_base_models_images():
    """red of the base model's: 0.2, 0.5, 1: mean 17/30, variance 1.29/3 - (17/30)^2 = 98/900."""
    function = combined("standardise(red) + 2*green")
    assert function.unmeasured == ["standardise(red)"]
    with pytest.raises(RewardError, match=r"has standardise\(red\), which is measured on the base model's images"):
        total(function, flat_images(), "abc")
    function.measure(answers(function, flat_images()))
    mean, std = 17 / 30, math.sqrt(98) / 30
    assert function.statistics["standardise(red)"] == function.statistics["red"] == pytest.approx((mean, std))
    assert function.statistics["green"][0] == pytest.approx(1.7 / 3)
    x = torch.full((2, 3, 4, 4), 0.3).requires_grad_()
    values = total(function, x, "ab")
    torch.testing.assert_close(values.detach(), torch.full((2,), (0.3 - mean) / std + 0.6))
    (slope,) = torch.autograd.grad(values.sum(), x)
    torch.testing.assert_close(slope.sum(dim=(2, 3)), torch.tensor([[1 / std, 2.0, 0.0]] * 2))
    # A run that goes on has them from its checkpoint, which is JSON.
    again = combined("standardise(red) + 2*green")
    again.recall({name: list(pair) for name, pair in function.statistics.items()})
    assert total(again, x, "ab").equal(total(function, x, "ab"))


def test_standardising_inside_of_standardising():
    """The inner values have mean 0 and deviation 1; clipped at 1 they are (-1.11, -0.20, 1) of (.., .., 1.31)."""
    function = combined("standardise(clip(standardise(red), -2, 1))")
    function.measure(answers(function, flat_images()))
    inner = ((COLOURS[:, 0] - 17 / 30) / (math.sqrt(98) / 30)).clamp(-2, 1)
    expected = (inner - inner.mean()) / inner.std(correction=0)
    torch.testing.assert_close(total(function, flat_images(), "abc"), expected)


def test_base_images_that_are_all_the_same_are_no_unit():
    function = combined("standardise(red) + green")
    with pytest.raises(RewardError, match=r"all 3 of them have 0.25: leave standardise out"):
        function.measure(answers(function, torch.full((3, 3, 4, 4), 0.25)))


def test_each_part_is_asked_once_and_seen_by_itself():
    calls = []

    def counted(x, prompts):
        calls.append(len(x))
        return red(x, prompts)

    function = combined("counted * counted + min(counted, green)", counted=counted)
    found = answers(function, flat_images())
    assert calls == [3]
    assert list(found) == ["counted", "green"]
    torch.testing.assert_close(function.combine(found), COLOURS[:, 0] ** 2 + COLOURS[:, :2].amin(dim=1))


def test_a_part_that_fails_is_named():
    x = flat_images()

    def broken(x, prompts):
        return 1 / 0

    with pytest.raises(RewardError, match="the reward broken raised ZeroDivisionError"):
        total(combined("red + broken", broken=broken), x, "abc")

    def unsure(x, prompts):
        return red(x, prompts) * torch.tensor([1, 1, float("nan")])

    with pytest.raises(RewardError, match="the reward unsure returned nan for 1 of 3"):
        total(combined("min(red, unsure)", unsure=unsure), x, "abc")
    with pytest.raises(RewardError, match=r"the reward big \* big returned inf"):
        total(combined("big * big", big=lambda x, p: red(x, p) * 1e30), x, "abc")

    @reward(differentiable=True)
    def cut(x, prompts):
        return red(x.detach(), prompts)

    with pytest.raises(RewardError, match="the reward cut is declared differentiable, but its answer has no gradient"):
        total(combined("green + cut", cut=cut), x.requires_grad_(), "abc")


def test_marks_are_those_of_the_parts():
    assert combined("red + green").differentiable
    assert not combined("red + hard").differentiable
    assert combined("red + hard").without_gradient == ["hard"]
    assert combined("red + green").space == "image"
    assert combined("red + green").identity() is None

    @reward(space="latent")
    def smooth(x, prompts):
        return x.mean(dim=(1, 2, 3))

    assert combined("smooth", smooth=smooth).space == "latent"
    assert combined("red + smooth", smooth=smooth).space == "mixed"


def test_parts_on_latents_are_given_latents_and_the_others_images():
    """red of the images plus the latents' own mean, each with its gradient."""

    @reward(differentiable=True, space="latent")
    def smooth(z, prompts):
        return z.mean(dim=(1, 2, 3))

    function = combined("red + 2*smooth", smooth=smooth)
    x, z = torch.rand(3, 3, 8, 8, requires_grad=True), torch.randn(3, 4, 2, 2, requires_grad=True)
    found = score(function, x, "abc", z).total
    torch.testing.assert_close(found, x[:, 0].mean(dim=(1, 2)) + 2 * z.mean(dim=(1, 2, 3)))
    found.sum().backward()
    assert z.grad is not None
    torch.testing.assert_close(z.grad, torch.full_like(z, 2 / 16))
    assert x.grad is not None
    assert x.grad[:, 0].abs().min() > 0
    # Without latents there is nothing to give to the part.
    with pytest.raises(RewardError, match="smooth is on latents, and only rewards on images can be used here"):
        function(x, "abc")


def test_built_in_rewards_by_name(tmp_path):
    file = tmp_path / "four+one.png"
    Image.new("RGB", (8, 8), (255, 0, 0)).save(file)
    x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    names = ("jpeg-compressibility", "colourfulness", f"target-image:{file}")
    size, colour, likeness = (total(load_reward(name), x, "abc") for name in names)
    function = load_reward(f"0.5*{names[0]} + {names[1]} * {names[2]}")
    torch.testing.assert_close(total(function, x, "abc"), 0.5 * size + colour * likeness)
    with pytest.raises(RewardError, match=r"unknown reward 'colourfulness\+judge-score'.*spaces around \+ and \*"):
        load_reward("colourfulness+judge-score")
    with pytest.raises(RewardError, match="unknown reward 'colourfullness': did you mean 'colourfulness'"):
        load_reward("judge-score + colourfullness")


def test_parts_that_are_known_are_not_loaded_again():
    known = {"colourfulness": wrap(red)}
    function = load_reward("colourfulness + judge-score", None, None, known)
    assert isinstance(function, Combination)
    assert function.parts["colourfulness"] is known["colourfulness"]
    assert list(known) == ["colourfulness", "judge-score"]


def test_servers_are_asked_at_once_and_beside_the_local_parts():
    """Each of three waits for the two others: one after the other, they would wait for ever."""
    meeting = threading.Barrier(3)

    def waiting(x, prompts):
        meeting.wait(20)
        return red(x, prompts)

    def waiting_too(x, prompts):
        meeting.wait(20)
        return green(x, prompts)

    exact = Remote(format="safetensors", batch=8)
    with served(waiting) as one, served(waiting_too) as two:
        text = f"{one} + 2*{two} + local"
        tree = parse(text)
        rewards = {one: load_reward(one, exact), two: load_reward(two, exact), "local": wrap(waiting)}
        function = Combination(text, tree, rewards)
        torch.testing.assert_close(total(function, flat_images(), "abc"), 2 * COLOURS[:, 0] + 2 * COLOURS[:, 1])
        assert function.identity() == "('redness (1)' + (2 * 'redness (1)') + local)"


def test_a_server_that_fails_ends_the_others_call():
    from serving import raw, slow

    with Scripted(lambda n: slow(20)) as silent, Scripted(lambda n: raw(b"{}", 400)) as refusing:
        function = load_reward(f"{silent.url} + {refusing.url}", Remote(timeout=30))
        ended = threading.Event()

        def ask():
            with pytest.raises(RewardError, match="refuses: status 400"):
                total(function, flat_images(), "abc")
            ended.set()

        threading.Thread(target=ask, daemon=True).start()
        assert ended.wait(10)


def test_statistics_do_not_depend_on_where_a_server_is():
    with Scripted([]) as one, Scripted([]) as two:
        before, after = (load_reward(f"standardise({server.url}) + colourfulness") for server in (one, two))
        before.measure(answers(before, flat_images()))
        assert list(before.statistics) == ["remote", "colourfulness", "standardise(remote)"]
        after.recall({name: list(pair) for name, pair in before.statistics.items()})
        assert total(after, flat_images(), "abc").equal(total(before, flat_images(), "abc"))


def test_what_a_server_does_not_offer(capsys):
    assert main(["reward", "serve", "standardise(colourfulness) + judge-score"]) == 2
    assert "standardise(http://127.0.0.1:8000)" in capsys.readouterr().err
    assert main(["reward", "serve", "http://127.0.0.1:9 + judge-score"]) == 2
    assert "http://127.0.0.1:9 is already on a server" in capsys.readouterr().err


def test_doctor_measures_on_its_own_images_and_bears_a_clip(capsys):
    words = ["doctor", "--size", "16", "--reward"]
    assert main([*words, "standardise(soft-colourfulness) - 0.1*jpeg-surrogate-compressibility"]) == 0
    assert "standardises by these images here" in capsys.readouterr().out
    assert main([*words, "clip(soft-colourfulness, 0.5, 0.6)"]) == 0
    assert "which a clip holds at its bound" in capsys.readouterr().out
    assert main([*words, "soft-colourfulness + "]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert ConfigError.exit_code == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", [(1, A)]),
        ("a + 0.5*b - c + 3", [(1, A), (0.5, B), (-1, C)]),
        ("2*(a - 3*b)", [(2, A), (-6, B)]),
        ("0.5*a * b + min(a, c)", [(0.5, Product((A, B))), (1, Minimum((A, C)))]),
        ("-(standardise(a))", [(-1, Standardise(A))]),
    ],
)
def test_terms_of_a_sum_with_their_weights(text, expected):
    assert weighted_terms(parse(text)) == expected


def test_values_of_the_terms_add_up_to_the_reward():
    made = Combination("own", parse("a + 0.5*b - 2*min(a, b) + 3"), {n: wrap(lambda x, p: x) for n in "ab"})
    found = {"a": torch.tensor([1.0, 4.0]), "b": torch.tensor([2.0, 2.0])}
    terms = made.terms(found)
    assert [(weight, values.tolist()) for weight, values in terms] == [(1, [1, 4]), (0.5, [2, 2]), (-2, [1, 2])]
    total = sum(weight * values for weight, values in terms)
    torch.testing.assert_close(total + 3, made.combine(found))
