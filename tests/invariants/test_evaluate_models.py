"""`tastemaker evaluate` on a small random model: the run's own figures, pairing, batches, stops and wrong input."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import shutil
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import tastemaker as tm
import tiny
from drawing import drawn
from tastemaker.cli.main import main
from tastemaker.data.images import to_tensor
from tastemaker.evaluation.evaluated_models import Checkpoint, EvaluatedModel, changed
from tastemaker.evaluation.metrics import verdicts
from tastemaker.models import load_model
from tastemaker.models.tuning import Tuning
from tastemaker.runs import atomic

SETTINGS = [
    "--prompts", "bundled-single-train", "--evaluation.unseen", "bundled-single-test", "--rounds", "2",
    "--checkpoint.keep", "5", "sampling.steps=3", "sampling.samples=4", "sampling.per_prompt=2", "sampling.batch=3",
    "optimizer.updates=1", "optimizer.rows=8", "optimizer.lr=2e-2", "evaluation.every=1", "evaluation.prompts=2",
    "evaluation.per_prompt=2", "evaluation.kl_images=0",
]  # fmt: skip
METRICS = ["--metrics", "diversity", "speed"]


def train(checkpoint: Path, out: Path, *more: str) -> Path:
    words = ["train", "ddpo-compressibility", "--model", str(checkpoint), "--out", str(out), *SETTINGS, *more]
    assert main(words) == 0
    return out


@pytest.fixture(scope="module")
def run(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(checkpoint, tmp_path_factory.mktemp("trained") / "simple")


@pytest.fixture(scope="module")
def done(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last model and that of round 1, with divergence."""
    out = tmp_path_factory.mktemp("evaluated") / "out"
    words = ["evaluate", str(run), f"{run}@1", "--rewards", "colourfulness", "--metrics", "diversity", "kl", "speed"]
    assert main([*words, "--out", str(out)]) == 0
    return out


def table(folder: Path) -> dict[tuple[str, str, str], dict[str, float]]:
    """The figures of table.csv by model, prompt set and metric."""
    with (folder / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        (row["model"], row["prompts"], row["metric"]): {
            name: float(row[name]) if row[name] else float("nan")
            for name in ("value", "low", "high", "difference", "difference_low", "difference_high", "images",
                         "difference_in_base_std", "prompt_count")
        }
        for row in rows
    }  # fmt: skip


def results(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def of(folder: Path, model: str, prompts: str, name: str) -> np.ndarray:
    rows = [row for row in results(folder) if (row["model"], row["prompts"]) == (model, prompts)]
    return np.array([float(row[name]) for row in rows])


def stable(folder: Path) -> dict[str, bytes]:
    """All files but the report, without the seconds that sampling took."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name not in ("report.html", "sampled.jsonl"):
            data = re.sub(rb"(?m)^.*speed.*\n", b"", file.read_bytes())
            if file.suffix == ".safetensors":  # whose header has its entries in any order
                data = b"".join(name.encode() + x.numpy().tobytes() for name, x in sorted(load_file(file).items()))
            found[str(file.relative_to(folder))] = data
    records = [json.loads(line) for line in (folder / "sampled.jsonl").read_text().splitlines()]
    found["sampled"] = json.dumps([{k: v for k, v in one.items() if k != "seconds"} for one in records]).encode()
    return found


# ---------------------------------------------------------------- figures


def test_a_run_s_figures_are_those_of_its_own_evaluations(run: Path, done: Path):
    """The run's prompts, seeds, sampler and batches are the defaults; JPEG reads 8 bits a channel anyway."""
    evaluations = {record["evaluation"]: record for record in tm.load_run(run).evaluations()}
    found = table(done)
    for label, number in (("base", 0), ("simple@1", 1), ("simple", 2)):
        for prompts, prefix in (("seen", "eval/"), ("unseen", "eval/unseen/")):
            row, record = found[label, prompts, "jpeg-compressibility"], evaluations[number]
            assert row["value"] == pytest.approx(record[f"{prefix}reward/mean"], abs=1e-9)
            # Training measures diversity before the images are rounded to 8 bits.
            assert found[label, prompts, "diversity"]["value"] == pytest.approx(
                record[f"{prefix}diversity"], abs=1 / 510
            )
            if prompts == "seen" and number:
                assert row["difference_in_base_std"] == pytest.approx(record["eval/reward/base_stds"], abs=1e-6)
    assert found["simple", "seen", "jpeg-compressibility"]["difference"] != 0


def test_images_are_those_of_the_run_bit_for_bit(run: Path, done: Path):
    for label, folder in (("base", "round-0000"), ("simple-1", "round-0001"), ("simple", "round-0002"),
                          ("simple", "unseen-0002")):  # fmt: skip
        prompts = "unseen" if folder.startswith("unseen") else "seen"
        own = sorted((run / "samples" / folder).glob("*.png"))
        kept = sorted((done / "images" / label / prompts).glob("*.png"))
        assert len(own) == len(kept) == 4
        for one, other in zip(own, kept, strict=True):
            assert np.array_equal(np.asarray(Image.open(one)), np.asarray(Image.open(other))), (one, other)


def test_all_models_have_the_same_prompts_and_seeds(done: Path):
    rows = results(done)
    keys = {
        label: [
            (row["prompts"], row["prompt"], row["prompt_index"], row["seed"]) for row in rows if row["model"] == label
        ]
        for label in ("base", "simple", "simple@1")
    }  # fmt: skip
    assert keys["base"] == keys["simple"] == keys["simple@1"]
    assert len(set(keys["base"])) == len(keys["base"]) == 8
    assert all((done / row["image"]).is_file() for row in rows)


def test_the_table_says_what_the_images_say(done: Path):
    """Means, differences, deviations and win rates computed again from results.csv, in which an image is a row."""
    found = table(done)
    for reward in ("jpeg-compressibility", "colourfulness"):
        for prompts in ("seen", "unseen"):
            base, own = (of(done, label, prompts, f"reward/{reward}") for label in ("base", "simple"))
            row = found["simple", prompts, reward]
            assert row["value"] == pytest.approx(own.mean())
            assert row["difference"] == pytest.approx((own - base).mean())
            assert row["difference_in_base_std"] == pytest.approx((own - base).mean() / base.std())
            assert row["low"] <= row["value"] <= row["high"]
            assert row["difference_low"] <= row["difference"] <= row["difference_high"]
            assert found["simple", prompts, f"win rate: {reward}"]["value"] == pytest.approx(
                (own > base).mean() + 0.5 * (own == base).mean()
            )
            assert (row["images"], row["prompt_count"]) == (4, 2)
    assert found["simple", "seen", "kl"]["value"] == pytest.approx(of(done, "simple", "seen", "kl").mean())
    assert found["simple", "seen", "kl"]["value"] > found["simple@1", "seen", "kl"]["value"] > 0
    assert ("base", "seen", "kl") not in found


def test_what_is_written(done: Path):
    import pyarrow.parquet

    names = {path.name for path in done.iterdir()}
    assert {"settings.yaml", "results.csv", "results.parquet", "table.csv", "table.md", "report.html"} <= names
    frame = pyarrow.parquet.read_table(done / "results.parquet").to_pylist()
    assert [row["reward/colourfulness"] for row in frame] == [
        float(row["reward/colourfulness"]) for row in results(done)
    ]
    assert "| seen | simple | jpeg-compressibility (trained) |" in (done / "table.md").read_text()
    settings = yaml.safe_load((done / "settings.yaml").read_text())
    assert list(settings["models"]) == ["base", "simple", "simple@1"]
    assert settings["steps"] == 3
    assert not list(done.rglob(".tmp*"))


def test_the_checkpoint_s_adapter_is_an_ordinary_one(run: Path, done: Path, checkpoint: Path, tmp_path: Path):
    """What is left of RUN@1 gives its images again as an adapter."""
    adapter = done / "adapters/simple-1"
    words = ["evaluate", f"x={adapter}", "--model", str(checkpoint), "--prompts", "seen=bundled-single-train",
             "unseen=bundled-single-test", "--prompt-count", "2", "--seeds", "2", "--steps", "3", "--batch", "3",
             "--rewards", "jpeg-compressibility", *METRICS, "--out", str(tmp_path / "out")]  # fmt: skip
    assert main(words) == 0
    # The run draws its prompts from those of its list that are not held out, which here are all of them.
    assert np.array_equal(
        of(tmp_path / "out", "x", "seen", "reward/jpeg-compressibility"),
        of(done, "simple@1", "seen", "reward/jpeg-compressibility"),
    )


def test_a_model_compared_with_itself_differs_by_exactly_nothing(checkpoint: Path, run: Path, tmp_path: Path):
    words = [
        "evaluate",
        f"one={checkpoint}",
        f"two={checkpoint}",
        "--prompts",
        "a=bundled-eight",
        "--prompt-count",
        "3",
    ]
    words += ["--seeds", "2", "--steps", "2", "--rewards", "colourfulness", "clip-score", "--features", "bundled"]
    words += ["--metrics", "diversity", "pairwise", "vendi", "clip-inception", "fid", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    found = table(tmp_path / "out")
    for metric in ("colourfulness", "clip-score", "diversity", "pairwise", "vendi", "clip-inception"):
        row = found["two", "a", metric]
        assert (row["difference"], row["difference_low"], row["difference_high"]) == (0, 0, 0), metric
    assert found["two", "a", "win rate: colourfulness"]["value"] == 0.5
    assert found["two", "a", "fid"]["value"] == pytest.approx(0, abs=1e-6)


def test_the_batch_size_does_not_matter(run: Path, done: Path, tmp_path: Path):
    """But for the last bits of a network's output, which may move a level of 8 bits."""
    assert main(["evaluate", str(run), "--batch", "1", *METRICS, "--out", str(tmp_path / "out")]) == 0
    for file in sorted((tmp_path / "out/images/simple").rglob("*.png")):
        one, other = (
            np.asarray(Image.open(folder / file.relative_to(tmp_path / "out"))).astype(int)
            for folder in (tmp_path / "out", done)
        )
        assert np.abs(one - other).max() <= 1
    first, second = table(tmp_path / "out"), table(done)
    key = ("simple", "unseen", "jpeg-compressibility")
    assert first[key]["value"] == pytest.approx(second[key]["value"], abs=0.01)


def test_mixtures_are_those_of_mix(run: Path, tmp_path: Path):
    """Given as a command of mix, and as the folder that it has left; weight 1 is the run's own adapter."""
    assert (
        main(["mix", str(run), "--alpha", "0.5,1", "--mode", "delta", "--n", "0", "--out", str(tmp_path / "mix")]) == 0
    )
    spec = f"mix {run} --alpha 0.5,1 --mode delta"
    common = ["--prompts", "a=bundled-eight", "--prompt-count", "2", "--seeds", "2", *METRICS]
    words = ["evaluate", str(run), f"m={spec}", str(tmp_path / "mix"), *common]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    reward = {
        label: of(tmp_path / "out", label, "a", "reward/jpeg-compressibility").tolist()
        for label in ("base", "simple", "m alpha 0.5", "m alpha 1", "alpha 0.5", "alpha 1")
    }
    assert reward["m alpha 1"] == reward["alpha 1"] == reward["simple"]
    assert reward["m alpha 0.5"] == reward["alpha 0.5"] != reward["simple"]
    assert reward["alpha 0.5"] != reward["base"]
    page = (tmp_path / "out/report.html").read_text()
    assert "<h2>Mixtures</h2>" in page
    assert "0.5 simple" in page


def test_checkpoints_of_whole_networks_and_averages(checkpoint: Path, tmp_path: Path):
    """A fully tuned run, and one that averages its weights: the checkpoint of the last round is what the run left."""
    for name, more in (("full", ["--tuning.mode", "full", "optimizer.lr=1e-3"]), ("ema", ["--optimizer.ema", "0.5"])):
        run = train(checkpoint, tmp_path / name, "--rounds", "1", *more)
        words = ["evaluate", str(run), f"{run}@1", str(run / "checkpoints/step-000000"), *METRICS]
        assert main([*words, "--out", str(tmp_path / f"out-{name}")]) == 0
        found = table(tmp_path / f"out-{name}")
        last, again, first = (
            found[label, "seen", "jpeg-compressibility"]["value"] for label in (name, f"{name}@1", f"{name}@0")
        )
        record = tm.load_run(run).evaluations()[-1]
        assert last == again == pytest.approx(record["eval/reward/mean"], abs=1e-9)
        assert first == found["base", "seen", "jpeg-compressibility"]["value"] != last


def test_a_base_model_is_itself_again_after_a_whole_network(checkpoint: Path, tmp_path: Path):
    run = train(checkpoint, tmp_path / "full", "--rounds", "1", "--tuning.mode", "full", "optimizer.lr=1e-3")
    model = load_model(str(checkpoint))
    before = {name: value.clone() for name, value in model.weights.network.state_dict().items()}
    whole = Checkpoint(run / "checkpoints/step-000001", Tuning(mode="full"), False)
    with changed(model, EvaluatedModel("x", str(checkpoint), whole), tmp_path / "none"):
        assert any(not value.equal(before[name]) for name, value in model.weights.network.state_dict().items())
    assert all(value.equal(before[name]) for name, value in model.weights.network.state_dict().items())


def test_settings_of_sampling_act(checkpoint: Path, tmp_path: Path):
    """One image by default settings, and by one other setting each time: another image, or another size."""
    common = ["evaluate", str(checkpoint), "--prompts", "a=bundled-eight", "--prompt-count", "1", "--seeds", "1",
              "--rewards", "colourfulness", "--metrics", "diversity", "--steps", "2"]  # fmt: skip

    def image(*more: str) -> np.ndarray:
        out = tmp_path / ("-".join(more) or "default")
        assert main([*common, *more, "--out", str(out)]) == 0
        (file,) = out.rglob("*.png")
        return np.asarray(Image.open(file))

    default = image()
    assert np.array_equal(default, image("--batch", "5"))
    for more in (["--steps", "3"], ["--guidance", "1"], ["--eta", "0"], ["--seed", "1"], ["--precision", "bf16"]):
        assert not np.array_equal(default, image(*more)), more
    assert image("--width", "40").shape == (32, 40, 3)
    assert image("--height", "40").shape == (40, 32, 3)


def test_a_folder_to_compare_with_and_features_of_one_s_own(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The folder has the first model's images: its distance is 0, and the second one's is the difference."""
    (tmp_path / "own_features.py").write_text("def pooled(images):\n    return images.mean(dim=(2, 3))\n")
    monkeypatch.chdir(tmp_path)
    tiny.folder(tmp_path / "two", seed=1)
    words = ["evaluate", f"one={checkpoint}", "two=two", "--prompts", "a=bundled-eight", "--prompt-count", "4",
             "--seeds", "2", "--steps", "2", "--rewards", "colourfulness", "--metrics"]  # fmt: skip
    assert main([*words, "diversity", "--out", "first"]) == 0
    words += ["fid", "kid", "vendi", "--features", "own_features:pooled"]
    assert main([*words, "--reference", "first/images/one", "--out", "second"]) == 0
    found = table(tmp_path / "second")
    assert found["one", "a", "fid"]["value"] == pytest.approx(0, abs=1e-9)
    far = found["two", "a", "fid"]
    assert far["value"] == pytest.approx(far["difference"], abs=1e-9)
    assert far["value"] > 1e-4
    assert 1 <= found["two", "a", "vendi"]["value"] <= 2
    assert "own_features:pooled, to 8 images of first/images/one" in (tmp_path / "second/table.md").read_text()
    assert main([*words, "--out", "third"]) == 0  # the first model's own images, which it is not compared with
    assert table(tmp_path / "third")["two", "a", "fid"]["value"] == pytest.approx(far["value"])
    assert ("one", "a", "fid") not in table(tmp_path / "third")
    assert main([*words, "clip-inception", "--out", "fourth"]) == 2
    assert not Path("fourth").exists()


def test_combined_rewards_are_standardised_by_the_base_model_s_first_images(run: Path, done: Path, tmp_path: Path):
    """As in a run: (x - mean) / std of the base model's images of the first prompt set, for all models and sets."""
    reward = "standardise(colourfulness) + 2*jpeg-compressibility"
    words = ["evaluate", str(run), "--rewards", reward, "colourfulness", "--metrics", "diversity"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    base = of(tmp_path / "out", "base", "seen", "reward/colourfulness")
    for model, prompts in (("base", "seen"), ("simple", "unseen")):
        own = of(tmp_path / "out", model, prompts, "reward/colourfulness")
        expected = (own - base.mean()) / base.std() + 2 * of(
            tmp_path / "out", model, prompts, "reward/jpeg-compressibility"
        )
        assert of(tmp_path / "out", model, prompts, f"reward/{reward}") == pytest.approx(expected, abs=1e-5)


def test_the_judge_looks_at_images_of_the_bundled_model(tmp_path: Path):
    words = ["evaluate", "bundled", "--prompts", "known=bundled-eight", "--prompt-count", "2"]
    words += ["--seeds", "1", "--steps", "2", "--rewards", "judge-score", "--metrics", "judge", "vendi", "speed"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    found, rows = table(tmp_path / "out"), results(tmp_path / "out")
    correct = [row["correct"] for row in rows]
    assert len(correct) == 2
    assert set(correct) <= {"True", "False"}
    assert found["bundled", "known", "judge"]["value"] == correct.count("True") / 2
    images = torch.stack([to_tensor(Image.open(tmp_path / "out" / row["image"])) for row in rows])
    assert [str(verdict) for verdict in verdicts(images, [row["prompt"] for row in rows], judged=True)] == correct
    assert ("bundled", "known", "vendi") not in found  # of one image there is no diversity
    assert found["bundled", "known", "speed"]["value"] > 0


# ---------------------------------------------------------------- stops


class Killed(BaseException):
    """What ends the process in the middle."""


def test_a_stopped_evaluation_goes_on_and_is_the_uninterrupted_one(
    run: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Killed again and again after some files, with torn last lines, until it ends."""
    out = tmp_path / "out"
    words = ["evaluate", str(run), f"{run}@1", "--rewards", "colourfulness", "--metrics", "diversity", "kl", "speed"]
    put, left, kills = atomic._put, 7, 0

    def limited(path: Path, data: bytes, flags: int) -> None:
        nonlocal left
        left -= 1
        if left < 0 and out in path.parents:
            put(path, data[: len(data) // 2], flags)
            raise Killed
        put(path, data, flags)

    monkeypatch.setattr(atomic, "_put", limited)
    seen: dict[str, int] = {}
    while True:
        left = 7 + 4 * kills
        try:
            assert main([*words, "--out", str(out)]) == 0
            break
        except Killed:
            kills += 1
        images = {str(path): path.stat().st_mtime_ns for path in out.glob("images/*/*/[0-9]*.png")}
        recorded = [json.loads(line) for line in _whole_lines(out / "sampled.jsonl")]
        kept = {path for path in seen if any(_is_of(Path(path), one) for one in recorded)}
        assert all(images[path] == seen[path] for path in kept)  # what was on disk was not sampled again
        seen = {path: when for path, when in images.items() if any(_is_of(Path(path), one) for one in recorded)}
    assert kills >= 4
    assert stable(out) == stable(done)


def _whole_lines(path: Path) -> list[str]:
    return [line for line in path.read_text().split("\n")[:-1] if line] if path.exists() else []


def _is_of(file: Path, record: dict) -> bool:
    """Whether an image is of a batch of 3 of the 4 images of a prompt set."""
    number = 2 * int(file.stem[:3]) + int(file.stem[4:])
    folder = record["model"].replace("@", "-")
    return (file.parts[-3], file.parts[-2], number // 3) == (folder, record["prompts"], record["batch"])


def test_a_reward_that_fails_stops_it_and_a_later_call_goes_on(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "flaky_taste.py").write_text(
        textwrap.dedent("""
        from pathlib import Path
        calls = 0
        def score(images, prompts):
            global calls
            calls += 1
            if calls > 2 and not Path("well").exists():
                raise ConnectionError("the server is down")
            return images.mean(dim=(1, 2, 3))
        """)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["evaluate", str(run), "--rewards", "flaky_taste:score", *METRICS, "--out", "out"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert (
        "the reward flaky_taste:score raised ConnectionError: the server is down; what was sampled and scored is"
        in said
    )
    assert said.count("\n") == 1
    when = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.png")}
    assert len(when) == 16
    scored = _whole_lines(Path("out/scores.jsonl"))
    assert sum("flaky_taste" in line for line in scored) == 2
    Path("well").touch()
    assert main(words) == 0
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.png")} == when
    assert _whole_lines(Path("out/scores.jsonl"))[: len(scored)] == scored
    assert ("simple", "seen", "flaky_taste:score") in table(Path("out"))


def test_what_differs_is_refused_and_named(run: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    shutil.copytree(done, out)
    words = ["evaluate", str(run), f"{run}@1", "--rewards", "colourfulness", "--metrics", "diversity", "kl", "speed"]
    for more, difference in (
        (["--steps", "4"], "steps 3 -> 4"), (["--guidance", "2"], "guidance 5.0 -> 2.0"),
        (["--eta", "0.5"], "eta 1.0 -> 0.5"),
        (["--batch", "2"], "batch 3 -> 2"), (["--seeds", "3"], "prompts.seen.images 4 -> 6"),
        (["--prompt-count", "1"], "prompts.seen.prompts 2 -> 1"), (["--seed", "7"], "prompts.seen.seed 0 -> 7"),
        (["--precision", "bf16"], "precision fp32 -> bf16"), (["--width", "40"], "width None -> 40"),
        (["--height", "40"], "height None -> 40"),
        (["--prompts", "seen=bundled-eight"], "prompts.seen.source bundled-single-train -> bundled-eight"),
    ):  # fmt: skip
        assert main([*words, *more, "--out", str(out)]) == 2, more
        said = capsys.readouterr().err
        assert f"{out} holds an evaluation with other arguments (" in said
        assert difference in said
    image = out / "images/base/seen/000-00.png"
    image.unlink()
    assert main([*words, "--out", str(out)]) == 2
    assert f"the image {image} is missing, though it was sampled" in capsys.readouterr().err
    (tmp_path / "used").mkdir()
    (tmp_path / "used/notes.txt").touch()
    assert main([*words, "--out", str(tmp_path / "used")]) == 2
    assert "used exists already" in capsys.readouterr().err


def test_a_run_that_was_trained_again_is_another_argument(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(run, tmp_path / "simple")
    words = ["evaluate", str(tmp_path / "simple"), *METRICS, "--prompt-count", "1", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    file = "pytorch_lora_weights.safetensors"
    tiny_adapter(tmp_path / "other")
    shutil.copy(tmp_path / "other" / file, tmp_path / "simple/adapter" / file)
    assert main(words) == 2
    assert "models.simple.weights" in capsys.readouterr().err


def tiny_adapter(folder: Path, seed: int = 5, pipeline=None) -> Path:
    from tastemaker.models import wrap_pipeline

    model = wrap_pipeline(tiny.pipeline() if pipeline is None else pipeline)
    model.tune(Tuning(rank=2), seed)
    model.weights.save(folder)
    return folder


# ---------------------------------------------------------------- wrong input


def test_wrong_input(
    run: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, tmp_path / "runs/simple")
    shutil.copytree(run, tmp_path / "runs/unfinished")
    shutil.rmtree(tmp_path / "runs/unfinished/adapter")
    shutil.copytree(run, tmp_path / "elsewhere/simple")
    Path("empty.txt").write_text("\n")
    Path("no-images").mkdir()
    tiny_adapter(tmp_path / "adapter-of-pixels", pipeline=tiny.pixels(channels=3))
    tiny_adapter(tmp_path / "an-adapter")
    model, prompts = str(checkpoint), ["--prompts", "a=bundled-eight"]
    for words, message in (
        ([], "name the models to evaluate, before the flags: runs, models, adapters or mixtures"),
        (["runs/simpel"], "runs/simpel does not exist; did you mean 'runs/simple'?"),
        (["runs/unfinished"], "there is no adapter in runs/unfinished: expected a finished run"),
        (["runs/simple@9"], "runs/simple has no checkpoint of round 9; there are those of 0, 1, 2 (check"),
        (["runs/simple", "elsewhere/simple"], "two models have the label simple: give them different names"),
        (["runs/simple", "runs/simple"], "two models have the label simple"),
        (["base=runs/simple"], "two models have the label base"),
        (["an-adapter"], "an-adapter lies in no run, which would name the model of the adapter: give --model MODEL"),
        (["an-adapter", "--model", model], "none of the models is of a run, which would name prompts: give --prompts"),
        (["an-adapter", "--model", model, *prompts], "none of the models is of a run, which would name a reward: give"),
        (["adapter-of-pixels", "--model", model, *prompts, "--rewards", "colourfulness"], "the model does not have"),
        (["runs/simple", "--prompts", "a=empty.txt"], "empty.txt"),
        (["runs/simple", "--prompts", "a="], "the prompt set a names no prompts"),
        (["runs/simple", "--prompts", "a=bundled-eight", "a=bundled-pair"], "--prompts has two lists of the name a"),
        (["runs/simple", "--prompts", "a=bundled-eigth"], "unknown prompts 'bundled-eigth'"),
        (["runs/simple", "--metrics", "fidd"], "unknown metric 'fidd'; did you mean 'fid'?"),
        (["runs/simple", "--metrics", "vendi"], "the metric vendi reads features of images: name what computes them"),
        (["runs/simple", "--features", "bundled"], "--features is of the metrics pairwise, vendi, fid"),
        (["runs/simple", "--metrics", "vendi", "--features", "nowhere/at/all"], "nowhere/at/all cannot be loaded"),
        (["runs/simple", "--reference", "no-images"], "--reference is of the metrics fid and kid"),
        (["runs/simple", "--metrics", "fid", "--features", "bundled", "--reference", "no-images"], "has 0 images"),
        (["runs/simple", "--metrics", "kl", "--eta", "0"], "the metric kl compares the noise of sampling steps"),
        (["runs/simple", "--seeds", "0"], "--seeds is 0, but must be at least 1"),
        (["runs/simple", "--prompt-count", "0"], "--prompt-count is 0, but must be at least 1"),
        (["runs/simple", "--batch", "0"], "--batch is 0, but must be at least 1"),
        (["runs/simple", "--steps", "1001"], "--steps is 1001, but the schedule has only 1000"),
        (["runs/simple", "--rewards", "colourfulnes"], "unknown reward 'colourfulnes'"),
        (["mix runs/simple --alpha half"], "--alpha is 'half', but must be a number"),
        (["mix runs/simple --n 3"], "of a mixture --alpha, --weights, --mode, --rank and --model are read"),
        (["mix runs/none"], "there is no folder runs/none"),
        (["runs/simple", "--metric", "fid"], "unknown flag --metric; did you mean --metrics?"),
    ):  # fmt: skip
        assert main(["evaluate", *words, "--out", "out"]) == 2, words
        said = capsys.readouterr().err
        assert message in said, said
        assert said.count("\n") == 1
        assert not Path("out/images").exists()


def test_runs_that_were_sampled_differently_need_a_flag(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(run, tmp_path / "other")
    config = (tmp_path / "other/config.yaml").read_text()
    assert "  steps: 3\n" in config
    (tmp_path / "other/config.yaml").write_text(config.replace("  steps: 3\n", "  steps: 4\n"))
    words = ["evaluate", str(run), str(tmp_path / "other")]
    assert main([*words, "--dry-run"]) == 2
    assert "the runs were sampled with steps 3 and 4, but all models must be sampled alike: give --steps" in (
        capsys.readouterr().err
    )
    assert main([*words, "--steps", "4", "--dry-run"]) == 0


def test_rewards_on_latents_do_not_compare_models(
    run: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "latent_taste.py").write_text(
        "import tastemaker as tm\n\n@tm.reward(space='latent')\ndef small(latents, prompts):\n"
        "    assert latents.shape[1:] == (4, 8, 8)\n    return -latents.square().mean(dim=(1, 2, 3))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    tiny.folder(tmp_path / "another", seed=1)
    words = ["--rewards", "latent_taste:small", *METRICS, "--prompt-count", "1"]
    assert main(["evaluate", str(run), "another", *words, "--out", "two"]) == 2
    said = capsys.readouterr().err
    assert "the reward latent_taste:small reads the latents of one model, and cannot compare images of" in said
    assert main(["evaluate", str(run), *words, "--out", "one"]) == 0  # of one model it can
    assert len(set(of(tmp_path / "one", "simple", "seen", "reward/latent_taste:small"))) > 1


def test_dry_run_says_what_would_be_done_and_writes_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", str(run), "--rewards", "colourfulness", "--metrics", "kl", "--dry-run"]) == 0
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if " " in line)
    assert said["models"].split(", ") == ["base", "simple"]
    # 2 sets of 4 images; batches of 3 are 2 each, of 3 steps, for 2 models; kl asks 2 networks again for one of them.
    assert "8 of each model, 16 in all, at 32 x 32 px" in said["images"]
    assert "48, each with up to 6 rows, 24 of them for kl" in said["network"]
    assert "32 images" in said["reward"]
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- Python


def test_python_gives_the_command_s_figures(run: Path, done: Path, tmp_path: Path):
    def darkness(images, prompts):
        return 1 - images.mean(dim=(1, 2, 3))

    found = tm.evaluate_models(
        {"last": tm.load_run(run)}, tmp_path / "out", prompt_count=2, rewards=["colourfulness", darkness],
        prompts={"seen": "bundled-single-train", "own": ["a cat", "a dog"]}, metrics=["diversity"],
    )  # fmt: skip
    rows = {(row["model"], row["prompts"], row["metric"]): row for row in found.rows()}
    own = table(done)["simple", "seen", "jpeg-compressibility"]
    assert rows["last", "seen", "jpeg-compressibility"]["value"] == own["value"]
    assert rows["last", "seen", "jpeg-compressibility"]["difference_low"] == own["difference_low"]
    assert 0 < rows["last", "own", "darkness"]["value"] < 1
    assert found.report.is_file()
    assert {row["prompt"] for row in found.images() if row["prompts"] == "own"} == {"a cat", "a dog"}
    assert len(found.table()) == len(rows)
    with pytest.raises(tm.TastemakerError, match="the name 'a/b' of a model is empty, or has one of"):
        tm.evaluate_models({"a/b": run})
    with pytest.raises(tm.TastemakerError, match="the list of prompts is empty"):
        tm.evaluate_models(run, prompts={"none": []})


# ---------------------------------------------------------------- the report


def test_the_report_is_one_file_that_says_what_the_table_says(run: Path, done: Path, tmp_path: Path):
    """Written again from what is on disk, with its figures drawn."""
    out = tmp_path / "out"
    shutil.copytree(done, out)
    words = ["evaluate", str(run), f"{run}@1", "--rewards", "colourfulness", "--metrics", "diversity", "kl", "speed"]
    with drawn():
        assert main([*words, "--out", str(out)]) == 0
    page = (out / "report.html").read_text()
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)
    script = re.findall(r"<script>(.*?)</script>", page, re.S)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    for title in ("Generalisation", "The same prompt and seed, side by side", "Wins and losses", "All figures"):
        assert f"<h2>{title}" in page
    assert "<h2>Mixtures" not in page
    for title in (
        "Distribution of jpeg-compressibility",
        "Trained reward against kl",
        "Trained reward against diversity",
    ):
        assert f"<h3>{title}</h3><svg" in page
    row = table(out)["simple", "unseen", "jpeg-compressibility"]
    assert f"{row['difference_in_base_std']:+.2f}".replace("-", "−") in page
    numbers = json.loads(re.findall(r'id="numbers">(.*?)</script>', page, re.S)[0])
    assert np.array(numbers["numbers"]).shape == (8, 2, 3)  # all images; rewards; models
    assert numbers["references"] == [0, 0, 0]
    rewards = sorted(of(out, "simple", "seen", "reward/jpeg-compressibility"))
    assert sorted(one[0][1] for one in numbers["numbers"][:4]) == pytest.approx(rewards)
