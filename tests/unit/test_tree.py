"""select, concat, to and zeros on a dataclass that holds another, a mapping, shared fields and fields without rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from tastemaker import tree
from tastemaker.types import Cond


@dataclass(frozen=True)
class Inner:
    values: Tensor
    steps: Tensor = field(metadata=tree.SHARED)


@dataclass(frozen=True)
class Outer:
    x: Tensor
    inner: Inner | None
    named: Mapping[str, Tensor] = field(metadata=tree.SHARED)
    label: str = field(metadata=tree.SHARED, default="a")
    missing: Tensor | None = None


def made(start: int, count: int) -> Outer:
    x = torch.arange(start, start + count).float()
    return Outer(x, Inner(10 * x.unsqueeze(1), torch.tensor([7, 8])), NAMED)


NAMED = {"text": torch.arange(3.0)}


@pytest.mark.parametrize("rows", [torch.tensor([2, 0]), torch.tensor([True, False, True]).flip(0), slice(0, 3, 2)])
def test_select_takes_rows_and_leaves_what_is_shared(rows):
    found, x = tree.select(made(0, 3), rows), torch.arange(3.0)[rows]
    assert found.inner is not None
    assert found.x.equal(x)
    assert found.inner.values.equal(10 * x.unsqueeze(1))
    assert found.inner.steps.tolist() == [7, 8]
    assert found.named is NAMED
    assert found.missing is None


def test_concat_is_the_inverse_of_select():
    whole = made(0, 5)
    again = tree.concat([tree.select(whole, slice(0, 2)), tree.select(whole, slice(2, 5))])
    assert again.inner is not None
    assert again.x.equal(whole.x)
    assert again.inner.values.equal(10 * whole.x.unsqueeze(1))
    assert again.named is NAMED


def test_concat_refuses_what_does_not_fit():
    one = made(0, 2)
    assert one.inner is not None
    with pytest.raises(ValueError, match=r"Outer\.named is shared by all rows, but differs"):
        tree.concat([one, replace(one, named={"text": torch.zeros(3)})])
    with pytest.raises(ValueError, match=r"Inner\.steps is shared"):
        tree.concat([one, replace(one, inner=replace(one.inner, steps=torch.tensor([1])))])
    with pytest.raises(ValueError, match=r"Outer\.missing is missing in some"):
        tree.concat([one, replace(one, missing=one.x)])
    with pytest.raises(ValueError, match="nothing to concatenate"):
        tree.concat([])


def test_to_and_zeros_reach_every_tensor():
    found = tree.to(made(0, 2), torch.float64)
    assert found.inner is not None
    assert {found.x.dtype, found.inner.values.dtype, found.named["text"].dtype} == {torch.float64}
    none = tree.zeros(made(3, 4), 1)
    assert none.inner is not None
    assert none.x.tolist() == [0.0]
    assert none.inner.values.tolist() == [[0.0]]
    assert none.inner.steps.tolist() == [7, 8]


def test_a_cond_stores_each_prompt_once():
    """Prompts: 0 the empty one, 1, 2. Five rows of two prompts hold three states and not five."""
    states = {"text": torch.tensor([[0.0], [10.0], [20.0]]), "pooled": torch.tensor([0.0, 1.0, 2.0])}
    cond = Cond(states, torch.tensor([2, 1, 1, 2, 0]), 5.0)
    assert cond["text"].flatten().tolist() == [20, 10, 10, 20, 0]
    assert cond.select(torch.tensor([0, 2]))["pooled"].tolist() == [2, 1]
    assert cond.select(slice(1, 3)).states is states
    assert cond.unconditional()["text"].flatten().tolist() == [0] * 5
    assert (cond.unconditional().guidance, cond.unguided().guidance, cond.guidance) == (1.0, 1.0, 5.0)
    gone = torch.tensor([True, False, True, False, False])
    assert cond.dropped(gone)["text"].flatten().tolist() == [0, 10, 0, 20, 0]
    small = cond.select(torch.tensor([0, 3])).compact()
    assert small["text"].flatten().tolist() == [20, 20]
    assert small.states["text"].flatten().tolist() == [0, 20]
    assert small.unconditional()["text"].flatten().tolist() == [0, 0]
