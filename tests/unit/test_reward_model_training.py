"""Training of reward models: what is learned, what each setting changes, and that a seed settles everything."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from compared import comparisons, picture, quick, trained
from tastemaker.errors import ConfigError, DataError, DivergedError
from tastemaker.reward_models.features import compute
from tastemaker.reward_models.fit import evaluate, fit, rewards_of
from tastemaker.reward_models.settings import Training, check
from tastemaker.reward_models.train import Samples, member_seed, prompt_use, scale_of, train_reward_model, use_of
from tastemaker.rewards.preferences.architecture import Architecture
from tastemaker.rewards.preferences.backbones import load_backbone
from tastemaker.rewards.preferences.files import read
from tastemaker.rewards.preferences.heads import new_head
from tastemaker.rewards.preferences.reward import load_reward_model

HEAD = Architecture("head")
KINDS = [Architecture(), Architecture("clip"), Architecture("clip", layers=1), HEAD,
         Architecture("head", features="unet", hidden=16), Architecture("transformer", "bundled-flow"),
         Architecture("head", "bundled-flow", features="transformer")]  # fmt: skip


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def fitted(architecture=HEAD, settings=None, seed=0, lr=3e-3, dropped=False, **changes):
    found = comparisons(**changes)
    backbone = load_backbone(architecture)
    features = compute(found, backbone, dropped=dropped)
    head = new_head(architecture, backbone, seed)
    settings = settings or quick()
    return fit(head, features, found.training, found.validation, settings, lr, seed), features, found


@pytest.mark.parametrize("architecture", KINDS, ids=lambda a: f"{a.described} {a.layers}")
def test_every_kind_learns_that_brighter_is_better(tmp_path, architecture):
    result = trained(tmp_path / "rm", architecture, quick(epochs=30, lr=None))
    assert result.accuracy is not None
    assert result.accuracy.value >= 0.9, result.accuracy
    assert result.accuracy.count == 12
    assert {path.name for path in (tmp_path / "rm").iterdir()} == {
        "model.safetensors", "reward_model.json", "metrics.jsonl", "report.html"
    }  # fmt: skip


def test_a_seed_settles_the_weights_to_the_bit(tmp_path):
    settings = quick(text_dropout=0.3, members=2)
    for number, (name, seed) in enumerate((("a", 0), ("b", 0), ("c", 1))):
        torch.manual_seed(number)  # other draws of the process have no part in it
        trained(tmp_path / name, Architecture(), replace(settings, seed=seed))
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(tmp_path / "c")


def test_training_leaves_the_process_random_numbers_alone(tmp_path):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    trained(tmp_path / "rm", Architecture("head", dropout=0.2))
    assert torch.rand(3).equal(expected)


def test_each_setting_of_training_changes_the_weights(tmp_path):
    base = trained(tmp_path / "base", HEAD, quick()) and weights(tmp_path / "base")
    for number, changes in enumerate((
        {"epochs": 1}, {"lr": 1e-4}, {"weight_decay": 0.5}, {"batch": 3}, {"text_dropout": 0.5}, {"members": 2},
        {"refit": True}, {"seed": 3}, {"center_rewards_coefficient": 0.1},
    )):  # fmt: skip
        trained(tmp_path / str(number), HEAD, quick(**changes))
        assert weights(tmp_path / str(number)) != base, changes
    with_sample, without = (quick(members=2, bootstrap=bootstrap) for bootstrap in (True, False))
    trained(tmp_path / "sampled", HEAD, with_sample)
    trained(tmp_path / "all", HEAD, without)
    assert weights(tmp_path / "sampled") != weights(tmp_path / "all")


def test_centring_draws_the_mean_reward_of_each_task_to_0():
    """Comparisons within tasks leave the means open: AdamW alone leaves them where the initial weights had them."""
    means = []
    for coefficient in (0.0, 0.1):
        settings = Training(epochs=60, center_rewards_coefficient=coefficient, curve=())
        found, features, data = fitted(settings=settings, lr=0.01)
        means.append(max(abs(rewards.mean().item()) for rewards in rewards_of(found.head, features, data.training)))
    assert means[1] < 0.2 * means[0]


def test_the_best_epoch_is_kept_and_patience_ends_training():
    """A rate at which the validation loss soon rises: what is kept has the lowest loss of all epochs."""
    settings = Training(epochs=200, patience=3, curve=())
    made, features, found = fitted(settings=settings, lr=0.3)
    losses = [record["validation_loss"] for record in made.history]
    assert made.epoch == 1 + losses.index(min(losses))
    assert len(losses) in (200, made.epoch + 3)
    assert evaluate(made.head, features, found.validation)["loss"] == pytest.approx(min(losses), rel=1e-5, abs=1e-8)
    longer, *_ = fitted(settings=replace(settings, patience=7), lr=0.3)
    assert len(longer.history) >= len(made.history)


def test_without_validation_all_epochs_are_trained():
    made, *_ = fitted(settings=quick(epochs=4), validation=0)
    assert (made.epoch, len(made.history)) == (4, 4)
    assert "validation_loss" not in made.history[0]


def test_refit_learns_from_all_tasks_for_the_best_number_of_epochs(tmp_path):
    """The same as training without a validation part for so many epochs."""
    settings = quick(epochs=4, refit=True)
    result = trained(tmp_path / "rm", HEAD, settings)
    found = comparisons()
    backbone = load_backbone(HEAD)
    features = compute(found, backbone, dropped=False)
    seed = member_seed(settings, 0)
    made = fit(new_head(HEAD, backbone, seed), features, found.tasks, (), settings, 3e-3, seed, epochs=result.epochs[0])
    _, (state,) = read(tmp_path / "rm")
    for name, value in made.head.state_dict().items():
        torch.testing.assert_close(state[name], value)


def test_dropped_prompts_are_seen_as_the_empty_one():
    architecture = Architecture()
    made, features, found = fitted(architecture, dropped=True)
    rows = torch.tensor(features.rows_of(found.tasks[0]))
    backbone = features.backbone
    with torch.no_grad():
        x = features.inputs(found, found.tasks[0])
        expected = made.head(backbone.images(x, [""] * 3, 0), backbone.texts([""] * 3))
        dropped = features.rewards(made.head, rows, torch.ones(3, dtype=torch.bool))
        some = features.rewards(made.head, rows, torch.tensor([False, True, False]))
        own = features.rewards(made.head, rows)
    torch.testing.assert_close(dropped, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(some, torch.stack([own[0], dropped[1], own[2]]), rtol=1e-4, atol=1e-5)
    guided = rewards_of(made.head, features, found.tasks[:1], guidance=3.0)[0]
    torch.testing.assert_close(guided, dropped + 3 * (own - dropped), rtol=1e-4, atol=1e-5)


def test_several_times_train_on_noisy_latents_and_score_at_the_first(tmp_path):
    clean, noisy = Architecture(), Architecture(timesteps=(0, 400))
    trained(tmp_path / "clean", clean)
    trained(tmp_path / "noisy", noisy)
    trained(tmp_path / "again", noisy)
    assert weights(tmp_path / "clean") != weights(tmp_path / "noisy") == weights(tmp_path / "again")
    made, features, found = fitted(Architecture(timesteps=(300, 0)))
    backbone = features.backbone
    x = features.inputs(found, found.tasks[0])
    with torch.no_grad():
        prompts = [found.tasks[0].prompt] * 3
        expected = made.head(backbone.images(x, prompts, 300), backbone.texts(prompts))
    torch.testing.assert_close(rewards_of(made.head, features, found.tasks[:1])[0], expected, rtol=1e-4, atol=1e-5)


def test_compared_images_have_mean_0_and_deviation_1(tmp_path):
    trained(tmp_path / "rm", HEAD, quick(members=3))
    model, found = load_reward_model(tmp_path / "rm"), comparisons()
    features = compute(found, model.backbone, dropped=False)
    members = []
    for task in found.tasks:
        x = features.inputs(found, task)
        members.append(model.members(x, [task.prompt] * len(task.images)))
    rewards = torch.cat(members, dim=1).mean(dim=0)
    assert rewards.mean().item() == pytest.approx(0, abs=1e-4)
    assert rewards.std(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_scale_by_hand():
    """Members 1, 3 and 0, 4: each to -1, 1, whose mean is -1, 1 again."""
    scale = scale_of(torch.tensor([[1.0, 3.0], [0.0, 4.0]]))
    assert scale.members == ((2.0, 1.0), (2.0, 2.0))
    assert (scale.mean, scale.std) == (0.0, 1.0)
    with pytest.raises(DataError, match="gives all images the same reward"):
        scale_of(torch.ones(1, 4))
    with pytest.raises(DataError, match="cancel each other"):
        scale_of(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))


def test_sampled_images_standardise_too(tmp_path):
    found, settings = comparisons(), quick(standardise="samples")
    samples = Samples(count=6, steps=2)
    train_reward_model(found, Architecture(), settings, tmp_path / "rm", samples=samples)
    train_reward_model(found, Architecture(), quick(), tmp_path / "other")
    one, other = (read(tmp_path / name)[0] for name in ("rm", "other"))
    assert one.scale != other.scale
    assert one.training["standardised_by"]["count"] == 6
    with pytest.raises(ConfigError, match="needs a diffusion model"):
        train_reward_model(found, Architecture(), settings, tmp_path / "none")


def test_the_learning_curve_ends_with_all_tasks(tmp_path):
    result = trained(tmp_path / "rm", HEAD, quick(curve=(3, 6, 11, 500)))
    assert [count for count, _ in result.curve] == [3, 6, 12]


def test_metrics_and_report_are_of_every_member(tmp_path):
    result = trained(tmp_path / "rm", HEAD, quick(members=2, curve=(4,)))
    records = [json.loads(line) for line in (tmp_path / "rm/metrics.jsonl").read_text().splitlines()]
    assert {record["member"] for record in records} == {0, 1}
    assert {"epoch", "loss", "accuracy", "validation_loss", "validation_accuracy"} <= set(records[0])
    page = (tmp_path / "rm/report.html").read_text()
    assert result.accuracy is not None
    for said in (
        f"{100 * result.accuracy.value:.1f} %", "Calibration", "Learning curve", "mean of 2 models", "12 pairs only",
        "Where it agrees most surely", "made up",
    ):  # fmt: skip
        assert said in page, said
    assert "<script" not in page
    description, heads = read(tmp_path / "rm")
    assert len(heads) == 2
    assert description.training["validation_accuracy"]["value"] == result.accuracy.value
    assert description.training["curve"][-1]["tasks"] == 12


def test_a_failed_training_leaves_no_folder(tmp_path):
    with pytest.raises(DivergedError, match=r"the loss of the reward model is .*: give a smaller learning rate than"):
        trained(tmp_path / "rm", HEAD, quick(lr=1e30, epochs=20))
    assert not list(tmp_path.iterdir())
    trained(tmp_path / "rm", HEAD)
    with pytest.raises(ConfigError, match=r"the output folder .* exists already"):
        trained(tmp_path / "rm", HEAD)


def test_images_of_another_size_are_refused_or_scaled(tmp_path):
    large = comparisons(side=48)
    with pytest.raises(DataError, match="image 0: the image has 48 x 48 pixels, but the model reads 32 x 32"):
        train_reward_model(large, Architecture(), quick(), tmp_path / "rm")
    train_reward_model(large, Architecture(), quick(), tmp_path / "rm", resize=True)
    train_reward_model(large, Architecture(size=48), quick(), tmp_path / "large")
    assert read(tmp_path / "large")[0].shape == (4, 12, 12)
    train_reward_model(large, HEAD, quick(), tmp_path / "head")  # a CLIP scales by itself


def test_images_of_several_sizes_are_batched_by_size():
    found = comparisons(tasks=12)
    mixed = replace(found, images=tuple(
        replace(source, value=picture(0.5, 32 if index % 3 else 40, index)) for index, source in enumerate(found.images)
    ))  # fmt: skip
    backbone = load_backbone(HEAD)
    features = compute(mixed, backbone, dropped=False)
    task = mixed.tasks[5]
    with torch.no_grad():
        for row, image in zip(features.rows_of(task), task.images, strict=True):
            one = replace(task, images=(image,))
            expected = backbone.images(features.inputs(mixed, one), [task.prompt], 0)
            torch.testing.assert_close(features.image[row : row + 1], expected, rtol=1e-4, atol=1e-5)


def test_settings_that_do_not_fit_are_refused():
    for given, said in (
        ({"epochs": 0}, "epochs is 0"), ({"members": 65}, r"members is 65, but must lie in \(0, 64\]"),
        ({"curve": (0,)}, "must be at least 1"), ({"text_dropout": 1.0}, "text_dropout is 1.0"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            Training(**given)
    with pytest.raises(ConfigError, match="guidance is 2, which needs a model that was also trained without prompts"):
        check(HEAD, Training(guidance=2))
    with pytest.raises(ConfigError, match="text_dropout is for reward models of other kinds: the cosine of a CLIP"):
        check(Architecture("clip"), Training(text_dropout=0.1))


def test_python_trains_as_the_command_does(tmp_path, capsys):
    import tastemaker as tm

    result = tm.train_reward_model(comparisons(), "head", tmp_path / "a", epochs=3, curve=(), lr=3e-3, hidden=8)
    trained(tmp_path / "b", Architecture("head", hidden=8))
    assert result.folder == tmp_path / "a"
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert "best after epoch" in capsys.readouterr().out
    with pytest.raises(tm.TastemakerError, match="unknown setting 'epoch' of a reward model; did you mean 'epochs'"):
        tm.train_reward_model(comparisons(), epoch=3)
    with pytest.raises(tm.TastemakerError, match="there are no images at nowhere"):
        tm.train_reward_model("nowhere", out=tmp_path / "c")


def test_prompt_use_by_hand():
    """Changes 2, -1, 0 and 3 of rewards with deviation 2: 2.5 of 4 are higher, by 1 on average, half a deviation."""
    found = use_of(torch.tensor([1.0, 5.0, 1.0, 5.0]), torch.tensor([2.0, -1.0, 0.0, 3.0]))
    assert (found.share, found.effect) == (2.5 / 4, 0.5)


def test_guidance_raises_the_effect_of_the_prompt_and_leaves_its_sign():
    architecture = Architecture()
    made, features, found = fitted(architecture, quick(text_dropout=0.3), dropped=True, validation=8)
    one, three = (
        prompt_use(found, features, architecture, [made], quick(text_dropout=0.3, guidance=s)) for s in (1.0, 3.0)
    )
    assert one is not None
    assert three is not None
    assert one.share == three.share
    assert abs(three.effect) > abs(one.effect) > 0
    same = replace(found, tasks=tuple(task for task in found.tasks if task.prompt == found.tasks[0].prompt))
    assert prompt_use(same, features, architecture, [made], quick()) is None
