"""Rewards: the JPEG definition, loading by name, and answers that are refused."""

import io
import math

import pytest
import torch
from PIL import Image

from tastemaker.errors import RewardError
from tastemaker.rewards.contract import reward, score
from tastemaker.rewards.jpeg import jpeg_compressibility, jpeg_incompressibility, to_bytes
from tastemaker.rewards.registry import BUILTIN, load_reward

PICTURES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_jpeg_reward_is_the_size_of_pils_file():
    """DDPO A.4: quality 95, bytes / 1000."""
    for index, picture in enumerate(PICTURES):
        array = (picture * 255).round().permute(1, 2, 0).to(torch.uint8).numpy()
        file = io.BytesIO()
        Image.fromarray(array).save(file, "JPEG", quality=95)
        size = len(file.getvalue()) / 1000
        assert jpeg_incompressibility(PICTURES, ["x"] * 3)[index].item() == pytest.approx(size)
        assert jpeg_compressibility(PICTURES, ["x"] * 3)[index].item() == pytest.approx(-size)


def test_flat_pictures_compress_best():
    flat = torch.full((1, 3, 32, 32), 0.3)
    assert jpeg_compressibility(flat, ["x"]) > jpeg_compressibility(PICTURES[:1], ["x"])


def test_rounding_is_to_nearest_and_out_of_range_is_clamped():
    x = torch.tensor([-0.2, 0.4999 / 255, 0.5001 / 255, 1.3]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert to_bytes(x)[0, ..., 0].flatten().tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_built_in_rewards_keep_order_and_do_not_depend_on_the_batch(name):
    function = load_reward(name)
    together = score(function, PICTURES, ["a", "b", "c"])
    alone = torch.cat([score(function, PICTURES[i : i + 1], [p]) for i, p in enumerate("abc")])
    assert together.dtype == torch.float32
    assert torch.equal(together, alone)
    assert torch.equal(score(function, PICTURES.flip(0), ["c", "b", "a"]), together.flip(0))


def test_a_users_function_by_module_and_name(tmp_path, monkeypatch):
    (tmp_path / "my_taste.py").write_text("def redness(x, prompts):\n    return x[:, 0].mean(dim=(1, 2))\n")
    monkeypatch.chdir(tmp_path)
    values = score(load_reward("my_taste:redness"), PICTURES, ["a", "b", "c"])
    torch.testing.assert_close(values, PICTURES[:, 0].mean(dim=(1, 2)))
    with pytest.raises(RewardError, match=r"no function 'rednes'.*'redness'"):
        load_reward("my_taste:rednes")


def test_an_entry_point_of_another_package(tmp_path, monkeypatch):
    (tmp_path / "other_taste.py").write_text("def blueness(x, prompts):\n    return x[:, 2].mean(dim=(1, 2))\n")
    info = tmp_path / "other_taste-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-taste\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tastemaker.rewards]\nblueness = other_taste:blueness\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.testing.assert_close(score(load_reward("blueness"), PICTURES, "abc"), PICTURES[:, 2].mean(dim=(1, 2)))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x, p: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (lambda x, p: torch.zeros(2), r"shape \[2\] for 3 pictures.*shape \[3\]"),
        (lambda x, p: torch.zeros(3, 1), r"shape \[3, 1\] for 3 pictures"),
        (lambda x, p: torch.zeros(()), r"shape \[\] for 3 pictures"),
        (lambda x, p: torch.tensor([1.0, math.nan, 2.0]), "returned nan for 1 of 3 pictures .*'b'"),
        (lambda x, p: [1.0, 2.0, math.inf], "returned inf for 1 of 3 pictures .*'c'"),
        (lambda x, p: None, "returned NoneType, but must return 3 numbers"),
        (lambda x, p: "good", "returned str"),
    ],
)
def test_a_wrong_answer_is_refused_in_one_sentence(answer, message):
    with pytest.raises(RewardError, match=message) as caught:
        score(answer, PICTURES, ["a", "b", "c"])
    assert "\n" not in str(caught.value)


def test_unknown_rewards_name_the_nearest():
    with pytest.raises(RewardError, match="did you mean 'jpeg-compressibility'"):
        load_reward("jpeg-compresibility")
    with pytest.raises(RewardError, match=r"cannot be imported.*no_such_module"):
        load_reward("no_such_module:f")


def test_marks():
    @reward(differentiable=True, space="latent")
    def brightness(x, prompts):
        return x.mean(dim=(1, 2, 3))

    assert (brightness.differentiable, brightness.space) == (True, "latent")
    assert jpeg_compressibility.differentiable is False
