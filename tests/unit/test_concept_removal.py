"""Concept removal: OwlViT and OWLv2 against transformers' own processors, and the judge on drawings."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import Owlv2ForObjectDetection, OwlViTForObjectDetection
from transformers.models.clip.tokenization_clip import CLIPTokenizer
from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil
from transformers.models.owlvit.image_processing_pil_owlvit import OwlViTImageProcessorPil

import learned
from scoring import total
from tastemaker.data.prompts import load_prompts
from tastemaker.drawings import Scene, Thing, render
from tastemaker.drawings.judge import load_judge
from tastemaker.errors import RewardError
from tastemaker.rewards.jpeg import to_bytes
from tastemaker.rewards.registry import load_reward

THEIRS = {
    "owlvit": (OwlViTForObjectDetection, OwlViTImageProcessorPil),
    "owlv2": (Owlv2ForObjectDetection, Owlv2ImageProcessorPil),
}


@pytest.mark.parametrize("kind", ["owlvit", "owlv2"])
@pytest.mark.parametrize("size", [(32, 32), (24, 24), (16, 28), (48, 40)])
def test_the_score_of_the_surest_box_by_transformers_own_processor(kind, size, tmp_path):
    """PIL images through its preprocessing, and the highest of the scores that its postprocessing gives."""
    folder = learned.detector_folder(tmp_path / kind, kind)
    network, processor = THEIRS[kind][0].from_pretrained(folder), THEIRS[kind][1](size={"height": 32, "width": 32})
    generator = torch.Generator().manual_seed(4)
    x = F.interpolate(torch.rand(3, 3, 6, 6, generator=generator), size, mode="bilinear")
    x *= torch.tensor([1.0, 0.5, 0.2]).view(3, 1, 1, 1)
    x = to_bytes(x).permute(0, 3, 1, 2) / 255
    pixels = processor([Image.fromarray(array) for array in to_bytes(x).numpy()], return_tensors="pt")["pixel_values"]
    ids = CLIPTokenizer.from_pretrained(folder)(["books"] * 3, padding="max_length", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        found = processor.post_process_object_detection(network(pixel_values=pixels, input_ids=ids), threshold=0.0)
    expected = torch.stack([1 - one["scores"].max() for one in found])
    assert expected.std() > 0.01
    mine = total(load_reward(f"concept-removal:books@{folder}"), x, ["fruits and books"] * 3)
    torch.testing.assert_close(mine, expected, atol=1e-3, rtol=0)
    other = total(load_reward(f"concept-removal:fruits@{folder}"), x, ["fruits and books"] * 3)
    assert (mine - other).abs().max() > 1e-3


def test_the_gradient_is_that_of_one_minus_the_sigmoid(tmp_path):
    """-c (1 - c) times the slope of the largest logit."""
    folder = learned.detector_folder(tmp_path / "owl")
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(5)).requires_grad_()
    values = load_reward(f"concept-removal:books@{folder}")(x, ["", ""])
    (mine,) = torch.autograd.grad(values.sum(), x)
    network = OwlViTForObjectDetection.from_pretrained(folder)
    mean, std = OwlViTImageProcessorPil.image_mean, OwlViTImageProcessorPil.image_std
    pixels = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    ids = CLIPTokenizer.from_pretrained(folder)("books", padding="max_length", return_tensors="pt")["input_ids"]
    logits = network(pixel_values=pixels, input_ids=ids.repeat(2, 1)).logits[..., 0]
    (slope,) = torch.autograd.grad(logits.max(1).values.sum(), x)
    c = (1 - values.detach()).view(2, 1, 1, 1)
    torch.testing.assert_close(mine, -c * (1 - c) * slope, rtol=1e-3, atol=1e-7)
    assert slope.abs().max() > 1e-3


def test_detectors_that_do_not_do_are_refused(tmp_path, checkpoint):
    folder = learned.detector_folder(tmp_path / "owl")
    for name, message in [
        ("concept-removal", r"give `concept-removal:CONCEPT\[@MODEL\]`"),
        (f"concept-removal:@{folder}", "names no concept"),
        (f"concept-removal:books@{checkpoint / 'text_encoder'}", "needs an OwlViT or OWLv2 detector, but .* is a clip"),
        (f"concept-removal:books@{tmp_path}", "cannot load its detector"),
        (f"concept-removal:{'abcdefgh' * 3}@{folder}", "26 tokens long, but .* reads no more than 16"),
    ]:
        with pytest.raises(RewardError, match=message) as caught:
            load_reward(name)
        assert "\n" not in str(caught.value)


STAR, CIRCLE = Thing("star", "red", 0.27, 0.5, 0.2), Thing("circle", "blue", 0.73, 0.5, 0.2)


def drawn(*things):
    return torch.from_numpy(np.asarray(render(Scene(things, "white"), 32)).copy()).permute(2, 0, 1) / 255


def test_the_judge_on_drawings():
    both, star, circle = drawn(STAR, CIRCLE), drawn(STAR), drawn(CIRCLE)
    x, prompts = torch.stack([both, star, circle]), ["a red star and a blue circle"] * 3

    def of(name):
        return [round(value) for value in load_reward(f"judge-removal:{name}")(x, prompts).tolist()]

    assert of("circle") == of("blue circle") == of("a circle") == of("last-named") == [0, 1, 0]
    assert of("star") == of("solid red star") == of("first-named") == [0, 0, 1]
    assert of("red circle") == of("striped circle") == of("fish") == [1, 1, 1]
    kept = load_reward("judge-removal:last-named - judge-removal:first-named")
    assert [round(value) for value in kept(x, prompts).tolist()] == [0, 1, -1]  # c of the star less c of the circle


def test_the_judges_value_and_gradient_by_its_logits():
    """1 - max over cells of sigmoid(kind) * softmax(colours)[colour], by the product rule at the largest cell."""
    x = torch.stack([drawn(STAR, CIRCLE), drawn(CIRCLE)]) * 0.7 + 0.1
    x.requires_grad_()
    mine = load_reward("judge-removal:blue circle")(x, ["", ""])
    (slope,) = torch.autograd.grad(mine.sum(), x, retain_graph=True)
    out = load_judge()(x)
    kind, colour = out["kind"][:, 0], out["colour"]
    chance = 1 / (1 + torch.exp(-kind)) * torch.exp(colour[:, 4]) / torch.exp(colour).sum(1)
    expected = 1 - torch.stack([chance[n].flatten()[chance[n].argmax()] for n in range(2)])
    torch.testing.assert_close(mine, expected)
    torch.testing.assert_close(slope, torch.autograd.grad(expected.sum(), x)[0], rtol=1e-4, atol=1e-7)
    assert (slope.flatten(1).norm(dim=1) > 1e-3).all()


def test_larger_images_are_seen_as_small_ones():
    x = torch.stack([drawn(STAR, CIRCLE)])
    function = load_reward("judge-removal:circle")
    torch.testing.assert_close(function(x.repeat_interleave(4, 2).repeat_interleave(4, 3), [""]), function(x, [""]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("judge-removal", "give `judge-removal:OBJECT`"),
        ("judge-removal:book", "names no object .*give a kind .circle, square.*or first-named or last-named"),
        ("judge-removal:big circle", "names no object"),
        ("judge-removal:two circles", "names no object"),
        ("judge-removal:circle on a red background", "names no object"),
        ("judge-removal:star and a circle", "names no object"),
    ],
)
def test_objects_that_are_none_are_refused(name, message):
    with pytest.raises(RewardError, match=message):
        load_reward(name)


@pytest.mark.parametrize("which", ["first-named", "last-named"])
@pytest.mark.parametrize("prompt", ["a red star", "two red stars", "an ant and books"])
def test_prompts_without_a_second_object_are_refused(prompt, which):
    with pytest.raises(RewardError, match=f"{which} needs prompts that name two objects.*'{prompt}' does not"):
        load_reward(f"judge-removal:{which}")(torch.rand(1, 3, 32, 32), [prompt])


def test_every_prompt_of_bundled_and_names_a_circle_last():
    prompts = load_prompts("bundled-and").prompts
    x = drawn(STAR)[None].expand(len(prompts), -1, -1, -1)
    assert (load_reward("judge-removal:last-named")(x, prompts) > 0.9).all()
    assert all(prompt.endswith(" circle") and prompt.count("circle") == 1 for prompt in prompts)
