"""Mixtures of factors against hand-worked numbers and dense matrices."""

import pytest
import torch

from tastemaker.errors import ModelError
from tastemaker.models.mixing import Factors, compress, delta, factor, mix, product


def row(*values):
    return torch.tensor([values], dtype=torch.float32)


def made(rank, scale, seed=0, layers=("x", "y")):
    random = torch.Generator().manual_seed(seed)
    return {
        name: Factors(torch.randn(rank, 5, generator=random), torch.randn(3, rank, generator=random), scale)
        for name in layers
    }


def hand():
    """B A = [[1,2],[0,0]] and [[0,0],[3,4]]: A_1 = [1 2], B_1 = [1 0]', A_2 = [3 4], B_2 = [0 1]'."""
    one = {"x": Factors(row(1, 2), row(1, 0).T, 1.0)}
    two = {"x": Factors(row(3, 4), row(0, 1).T, 1.0)}
    return one, two


def test_delta_by_hand():
    """0.25 [[1,2],[0,0]] + 0.75 [[0,0],[3,4]] = [[.25,.5],[2.25,3]]; ranks stand beside each other."""
    mixed = delta(hand(), (0.25, 0.75))["x"]
    assert torch.equal(product(mixed), torch.tensor([[0.25, 0.5], [2.25, 3.0]], dtype=torch.float64))
    assert torch.equal(mixed.a, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert torch.equal(mixed.b, torch.tensor([[0.25, 0.0], [0.0, 0.75]]))
    assert (mixed.rank, mixed.scale) == (2, 1.0)


def test_factor_by_hand_has_cross_terms():
    """A = .25 [1 2] + .75 [3 4] = [2.5 3.5], B = [.25 .75]': B A = [[.625,.875],[1.875,2.625]]."""
    mixed = factor(hand(), (0.25, 0.75))["x"]
    assert torch.equal(mixed.a, row(2.5, 3.5))
    assert torch.equal(mixed.b, row(0.25, 0.75).T)
    assert torch.equal(product(mixed), torch.tensor([[0.625, 0.875], [1.875, 2.625]], dtype=torch.float64))
    # .0625 B_1 A_1 + .5625 B_2 A_2 + .1875 (B_1 A_2 + B_2 A_1)
    cross = 0.0625 * row(1, 2) + 0.1875 * row(3, 4)
    assert torch.equal(product(mixed)[:1], cross.double())


def test_mixing_with_the_base_model_scales_by_alpha_or_its_square():
    (one, _), full = hand(), torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    assert torch.equal(product(mix([one], [0.5], "delta")["x"]), 0.5 * full)
    assert torch.equal(product(mix([one], [0.5], "factor")["x"]), 0.25 * full)
    for mode in ("delta", "factor"):
        assert torch.equal(product(mix([one], [0.0], mode)["x"]), 0 * full)


def test_delta_of_other_ranks_and_scales_is_the_dense_sum():
    adapters = [made(2, 3.0, 1), made(4, 0.5, 2), made(1, -1.0, 3)]
    weights = (0.2, 0.3, 0.5)
    mixed = delta(adapters, weights)
    for name in ("x", "y"):
        dense = sum(
            w * a[name].scale * a[name].b.double() @ a[name].a.double() for w, a in zip(weights, adapters, strict=True)
        )
        torch.testing.assert_close(product(mixed[name]), dense, rtol=1e-6, atol=1e-6)
        assert mixed[name].rank == 7
    assert delta(adapters, (0.0, 1.5, 0.0))["x"].rank == 4


def test_factors_of_other_scales_are_exact_at_the_ends():
    """Scales 4 and -9: roots 2 and 3 go into both factors, -9's sign into B."""
    one, two = made(2, 4.0, 1), made(2, -9.0, 2)
    mixed = factor([one, two], (0.5, 0.5))["x"]
    torch.testing.assert_close(mixed.a, one["x"].a + 1.5 * two["x"].a)
    torch.testing.assert_close(mixed.b, one["x"].b - 1.5 * two["x"].b)
    for weights, alone in (((1.0, 0.0), one), ((0.0, 1.0), two)):
        torch.testing.assert_close(product(factor([one, two], weights)["x"]), product(alone["x"]), rtol=1e-6, atol=0)


def test_layers_may_have_other_ranks_and_scales_and_be_in_some_adapters_only():
    """x is in both (ranks 2 and 1, scales 1 and 2), y in the first alone, z in the second alone."""
    one = made(2, 1.0, 1, ("x",)) | made(3, -0.5, 2, ("y",))
    two = made(1, 2.0, 3, ("x", "z"))
    mixed = delta([one, two], (0.25, 0.5))
    assert {name: factors.rank for name, factors in mixed.items()} == {"x": 3, "y": 3, "z": 1}
    dense = {
        "x": 0.25 * product(one["x"]) + 0.5 * product(two["x"]),
        "y": 0.25 * product(one["y"]),
        "z": 0.5 * product(two["z"]),
    }
    for name, expected in dense.items():
        torch.testing.assert_close(product(mixed[name]), expected, rtol=1e-6, atol=1e-6)
    assert {name: f.rank for name, f in compress(mixed, 2).items()} == {"x": 2, "y": 2, "z": 1}
    assert compress(mixed, 2)["z"] is mixed["z"]


def test_factors_of_layers_with_other_ranks_and_scales_mix_layer_by_layer():
    """Ranks differ over layers, not between the adapters: A and B are added, and a scale of 0 adds nothing."""
    one = made(2, 2.0, 1, ("x",)) | made(3, 0.5, 2, ("y",))
    two = made(2, 2.0, 3, ("x",)) | made(3, 0.0, 4, ("y",))
    mixed = factor([one, two], (0.25, 0.75))
    torch.testing.assert_close(mixed["x"].a, 0.25 * one["x"].a + 0.75 * two["x"].a)
    assert (mixed["x"].scale, mixed["x"].rank, mixed["y"].rank) == (2.0, 2, 3)
    torch.testing.assert_close(product(mixed["y"]), 0.0625 * product(one["y"]), rtol=1e-6, atol=1e-6)


def test_convolutions_mix_as_linear_layers_do():
    random = torch.Generator().manual_seed(0)
    one, two = (
        {"c": Factors(torch.randn(2, 3, 3, 3, generator=random), torch.randn(4, 2, 1, 1, generator=random), s)}
        for s in (1.0, 2.0)
    )
    mixed = delta([one, two], (0.5, 0.5))["c"]
    assert mixed.a.shape == (4, 3, 3, 3)
    assert mixed.b.shape == (4, 4, 1, 1)
    x = torch.randn(1, 3, 5, 5, generator=random)
    apply = lambda f: f.scale * torch.conv2d(torch.conv2d(x, f.a), f.b)  # noqa: E731
    torch.testing.assert_close(apply(mixed), 0.5 * apply(one["c"]) + 0.5 * apply(two["c"]))
    assert compress({"c": mixed}, 2)["c"].a.shape == (2, 3, 3, 3)


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_compression_is_the_best_of_its_rank(rank):
    """Eckart and Young: the squared error is the sum of the squares of the singular values left out."""
    mixed = delta([made(2, 1.0, 1), made(4, 2.0, 2)], (0.5, 0.5))
    small = compress(mixed, rank)["x"]
    assert small.rank == min(rank, 3)  # the layer is 3 x 5
    values = torch.linalg.svdvals(product(mixed["x"]))
    error = (product(small) - product(mixed["x"])).norm()
    torch.testing.assert_close(error, values[rank:].square().sum().sqrt(), rtol=1e-5, atol=1e-5)
    assert compress(mixed, 6)["x"] is mixed["x"]


def test_what_does_not_match_is_refused():
    with pytest.raises(ModelError, match=r"ranks 2 and 3 \(layer x\).*--mode delta"):
        factor([made(2, 1.0), made(3, 1.0)], (0.5, 0.5))
    with pytest.raises(ModelError, match=r"not all of the adapters have the layer y \(1 such layers\).*--mode delta"):
        factor([made(2, 1.0), made(2, 1.0, layers=("x",))], (0.5, 0.5))
