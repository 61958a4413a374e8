"""Which images a round has, what noise they share, and in which update each of their steps is trained."""

from collections import Counter

import numpy as np
import pytest
import torch

from tastemaker import noise
from tastemaker.config.schema import Optimizer, Sampling
from tastemaker.data.prompt_set import PromptSet
from tastemaker.training.draws import RoundPart, assigned, draw_round, planned_updates, share, value_states
from tastemaker.types import Cond, Draw, Rollout, Trajectory, all_rows

PROMPTS = PromptSet(("a", "b", "c"), (1.0, 1.0, 1.0))


def rollout(images, kept, selected=None):
    draw = Draw(0, 1, ("a",) * images, (0,) * images, tuple(range(images)))
    kept_steps = Trajectory(torch.zeros(images, kept + 1, 1), torch.arange(kept), torch.zeros(images, kept))
    return Rollout(
        Cond({}, torch.zeros(images, dtype=torch.int64), 1.0), draw, trajectory=kept_steps, selected=selected
    )


@pytest.mark.parametrize(("batch", "branches", "expected"), [(8, 1, 8), (8, 2, 8), (8, 3, 6), (8, 8, 8), (2, 4, 4)])
def test_a_batch_has_all_branches_of_its_roots(batch, branches, expected):
    assert Sampling(batch=batch, branches=branches).images_per_batch == expected


def test_roots_and_groups_by_hand():
    """Prompt 0 has the roots 0 and 2, prompt 1 the root 0; images out of order."""
    draw = Draw(5, 3, ("b", "a", "a", "b", "a"), (1, 0, 0, 1, 0), (1, 2, 0, 0, 3), (0, 2, 0, 0, 2))
    roots, root = draw.roots()
    assert root == [0, 1, 2, 0, 1]
    assert list(zip(roots.prompts, roots.prompt_index, roots.sample_index, strict=True)) == [
        ("b", 1, 0), ("a", 0, 2), ("a", 0, 0),
    ]  # fmt: skip
    assert (roots.seed, roots.round) == (5, 3)
    assert draw.groups() == [0, 1, 2, 0, 1]
    some = draw.select([4, 3])
    assert some.sample_index == (3, 0)
    # A root's noise is its own, whichever of its branches are there: here number 3 without number 2.
    assert torch.equal(some.roots()[0].noise(4, (8,))[0], noise.normal((8,), 5, 3, 0, 2, 4))


def test_without_branches_every_image_is_its_own_root_and_prompts_are_the_groups():
    draw = Draw(0, 1, ("b", "a", "b"), (1, 0, 1), (0, 0, 1))
    roots, root = draw.roots()
    assert root == [0, 1, 2]
    assert (roots.prompt_index, roots.sample_index) == (draw.prompt_index, draw.sample_index)
    assert draw.groups() == [0, 1, 0]


@pytest.mark.parametrize("together", [3, 6])
def test_a_round_of_branches_keeps_them_together(together):
    """24 images, 12 of a prompt: 2 prompts with 4 roots of 3 branches each."""
    draw = draw_round(PROMPTS, 0, 1, 24, 12, branches=3, group_size=together)
    assert sorted(Counter(draw.prompt_index).values()) == [12, 12]
    places = list(zip(draw.prompt_index, draw.sample_index, strict=True))
    assert len(set(places)) == 24
    assert draw.root_index == tuple(s // 3 * 3 for s in draw.sample_index)
    for start in range(0, 24, together):
        block = places[start : start + together]
        assert len({prompt for prompt, _ in block}) == 1
        assert [s - block[0][1] for _, s in block] == list(range(together))
    assert places != sorted(places)  # and yet in shuffled order


def test_a_round_is_the_same_images_however_they_are_kept_together():
    one, two = (draw_round(PROMPTS, 0, 1, 24, 4, 1, together) for together in (1, 4))
    images = lambda draw: sorted(zip(draw.prompt_index, draw.sample_index, strict=True))  # noqa: E731
    assert images(one) == images(two)
    assert one.sample_index != two.sample_index


def test_noise_of_the_forward_process_depends_on_its_place_alone_and_is_not_the_samplers():
    place = {"seed": 1, "round": 2, "prompt": 3, "sample": 4, "index": 5, "epoch": 6}
    draw = lambda **changed: noise.diffused((64,), range(100, 900), **(place | changed))  # noqa: E731
    time, values = draw()
    again_time, again = draw()
    assert time == again_time
    assert torch.equal(values, again)
    others = [draw(**{name: value + 1})[1] for name, value in place.items()]
    others += [noise.normal((64,), 1, 2, 3, 4, step) for step in range(1001)]
    assert all((values - other).abs().max() > 0.1 for other in others)
    times = [noise.diffused((1,), range(100, 900), 0, 1, 0, s, 0, 0)[0] for s in range(2000)]
    # Uniform on 100 to 899: mean 499.5, deviation 231 / sqrt(2000) = 5.2.
    assert abs(np.mean(times) - 499.5) < 21
    assert 100 <= min(times) < 110
    assert 890 < max(times) < 900
    normal = torch.cat([noise.diffused((64,), range(9), 0, 1, 0, s, 0, 0)[1] for s in range(500)])
    assert abs(normal.mean()) < 0.025
    assert abs(normal.std() - 1) < 0.02


def everyone(world, options, samples=12, kept=5, epoch=0):
    """{(place in the round, step): update} over all processes."""
    draw, found = draw_round(PROMPTS, 0, 7, samples, 4), {}
    for rank in range(world):
        mine = share(samples, options.updates, rank, world)
        rows = all_rows(rollout(len(mine), kept))
        update = assigned(rows, RoundPart(draw, mine), options, epoch)
        for image, place, number in zip(rows.image.tolist(), rows.step_index.tolist(), update.tolist(), strict=True):
            found[mine[image], place] = number
    return found


def test_images_go_whole_into_the_update_of_their_place():
    """12 images, 3 updates: places 0 to 3, 4 to 7, 8 to 11."""
    one = everyone(1, Optimizer(updates=3))
    assert one == {(image, place): image // 4 for image in range(12) for place in range(5)}
    assert everyone(2, Optimizer(updates=3)) == one


def test_states_are_pooled_over_images_into_updates_of_equal_size():
    options = Optimizer(updates=3, minibatch="states")
    one = everyone(1, options)
    assert sorted(one) == [(image, place) for image in range(12) for place in range(5)]
    assert Counter(one.values()) == {0: 20, 1: 20, 2: 20}
    assert max(len({one[image, place] for place in range(5)}) for image in range(12)) == 3  # no whole images
    assert everyone(2, options) == one
    assert everyone(1, options, epoch=1) != one  # CleanRL shuffles anew in each epoch


def test_a_share_of_the_steps_is_each_images_own():
    one = everyone(1, Optimizer(updates=3, timestep_fraction=0.4))
    trained = {image: [place for place in range(5) if one[image, place] >= 0] for image in range(12)}
    assert {len(places) for places in trained.values()} == {2}  # 0.4 of 5
    assert len({tuple(places) for places in trained.values()}) > 1
    assert all(one[image, place] in (-1, image // 4) for image, place in one)
    assert everyone(2, Optimizer(updates=3, timestep_fraction=0.4)) == one


def test_only_rows_of_selected_images_have_an_update():
    """Images 1 and 6 of 8, 2 steps each: the updates of their places, and as if all were there for states."""
    draw, mine = draw_round(PROMPTS, 0, 1, 8, 4), list(range(8))
    selected = torch.tensor([place in (1, 6) for place in mine])
    rows, whole = all_rows(rollout(8, 2, selected)), all_rows(rollout(8, 2))
    assert rows.image.tolist() == [1, 1, 6, 6]
    assert assigned(rows, RoundPart(draw, mine), Optimizer(updates=2), 0).tolist() == [0, 0, 1, 1]
    states = Optimizer(updates=2, minibatch="states")
    everything = assigned(whole, RoundPart(draw, mine), states, 0)
    assert torch.equal(assigned(rows, RoundPart(draw, mine), states, 0), everything[[2, 3, 12, 13]])


def images(world, options, selected, samples=12, kept=2):
    """{pass: {place in the round: update}} over all processes, for the selected images; all steps of one agree."""
    draw, found = draw_round(PROMPTS, 0, 7, samples, 4), {}
    for epoch in range(options.inner_epochs):
        own = found.setdefault(epoch, {})
        for rank in range(world):
            mine = share(samples, 1, rank, world)
            rows = all_rows(rollout(len(mine), kept, selected[mine]))
            update = assigned(rows, RoundPart(draw, mine), options, epoch, selected)
            for image, number in zip(rows.image.tolist(), update.tolist(), strict=True):
                assert own.setdefault(mine[image], number) == number
    return found


def test_updates_of_a_number_of_selected_images():
    """7 of 12 are selected, 3 to an update, two passes: 14 // 3 = 4 updates; the third has one image of the first pass
    and two of the second, and the last two of the second pass are left over."""
    selected = torch.zeros(12, dtype=torch.bool)
    selected[[0, 2, 3, 5, 8, 9, 11]] = True
    options = Optimizer(images_per_update=3, inner_epochs=2)
    assert planned_updates(options, selected) == 4
    found = images(1, options, selected)
    assert all(sorted(places) == [0, 2, 3, 5, 8, 9, 11] for places in found.values())
    assert Counter(found[0].values()) == {0: 3, 1: 3, 2: 1}
    assert Counter(found[1].values()) == {2: 2, 3: 3, -1: 2}
    assert images(2, options, selected) == images(4, options, selected) == found
    # Each pass has an order of its own, which is not the round's.
    orders = [sorted(places, key=lambda place: places[place] % 5) for places in found.values()]  # -1 comes last
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])
    # With one update for all of them nothing is left over; with more than there are, nothing is learned.
    assert set(images(1, Optimizer(images_per_update=7), selected)[0].values()) == {0}
    assert set(images(1, Optimizer(images_per_update=8), selected)[0].values()) == {-1}
    assert planned_updates(Optimizer(images_per_update=8), selected) == 0


def test_without_a_selection_all_images_count():
    draw, mine = draw_round(PROMPTS, 0, 7, 12, 4), list(range(12))
    update = assigned(all_rows(rollout(12, 1)), RoundPart(draw, mine), Optimizer(images_per_update=5), 0)
    assert Counter(update.tolist()) == {0: 5, 1: 5, -1: 2}


def test_states_of_the_value_networks_own_steps():
    """25 states, 3 steps of 20: none comes again before all 25 have come; another round has others."""
    steps = value_states(0, 1, 25, 20, 3)
    assert [len(step) for step in steps] == [20, 20, 20]
    row = [state for step in steps for state in step]
    assert sorted(row[:25]) == sorted(row[25:50]) == list(range(25))
    assert row[:25] != row[25:50]
    assert len(set(row[50:])) == 10
    assert value_states(0, 1, 25, 20, 3) == steps
    assert value_states(0, 2, 25, 20, 3) != steps
