"""Mixed adapters through the real sampler, files and libraries: ends are exact, the middle is the dense merge."""

import json
import shutil
import textwrap
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file

import tiny
from forked import Child, finish, run_script
from tastemaker.cli.main import main
from tastemaker.config.schema import Config, Sampling
from tastemaker.config.yaml_file import dump_config
from tastemaker.diffusion.sampler import LocalSampler
from tastemaker.diffusion.sde import ddim
from tastemaker.errors import ModelError
from tastemaker.evaluation.evaluate import generate
from tastemaker.evaluation.images import fixed_draw, images
from tastemaker.evaluation.mixture import Plan, write_mix
from tastemaker.models import adapter_files, load_model
from tastemaker.models.latent_unet import LatentUNet
from tastemaker.models.lora import PEFT_WEIGHTS, WEIGHTS
from tastemaker.models.mixing import delta, product
from tastemaker.models.pixel import PixelUNet
from tastemaker.models.stable_diffusion import SD
from tastemaker.models.step_adapters import switched
from tastemaker.models.tuning import Tuning

PROMPTS = ("a cat", "two dogs")
STEPS = 4
KINDS = {
    "latent": (lambda: LatentUNet(SD, tiny.pipeline()), 5.0, WEIGHTS),
    "pixels": (lambda: PixelUNet(tiny.pixels(channels=3)), 1.0, PEFT_WEIGHTS),
}


def trained(make, folder, seed, **tuning):
    """A saved adapter with weights of its own."""
    model = make()
    model.tune(Tuning(**tuning), seed)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.weights.trainable().values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=random))
    model.weights.save(folder)
    return folder


def shown(model, guidance):
    return images(model, fixed_draw(PROMPTS, 1, 0), ddim(model.process.grid(STEPS), 1.0), guidance, batch=2)


def with_adapter(make, folder, guidance):
    model = make()
    model.weights.load(folder)
    return shown(model, guidance)


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory):
    """A model and two adapters of it, for all tests of its kind."""
    folder, (make, *_) = tmp_path_factory.mktemp("made"), KINDS[request.param]
    pipeline = tiny.pipeline() if request.param == "latent" else tiny.pixels(channels=3)
    pipeline.save_pretrained(folder / "base")
    trained(make, folder / "a", 1, rank=2, alpha=3.0)
    trained(make, folder / "b", 2, rank=2, alpha=1.0)
    return request.param, folder


@pytest.fixture
def world(made, tmp_path):
    """A copy of them, for a test to write to."""
    kind, folder = made
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return tmp_path, *KINDS[kind]


def plan(root, points, mode="delta", adapters=("a", "b"), rewards=(), rank=None, guidance=5.0):
    return Plan(
        adapters=tuple(root / name for name in adapters), points=points, mode=mode, rank=rank,
        model=str(root / "base"), prompts=PROMPTS if rewards else (), n=2 if rewards else 0, seed=0, rewards=rewards,
        sampling=Sampling(steps=STEPS, guidance=guidance),
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["factor", "delta"])
def test_at_the_ends_images_are_the_unmixed_models_bit_for_bit(world, mode):
    root, make, guidance, _ = world
    points = {"0": (0.0, 1.0), "0.5": (0.5, 0.5), "1": (1.0, 0.0)}
    write_mix(plan(root, points, mode), root / "out")
    one, two = (with_adapter(make, root / name, guidance) for name in "ab")
    assert torch.equal(with_adapter(make, root / "out/adapters/1", guidance), one)
    assert torch.equal(with_adapter(make, root / "out/adapters/0", guidance), two)
    middle = with_adapter(make, root / "out/adapters/0.5", guidance)
    assert min((middle - one).abs().max(), (middle - two).abs().max()) > 0.003
    write_mix(plan(root, {"0": (0.0,), "1": (1.0,)}, mode, adapters=("a",)), root / "alone")
    assert torch.equal(with_adapter(make, root / "alone/adapters/0", guidance), shown(make(), guidance))
    assert torch.equal(with_adapter(make, root / "alone/adapters/1", guidance), one)


def test_a_delta_mixture_is_the_dense_merge(world):
    """Network outputs in float64, of the saved mixture and of W + sum_i w_i s_i B_i A_i written into the weights."""
    root, make, _, form = world
    trained(make, root / "c", 3, rank=4)
    weights = (0.2, 0.3, 0.5)
    write_mix(plan(root, {"m": weights}, adapters=("a", "b", "c")), root / "out")
    parts = [adapter_files.read(root / name, make().pipeline.unet) for name in "abc"]
    dense = make().pipeline.unet.double()
    with torch.no_grad():
        for layer in parts[0]:
            for weight, part in zip(weights, parts, strict=True):
                dense.get_submodule(layer).weight += weight * product(part[layer])
    mixed = make()
    mixed.weights.load(root / "out/adapters/m")
    mixed.pipeline.unet.double()
    assert {f.rank for f in adapter_files.read(root / "out/adapters/m", mixed.pipeline.unet).values()} == {8}
    plain = make().pipeline.unet.double()
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, *mixed.latent_shape, generator=random, dtype=torch.float64)
    given = {"encoder_hidden_states": torch.randn(2, 16, 16, generator=random, dtype=torch.float64)}
    given = given if form == WEIGHTS else {}
    with torch.no_grad():
        ours, theirs, base = (net(x, 500, **given).sample for net in (mixed.pipeline.unet, dense, plain))
    # B is rounded once to float32 when it is saved: 6e-8 of the difference that it makes.
    assert (ours - theirs).abs().max() < 1e-6 * (theirs - base).abs().max() + 1e-12
    assert (theirs - base).abs().max() > 0.05


def test_adapters_are_read_with_the_scale_that_the_libraries_give_them(world):
    root, make, _, _ = world
    model = make()
    model.weights.load(root / "a")
    network, read = model.pipeline.unet, adapter_files.read(root / "a", make().pipeline.unet)
    assert len(read) == sum(hasattr(module, "lora_A") for module in network.modules())
    for layer, factors in read.items():
        module = network.get_submodule(layer)
        name = module.active_adapters[0]
        assert factors.scale == module.scaling[name] == 1.5
        torch.testing.assert_close(module.get_delta_weight(name).double(), product(factors), rtol=1e-5, atol=1e-6)


def test_other_files_have_an_alpha_for_each_layer_or_none(tmp_path):
    """kohya's names and alphas, which diffusers converts: here alpha 1 at rank 2; and a file without metadata."""
    trained(KINDS["latent"][0], tmp_path / "a", 1, rank=2)
    network = KINDS["latent"][0]().pipeline.unet
    ours = adapter_files.read(tmp_path / "a", network)
    plain, kohya = {}, {}
    for layer, factors in ours.items():
        stem = "lora_unet_" + layer.replace(".", "_")
        kohya |= {f"{stem}.lora_down.weight": factors.a, f"{stem}.lora_up.weight": factors.b}
        kohya[f"{stem}.alpha"] = torch.tensor(1.0)
        plain |= {f"unet.{layer}.lora_A.weight": factors.a, f"unet.{layer}.lora_B.weight": factors.b}
    for name, state, scale in (("kohya", kohya, 0.5), ("plain", plain, 1.0)):
        (tmp_path / name).mkdir()
        save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / name / WEIGHTS)
        read = adapter_files.read(tmp_path / name, network)
        assert read.keys() == ours.keys()
        assert {factors.scale for factors in read.values()} == {scale}
        assert all(torch.equal(read[layer].a, ours[layer].a) for layer in ours)


def test_patterns_and_root_scaling_of_peft_are_read(tmp_path):
    make = KINDS["pixels"][0]
    trained(make, tmp_path / "a", 1, rank=4)
    config = LoraConfig.from_pretrained(str(tmp_path / "a"))
    config.use_rslora, config.alpha_pattern = True, {"to_q": 6}
    config.save_pretrained(str(tmp_path / "a"))
    read = adapter_files.read(tmp_path / "a", make().pipeline.unet)
    assert {f.scale for name, f in read.items() if name.endswith("to_q")} == {3.0}  # 6 / sqrt(4)
    assert {f.scale for name, f in read.items() if not name.endswith("to_q")} == {2.0}
    model = make()
    model.weights.load(tmp_path / "a")
    for layer, factors in read.items():
        assert model.pipeline.unet.get_submodule(layer).scaling["default"] == factors.scale


def test_diffusers_and_peft_alone_load_a_mixture(world):
    root, make, _, form = world
    write_mix(plan(root, {"m": (0.3, 0.7)}), root / "out")
    expected = shown_output(make, root / "out/adapters/m", form)
    script = textwrap.dedent(f"""
        import torch
        from diffusers import DDPMPipeline, StableDiffusionPipeline
        from peft import PeftModel
        torch.set_num_threads(1)
        root, x = {str(root)!r}, torch.linspace(-1, 1, {expected.numel()}).reshape({tuple(expected.shape)})
        if {form == WEIGHTS}:
            pipe = StableDiffusionPipeline.from_pretrained(f"{{root}}/base", safety_checker=None)
            pipe.load_lora_weights(f"{{root}}/out/adapters/m")
            given = {{"encoder_hidden_states": torch.ones(1, 16, 16)}}
        else:
            pipe, given = DDPMPipeline.from_pretrained(f"{{root}}/base"), {{}}
            PeftModel.from_pretrained(pipe.unet, f"{{root}}/out/adapters/m")
        with torch.no_grad():
            torch.save(pipe.unet(x, 500, **given).sample, f"{{root}}/theirs.pt")
        assert "tastemaker" not in __import__("sys").modules
    """)
    finish(Child(run_script, script, log=root / "log"))
    # Not bit for bit: where the weights lie in memory decides how they are added up.
    torch.testing.assert_close(torch.load(root / "theirs.pt", weights_only=True), expected, rtol=1e-5, atol=2e-6)


def shown_output(make, folder, form):
    model = make()
    model.weights.load(folder)
    shape = (1, *model.latent_shape)
    x = torch.linspace(-1, 1, torch.Size(shape).numel()).reshape(shape)
    given = {"encoder_hidden_states": torch.ones(1, 16, 16)} if form == WEIGHTS else {}
    with torch.no_grad():
        return model.pipeline.unet(x, 500, **given).sample


def test_an_adapter_that_was_taken_off_leaves_the_base_model(world):
    root, make, guidance, _ = world
    model = make()
    base = shown(model, guidance)
    for name in ("a", "b", "a"):
        with model.weights.loaded(root / name):
            assert torch.equal(shown(model, guidance), with_adapter(make, root / name, guidance))
        assert torch.equal(shown(model, guidance), base)
    assert not any("lora" in name for name, _ in model.pipeline.unet.named_parameters())


def test_a_sweep_measures_the_saved_mixtures_in_the_base_models_deviations(world):
    root, make, guidance, _ = world
    rewards = ("jpeg-compressibility", "colourfulness")
    asked = plan(root, {"alpha 0": (0.0, 1.0), "alpha 0.5": (0.5, 0.5)}, rewards=rewards, guidance=guidance)
    ticks = []
    write_mix(asked, root / "out", lambda: ticks.append(1))
    assert len(ticks) == asked.calls == 3 * STEPS
    found = json.loads((root / "out/mix.json").read_text())
    from tastemaker.rewards.registry import load_reward

    def scores(model, name):
        draw = fixed_draw(PROMPTS, 2, 0)
        x = images(model, draw, ddim(model.process.grid(STEPS), 1.0), guidance, batch=16)
        return load_reward(name)(x, draw.prompts).double()

    standardised = []
    for name in rewards:
        base, model = scores(make(), name), make()
        model.weights.load(root / "out/adapters/alpha-0.5")
        mixed = scores(model, name)
        entry = found["mixtures"][1]["rewards"][name]
        assert entry["mean"] == pytest.approx(mixed.mean().item(), rel=1e-6)
        expected = ((mixed.mean() - base.mean()) / base.std(correction=0)).item()
        assert entry["standardised"] == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert found["base"][name]["standardised"] == 0
        standardised.append(expected)
    assert found["mixtures"][1]["average"] == pytest.approx(sum(standardised) / 2, rel=1e-5, abs=1e-6)
    assert {path.name for path in (root / "out").iterdir()} == {
        "adapters", "mix.json", "mix.png", "mix.svg", "grid.png",
    }  # fmt: skip


def test_other_models_adapters_and_kinds_are_refused(tmp_path):
    make = KINDS["latent"][0]
    trained(make, tmp_path / "a", 1)
    trained(make, tmp_path / "fewer", 1, targets=("to_q",))
    trained(KINDS["pixels"][0], tmp_path / "pixels", 1)
    trained(make, tmp_path / "full", 1, mode="full")
    tiny.folder(tmp_path / "base")
    tiny.pixels(channels=3).save_pretrained(tmp_path / "pixel-base")
    for adapters, message in (
        (("a", "fewer"), "not all of the adapters have the layer .*: use --mode delta"),
        (("a", "pixels"), "which the model does not have: give the adapter's own --model"),
        (("a", "full"), "holds a whole network"),
        (("pixels",), "which the model does not have: give the adapter's own --model"),
    ):
        with pytest.raises(ModelError, match=message):
            write_mix(plan(tmp_path, {"m": (0.5,) * len(adapters)}, "factor", adapters=adapters), tmp_path / "out")


# ---------------------------------------------------------------- an adapter at some steps


def test_switched_is_the_base_model_where_it_is_off_and_the_adapter_where_it_is_on(world):
    root, make, guidance, _ = world
    model = make()
    base = shown(model, guidance)
    model.weights.load(root / "a")
    full = shown(model, guidance)
    sde, draw = ddim(model.process.grid(STEPS), 1.0), fixed_draw(PROMPTS, 1, 0)

    def look(*mask):
        return generate(model, LocalSampler(switched(model, sde, mask), sde), draw, guidance=guidance, batch=2).images

    assert torch.equal(look(False, False, False, False), base)
    assert torch.equal(look(True, True, True, True), full)
    early, late = look(True, True, False, False), look(False, False, True, True)
    parts = (base, early, late, full)
    assert all((x - y).abs().max() > 0.003 for i, x in enumerate(parts) for y in parts[:i])
    assert torch.equal(shown(model, guidance), full)


def test_a_switched_step_is_one_of_the_base_model_s_or_of_the_adapter_s(world):
    root, make, guidance, _ = world
    model, plain = make(), make()
    model.weights.load(root / "a")
    grid = model.process.grid(STEPS)
    wrapped = switched(model, ddim(grid, 1.0), (False, True, False, True))
    cond = model.encode(("a", "b"), guidance)
    x = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for step, on in enumerate((False, True, False, True)):
            t = grid.times[step].expand(2)
            assert torch.equal(wrapped.denoise(x, t, cond), (model if on else plain).denoise(x, t, cond))


# ---------------------------------------------------------------- the command line


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two finished runs of a small model, as far as mixing sees them."""
    monkeypatch.chdir(tmp_path)
    tiny.folder(tmp_path / "base")
    make = KINDS["latent"][0]
    for seed, reward in ((1, "jpeg-compressibility"), (2, "colourfulness")):
        folder = Path(f"run-{seed}")
        trained(make, folder / "adapter", seed, rank=2)
        settings = Config(model="base", reward=reward, sampling=Sampling(steps=STEPS))
        (folder / "config.yaml").write_text(dump_config(settings))
    return tmp_path


def test_mix_from_the_command_line(runs, capsys):
    assert main(["mix", "run-1", "run-2", "--alpha", "0:1:0.5", "--mode", "delta", "--prompt", "x y", "--n", "2"]) == 0
    out = capsys.readouterr().out
    found = json.loads(Path("runs/mix-1/mix.json").read_text())
    assert found["rewards"] == ["jpeg-compressibility", "colourfulness"]
    assert [mixture["weights"] for mixture in found["mixtures"]] == [[0, 1], [0.5, 0.5], [1, 0]]
    assert found["steps"] == STEPS
    for words in ("alpha 0.5", "base model", "average", "runs/mix-1/mix.png"):
        assert words in out
    same = load_file("run-1/adapter/" + WEIGHTS), load_file("runs/mix-1/adapters/alpha-1/" + WEIGHTS)
    assert all(torch.equal(same[0][name], same[1][name]) for name in same[0])
    model = load_model("base")
    model.weights.load(Path("runs/mix-1/adapters/alpha-0.5"))
    three = ["mix", "run-1", "run-2", "runs/mix-1/adapters/alpha-0.5", "--mode", "delta", "--n", "0", "--out", "m"]
    assert main([*three, "--weights", "0.2,0.3,0.5", "--weights", "0,0,1", "--rank", "3"]) == 0
    assert {path.name for path in Path("m/adapters").iterdir()} == {"weights-0.2_0.3_0.5", "weights-0_0_1"}
    unet = model.pipeline.unet
    assert {f.rank for f in adapter_files.read("m/adapters/weights-0.2_0.3_0.5", unet).values()} == {3}
    parts = [adapter_files.read(name, unet) for name in ("run-1/adapter", "run-2/adapter")]
    half = delta(parts, (0.5, 0.5))
    again = adapter_files.read("runs/mix-1/adapters/alpha-0.5", unet)
    assert all(torch.equal(product(again[layer]), product(half[layer])) for layer in half)


def test_sample_at_some_steps_from_the_command_line(runs, capsys):
    words = ["sample", "--adapter", "run-1", "--prompt", "x", "--prompt", "y", "--n", "2"]
    assert main([*words, "--out", "plain"]) == 0
    assert main([*words, "--out", "one", "--adapter-steps", "0:4"]) == 0
    assert main([*words, "--out", "two", "--adapter-steps", ":2", "--adapter-steps", "0:1,3:4"]) == 0
    assert capsys.readouterr().out == "plain/sheet.png\none/sheet.png\ntwo/sheet.png\n"
    read = lambda *parts: Path(*parts).read_bytes()  # noqa: E731
    names = [f"{p:03d}-{i:02d}.png" for p in range(2) for i in range(2)]
    assert all(read("plain", name) == read("one", name) == read("two/all-steps", name) for name in names)
    assert {path.name for path in Path("two").iterdir()} == {
        "base", "steps--2", "steps-0-1+3-4", "all-steps", "sheet.png", "samples.json",
    }  # fmt: skip
    listing = json.loads(read("two/samples.json"))
    assert len(listing) == 16
    assert [entry["adapter_steps"] for entry in listing[::4]] == ["base", ":2", "0:1,3:4", "all steps"]
    assert main(["sample", "--prompt", "x", "--prompt", "y", "--n", "2", "--model", "base", "--steps", "4"]) == 0
    assert all(read("runs/sample-1", name) == read("two/base", name) for name in names)


def test_runs_that_cannot_be_mixed_are_refused_in_one_line(runs, capsys):
    settings = Config(model="other", sampling=Sampling(steps=STEPS))
    trained(KINDS["latent"][0], Path("elsewhere/adapter"), 1)
    Path("elsewhere/config.yaml").write_text(dump_config(settings))
    trained(KINDS["latent"][0], Path("full/model"), 1, mode="full")
    Path("full/config.yaml").write_text(dump_config(Config(model="base", tuning=Tuning(mode="full"))))
    trained(KINDS["latent"][0], Path("wider/adapter"), 1, rank=3)
    Path("wider/config.yaml").write_text(Path("run-1/config.yaml").read_text())
    for words, message in (
        (["mix", "run-1", "elsewhere"], "run-1 was trained on base and elsewhere on other"),
        (["mix", "run-1", "full"], "full trained the whole network (tuning.mode = full)"),
        (["mix", "run-1", "wider", "--n", "0"], "ranks 2 and 3"),
        (["mix", "run-1", "--model", "bundled", "--n", "0"], "give the adapter's own --model"),
        (["mix", "run-1", "--reward", "taste", "--prompt", "x"], "unknown reward 'taste'"),
        (["sample", "--adapter", "full", "--prompt", "x", "--adapter-steps", "0:2"], "holds a whole network"),
    ):
        assert main(words) == 2
        out, err = capsys.readouterr()
        assert message in err
        assert err.startswith("tastemaker: ")
        assert (out, err.count("\n")) == ("", 1)
        assert not Path("runs").exists() or not any(Path("runs").iterdir())


def test_peft_model_is_what_the_pixel_family_loads(tmp_path):
    """A mixture's folder is one of peft's: its config says rank, alpha and layers."""
    make = KINDS["pixels"][0]
    tiny.pixels(channels=3).save_pretrained(tmp_path / "base")
    for seed, name in enumerate("ab"):
        trained(make, tmp_path / name, seed, rank=2)
    write_mix(plan(tmp_path, {"m": (0.3, 0.7)}, guidance=1.0), tmp_path / "out")
    wrapped = PeftModel.from_pretrained(make().pipeline.unet, str(tmp_path / "out/adapters/m"))
    config = wrapped.peft_config["default"]
    assert (config.r, config.lora_alpha) == (4, 4.0)
