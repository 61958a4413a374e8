"""A server of SGLang Diffusion's rollout contract for the tests: our own small models, and faults as it is told."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Response
from safetensors.torch import save
from torch import Tensor

from tastemaker.models import wrap_pipeline
from tastemaker.models.library_logging import quiet
from tastemaker.web.listening import listen

Payload = list[dict[str, Any]]
_ONE = threading.RLock()
"""One engine works at a time: diffusers changes torch while it loads an adapter."""


def noise(seed: int, step: int, shape: Any) -> Tensor:
    """An image's noise, [1,*D]: step 0 is x_T, step i + 1 the noise of step i. The contract leaves it to the engine."""
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(1000 * seed + step))


def packed(values: Tensor) -> dict[str, Any]:
    """A tensor as the contract has it."""
    return {
        "__tensor__": True, "data": save({"t": values.contiguous()}), "shape": list(values.shape),
        "dtype": str(values.dtype),
    }  # fmt: skip


class Engine:
    """A pipeline that is sampled by the contract's formulas, and takes adapters by diffusers' own loader."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline, self.model = pipeline, wrap_pipeline(pipeline)
        self.path: str | None = None
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.loads: list[str] = []
        # Faults.
        self.change: Callable[[Payload], Payload] = lambda payload: payload
        """What is made of a good response."""
        self.encode: Callable[[Payload], Response] = lambda payload: Response(
            msgspec.msgpack.encode(payload), media_type="application/msgpack"
        )
        self.before: Callable[[int], None] = lambda number: None
        """Called before the n-th image, counted from 0."""
        self.ignores = False
        """It says that it has loaded an adapter, and has not."""
        self.checksum: Callable[[str], str] = lambda real: real

    def generate(self, body: dict[str, Any]) -> Response:
        with _ONE:
            number = len(self.asked)
            self.asked.append(body)
        self.before(number)
        with _ONE:
            return self.encode(self.change([self._image(body)]))

    @torch.no_grad()
    def _image(self, body: dict[str, Any]) -> dict[str, Any]:
        model, steps, level = self.model, body["num_inference_steps"], body["rollout_noise_level"]
        model.resize(body["height"], body["width"])
        model.negative_prompt = body["negative_prompt"]
        cond = model.encode([body["prompt"]], body["guidance_scale"])
        grid = model.process.grid(steps, model.latent_shape)
        sigmas = torch.cat([grid.sigma, grid.sigma_next[-1:]])
        noisy = body["rollout_sde_step_indices"]
        x, kept, logp = noise(body["seed"], 0, model.latent_shape), [], []
        for i in range(steps):
            kept.append(x)
            now, then = sigmas[i], sigmas[i + 1]
            x0 = model.denoise(x, grid.times[i].expand(1), cond)
            sample = x.double()
            v = (sample - x0) / now  # the network's output
            kind = "ode" if noisy is not None and i not in noisy else body["rollout_sde_type"]
            if kind == "cps":
                std = then * math.sin(level * math.pi / 2)
                mean = (sample - now * v) * (1 - then) + (sample + v * (1 - now)) * (then**2 - std**2).sqrt()
            elif kind == "sde":
                dt = then - now
                g = (now / (1 - (sigmas[1] if now == 1 else now))).sqrt() * level
                std = g * (-dt).sqrt()
                mean = sample * (1 + g**2 / (2 * now) * dt) + v * (1 + g**2 * (1 - now) / (2 * now)) * dt
            else:
                std, mean = torch.zeros(()).double(), sample + (then - now) * v
            x = (mean + std * noise(body["seed"], i + 1, model.latent_shape)).float()
            density = -((x - mean) ** 2) / (2 * std**2) - std.log() - 0.5 * math.log(2 * math.pi)
            logp.append(density.mean() if kind != "ode" else torch.zeros(()).double())
        kept.append(x)
        asked = body["rollout_return_step_indices"]
        return {
            "request_id": "1", "prompt": body["prompt"], "seed": body["seed"],
            "generated_output": packed(model.decode(x)[0]), "rollout_log_probs": packed(torch.stack(logp).float()),
            "rollout_debug_tensors": None, "denoising_env": None,
            "dit_trajectory": {
                "latents": packed(torch.cat([kept[i] for i in asked])), "timesteps": packed(1000 * sigmas.float()),
                "sigmas": packed(sigmas.float()), "latent_step_indices": packed(torch.tensor(asked)),
            },
            "inference_time_s": 0.1, "peak_memory_mb": None,
        }  # fmt: skip

    def set_lora(self, body: dict[str, Any]) -> dict[str, Any]:
        self.loads.append(body["lora_path"])
        self.path = body["lora_path"]
        if not self.ignores:
            with _ONE, quiet():
                self.pipeline.unload_lora_weights()
                self.pipeline.load_lora_weights(self.path)
        return {"status": "ok", "message": "Successfully set LoRA adapter(s)"}

    def restart(self) -> None:
        """It comes back without an adapter."""
        with _ONE:
            self.path = None
            self.pipeline.unload_lora_weights()

    def list_loras(self) -> dict[str, Any]:
        one = {"nickname": "tastemaker", "path": self.path, "merged": False, "mode": "unmerged"}
        return {"loaded_adapters": [], "active": {} if self.path is None else {"transformer": [one]}}

    def checksums(self, body: dict[str, Any]) -> dict[str, str]:
        assert body == {"module_names": ["transformer"]}
        found = hashlib.sha256()
        with _ONE:
            for name, value in sorted(self.pipeline.transformer.named_parameters()):
                found.update(name.encode() + value.detach().numpy().tobytes())
        return {"transformer": self.checksum(found.hexdigest())}


def app(engine: Engine) -> FastAPI:
    made = FastAPI()

    def generate(body: dict[str, Any]) -> Response:
        return engine.generate(body)

    def set_lora(body: dict[str, Any]) -> dict[str, Any]:
        return engine.set_lora(body)

    def checksums(body: dict[str, Any]) -> dict[str, str]:
        return engine.checksums(body)

    made.post("/rollout/generate")(generate)
    made.post("/v1/set_lora")(set_lora)
    made.get("/v1/list_loras")(engine.list_loras)
    made.post("/get_weights_checksum")(checksums)

    @made.middleware("http")
    async def keep_headers(request: Any, call_next: Any) -> Any:
        engine.headers.append(dict(request.headers))
        return await call_next(request)

    return made


@contextmanager
def running(engine: Engine, port: int = 0) -> Iterator[tuple[str, Callable[[], None]]]:
    """The address of a server of this engine, and what ends it as soon as its requests are answered."""
    listener = listen("127.0.0.1", port)
    server = uvicorn.Server(uvicorn.Config(app(engine), log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()

    def stop() -> None:
        server.should_exit = True

    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", stop
    finally:
        stop()
        thread.join(20)
        listener.close()


def slow(seconds: float) -> Callable[[int], None]:
    return lambda number: time.sleep(seconds)


def fails(status: int, said: str) -> Callable[[int], None]:
    def raise_it(number: int) -> None:
        raise HTTPException(status, said)

    return raise_it
