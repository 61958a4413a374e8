"""Pixel-space models: the images of diffusers' own pipeline, classes as prompts, and adapters."""

import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler

import tiny
from forked import Child, finish, run_script
from tastemaker.algorithms.base import Task
from tastemaker.cli.main import main
from tastemaker.diffusion.sampler import sample
from tastemaker.diffusion.sde import ddim
from tastemaker.errors import ModelError, PromptError
from tastemaker.evaluation.images import images
from tastemaker.models import load_model
from tastemaker.models.adapter_files import find_adapter
from tastemaker.models.pixel import PixelUNet
from tastemaker.models.tuning import Tuning
from tastemaker.types import Draw, all_rows

LABELS = {0: "cat", 1: "dog, hound", 2: "fish"}
SHAPE = (1, 16, 16)
MODELS = Path(__file__).parents[2] / "benchmarks/models"


def draw(*prompts):
    return Draw(0, 1, prompts, tuple(range(len(prompts))), (0,) * len(prompts))


def named(classes=4, labels=LABELS, **options):
    """A model of three classes and, when `classes` is 4, the null class."""
    pipeline = tiny.pixels(classes=classes, **options)
    pipeline.register_to_config(id2label=labels)
    return PixelUNet(pipeline)


def shown(model, chosen, guidance=1.0, eta=1.0):
    return images(model, chosen, ddim(model.process.grid(5), eta), guidance, batch=2)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_same_noise_gives_the_images_of_diffusers_pipeline(eta, channels, prediction, monkeypatch):
    """With the clipping of x_0 that DDPM's schedulers ask for by default."""
    pipeline = tiny.pixels(channels=channels, prediction_type=prediction, beta_schedule="squaredcos_cap_v2")
    theirs = DDIMPipeline(pipeline.unet, pipeline.scheduler)
    model, chosen, shape = PixelUNet(pipeline), draw("a", "b", "c"), (channels, 16, 16)
    ours = images(model, chosen, ddim(model.process.grid(10), eta), 1.0, batch=3)
    noises = iter([chosen.noise(step, shape) for step in range(11)])
    draws = lambda *a, **k: next(noises)  # noqa: E731
    monkeypatch.setattr("diffusers.pipelines.ddim.pipeline_ddim.randn_tensor", draws)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddim.randn_tensor", draws)
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(batch_size=3, eta=eta, num_inference_steps=10, output_type="np").images
    assert ours.shape == (3, 3, 16, 16)
    assert ours.std() > 0.1
    assert np.abs(ours.permute(0, 2, 3, 1).numpy() - expected).max() < 1e-4  # a grey image is repeated


def test_every_step_is_ddpms_own_posterior():
    """eta = 1 on all 1000 steps is ancestral sampling: mean and variance of diffusers' DDPMScheduler.

    Without clipping, since DDPM's mean takes the clipped x_0 and the noise of the unclipped x, DDIM's both apart.
    """
    scheduler = DDPMScheduler(clip_sample=False)
    model = PixelUNet(tiny.pixels(clip_sample=False))
    scheduler.set_timesteps(1000)
    grid = model.process.grid(1000)
    random = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, 1, *SHAPE, generator=random)
    for step in (0, 1, 500, 900, 998):
        t = grid.times[step]
        x0 = model.process.x0(eps.double(), x.double(), t.view(1))
        mean, std = ddim(grid, 1.0).step(x.double(), x0, step)
        # Their step with noise z is mean + sigma z; the two halves are told apart by the same noise twice over.
        expected = scheduler.step(eps, int(t), x, generator=torch.Generator().manual_seed(7)).prev_sample
        z = torch.randn(x.shape, generator=torch.Generator().manual_seed(7))
        torch.testing.assert_close((mean + std * z).float(), expected, atol=2e-5, rtol=1e-4)
        variance = scheduler._get_variance(int(t))
        assert std.item() ** 2 == pytest.approx(variance.item(), rel=1e-3, abs=1e-9)


def test_ratio_is_one_right_after_sampling():
    """To float32's rounding in another batch: the step to t = 0 adds noise of 0.01 only, so c/sigma is 34 there, where
    Stable Diffusion's largest is 5."""
    model = named()
    model.tune(Tuning())
    chosen, grid = draw("cat", "fish", "hound"), model.process.grid(10)
    cond = model.encode(chosen.prompts, 3.0)
    rollout = sample(model, cond, chosen, ddim(grid, 1.0), ddim(grid, 1.0).stochastic())
    rollout = replace(rollout, reward=torch.zeros(3), advantage=torch.ones(3))
    task, rows = Task(model, ddim(grid, 1.0)), all_rows(rollout)
    assert len(ddim(grid, 1.0).stochastic()) == 9  # the last step leads to x_0 itself
    for size in (1, 7, len(rows)):
        for start in range(0, len(rows), size):
            part = rows.select(slice(start, start + size)).transitions()
            with torch.no_grad():
                assert ((task.log_prob(part) - part.logp).exp() - 1).abs().max() < 5e-6


def test_prompts_are_classes_and_the_class_after_the_last_is_none():
    model = named()
    cond = model.encode(["cat", "hound", " dog", "fish", ""], 2.0)
    assert torch.equal(cond["text"][:, 0], torch.eye(4)[[0, 1, 1, 2, 3]])
    assert torch.equal(cond.unconditional()["text"][:1, 0], torch.eye(4)[[3]])
    x, t = torch.randn(2, *SHAPE), torch.tensor([500, 20])
    unet = model.pipeline.unet
    given, none = (unet(x, t, torch.tensor(labels)).sample.double() for labels in ([2, 1], [3, 3]))
    expected = model.process.x0(none + 2.5 * (given - none), x.double(), t)
    assert (given - none).abs().max() > 1e-3
    torch.testing.assert_close(model.denoise(x, t, model.encode(["fish", "dog"], 2.5)).float(), expected.float())


@torch.no_grad()
def test_class_images_are_those_of_diffusers_scheduler():
    model, chosen = named(), draw("fish", "cat")
    ours = shown(model, chosen, eta=0.0)
    scheduler = DDIMScheduler.from_config(model.pipeline.scheduler.config)
    scheduler.set_timesteps(5)
    x = chosen.noise(0, SHAPE)
    for t in scheduler.timesteps:
        x = scheduler.step(model.pipeline.unet(x, t, torch.tensor([2, 0])).sample, t, x, eta=0.0).prev_sample
    torch.testing.assert_close(ours, (x / 2 + 0.5).clamp(0, 1).expand(-1, 3, -1, -1), atol=1e-4, rtol=0)


def test_a_model_without_names_has_its_numbers_and_no_null_class():
    model = PixelUNet(tiny.pixels(classes=3))
    assert torch.equal(
        model.encode(["0", "2", ""], 1.0)["text"][:, 0], torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 0, 0]])
    )
    with pytest.raises(ModelError, match=r"sampling.guidance is 5.0, .*no null class.*set it to 1"):
        model.encode(["0"], 5.0)
    with pytest.raises(PromptError, match="'' is none"):
        model.check([""])
    with pytest.raises(PromptError, match="'3' is none: known: 0, 1, 2"):
        model.check(["0", "3"])


def test_names_that_classes_share_and_indices():
    """ImageNet has two classes called "crane"; a table's whole entry is a name, so that its lines can be prompts."""
    model = named(labels={0: "crane", 1: "crane", 2: "tench, Tinca tinca"})
    with pytest.raises(PromptError, match=r"'crane' is the name of several classes .* give the number .* 0 or 1$"):
        model.check(["crane"])
    assert model.encode(["0", "1", "tench, Tinca tinca"], 1.0)["text"].argmax(-1).flatten().tolist() == [0, 1, 2]
    swapped = named(labels={0: "1", 1: "0", 2: "two"})  # where a name is another class's index, it is a name
    assert swapped.encode(["0", "1", "2"], 1.0)["text"].argmax(-1).flatten().tolist() == [1, 0, 2]


def test_wrong_classes_name_the_nearest():
    with pytest.raises(PromptError, match=r"'a dogg' is none: did you mean 'dog'\?"):
        named().encode(["cat", "a dogg"], 1.0)


def test_a_thousand_classes_are_not_all_listed():
    with pytest.raises(PromptError, match=r"'macaw' is none: known: 0, 1, 10, .*\(1000 in all\)$") as caught:
        PixelUNet(tiny.pixels(classes=1000)).check(["macaw"])
    assert len(str(caught.value)) < 400


def test_a_model_without_classes_takes_any_prompt_and_no_guidance():
    model = PixelUNet(tiny.pixels())
    model.check(["anything", ""])
    one, other = (shown(model, draw(*prompts)) for prompts in (("a cat", "a dog"), ("", "x")))
    assert torch.equal(one, other)
    with pytest.raises(ModelError, match=r"guidance is 5.0, but this model has no classes"):
        model.encode(["a cat"], 5.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unet": {"out_channels": 3}}, "3 channels out but 1 in"),
        ({"channels": 2}, "2 channels, but only 1"),
        ({"unet": {"class_embed_type": "timestep"}}, "embeds classes by 'timestep'"),
        ({"thresholding": True}, "dynamic thresholding"),
        ({"unet": {"sample_size": None}}, "set sample_size"),
    ],
)
def test_models_that_cannot_be_trained_are_refused(options, message):
    with pytest.raises(ModelError, match=message):
        PixelUNet(tiny.pixels(**options))


def test_a_wrong_table_of_classes_is_refused():
    with pytest.raises(ModelError, match="classes 0 to 2, but has 3"):
        named(classes=3, labels={0: "cat", 3: "dog"})


@pytest.mark.parametrize("kind", ["DDPMPipeline", "DDIMPipeline"])
def test_loaded_from_a_folder_with_its_classes(tmp_path, kind):
    pipeline = named().pipeline
    if kind == "DDIMPipeline":
        pipeline = DDIMPipeline(pipeline.unet, pipeline.scheduler)
        pipeline.register_to_config(id2label=LABELS)
    expected = shown(PixelUNet(pipeline), draw("cat", "hound"), guidance=2.0)
    pipeline.save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    assert isinstance(model, PixelUNet)
    assert model.null == 3
    assert torch.equal(shown(model, draw("cat", "hound"), guidance=2.0), expected)


def test_half_precision_files_are_loaded_in_float32(tmp_path):
    pipeline = tiny.pixels()
    pipeline.unet.half()
    pipeline.save_pretrained(tmp_path)
    assert {p.dtype for p in load_model(str(tmp_path)).network.parameters()} == {torch.float32}


@pytest.mark.parametrize("channels", [1, 3])
def test_latents_of_images_are_what_decode_shows_again(channels):
    model = PixelUNet(tiny.pixels(channels=channels))
    latents = 2 * torch.rand(2, channels, 16, 16) - 1
    torch.testing.assert_close(model.encode_images(model.decode(latents)), latents)


def test_resize():
    model = PixelUNet(tiny.pixels())
    model.resize(24, None)
    assert shown(model, draw("a", "b")).shape == (2, 3, 24, 16)
    model.resize(None, 32)
    assert shown(model, draw("a", "b")).shape == (2, 3, 24, 32)
    with pytest.raises(ModelError, match=r"sampling.width is 25, but this model needs a multiple of 2"):
        model.resize(24, 25)


def trained(tuning, pipeline=None):
    model = PixelUNet(pipeline or tiny.pixels())
    model.tune(tuning)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.weights.trainable().values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=random))
    return model


def test_a_new_adapter_changes_nothing_and_off_is_the_base_model():
    chosen = draw("a", "b")
    base = shown(PixelUNet(tiny.pixels()), chosen)
    fresh = PixelUNet(tiny.pixels())
    fresh.tune(Tuning())
    # Attention on the lower level: one in the way down, one in the middle, two in the way up, each of 4 projections.
    assert len(fresh.weights.trainable()) == 4 * 4 * 2
    assert torch.equal(shown(fresh, chosen), base)
    model = trained(Tuning())
    assert (shown(model, chosen) - base).abs().max() > 0.01
    with model.weights.reference():
        assert torch.equal(shown(model, chosen), base)
    assert (shown(model, chosen) - base).abs().max() > 0.01


def test_gradient_checkpointing_gives_the_same_gradients_and_no_dropout():
    chosen, gradients = draw("a"), []
    for checkpointing in (False, True):
        model = PixelUNet(tiny.pixels(unet={"dropout": 0.5}))
        model.tune(Tuning(mode="full", gradient_checkpointing=checkpointing))
        cond = model.encode(chosen.prompts, 1.0)
        model.denoise(chosen.noise(0, SHAPE), torch.tensor([500]), cond).square().mean().backward()
        gradients.append(
            torch.cat([p.grad.flatten() for p in model.weights.trainable().values() if p.grad is not None])
        )
    torch.testing.assert_close(*gradients)


def test_a_fully_tuned_model_has_no_reference():
    with pytest.raises(ModelError, match="no copy"):
        trained(Tuning(mode="full")).weights.reference()


@pytest.mark.parametrize(
    "tuning", [Tuning(), Tuning(rank=2, alpha=6.0), Tuning(mode="full")], ids=["lora", "alpha", "full"]
)
def test_saved_and_applied_gives_the_same_images(tmp_path, tuning):
    model, chosen = trained(tuning), draw("a", "b")
    model.weights.save(tmp_path / "adapter")
    other = PixelUNet(tiny.pixels())
    other.weights.load(find_adapter(tmp_path))
    # Not bit for bit: where the weights lie in memory decides how they are added up.
    torch.testing.assert_close(shown(other, chosen), shown(model, chosen), atol=2e-5, rtol=0)


@pytest.mark.parametrize("tuning", [Tuning(rank=2, alpha=6.0), Tuning(mode="full")], ids=["alpha", "full"])
def test_a_fresh_process_without_tastemaker_gives_the_same_images(tmp_path, tuning):
    """By the lines that a run's README.md holds."""
    tiny.pixels().save_pretrained(tmp_path / "base")
    model, chosen = trained(tuning), draw("a", "b")
    model.weights.save(tmp_path / ("adapter" if tuning.mode == "lora" else "model"))
    torch.save(chosen.noise(0, SHAPE), tmp_path / "noise.pt")
    script = model.usage("'base'") + textwrap.dedent("""
        import numpy, sys, torch
        from diffusers import DDIMPipeline
        from diffusers.pipelines.ddim import pipeline_ddim
        torch.set_num_threads(1)
        noise = torch.load("noise.pt", weights_only=True)
        pipeline_ddim.randn_tensor = lambda *a, **k: noise
        pipe = DDIMPipeline(pipe.unet, pipe.scheduler)
        numpy.save("images.npy", pipe(batch_size=2, num_inference_steps=5, eta=0.0, output_type="np").images)
        assert "tastemaker" not in sys.modules
    """)
    finish(Child(run_script, script, tmp_path, log=tmp_path / "log"))
    ours = shown(model, chosen, eta=0.0).permute(0, 2, 3, 1).numpy()
    assert np.abs(ours - np.load(tmp_path / "images.npy")).max() < 1e-4


def test_the_small_model_of_digits_draws_fours():
    """By 3 nearest neighbours among scikit-learn's 1,797 digits, which tell it from the other nine; 62 of 64 as
    measured."""
    from sklearn.datasets import load_digits
    from sklearn.neighbors import KNeighborsClassifier

    digits: Any = load_digits()
    model = load_model(str(MODELS / "digits"))
    chosen = Draw(1, 0, ("",) * 24, (0,) * 24, tuple(range(24)))
    x = images(model, chosen, ddim(model.process.grid(25), 1.0), 1.0, batch=24)
    small = F.interpolate(x[:, :1, 4:28, 4:28], size=8, mode="bilinear", antialias=True) * 16
    found = KNeighborsClassifier(3).fit(digits.data, digits.target).predict(small.flatten(1).numpy())
    assert (found == 4).sum() >= 21


SETTINGS = [
    "--rounds", "1", "sampling.steps=4", "sampling.samples=4", "sampling.per_prompt=2", "optimizer.updates=1",
    "evaluation.prompts=2", "evaluation.per_prompt=1", "sampling.guidance=2",
]  # fmt: skip


def test_train_sample_and_bench_through_the_command_line(tmp_path, capsys):
    named().pipeline.save_pretrained(tmp_path / "model")
    prompts = tmp_path / "classes.txt"
    prompts.write_text("cat\nhound\n")
    words = ["ddpo-compressibility", "--model", str(tmp_path / "model"), "--prompts", str(prompts), *SETTINGS]
    run = tmp_path / "run"
    assert main(["train", *words, "--reward", "colourfulness", "--out", str(run)]) == 0
    assert "PeftModel.from_pretrained(pipe.unet, 'adapter')" in (run / "README.md").read_text()
    out = tmp_path / "samples"
    assert main(["sample", "--adapter", str(run), "--prompt", "fish", "--out", str(out)]) == 0
    assert (out / "sheet.png").is_file()
    assert main(["bench", *words, "--repeats", "1"]) == 0


def test_a_wrong_class_ends_a_run_before_it_starts(tmp_path, capsys):
    """Also one that the first round would not have drawn."""
    named().pipeline.save_pretrained(tmp_path / "model")
    prompts = tmp_path / "classes.txt"
    prompts.write_text("cat\nfish\nhund\n")
    words = ["--model", str(tmp_path / "model"), "--prompts", str(prompts), "--out", str(tmp_path / "run"), *SETTINGS]
    assert main(["train", "ddpo-compressibility", *words]) == 2
    assert "'hund' is none: did you mean 'hound'?" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
