"""Three loops that train the same model on the same batches: regscale's own, a plain one, and one
with the habits of the published loop.

The precision is one policy for the first two: in bf16 the matrix products of blocks and projectors
run in bf16 from fp32 weights (`Linear.compute_dtype`). The published habit is autocast.
"""

from importlib import import_module
from types import SimpleNamespace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks._step_case import (
    ALIGNMENT_WEIGHT,
    CONDITIONER,
    DROPOUT,
    EMA_DECAY,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    TOKEN_WEIGHT,
    Case,
    Tensors,
)
from regscale import path as diffusion_path
from regscale.autoencoders import identity
from regscale.cluster import Cluster
from regscale.encoding import Towers
from regscale.models.sit import SiT
from regscale.objective import DrawConfig, Weights
from regscale.parallel import DTYPES, Engine, OptimizerConfig, set_precision
from regscale.schedule import Config as ScheduleConfig
from regscale.schedule import Schedule
from regscale.training import Ema
from regscale.training.loop import update
from regscale.training.window import Window
from regscale.types import Batch, Labels


class Loop(Protocol):
    """Holds a model and everything that trains it."""

    model: SiT

    def step(self, batch: Batch, given: Tensors) -> None:
        """One update. The two hold the same samples; a loop takes one of them."""
        ...

    def loss(self) -> float:
        """Of the last step."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """Copies of all of them, whole and on the CPU."""
        ...

    def averages(self) -> list[Tensor]:
        """Of the parameters, in their order."""
        ...


ENGINES: dict[str, tuple[str, dict[str, int]]] = {  # by name: the kind, and what it is told
    "single": ("single", {}),
    "ddp": ("ddp", {}),
    "fsdp2": ("fsdp2", {}),
    "zero1": ("zero", {"stage": 1}),
    "zero2": ("zero", {"stage": 2}),
    "zero3": ("zero", {"stage": 3}),
}


class Regscale:
    """`training.loop.update` on an engine, and the sums that a report reads."""

    def __init__(self, case: Case, device: torch.device) -> None:
        cluster = Cluster(rank=0, world_size=1, local_rank=0, device=device)
        name, options = ENGINES[case.engine]
        kind = import_module(f"regscale.parallel.{name}")  # DeepSpeed takes seconds to import
        engine: Engine = kind.build(
            kind.Config(precision=case.precision, compile=case.compile, **options),
            case.model(),
            optimizer=OptimizerConfig(learning_rate=LEARNING_RATE, max_grad_norm=MAX_GRAD_NORM),
            seed=0,
            cluster=cluster,
        )
        self.model: SiT = engine.model
        pixels = identity.build(identity.Config())
        self._job = SimpleNamespace(  # what `update` reads of a Job
            config=SimpleNamespace(micro_batch=None),
            cluster=cluster,
            towers=Towers(pixels, {}, CONDITIONER, ("dinov2",), ("dinov2",), self.model.grid),
            engine=engine,
            ema=Ema(engine.shards(), [EMA_DECAY]),
            path=diffusion_path.build("linear"),
            times=DrawConfig(),
            schedule=Schedule((ScheduleConfig(),)),
            weights=Weights((TOKEN_WEIGHT,), (ALIGNMENT_WEIGHT,)),
            dropout=DROPOUT,
        )
        names = ("loss", "denoise", "tokens_dinov2", "align_dinov2", "grad")
        self._window, self._values = Window(names, cluster), list[Tensor]()

    def step(self, batch: Batch, given: Tensors) -> None:
        del given
        self._values, result = update(self._job, batch)  # type: ignore[arg-type]
        self._window.add(self._values, result)

    def loss(self) -> float:
        return float(self._values[0])

    def weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self._job.engine.full_state()}

    def averages(self) -> list[Tensor]:
        held = self._job.ema.averages[EMA_DECAY]  # whole: there is one rank
        shapes = {shard.name: shard.shape for shard in self._job.engine.shards()}
        return [held[name].view(shapes[name]) for name, _ in self.model.named_parameters()]


class Plain:
    """Clipped, fused AdamW and a foreach average, nothing else: what 40 lines can do."""

    def __init__(self, case: Case, model: SiT) -> None:
        self.model, self._last = model, torch.zeros(())
        self._parameters = list(model.parameters())
        self._averages = [p.detach().clone() for p in self._parameters]
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True
        )
        set_precision(model, case.precision, tf32=True)
        if case.compile:
            for block in model.blocks:
                block.compile(fullgraph=True)

    def step(self, batch: Batch, given: Tensors) -> None:
        del batch
        t = given.times
        s, u = t[:, None, None, None], t[:, None, None]
        latents = (1 - s) * given.latents + s * given.noise
        tokens = (1 - u) * given.tokens + u * given.token_noise
        made = self.model(latents, (tokens,), t, (t,), Labels(given.labels))
        cosine = F.cosine_similarity(made.aligned[0].float(), given.features, dim=-1, eps=1e-12)
        denoising = F.mse_loss(made.latents.float(), given.noise - given.latents)
        of_tokens = F.mse_loss(made.tokens[0].float(), given.token_noise - given.tokens)
        loss = denoising + TOKEN_WEIGHT * of_tokens - ALIGNMENT_WEIGHT * cosine.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, MAX_GRAD_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(self._averages, self._parameters, 1 - EMA_DECAY)
        self._last = loss.detach()

    def loss(self) -> float:
        return float(self._last)

    def weights(self) -> dict[str, Tensor]:
        return _copies(self.model)

    def averages(self) -> list[Tensor]:
        return self._averages


class Published:
    """The habits of the published loop, restated: autocast, unfused AdamW, a Python loop over the
    samples for the alignment, an average parameter by parameter, five numbers fetched a step.

    It is never compiled.
    """

    def __init__(self, case: Case, model: SiT) -> None:
        self.model, self._last = model, [0.0]
        self._average = {name: p.detach().clone() for name, p in model.named_parameters()}
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, eps=1e-8
        )
        self._dtype = DTYPES[case.precision]

    def step(self, batch: Batch, given: Tensors) -> None:
        del batch
        with torch.autocast(
            given.times.device.type, self._dtype, enabled=self._dtype != torch.float32
        ):
            denoising, of_tokens, aligned = self._losses(given)
        loss = denoising + aligned * ALIGNMENT_WEIGHT + of_tokens * TOKEN_WEIGHT
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                self._average[name].mul_(EMA_DECAY).add_(p.data, alpha=1 - EMA_DECAY)
        gathered = (loss, denoising, aligned, of_tokens, norm)
        self._last = [value.mean().detach().item() for value in gathered]

    def _losses(self, given: Tensors) -> tuple[Tensor, Tensor, Tensor]:
        """Denoising, token velocity and alignment, each a mean over the batch."""
        s = given.times[:, None, None, None]
        u = given.times[:, None, None]
        latents = given.latents * (1 - s) + given.noise * s
        tokens = given.tokens * (1 - u) + given.token_noise * u
        t = given.times
        made = self.model(latents, (tokens,), t, (t,), Labels(given.labels))
        errors = (made.latents - (given.noise - given.latents)) ** 2
        token_errors = (made.tokens[0] - (given.token_noise - given.tokens)) ** 2
        aligned = torch.zeros((), device=t.device)
        for states, features in zip(made.aligned[0], given.features, strict=True):
            states, features = F.normalize(states, dim=-1), F.normalize(features, dim=-1)
            aligned = aligned + (-(features * states).sum(dim=-1)).mean()
        return errors.mean(), token_errors.mean(), aligned / len(t)

    def loss(self) -> float:
        return self._last[0]

    def weights(self) -> dict[str, Tensor]:
        return _copies(self.model)

    def averages(self) -> list[Tensor]:
        return list(self._average.values())


def _copies(model: SiT) -> dict[str, Tensor]:
    return {name: value.to("cpu", copy=True) for name, value in model.state_dict().items()}


def build(name: str, case: Case, start: dict[str, Tensor], device: torch.device) -> Loop:
    """The loop of this name; `start` holds the weights that all begin with."""
    if name == "regscale":
        return Regscale(case, device)
    model = case.model().to_empty(device=device)
    model.load_state_dict(start)
    return {"plain": Plain, "published_habits": Published}[name](case, model)
