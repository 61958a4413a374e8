"""The chain's gradients: against finite differences, against diffusers' own steps, and against each other."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler
from smooth import warmth

import tiny
from tastemaker.algorithms import reward_backprop
from tastemaker.algorithms.alignprop import AlignProp
from tastemaker.algorithms.base import Task
from tastemaker.algorithms.direct_align import DirectAlign
from tastemaker.algorithms.draft import DRaFT
from tastemaker.algorithms.refl import ReFL
from tastemaker.algorithms.windows import Whole
from tastemaker.config.schema import Config, Optimizer, Sampling
from tastemaker.diffusion.backprop import chain, renoised, shown
from tastemaker.diffusion.process import Grid, x0_from
from tastemaker.diffusion.sampler import sample
from tastemaker.diffusion.sde import ddim
from tastemaker.errors import ConfigError
from tastemaker.models.latent_unet import LatentUNet
from tastemaker.models.schedulers import SchedulerProcess
from tastemaker.models.stable_diffusion import SD
from tastemaker.models.tuning import Tuning
from tastemaker.rewards.base import as_reward
from tastemaker.training.backprop_round import gradient_steps
from tastemaker.training.update import micro_batches
from tastemaker.types import Draw, Rollout, Rows

T = 5
DRAW = Draw(3, 1, ("cat", "dog"), (0, 1), (0, 0))


def exact(checkpointing=True, prediction="epsilon", **scheduler):
    """A tuned tiny model in float64 whose adapters do something."""
    model = plain(checkpointing, prediction, **scheduler)
    model.pipeline.unet.double()
    model.pipeline.vae.double()
    return model


def plain(checkpointing=True, prediction="epsilon", **scheduler):
    """The same in float32, as runs have it."""
    model = LatentUNet(SD, tiny.pipeline(prediction_type=prediction))
    if scheduler:  # a pipeline warns of clipping where it is made
        model.pipeline.scheduler = DDIMScheduler.from_config(model.pipeline.scheduler.config, **scheduler)
        model.process = SchedulerProcess(model.pipeline.scheduler)
    model.tune(Tuning(rank=2, gradient_checkpointing=checkpointing))
    random = torch.Generator().manual_seed(1)
    for name, parameter in sorted(model.weights.trainable().items()):
        if "lora_B" in name:
            parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=random))
    return model


def conditioned(model, guidance):
    cond = model.encode(DRAW.prompts, guidance)
    kind = next(model.network.parameters()).dtype
    return replace(cond, states={name: values.to(kind) for name, values in cond.states.items()})


def gradient(model, loss):
    model.network.zero_grad()
    loss.backward()
    parameters = model.weights.trainable()
    return torch.cat([parameters[name].grad.flatten() for name in sorted(parameters)])


def reward_of(model, grad_steps, guidance=3.0, eta=0.0, recompute=True, decode=True, **more):
    made = chain(
        model, conditioned(model, guidance), DRAW, ddim(model.process.grid(T), eta), grad_steps, recompute=recompute,
        dtype=torch.float64, **more,
    )  # fmt: skip
    x = shown(model, made.x0, recompute=recompute) if decode else made.x0
    return warmth(x, DRAW.prompts).sum()


def moved(model, direction, length):
    """Moves the weights along a direction, and gives a function that moves them back."""
    parameters = [model.weights.trainable()[name] for name in sorted(model.weights.trainable())]
    for parameter, part in zip(parameters, direction.split([p.numel() for p in parameters]), strict=True):
        parameter.data += length * part.view_as(parameter)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("k", [1, 3, T])
def test_gradients_are_those_of_finite_differences(k, guidance):
    model = exact()
    grad_steps = list(range(T))[-k:]
    found = gradient(model, reward_of(model, grad_steps, guidance))
    # Along the gradient, for a slope that stands out from rounding, and across it.
    across = torch.randn(found.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    direction = found / found.norm() + across / across.norm()
    denoise, grid, h = model.denoise, model.process.grid(T), 1e-4
    values = []
    for length in (h, -h):

        def only_in_the_suffix(x, t, cond, length=length):
            # Weights are moved at the trained steps alone: what came before is constant to a truncated gradient.
            step = grid.times.tolist().index(int(t[0]))
            if step not in grad_steps:
                return denoise(x, t, cond)
            moved(model, direction, length)
            try:
                return denoise(x, t, cond)
            finally:
                moved(model, direction, -length)

        model.denoise = only_in_the_suffix
        with torch.no_grad():
            values.append(reward_of(model, grad_steps, guidance, recompute=False))
    slope = (values[0] - values[1]) / (2 * h)
    assert abs(slope) > 1e-6
    assert (found @ direction).item() == pytest.approx(slope.item(), rel=1e-6)


def by_diffusers(model, grad_steps, guidance, eta):
    """The same sum of rewards, by diffusers' scheduler and autograd alone, with AlignProp's detached noise."""
    scheduler = DDIMScheduler.from_config(model.pipeline.scheduler.config)
    scheduler.set_timesteps(T)
    cond = conditioned(model, guidance)
    x = DRAW.noise(0, model.latent_shape).double()
    for step, t in enumerate(scheduler.timesteps):
        ask = lambda text: model.pipeline.unet(x, t, encoder_hidden_states=text).sample  # noqa: B023, E731
        off, on = ask(cond.unconditional()["text"]), ask(cond["text"])
        eps = off + guidance * (on - off)
        eps = eps if step in grad_steps else eps.detach()
        noise = DRAW.noise(step + 1, model.latent_shape).double() if eta else None
        x = scheduler.step(eps, int(t), x, eta=eta, variance_noise=noise).prev_sample
    return warmth(model.decode(x), DRAW.prompts).sum()


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("grad_steps", [[4], [2, 3, 4], [0, 1, 2, 3, 4], [1, 3], [0, 4], [2]])
def test_values_and_gradients_are_those_of_diffusers_steps(grad_steps, eta):
    model = exact(checkpointing=False)
    mine, theirs = reward_of(model, grad_steps, eta=eta), by_diffusers(model, grad_steps, 3.0, eta)
    # diffusers keeps its alphas in float32.
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-5)
    one, two = gradient(model, mine), gradient(model, theirs)
    assert ((one - two).norm() / two.norm()).item() < 1e-5


SCHEDULES = [(0.0, {}), (1.0, {"set_alpha_to_one": True}), (0.0, {"clip_sample": True, "clip_sample_range": 0.7})]


@pytest.mark.parametrize(("eta", "schedule"), SCHEDULES, ids=["as Stable Diffusion", "final alpha 1", "clipped"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_path_through_steps_that_do_not_learn_is_that_of_diffusers(prediction, eta, schedule):
    """With a hole between the trained steps, and steps after them that do not."""
    model = exact(False, prediction, **schedule)
    mine, theirs = reward_of(model, [0, 2], eta=eta), by_diffusers(model, [0, 2], 3.0, eta)
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-5)
    one, two = gradient(model, mine), gradient(model, theirs)
    # A network that predicts x_0 itself, with a final alpha of 1, forgets the latent in its last step: both are 0.
    assert (one - two).norm() <= 1e-5 * two.norm()
    assert two.norm() > 0 or (prediction, eta) == ("sample", 1.0)


class OneNumber:
    """A model whose output is its one weight, everywhere and at all times: alpha 0.6 and sigma 0.8, or a flow."""

    latent_shape, device = (1, 1, 1), torch.device("cpu")

    def __init__(self, kind):
        self.process = self
        self.x0 = lambda output, x, t: x0_from(output, x, *SCALES[kind == "flow"][:2], kind)
        self.weight = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def denoise(self, x, t, cond):
        return self.x0(self.weight.expand_as(x), x, t)


SCALES = [torch.tensor(scales, dtype=torch.float64) for scales in ((0.6, 0.8, 0.8, 0.6), (0.4, 0.6, 0.7, 0.3))]
"""alpha and sigma at all times, and where a step leads."""
MOVES = {"epsilon": (4 / 3, 0.0), "v_prediction": (0.96, 0.48), "sample": (0.75, 0.75), "flow": (1.0, 0.3)}


@pytest.mark.parametrize("clip", [None, 0.01])
@pytest.mark.parametrize("kind", MOVES)
def test_the_path_by_hand(kind, clip):
    """The step leads from alpha 0.6 and sigma 0.8 to 0.8 and 0.6 (a flow's from 0.4 and 0.6 to 0.7 and 0.3).

    With the output held, x_0 moves by c for a move of 1 in x, c = 1/0.6, 0.6, 0 and 1, and the noise by
    (1 - 0.6 c) / 0.8. So x_next moves by 0.8 c + 0.6 (1 - 0.6 c) / 0.8: 1.3333 for epsilon, 0.48 + 0.48 for v, 0.75
    for x_0. A flow's by 0.7 + 0.3 (1 - 0.4) / 0.6 = 1: its step is x + v ds. Where x_0 is cut off it does not move, and
    the first term is gone.
    """
    model = OneNumber(kind)
    slopes = []
    for steps in (1, 2):
        grid = Grid(torch.zeros(steps, dtype=torch.int64), *SCALES[kind == "flow"].unsqueeze(1).expand(4, steps), clip)
        made = chain(model, None, Draw(0, 1, ("cat",), (0,), (0,)), ddim(grid, 0.0), [0], recompute=False,
                     dtype=torch.float64)  # fmt: skip
        slopes.append(torch.autograd.grad(made.x0.sum(), model.weight)[0].item())
    assert slopes[1] / slopes[0] == pytest.approx(MOVES[kind][clip is not None], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_recomputing_steps_and_blocks_changes_nothing(prediction):
    found = []
    for blocks, recompute in ((False, False), (False, True), (True, True)):
        model = exact(blocks, prediction)
        found.append(gradient(model, reward_of(model, [1, 2, 3, 4], recompute=recompute)))
    assert (found[0] - found[1]).abs().max() <= 1e-9 * found[0].abs().max()
    assert (found[0] - found[2]).abs().max() <= 1e-9 * found[0].abs().max()


def test_only_the_steps_that_learn_have_a_graph_and_are_called_again():
    model = exact(checkpointing=False)
    with_graph, denoise = Counter(), model.denoise

    def counting(x, t, cond):
        with_graph[int(t[0]), torch.is_grad_enabled()] += 1
        return denoise(x, t, cond)

    model.denoise = counting
    reward = reward_of(model, [3, 4])
    times = model.process.grid(T).times.tolist()
    assert with_graph == {(times[i], False): 1 for i in range(T)}
    reward.backward()
    assert with_graph == {(times[i], False): 1 for i in range(T)} | {(times[i], True): 1 for i in (3, 4)}


def nodes(tensor):
    """Nodes of the graph behind a tensor."""
    found, edges = set(), [tensor.grad_fn]
    while edges:
        node = edges.pop()
        if node is not None and node not in found:
            found.add(node)
            edges += [before for before, _ in node.next_functions]
    return len(found)


def test_a_step_that_learns_leaves_hardly_a_graph_behind():
    model = exact(checkpointing=True)
    one, all_of_them = (nodes(reward_of(model, grad_steps)) for grad_steps in ([4], [0, 1, 2, 3, 4]))
    assert all_of_them - one <= 4 * 4


def test_with_every_prediction_detached_there_is_no_gradient():
    model = exact()
    assert not reward_of(model, []).requires_grad
    denoise = model.denoise
    model.denoise = lambda x, t, cond: denoise(x, t, cond).detach()
    loss = reward_of(model, [4]) + 0 * sum(p.sum() for p in model.weights.trainable().values())
    assert gradient(model, loss).abs().max() == 0


def test_images_are_the_samplers_own():
    model = plain()
    for eta in (0.0, 1.0):
        made = chain(model, conditioned(model, 3.0), DRAW, ddim(model.process.grid(T), eta), [3, 4])
        sampled = sample(model, conditioned(model, 3.0), DRAW, ddim(model.process.grid(T), eta))
        assert made.x0.equal(sampled.x0)


def test_the_distance_to_the_reference():
    model = exact()
    grid, cond = model.process.grid(T), conditioned(model, 3.0)
    made = chain(model, cond, DRAW, ddim(grid, 0.0), [4], compare=True, dtype=torch.float64)
    # By hand: the mean square difference of the guided noise predictions at the last step.
    x = chain(model, cond, DRAW, ddim(grid, 0.0), [], until=3, dtype=torch.float64)
    steps = DDIMScheduler.from_config(model.pipeline.scheduler.config)
    steps.set_timesteps(T)
    x = DRAW.noise(0, model.latent_shape).double()
    eps = []
    with torch.no_grad():
        for t in steps.timesteps[:4]:
            x = steps.step(predicted(model, x, t, cond), int(t), x).prev_sample
        eps.append(predicted(model, x, steps.timesteps[4], cond))
        with model.weights.reference():
            eps.append(predicted(model, x, steps.timesteps[4], cond))
    expected = (eps[0] - eps[1]).square().flatten(1).mean(1)
    assert made.divergence.detach().tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    made.divergence.sum().backward()
    assert any(p.grad.abs().max() > 0 for p in model.weights.trainable().values())


def test_the_gradient_of_the_distance_through_a_chain():
    """Of two trained steps: that of the noise predictions' mean square differences, the reference's held constant, also
    through the latent of the later one."""
    model = exact()
    grid, cond = model.process.grid(T), conditioned(model, 3.0)
    parameters = list(model.weights.trainable().values())
    made = chain(model, cond, DRAW, ddim(grid, 0.0), [3, 4], compare=True, dtype=torch.float64)
    made.divergence.sum().backward()
    found = [p.grad for p in parameters]
    x, distances = DRAW.noise(0, model.latent_shape).double(), []
    for step, t in enumerate(grid.times):
        with torch.set_grad_enabled(step >= 3):
            eps = predicted(model, x, t, cond)
        if step >= 3:
            with torch.no_grad(), model.weights.reference():
                reference = predicted(model, x, t, cond)
            distances.append((eps - reference).square().flatten(1).mean(1))
        x0 = (x - grid.sigma[step] * eps) / grid.alpha[step]
        x = grid.alpha_next[step] * x0 + grid.sigma_next[step] * eps
    expected = torch.autograd.grad(torch.stack(distances).mean(0).sum(), parameters)
    size = max(gradient.abs().max() for gradient in expected)
    assert max((one - other).abs().max() for one, other in zip(found, expected, strict=True)) < 1e-4 * size


def predicted(model, x, t, cond):
    ask = lambda text: model.pipeline.unet(x, t, encoder_hidden_states=text).sample  # noqa: E731
    off = ask(cond.unconditional()["text"])
    return off + cond.guidance * (ask(cond["text"]) - off)


def test_a_image_noised_and_seen_again():
    model = exact()
    grid, cond = model.process.grid(T), conditioned(model, 3.0)
    x0 = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    with torch.no_grad():
        # One DDIM step from 1 to 3 by the network, then the rest of the known noise is taken out: the paper's own form.
        a, s = grid.alpha[1], grid.sigma[1]
        x = a * x0 + s * noise
        own = model.denoise(x, grid.times[1].expand(2), cond)
        eps = (x - a * own) / s
        then = grid.alpha[3] * own + grid.sigma[3] * eps
        expected = (then - grid.sigma[3] * noise) / grid.alpha[3]
        assert torch.allclose(renoised(model, cond, x0, noise, ddim(grid, 0.0), 1, 3), expected, atol=1e-10)
        # To the end: the network's own estimate, also where the schedule's final alpha is not 1 (DRaFT-LV's formula).
        assert grid.alpha_next[-1] < 1
        x = grid.alpha[-1] * x0 + grid.sigma[-1] * noise
        own = model.denoise(x, grid.times[-1].expand(2), cond)
        assert torch.allclose(renoised(model, cond, x0, noise, ddim(grid, 0.0), T - 1, T), own, atol=1e-12)
        assert torch.allclose(renoised(model, cond, x0, noise, ddim(grid, 0.0), T - 1, T + 3), own, atol=1e-12)
        # A perfect network gives the image back from anywhere.
        model.denoise = lambda x, t, cond: x0
        assert torch.allclose(renoised(model, cond, x0, noise, ddim(grid, 0.0), 0, 1), x0, atol=1e-12)


def task(model, eta=0.0, on_images=None):
    made = Task(model, ddim(model.process.grid(T), eta), reward=as_reward(warmth))
    return made if on_images is None else replace(made, on_images=on_images)


def rows(model, grad_steps, draw=DRAW, guidance=3.0, cond=None):
    rollout = Rollout(cond or model.encode(draw.prompts, guidance), draw)
    mask = torch.tensor([[step in grad_steps for step in range(T)]] * len(draw))
    return Rows(rollout, torch.arange(len(draw)), torch.zeros(len(draw), dtype=torch.int64), grad_steps=mask)


def loss_gradient(model, algorithm, grad_steps, **more):
    guidance = more.pop("guidance", 3.0)
    loss, _ = algorithm.loss(task(model, **more), rows(model, grad_steps, guidance=guidance))
    return loss.detach(), gradient(model, loss.sum())


def test_alignprops_scale_weighs_the_reward_and_not_the_divergence():
    """As the public codes, whose 0.01 is in the loss before the norm is clipped: 0.01 |R - 10| + kl * divergence."""
    model = plain()
    seen = []
    algorithm = AlignProp(truncation="fixed", last=2, objective="distance", target=10.0, scale=0.01, kl=0.5)
    loss, metrics = algorithm.loss(task(model, on_images=lambda *parts: seen.append(parts)), rows(model, [3, 4]))
    reward = seen[0][2]
    expected = 0.01 * (10 - reward) + 0.5 * metrics["divergence"]
    assert loss.tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    for kind in (AlignProp(truncation="fixed", last=1), DRaFT(noises=1), DirectAlign(), ReFL(scale=1.0)):
        whole, small = (loss_gradient(model, replace(kind, scale=scale), [4]) for scale in (1.0, 0.01))
        assert small[0].tolist() == pytest.approx((0.01 * whole[0]).tolist(), rel=1e-5)
        assert ((small[1] - 0.01 * whole[1]).norm() / small[1].norm()).item() < 1e-5
        with pytest.raises(ConfigError, match=r"algorithm\.scale is 0\.0, but must be greater than 0"):
            replace(kind, scale=0.0)


def test_draws_of_steps():
    """One an update, or one for each so many images; settled by the round alone."""
    options = {"sampling": Sampling(samples=12), "optimizer": Optimizer(updates=2, rows=5)}
    drawn = lambda algorithm, number=3: gradient_steps(  # noqa: E731
        SimpleNamespace(
            config=Config(algorithm=algorithm, reward="smooth:warmth", **options), window=Whole(),
            task=SimpleNamespace(sde=range(20)),
        ), algorithm, number,
    )  # fmt: skip
    for kind in (AlignProp, ReFL, DirectAlign):
        assert len(drawn(kind())) == 2
        assert drawn(kind(images_per_draw=6)) == drawn(kind())
        draws = drawn(kind(images_per_draw=2))
        assert len(draws) == 6
        assert draws[:2] == drawn(kind())
        assert draws == drawn(kind(images_per_draw=2))
        assert len({tuple(steps) for steps in draws}) > 2
        assert draws != drawn(kind(images_per_draw=2), 4)
        with pytest.raises(ConfigError, match="images_per_draw is 4, which does not divide the 6 images of an update"):
            drawn(kind(images_per_draw=4))
        with pytest.raises(ConfigError, match="images_per_draw is 0, but must be at least 1"):
            kind(images_per_draw=0)
    with pytest.raises(ConfigError, match="with truncation = fixed nothing is drawn"):
        AlignProp(truncation="fixed", images_per_draw=2)


def test_a_micro_batch_has_one_set_of_steps():
    """Draws of 3 images with the steps a, a, b, c: rows of the same steps go together, in pieces of at most 4."""
    steps = torch.tensor([[1, 0], [0, 1], [1, 1]], dtype=torch.bool)
    made = replace(rows(plain(), [0]), image=torch.arange(12), step_index=torch.zeros(12, dtype=torch.int64),
                   grad_steps=steps[[0] * 6 + [1] * 3 + [2] * 3])  # fmt: skip
    assert micro_batches(made, 4) == [range(4), range(4, 6), range(6, 9), range(9, 12)]
    assert micro_batches(replace(made, grad_steps=None), 5) == [range(5), range(5, 10), range(10, 12)]
    with pytest.raises(ValueError, match="different steps"):
        reward_backprop.learning(made)


def test_alignprop_with_one_step_is_draft_1():
    model = plain()
    one = loss_gradient(model, AlignProp(truncation="fixed", last=1), [T - 1])
    two = loss_gradient(model, DRaFT(last=1), [T - 1])
    assert one[0].equal(two[0])
    assert one[1].equal(two[1])
    assert one[1].abs().max() > 0


def test_draft_lv_by_hand():
    model = plain()
    seen = []
    algorithm = DRaFT(noises=2, ordinary=True)
    loss, _ = algorithm.loss(task(model, on_images=lambda *parts: seen.append(parts)), rows(model, [T - 1]))
    assert len(seen) == 3 == algorithm.requirements.queries
    assert loss.tolist() == pytest.approx((-sum(reward for _, _, reward, *_ in seen) / 3).tolist(), rel=1e-6)
    # The ordinary one is the sampler's image; the others are the network's view of it under noise.
    sampled = sample(model, conditioned(model, 3.0), DRAW, ddim(model.process.grid(T), 0.0))
    assert torch.allclose(seen[0][1], model.decode(sampled.x0), atol=1e-5)
    assert not torch.allclose(seen[1][1], seen[2][1], atol=1e-6)


@pytest.mark.parametrize("to_one", [True, False])
def test_draft_lv_is_the_gradient_of_its_formula(to_one):
    """-mean R(decode((x_t - sigma eps) / alpha)), x_t = alpha x_0 + sigma z, by the U-Net and autograd alone."""
    model = exact(checkpointing=False, set_alpha_to_one=to_one)
    model.pipeline.vae.float()  # latents are in float32
    model.predict = lambda x, t, cond: model.network(  # type: ignore[method-assign]
        x.double(), t, encoder_hidden_states=cond["text"].double(), return_dict=False
    )[0]
    cond, t = conditioned(model, 3.0), model.process.grid(T).times[-1]
    made = task(model)
    x0 = sample(model, cond, DRAW, made.sde).x0.double()
    kept = model.pipeline.scheduler.alphas_cumprod[t].double()
    expected = 0
    for number in range(2):
        x = kept.sqrt() * x0 + (1 - kept).sqrt() * DRAW.noise(2**43 + number, x0.shape[1:])
        estimate = (x - (1 - kept).sqrt() * predicted(model, x, t, cond)) / kept.sqrt()
        expected = expected - warmth(model.decode(estimate.float()), DRAW.prompts) / 2
    loss, _ = DRaFT(noises=2, checkpointing="none").loss(made, rows(model, [T - 1]))
    assert loss.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    one, two = gradient(model, loss.sum()), gradient(model, expected.sum())
    assert ((one - two).norm() / two.norm()).item() < 1e-4


def test_refl_stops_at_the_estimate_of_its_step():
    model = plain()
    seen = []
    loss, _ = ReFL(target=5.0, scale=0.5).loss(
        task(model, on_images=lambda *parts: seen.append(parts)), rows(model, [3])
    )
    # Without guidance, as the public code; the estimate of x_0 from diffusers' own step.
    scheduler = DDIMScheduler.from_config(model.pipeline.scheduler.config)
    scheduler.set_timesteps(T)
    x = DRAW.noise(0, model.latent_shape)
    cond = conditioned(model, 1.0)
    with torch.no_grad():
        for t in scheduler.timesteps[:4]:
            eps = model.pipeline.unet(x, t, encoder_hidden_states=cond["text"]).sample
            step = scheduler.step(eps, int(t), x)
            x = step.prev_sample
        reward = warmth(model.decode(step.pred_original_sample), DRAW.prompts)
    assert loss.tolist() == pytest.approx((0.5 * (5 - reward)).tolist(), rel=1e-4)
    assert gradient(model, loss.sum()).abs().max() > 0


def test_direct_align_learns_at_any_step():
    for step in (0, 2, T - 1):
        model = plain()
        loss, found = loss_gradient(model, DirectAlign(jump=1), [step])
        assert found.abs().max() > 0
        assert loss.isfinite().all()


def test_steps_are_drawn_as_described():
    import numpy as np

    random = np.random.default_rng(0)
    candidates = range(10)
    uniform = Counter(len(AlignProp().steps(candidates, random)) for _ in range(5000))
    assert sorted(uniform) == list(range(1, 11))
    assert all(abs(count / 5000 - 0.1) < 0.02 for count in uniform.values())
    assert AlignProp(truncation="fixed", last=3).steps(candidates, random) == [7, 8, 9]
    assert AlignProp(truncation="fixed").steps(candidates, random) == list(range(10))
    depths = [len(AlignProp(truncation="gaussian", last=5, spread=1).steps(candidates, random)) for _ in range(2000)]
    # The 2024 code's first step is int(N(10 - 5, 1)), which lies half a step below the normal in the mean.
    assert abs(np.mean(depths) - 5.5) < 0.1
    assert abs(np.var(depths) - (1 + 1 / 12)) < 0.15  # that of the normal, and of cutting it off
    firsts = [int(first) for first in random.normal(50 - 8, 5, 20000) if 1 <= int(first) < 50]
    wide = Counter(
        len(AlignProp(truncation="gaussian", last=8, spread=5).steps(range(50), random)) for _ in range(20000)
    )
    expected = Counter(50 - first for first in firsts)
    # No more than 49 of 50 steps, and the two counts differ by their own noise.
    assert max(abs(wide[k] / 20000 - expected[k] / len(firsts)) for k in range(1, 51)) < 0.012
    assert {len(AlignProp(truncation="gaussian", last=2, spread=9).steps(range(2), random)) for _ in range(50)} == {1}
    # Step i of 10 with probability (i + 1) / 11, each by itself: as the 2023 code's randint(0..10) <= i.
    holes = Counter()
    for _ in range(5000):
        holes.update(AlignProp(truncation="per-step").steps(candidates, random))
    assert all(abs(holes[i] / 5000 - (i + 1) / 11) < 0.03 for i in candidates)
    late = Counter(step for _ in range(1000) for step in ReFL(earliest=0.75).steps(range(40), random))
    assert (min(late), max(late), len(late)) == (30, 39, 10)
    assert {s for _ in range(300) for s in DirectAlign().steps(range(4), random)} == {0, 1, 2, 3}
