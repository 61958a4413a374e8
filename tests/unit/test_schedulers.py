"""Scheduler configs of every class against that class itself: its betas, its defaults, where its sampling ends."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from tastemaker.diffusion.sde import ddim
from tastemaker.errors import ConfigError, ModelError
from tastemaker.models.library_logging import loading
from tastemaker.models.schedulers import CONFIG, DISCRETE, SchedulerProcess, ddim_scheduler, load_scheduler

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHORT = {"num_train_timesteps": 200}
LEADING = ("DDIM", "DDIMParallel", "DDIMInverse", "DDPM", "DDPMParallel", "PNDM", "LCM", "TCD", "RePaint")
CLIPPING = ("DDIM", "DDIMParallel", "DDIMInverse", "DDPM", "DDPMParallel", "RePaint")
"""Classes whose default is to clip. Heun's, LCM's and TCD's is not to; the others cannot."""
NAMES = tuple(name for name in DISCRETE if name != "DPMSolverSDEScheduler")
FLOWS = ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "FlowMatchLCM")
OTHERS = ("EDMEuler", "EDMDPMSolverMultistep", "SCM", "IPNDM", "CMStochasticIterative", "DDPMWuerstchen", "UnCLIP",
          "VQDiffusion", "CogVideoXDDIM", "Amused", "ScoreSdeVe", "KarrasVe", "My")  # fmt: skip


def read(folder: Path, config: dict, named: str | None = None, latents: bool = False) -> DDIMScheduler:
    """What is made of a scheduler_config.json, in a pipeline whose model_index.json says `named`."""
    (folder / CONFIG).parent.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config))
    return load_scheduler(folder, named or config.get("_class_name", "DDIMScheduler"), latents=latents)


def theirs(name: str, **settings):
    with loading():  # some of the classes use NumPy in a way that it warns about
        return getattr(diffusers, name)(**settings)


@pytest.mark.parametrize("settings", [{}, SD | SHORT, {"beta_schedule": "squaredcos_cap_v2"} | SHORT], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_what_a_config_leaves_out_is_what_its_own_class_means(tmp_path, name, settings):
    """As a config of an older version, or one written by hand: the class and the betas alone."""
    scheduler = theirs(name, **settings)
    stated = inspect.signature(type(scheduler)).parameters.get("timestep_spacing")
    in_pixels, in_latents = read(tmp_path, {"_class_name": name, **settings}), ddim_scheduler(scheduler, latents=True)
    for made in (in_pixels, in_latents):
        assert torch.equal(made.alphas_cumprod, scheduler.alphas_cumprod)
        spacing = "leading" if name.removesuffix("Scheduler") in LEADING else "linspace"
        assert made.config["timestep_spacing"] == spacing
        assert stated is None or spacing == stated.default
        assert made.config["prediction_type"] == "epsilon"
        assert not made.config["thresholding"]
    assert in_pixels.config["clip_sample"] is (name.removesuffix("Scheduler") in CLIPPING)
    assert in_latents.config["clip_sample"] is False
    assert (in_pixels.config["steps_offset"], in_latents.config["steps_offset"]) == (0, 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_as_saved_is_read_the_same(tmp_path, name):
    """`save_pretrained` writes all defaults of the class."""
    scheduler = theirs(name, **SD, **SHORT)
    made = read(tmp_path, json.loads(scheduler.to_json_string()))
    assert dict(made.config) == dict(read(tmp_path, {"_class_name": name, **SD, **SHORT}).config)
    assert dict(made.config) == dict(ddim_scheduler(scheduler, latents=False).config)
    assert dict(made.config) == dict(ddim_scheduler(made, latents=False).config)


ENDS = [
    (name, final)
    for name in NAMES
    for final in (None, "sigma_min")
    if "Inverse" not in name and name != "RePaintScheduler"
    if final is None or "final_sigmas_type" in inspect.signature(getattr(diffusers, name)).parameters
]


@pytest.mark.parametrize(("name", "final"), ENDS)
def test_sampling_ends_where_the_class_ends_it(tmp_path, name, final):
    """sigma^2 = (1 - a) / a of the class's last noise level; for the others diffusers' own final alpha."""
    settings = SD | SHORT | ({"final_sigmas_type": final} if final else {})
    scheduler = theirs(name, **settings)
    with loading():
        scheduler.set_timesteps(10)
    if hasattr(scheduler, "sigmas"):
        expected = 1 / (1 + float(scheduler.sigmas[-1]) ** 2)
    else:
        expected = float(getattr(scheduler, "final_alpha_cumprod", torch.tensor(1.0)))
    made = read(tmp_path, {"_class_name": name, **settings})
    assert float(made.final_alpha_cumprod) == pytest.approx(expected, abs=1e-6)


def test_dpm_solver_sde_is_read_without_its_package(tmp_path):
    """Its defaults are those of the class that is read instead, by its source, which is not imported."""
    source = Path(inspect.getfile(diffusers)).parent / "schedulers/scheduling_dpmsolver_sde.py"
    kind = next(
        node
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.ClassDef) and node.name == "DPMSolverSDEScheduler"
    )
    init = next(node for node in kind.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    names = [argument.arg for argument in init.args.args[1:]]
    defaults = dict(zip(names, [ast.literal_eval(value) for value in init.args.defaults], strict=True))
    defaults.pop("noise_sampler_seed")
    same = inspect.signature(diffusers.KDPM2DiscreteScheduler).parameters
    assert defaults == {key: value.default for key, value in same.items()}
    made = read(tmp_path, {"_class_name": "DPMSolverSDEScheduler", "noise_sampler_seed": 3, **SD})
    assert torch.equal(made.alphas_cumprod, DDIMScheduler(**SD).alphas_cumprod)
    assert made.config["timestep_spacing"] == "linspace"


def test_the_published_stable_diffusion_1_config(tmp_path):
    """The file of the SD 1.x checkpoints: DDIM's own steps, to the bit."""
    published = {
        "_class_name": "PNDMScheduler", "_diffusers_version": "0.7.0.dev0", "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False,
        "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None, "clip_sample": False,
    }  # fmt: skip
    same = DDIMScheduler(**SD, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    same.set_timesteps(50)
    grid = SchedulerProcess(read(tmp_path, published, latents=True)).grid(50)
    assert grid.times.tolist() == same.timesteps.tolist() == list(range(981, 0, -20))
    assert grid.clip is None
    assert torch.equal(grid.alpha, same.alphas_cumprod[same.timesteps].double().sqrt())
    assert torch.equal(grid.alpha_next[-1], same.alphas_cumprod[0].double().sqrt())


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"_class_name": "DDPMScheduler", "clip_sample": True, "clip_sample_range": 2.5}, (True, 2.5)),
        ({"_class_name": "DDPMScheduler", "clip_sample": False}, (False, 1.0)),
        ({"_class_name": "DDPMScheduler", "clip_sample": None, "clip_sample_range": None}, (True, 1.0)),
        ({"_class_name": "HeunDiscreteScheduler", "clip_sample": True}, (True, 1.0)),
        ({"clip_sample_range": 3}, (True, 3.0)),  # model_index.json says DDIMScheduler
    ],
)
def test_clipping_is_kept_in_pixel_space_and_never_in_latent_space(tmp_path, config, expected):
    made = read(tmp_path, config)
    assert (made.config["clip_sample"], made.config["clip_sample_range"]) == expected
    assert SchedulerProcess(made).grid(5).clip == (expected[1] if expected[0] else None)
    assert SchedulerProcess(read(tmp_path, config, latents=True)).grid(5).clip is None


@pytest.mark.parametrize("named", ["DDIMScheduler", "DDPMScheduler"])
def test_a_config_is_of_the_class_that_it_names_itself(tmp_path, named):
    """Whatever model_index.json says: an Euler config without clip_sample was never clipped."""
    made = read(tmp_path, {"_class_name": "EulerDiscreteScheduler", **SD}, named)
    assert made.config["clip_sample"] is False
    assert made.config["timestep_spacing"] == "linspace"


def test_keys_of_the_class_before_are_kept(tmp_path):
    """A config that diffusers carried from one class to the next holds keys that its class does not have."""
    stated = {"set_alpha_to_one": False, "skip_prk_steps": True, "clip_sample": False, "rescale_betas_zero_snr": True}
    for name in ("EulerDiscreteScheduler", "LMSDiscreteScheduler"):  # the first has the option, the second has not
        made = read(tmp_path, {"_class_name": name, "prediction_type": "v_prediction", **SD, **stated})
        assert made.config["set_alpha_to_one"] is False
        expected = DDIMScheduler(**SD, rescale_betas_zero_snr=True).alphas_cumprod
        torch.testing.assert_close(made.alphas_cumprod, expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    ("name", "schedule"), [("DDPM", "sigmoid"), ("DDPM", "laplace"), ("RePaint", "sigmoid"), ("HeunDiscrete", "exp")]
)
def test_schedules_that_ddim_does_not_know_are_computed(tmp_path, name, schedule):
    config = {"_class_name": f"{name}Scheduler", "beta_schedule": schedule}
    scheduler = theirs(f"{name}Scheduler", beta_schedule=schedule)
    assert torch.equal(read(tmp_path, config).alphas_cumprod, scheduler.alphas_cumprod)


def test_trained_betas(tmp_path):
    betas = np.linspace(1e-3, 0.05, 40).tolist()
    config = {"_class_name": "EulerDiscreteScheduler", "num_train_timesteps": 40, "trained_betas": betas}
    process = SchedulerProcess(read(tmp_path, config))
    expected = torch.cumprod(1 - torch.tensor(betas), 0)
    assert torch.equal(process.scheduler.alphas_cumprod, expected)
    assert process.times == range(40)
    assert process.grid(40).times.tolist() == list(range(39, -1, -1))
    with pytest.raises(ConfigError, match=r"sampling\.steps is 41, but the model was trained on 40 times"):
        process.grid(41)
    with pytest.raises(ModelError, match="has 40 trained_betas, but num_train_timesteps is 1000"):
        read(tmp_path, config | {"num_train_timesteps": 1000})


@pytest.mark.parametrize("name", ["DDIM", "EulerDiscrete", "UniPCMultistep", "LMSDiscrete"])
@pytest.mark.parametrize("spacing", ["trailing", "linspace", "leading"])
def test_zero_terminal_snr(tmp_path, name, spacing):
    """At the last time x is noise alone: v = -x_0 there, and the step has the noise of the level that it leads to."""
    config = SD | {"rescale_betas_zero_snr": True, "timestep_spacing": spacing}
    process = SchedulerProcess(
        read(tmp_path, {"_class_name": f"{name}Scheduler", "prediction_type": "v_prediction", **config}, latents=True)
    )
    assert process.scheduler.alphas_cumprod[-1] == 0
    expected = DDIMScheduler(**SD, rescale_betas_zero_snr=True).alphas_cumprod
    torch.testing.assert_close(process.scheduler.alphas_cumprod, expected, atol=1e-7, rtol=0)
    grid, v = process.grid(10), torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    x0 = process.x0(v, torch.ones_like(v), torch.tensor([999]))
    assert torch.equal(x0, -v)
    for step in range(10):
        assert all(value.isfinite().all() for value in ddim(grid, 1.0).step(torch.ones_like(v), x0, step))
    if spacing != "leading":
        assert grid.alpha[0] == 0
        assert ddim(grid, 1.0).std[0] == grid.sigma_next[0]
    with pytest.raises(ModelError, match="'epsilon', but there predicted noise says nothing"):
        read(tmp_path, {"_class_name": f"{name}Scheduler", **config})


def test_predict_epsilon_of_early_versions(tmp_path):
    config = {"_class_name": "DDPMScheduler", "predict_epsilon": False, "tensor_format": "pt", "timestep_values": None}
    assert read(tmp_path, config).config["prediction_type"] == "sample"
    assert read(tmp_path, config | {"predict_epsilon": True}).config["prediction_type"] == "epsilon"


def test_how_a_class_steps_does_not_change_the_process(tmp_path):
    """Options of samplers, all of them on what was trained in the same way."""
    sampler = {
        "use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++", "solver_order": 3, "euler_at_final": True,
        "lower_order_final": False, "variance_type": None, "lambda_min_clipped": -5.1, "flow_shift": 3.0,
    }  # fmt: skip
    config = {"_class_name": "DPMSolverMultistepScheduler", **SD}
    assert dict(read(tmp_path, config | sampler).config) == dict(read(tmp_path, config).config)


@pytest.mark.parametrize("name", [*FLOWS, *OTHERS])
def test_other_processes_are_refused_by_name(tmp_path, name):
    with pytest.raises(ModelError, match=f"is a {name}Scheduler, but this version trains .* table of betas"):
        read(tmp_path, {"_class_name": f"{name}Scheduler"})
    with pytest.raises(ModelError, match=f"is a {name}Scheduler"):
        read(tmp_path, {"_class_name": "DDIMScheduler"}, f"{name}Scheduler")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "set to flow matching"),
        ({"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction"}, "set to flow matching"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "takes noise levels"),
        ({"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True, "use_beta_sigmas": True}, "Only one of"),
        ({"_class_name": "DPMSolverMultistepScheduler", "thresholding": True}, "set thresholding to false"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver+"}, "does not make a DPMSolver"),
        ({"prediction_type": "v-prediction"}, "did you mean 'v_prediction'"),
        ({"prediction_type": "eps"}, "only epsilon, sample, v_prediction"),
        ({"timestep_spacing": "trailling"}, "did you mean 'trailing'"),
        ({"beta_schedule": "sigmoid"}, "sigmoid is not implemented"),
        ({"beta_schedule": "scaled-linear"}, "does not make a DDIMScheduler"),
        ({"beta_start": "0.00085"}, "beta_start: '0.00085', but its value must be of type int or float"),
        ({"clip_sample": "false"}, "clip_sample: 'false', but its value must be of type bool"),
        ({"num_train_timesteps": 1000.0}, "must be of type int"),
        ({"num_train_timesteps": True}, "must be of type int"),
        ({"num_train_timesteps": 0}, "num_train_timesteps 0: expected a number above 0"),
        ({"beta_start": 0.0, "beta_end": 0.02}, "betas from 0 to 0.02, which make no noising process"),
        ({"beta_end": 1.5}, "make no noising process"),
        ({"beta_end": float("nan")}, "make no noising process"),
        ({"clip_sample_range": 0}, "clip_sample_range 0: expected a number above 0"),
        ({"clip_samples": False}, "'clip_samples', which no scheduler has: did you mean 'clip_sample'"),
        ({"prediction_typ": "sample"}, "did you mean 'prediction_type'"),
        ({"_class_name": ["a", "DDIMScheduler"]}, "this version trains"),
    ],
)
def test_what_cannot_be_done_right_is_refused(tmp_path, config, message):
    with pytest.raises(ModelError, match=message) as error:
        read(tmp_path, config, "DDIMScheduler")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("steps", [61, 103, 998])
def test_trailing_steps_are_as_many_as_asked_for(tmp_path, steps):
    """numpy's rounding gives diffusers one time more for these, -1, which is the noisiest time in its table."""
    process = SchedulerProcess(read(tmp_path, {"timestep_spacing": "trailing"}))
    times = process.grid(steps).times.tolist()
    assert len(times) == steps
    assert times[0] == 999
    assert times == sorted(set(times), reverse=True)
    assert times[-1] >= 0


def test_times_beyond_the_last_one_are_refused(tmp_path):
    process = SchedulerProcess(read(tmp_path, {"steps_offset": 1}, latents=True))
    assert process.grid(500).times[0] == 999
    with pytest.raises(ConfigError, match="asks the network about time 1000, but it was trained on 0 to 999"):
        process.grid(1000)
