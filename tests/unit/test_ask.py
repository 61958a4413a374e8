"""`tastemaker ask` against a real server that speaks OpenAI's protocol: answers, faults, going on, images."""

from __future__ import annotations

import base64
import io
import json
import math
import shutil
from pathlib import Path

import pytest
from PIL import Image

import tastemaker as tm
import tiny
import tiny_language
from speaking import Speaking, failing, image
from tastemaker.cli import ask as command
from tastemaker.cli.main import main
from tastemaker.config.schema import Config, Sampling
from tastemaker.config.yaml_file import dump_config
from tastemaker.drawings import Scene, Thing, render
from tastemaker.drawings.judge import see
from tastemaker.errors import ConfigError, DataError, RewardUnavailable
from tastemaker.question_benchmarks.benchmark import take
from tastemaker.question_benchmarks.formats import load_benchmark
from tastemaker.question_benchmarks.images import Picture, find_pictures
from tastemaker.question_benchmarks.judge import answer
from tastemaker.question_benchmarks.nearest import load_nearest
from tastemaker.question_benchmarks.run import Given, Plan, run
from tastemaker.question_benchmarks.sampling import Sampling as Sampled
from tastemaker.question_benchmarks.settings import Calls
from tastemaker.rewards.serving import retry

DATA = Path(__file__).parents[1] / "data/question_benchmarks"
STARS = Scene((Thing("star", "red", 0.27, 0.5, 0.2), Thing("star", "red", 0.73, 0.5, 0.2)), "white")
PAIR = Scene((Thing("star", "red", 0.27, 0.5, 0.2), Thing("circle", "blue", 0.73, 0.5, 0.2)), "white")
SURE, UNSURE = 0.8, 0.1


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(retry, "backoff", lambda tries: 0.02)
    monkeypatch.delenv("TASTEMAKER_VLM_KEY", raising=False)


@pytest.fixture
def drawn(tmp_path):
    """The images of geneval2.jsonl, in larger files: what the first prompt asks for twice, and the second's."""
    folder = tmp_path / "drawn"
    folder.mkdir()
    for name, scene, side in (("0", STARS, 64), ("1-0", PAIR, 64), ("1-1", STARS, 32)):
        render(scene, side).save(folder / f"{name}.png")
    return folder


def say(question, url):
    """What the judge sees, with a chance of 0.8; of other words 0.1 each."""
    word = answer(see(image(url))[0], question.removesuffix(" Answer in one word."))
    others = [other for other in ("Yes", "No", "three") if other != word][:2]
    return word, {word: SURE, others[0]: UNSURE, others[1]: UNSURE}


def ask(server, drawn, *flags, benchmark="geneval2.jsonl", out="out"):
    given = benchmark if ":" in benchmark else str(DATA / benchmark)
    vlm = ("--vlm", server.name, "--vlm.wait", "0.1", "--vlm.tries", "2")
    return main(["ask", given, *vlm, "--images", str(drawn), "--out", out, *flags])


def results(out="out"):
    return json.loads(Path(out, "results.json").read_text())


def figure(name, out="out"):
    return next(one["mean"] for one in results(out)["figures"] if one["name"] == name)


def rows(out="out"):
    return [json.loads(line) for line in Path(out, "answers.jsonl").read_text().splitlines()]


def test_soft_tifa_of_a_server_s_probabilities(drawn, capsys):
    with Speaking(say=say) as server:
        assert ask(server, drawn, "--vlm.tokens", "7") == 0
        bodies = server.asked
    # Three images: 3 questions about the first, 4 about each of the others.
    assert len(bodies) == len(rows()) == 11
    assert {(body["max_tokens"], body["logprobs"], body["top_logprobs"]) for body in bodies} == {(7, True, 20)}
    questions = {body["messages"][0]["content"][1]["text"] for body in bodies}
    assert "How many stars are in the image? Answer in one word." in questions
    file = io.BytesIO()
    render(STARS, 64).save(file, "JPEG", quality=95)
    shown = {body["messages"][0]["content"][0]["image_url"]["url"] for body in bodies}
    assert "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode() in shown
    # All right but in the last image, which shows two stars and no circle: of four, only `a red star` is right. Yes is
    # among the other words there, with 0.1, and `one` is not.
    told = sorted(rows(), key=lambda row: int(row["question"]))  # they come in any order
    scores = [[SURE] * 3, [SURE] * 4, [0.0, SURE, UNSURE, UNSURE]]
    assert [[row["score"] for row in told if row["image"] == name] for name in ("0.png", "1-0.png", "1-1.png")] == [
        pytest.approx(several) for several in scores
    ]
    assert figure("Soft-TIFA GM") == pytest.approx((SURE + SURE + 0) / 3)
    assert figure("Soft-TIFA AM") == pytest.approx((SURE + SURE + 0.25) / 3)
    assert figure("position") == pytest.approx((SURE + UNSURE) / 2)
    found = results()
    assert (found["vlm"], found["images"], found["answers"], found["not_listed"], found["whole"]) == (
        "judge", 3, 11, 1, True,
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "Soft-TIFA GM" in printed
    assert "answers whose expected word is not among the likeliest, probability 0: 1\n" in printed
    assert "| Soft-TIFA GM | 53.3 % |" in Path("out/results.md").read_text()


def test_a_server_without_probabilities(drawn, capsys):
    with Speaking(say=say, logprobs=False) as server:
        assert ask(server, drawn) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "gives no log-probabilities: take a server that does" in said
        assert "give --written" in said
        assert ask(server, drawn, "--written", out="written") == 0
        assert not any("logprobs" in body for body in server.asked[-11:])
    # As they are written, the last image has one right of four.
    assert figure("Soft-TIFA GM", "written") == pytest.approx(2 / 3)
    assert figure("Soft-TIFA AM", "written") == pytest.approx((1 + 1 + 0.25) / 3)
    assert results("written")["written"]
    assert "(`--written`)" in Path("written/results.md").read_text()


def dependent(question, url):
    """To all of dpg.csv's questions yes, but for the star's colour, and a word that is no answer."""
    return ("Perhaps." if "photo" in question else "No, blue." if "red" in question else "Yes, there is."), {}


def test_questions_with_dependencies(tmp_path, capsys):
    names = ("partiprompts1", "drawtext_2")
    for name in names:
        render(PAIR, 32).save(tmp_path / f"{name}.png")
    (tmp_path / "pictures.json").write_text(json.dumps({name: f"{name}.png" for name in names}))
    with Speaking(say=dependent) as server:
        assert ask(server, tmp_path / "pictures.json", benchmark="dpg.csv") == 0
        assert not any("logprobs" in body for body in server.asked)
    # Four of five of the first, whose children do not depend on the colour; none of the second.
    assert figure("DPG") == pytest.approx((0.8 + 0) / 2)
    assert figure("attribute") == 0.5
    assert results()["no_choice"] == 1
    assert "answers that are none of the choices, and count as wrong: 1\n" in capsys.readouterr().out
    assert [row["answer"] for row in rows() if row["note"]] == ["Perhaps."]


def test_answers_in_free_form(tmp_path):
    for name in ("coco_1", "drawbench_8"):
        render(PAIR, 32).save(tmp_path / f"{name}.png")
    encoder = str(tiny_language.deberta(tmp_path / "encoder"))
    words = {
        "are there stars?": "Yes",
        "is there a circle?": "off-topic",
        "how many stars are in the picture?": "Three.",
    }
    with Speaking(say=lambda question, url: (words.get(question, "whitish"), {})) as server:
        flags = ("--text-model", encoder)
        assert ask(server, tmp_path, *flags, benchmark=f"tifa-free-form:{DATA / 'tifa.json'}") == 0
    nearest = load_nearest(encoder)
    colour, circle = nearest("whitish", ("off white", "white", "red")), nearest("off-topic", ("yes", "no"))
    assert figure("color") == (colour == "white")
    assert figure("object") == (1 + (circle == "yes")) / 2
    assert figure("counting") == 1
    assert results()["no_choice"] == 0
    assert json.loads(Path("out/benchmark.json").read_text())["text_model"] == encoder


def test_a_model_in_this_process(drawn, tmp_path):
    """A small LLaVA with random weights, whose answers are never right but have probabilities."""
    path = str(tiny_language.llava(tmp_path / "llava"))
    flags = ["--vlm", path, "--images", str(drawn), "--vlm.tokens", "2", "--vlm.batch", "3"]
    assert main(["ask", str(DATA / "geneval2.jsonl"), *flags, "--out", "out"]) == 0
    assert len(rows()) == 11
    assert results()["not_listed"] + sum(row["score"] > 0 for row in rows()) == 11
    assert main(["ask", str(DATA / "geneval2.jsonl"), *flags, "--out", "plain", "--written"]) == 0
    assert figure("Soft-TIFA GM", "plain") == 0


def test_a_server_that_fails_in_the_middle_and_is_back(drawn, capsys):
    with Speaking(say=say) as server:
        assert ask(server, drawn, out="whole") == 0
        server.begin(lambda n: failing(503, {"detail": "busy"}) if n >= 5 else None)
        assert ask(server, drawn, "--vlm.in-flight", "1") == 69
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"tastemaker: the model {server.name} gave no answers after ")
        assert "status 503: busy" in said
        assert said.endswith(
            "5 of 11 answers are in out/answers.jsonl: the same command with --out out goes on with the others"
        )
        assert len(rows()) == 5
        assert not Path("out/results.json").exists()
        server.begin(())
        assert ask(server, drawn) == 0
        assert len(server.asked) == 6
        # Nothing is left to ask; the results are made anew.
        Path("out/results.json").unlink()
        assert ask(server, drawn) == 0
        assert len(server.asked) == 6
    assert results() == results("whole")
    assert sorted(map(str, rows())) == sorted(map(str, rows("whole")))


def test_answers_of_a_killed_process_are_mended(drawn, capsys):
    with Speaking(say=say) as server:
        assert ask(server, drawn, out="whole") == 0
        shutil.copytree("whole", "torn")
        lines = Path("whole/answers.jsonl").read_bytes().splitlines(keepends=True)
        Path("torn/answers.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:30])
        server.begin(())
        assert ask(server, drawn, out="torn") == 0
        assert len(server.asked) == 7
        assert results("torn") == results("whole")
        Path("torn/answers.jsonl").write_bytes(lines[0] + b"{}\n" + lines[1])
        assert ask(server, drawn, out="torn") == 2
        assert "torn/answers.jsonl:2 is no answer that was written here: remove the line" in capsys.readouterr().err


def test_an_image_that_has_changed_is_asked_about_again(drawn):
    with Speaking(say=say) as server:
        assert ask(server, drawn) == 0
        render(STARS, 48).save(drawn / "1-0.png")
        server.begin(())
        assert ask(server, drawn) == 0
        assert len(server.asked) == 4
    assert figure("Soft-TIFA GM") == pytest.approx(SURE / 3)


def test_a_folder_of_other_answers_is_left_alone(drawn, capsys):
    with Speaking(say=say) as server:
        assert ask(server, drawn) == 0
        before = Path("out/answers.jsonl").read_bytes()
        shutil.copytree(drawn, "others")
        for flags, named in (
            (["--written"], "written False -> True"),
            (["--vlm", f"llava@{server.url}"], "vlm judge -> llava"),
            (["--vlm.tokens", "3"], "tokens 64 -> 3"),
            (["--images", "others"], f"path {drawn} -> others"),
            (["--take", "1"], "prompts 2 -> 1"),
        ):
            assert ask(server, drawn, *flags) == 2
            assert f"out holds answers of another kind ({named}" in capsys.readouterr().err
        assert ask(server, drawn, out=str(drawn)) == 2
        assert "exists already" in capsys.readouterr().err
    assert Path("out/answers.jsonl").read_bytes() == before


def test_a_folder_without_answers_may_begin_anew(drawn, capsys):
    with Speaking(lambda n: failing(401, {"detail": "no"}), say=say) as server:
        assert ask(server, drawn, "--images", "nowhere") == 2
        assert not Path("out").exists()
        assert ask(server, drawn) == 2
        assert "refuses: status 401: no; is the right key in $TASTEMAKER_VLM_KEY?" in capsys.readouterr().err
        server.begin(())
        assert ask(server, drawn, "--vlm.tokens", "9") == 0
        Path("out/benchmark.json").write_text("{")
        assert ask(server, drawn) == 2
        assert "out/benchmark.json is not what was written here" in capsys.readouterr().err


def test_images_by_names_lists_and_grids(tmp_path):
    prompts = load_benchmark(str(DATA / "geneval2.jsonl")).prompts
    names = tmp_path / "names"
    (names / "sub").mkdir(parents=True)
    for name in ("0.webp", "1_10.png", "1_2.png", "other.png", "1_x.png", "0.txt"):
        (names / name).write_bytes(b"")
    assert [(one.prompt, one.name) for one in find_pictures(names, prompts)] == [
        (0, "0.webp"), (1, "1_2.png"), (1, "1_10.png"),
    ]  # fmt: skip
    assert [one.name for one in find_pictures(names, prompts, n=1)] == ["0.webp", "1_2.png"]
    (names / "1_2.png").unlink()
    (names / "1_10.png").unlink()
    with pytest.raises(DataError, match=r"1 of 2 prompts have no image; the first is 1 \('a red star on.*1.png or 1-0"):
        find_pictures(names, prompts)
    # As `tastemaker sample` lists them, and as GenEval 2 wants them.
    listing = [{"file": f"{n}.png", "prompt": prompts[n % 2].text, "seed": n} for n in range(3)]
    (names / "samples.json").write_text(json.dumps(listing))
    for n in range(3):
        (names / f"{n}.png").write_bytes(b"")
    assert [(one.prompt, one.name) for one in find_pictures(names, prompts)] == [
        (0, "0.png"),
        (0, "2.png"),
        (1, "1.png"),
    ]
    mapping = tmp_path / "images.json"
    mapping.write_text(json.dumps({prompts[0].text: "names/2.png", "1": ["names/0.png", "names/1.png"]}))
    assert [(one.prompt, one.name) for one in find_pictures(mapping, prompts)] == [
        (0, "names/2.png"), (1, "names/0.png"), (1, "names/1.png"),
    ]  # fmt: skip
    mapping.write_text(json.dumps({"0": "names/9.png", "1": "names/0.png"}))
    with pytest.raises(DataError, match=r"images.json, entry 0: there is no image .*9.png"):
        find_pictures(mapping, prompts)
    with pytest.raises(DataError, match="there are no images at nowhere"):
        find_pictures(Path("nowhere"), prompts)


def test_ids_with_folders(tmp_path):
    prompts = load_benchmark(str(DATA / "oneig")).prompts
    for kind in ("anime", "object"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "000.webp").write_bytes(b"")
    assert [one.name for one in find_pictures(tmp_path, prompts)] == ["anime/000.webp", "object/000.webp"]


def test_grids_are_cut_and_black_parts_left_out(tmp_path):
    prompts = load_benchmark(str(DATA / "geneval2.jsonl")).prompts[:1]
    whole = Image.new("RGB", (64, 32))
    colours = ("red", "green", "black", "blue")
    for cell, colour in enumerate(colours):
        whole.paste(Image.new("RGB", (32, 16), colour), (32 * (cell % 2), 16 * (cell // 2)))
    whole.save(tmp_path / "0.png")
    parts = find_pictures(tmp_path, prompts, grid=2)
    assert [one.name for one in parts] == ["0.png#0", "0.png#1", "0.png#3"]
    assert [one.image().size for one in parts] == [(32, 16)] * 3
    assert [one.image().getpixel((5, 5)) for one in parts] == [(255, 0, 0), (0, 128, 0), (0, 0, 255)]
    assert len({one.digest for one in parts}) == 3
    assert Image.open(io.BytesIO(parts[1].file(lossless=True))).getpixel((0, 0)) == (0, 128, 0)
    assert parts[1].file()[:3] == b"\xff\xd8\xff"
    with pytest.raises(DataError, match="too small for a grid of 40"):
        find_pictures(tmp_path, prompts, grid=40)
    (tmp_path / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0.png cannot be read"):
        Picture(0, "0.png", tmp_path / "0.png").image()


def sampled(**changes):
    return tm.ask("bundled", "bundled", take=2, n=2, steps=2, out="made", **changes)


def test_images_are_made_and_asked_about_once(monkeypatch):
    first = sampled(seed=3)
    assert (first.prompts, first.images, first.whole, first.vlm) == (2, 4, False, "judge")
    assert first.images_of == "bundled"
    assert [one.name for one in first.figures] == ["all right", "answers", "count", "object", "attribute"]
    files = sorted(path.name for path in Path("made/images").glob("*.png"))
    assert files == ["00000-00.png", "00000-01.png", "00001-00.png", "00001-01.png"]
    listing = json.loads(Path("made/images/samples.json").read_text())
    prompts = [prompt.text for prompt in load_benchmark("bundled").prompts]
    assert [entry["file"] for entry in listing] == files
    assert {entry["prompt"] for entry in listing} <= set(prompts)
    before = Path("made/images/00001-00.png").read_bytes()
    answers = Path("made/answers.jsonl").read_bytes()
    # What is missing is made again, and is the same; its answers are there.
    Path("made/images/00001-00.png").unlink()
    assert sampled(seed=3) == first
    pixels = [
        Image.open(io.BytesIO(data)).tobytes() for data in (before, Path("made/images/00001-00.png").read_bytes())
    ]
    assert max(abs(one - other) for one, other in zip(*pixels, strict=True)) <= 1  # in a batch of another size
    assert len(Path("made/answers.jsonl").read_bytes().splitlines()) <= len(answers.splitlines()) + 7
    monkeypatch.setattr("tastemaker.evaluation.images.load_here", lambda *_: pytest.fail("a model was loaded"))
    assert sampled(seed=3) == first
    with pytest.raises(ConfigError, match=r"made holds answers of another kind .seed 3 -> 4"):
        sampled(seed=4)
    # The images may be asked about by others.
    again = tm.ask("bundled", images="made", vlm="judge", take=2, out="again")
    assert again.figures == first.figures


def test_the_answers_are_the_judge_s():
    scenes = {"a [red|blue] star": 0.5}
    Path("images").mkdir()
    for name in ("0", "1"):
        render(Scene((Thing("star", "red", 0.5, 0.5, 0.3),), "white"), 32).save(f"images/{name}.png")
    for prompts, share in scenes.items():
        found = tm.ask(f"bundled:{prompts}", images="images", out="out")
        assert found["all right"].mean == share
        assert found["category/attribute"].mean == share
        assert found["count"].mean == 1


def test_a_loaded_pipeline_is_asked_about():
    options = {"take": 2, "n": 1, "steps": 2, "out": "own"}
    found = tm.ask("bundled", tiny.pipeline(), **options)
    assert (found.images, found.images_of) == (2, "in-memory:StableDiffusionPipeline")
    assert tm.ask("bundled", tiny.pipeline(), **options) == found
    with pytest.raises(ConfigError, match=r"own holds answers of another kind .model \w+ -> \w+"):
        tm.ask("bundled", tiny.pipeline(seed=1), **options)


def test_images_are_those_of_sample(checkpoint):
    """Of a run with its adapter, and of the model without; each setting of the sampler matters."""
    settings = tm.preset(
        "ddpo-compressibility", "sampling.steps=3", "sampling.guidance=2.0", "sampling.eta=0.5", "sampling.samples=4",
        "sampling.per_prompt=2",
        "sampling.batch=4", "optimizer.updates=2", "optimizer.rows=4", "optimizer.lr=0.1", "evaluation.every=1",
        "evaluation.prompts=1", "evaluation.per_prompt=1", "evaluation.kl_images=0",
    )  # fmt: skip
    made = tm.train(settings, str(checkpoint), "jpeg-compressibility", ["a cat", "a dog"], "runs/mine", 1)
    prompts = [prompt.text for prompt in take(load_benchmark("bundled"), 2).prompts]
    options = {"n": 2, "seed": 5, "batch": 4}

    def images(folder):
        found = []
        for path in sorted(Path(folder, "images").glob("*.png")):
            with Image.open(path) as image:
                found.append(image.convert("RGB").tobytes())
        return found

    def sampled_by(**changes):
        given = {"adapter": made, "steps": 3, "guidance": 2.0, "eta": 0.5} | options | changes
        return [image.tobytes() for image in tm.sample(checkpoint, prompts, **given).images]

    tm.ask("bundled", made, take=2, out="own", **options)
    tm.ask("bundled", "runs/mine", take=2, out="other", steps=2, guidance=1.0, eta=0.0, **options)
    tm.ask("bundled", checkpoint, take=2, out="base", steps=3, guidance=2.0, eta=0.5, **options)
    assert images("own") == sampled_by()
    assert images("other") == sampled_by(steps=2, guidance=1.0, eta=0.0)
    assert images("base") == sampled_by(adapter=None)
    assert len({tuple(images(folder)) for folder in ("own", "other", "base")}) == 3


def captured(monkeypatch, *argv):
    """The plan that a command would carry out."""
    plans = []

    def stop(plan, advance):
        plans.append(plan)
        raise ConfigError("as planned")

    monkeypatch.setattr("tastemaker.question_benchmarks.run.run", stop)
    assert main(["ask", *argv]) == 2
    return plans[0]


def test_flags_reach_the_plan(monkeypatch, drawn):
    plan = captured(monkeypatch, "bundled", "bundled")
    assert (plan.vlm, plan.out, plan.written, plan.calls) == ("judge", Path("runs/ask-1"), False, Calls())
    assert isinstance(plan.images, Sampled)
    usual = plan.images
    assert (usual.n, usual.seed, usual.steps, usual.guidance, usual.eta, usual.batch) == (4, 0, 50, 5, 1, 16)
    plan = captured(
        monkeypatch, str(DATA / "geneval2.jsonl"), "bundled", "--vlm", "some/model", "vlm.batch=3",
        "--vlm.in-flight", "5",
        "--vlm.timeout", "7", "--vlm.wait", "9", "--vlm.tries", "2", "--vlm.tokens", "11", "--vlm.key-env", "MY_KEY",
        "--written", "--n", "2", "--seed", "3", "--steps", "4", "--guidance", "1.5", "--eta", "0.5", "--batch", "6",
        "--take", "1", "--out", "x", "--text-model", "some/encoder", "--height", "32", "--width", "64",
    )  # fmt: skip
    assert plan.calls == Calls(11, 3, 5, 7, 9, 2, "MY_KEY")
    assert vars(plan.calls.settings()).items() >= vars(plan.calls).items()
    assert (plan.vlm, plan.written, plan.out, len(plan.benchmark.prompts)) == ("some/model", True, Path("x"), 1)
    assert plan.text_model == "some/encoder"
    made = plan.images
    assert (made.n, made.seed, made.steps, made.guidance, made.eta, made.batch) == (2, 3, 4, 1.5, 0.5, 6)
    assert (made.identity["height"], made.identity["width"]) == (32, 64)
    given = ["--images", str(drawn), "--grid", "2", "--n", "1", "--vlm", "m@http://h:1/v1"]
    plan = captured(monkeypatch, str(DATA / "geneval2.jsonl"), *given)
    assert plan.images == Given(drawn, 1, 2)
    assert plan.vlm_name == "m"


def test_a_run_brings_its_model_adapter_and_sampler(monkeypatch):
    folder = Path("runs/mine")
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter/pytorch_lora_weights.safetensors").write_bytes(b"weights")
    config = Config(model="bundled", sampling=Sampling(steps=7, guidance=2.0, eta=0.3))
    (folder / "config.yaml").write_text(dump_config(config))
    plan = captured(monkeypatch, "bundled", "runs/mine")
    made = plan.images
    assert (made.name, made.steps, made.guidance, made.eta) == ("runs/mine", 7, 2.0, 0.3)
    assert made.identity["model"] == "bundled"
    first = made.identity["adapter"]
    (folder / "adapter/pytorch_lora_weights.safetensors").write_bytes(b"others")
    assert captured(monkeypatch, "bundled", "runs/mine").images.identity["adapter"] != first
    other = captured(monkeypatch, "bundled", "bundled", "--adapter", "runs/mine/adapter").images
    assert other.identity == captured(monkeypatch, "bundled", "runs/mine").images.identity
    assert other.name == "bundled with runs/mine/adapter"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give a benchmark, as in"),
        (["bundled"], "give a model or run whose images are made, or images by --images"),
        (["bundled", "bundled", "--images", "x"], "and not both"),
        (["bundled", "--images", "x", "--adapter", "y"], "--adapter is for a model"),
        (["bundled", "bundled", "--grid", "2"], "--grid is for --images"),
        (["bundled", "bundled", "--take", "0"], "--take is 0, but must be at least 1"),
        (["bundled", "bundled", "--n", "0"], "--n is 0"),
        (["bundled", "bundled", "--steps", "0"], "--steps is 0"),
        (["bundled", "bundled", "--batch", "0"], "--batch is 0"),
        (["bundled", "bundled", "--vlm.tries", "0"], "vlm.tries"),
        (["bundled", "bundled", "--adapter", "nowhere"], "--adapter is nowhere, but there is no such"),
        (["bundled", "no/where/at/all"], "no/where/at/all"),
        (["vqascore:bundled-eight", "bundled"], "give who answers by --vlm"),
        (["bundled", "bundled", "--vlms", "x"], "unknown flag --vlms"),
    ],
)
def test_what_is_wrong_is_one_sentence(argv, message, capsys):
    assert main(["ask", *argv]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("tastemaker: ")
    assert said.count("\n") == 1
    assert not Path("runs").exists()


def test_a_dry_run_asks_nothing(drawn, capsys):
    with Speaking(say=say) as server:
        assert ask(server, drawn, "--dry-run") == 0
        assert capsys.readouterr().out == (
            f"geneval2: 2 prompts with 3 images in {drawn}; 11 answers of judge, into out\n"
        )
        assert not server.asked
    assert main(["ask", "bundled", "bundled", "--dry-run", "--take", "4", "--n", "1"]) == 0
    assert "bundled: 4 prompts with 1 image each of bundled, 50 steps; " in capsys.readouterr().out
    assert not Path("out").exists()
    assert not Path("runs").exists()


def test_the_judge_is_asked_about_drawings_only(drawn, capsys):
    assert main(["ask", str(DATA / "genai_image.json"), "--vlm", "judge", "--images", "x.json"]) == 2
    render(PAIR, 32).save("1.png")
    Path("x.json").write_text(json.dumps({"00001": "1.png", "00002": "1.png"}))
    capsys.readouterr()
    assert main(["ask", str(DATA / "genai_image.json"), "--vlm", "judge", "--images", "x.json", "--out", "out"]) == 2
    assert "the judge does not understand the question 'Does this figure show" in capsys.readouterr().err
    assert math.isfinite(len(rows()))


def test_errors_of_the_python_call():
    with pytest.raises(ConfigError, match="n is 0, but must be at least 1"):
        tm.ask("bundled", "bundled", n=0)
    with pytest.raises(ConfigError, match="give a model or run"):
        tm.ask("bundled")
    with pytest.raises(ConfigError, match="give who answers, as vlm="):
        tm.ask(str(DATA / "geneval2.jsonl"), "bundled")


def test_an_unreachable_server_ends_before_anything_is_asked(drawn):
    plan = Plan(
        load_benchmark(str(DATA / "geneval2.jsonl")), Given(drawn), "m@http://127.0.0.1:9/v1", Path("out"),
        Calls(wait=0.1),
    )  # fmt: skip
    with pytest.raises(RewardUnavailable, match=r"the model m@http://127.0.0.1:9/v1 gave no answers .*0 of 11 answers"):
        run(plan, log=lambda line: None)
    assert command.AskArgs().vlm is None
