"""Guided Euler-Maruyama sampling twice: by regscale's sampler, and by a plain loop."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks._step_case import CONDITIONER, LATENT_SHAPE, NUM_CLASSES, TOKEN_SHAPE
from regscale import path as diffusion_path
from regscale.autoencoders import identity
from regscale.models.sit import SiT
from regscale.sampling import GuidanceConfig, Sampler
from regscale.sampling.solvers import euler_maruyama
from regscale.types import Labels

SCALE, LAST_TIME = 2.3, 0.04
Noise = Callable[[int], tuple[Tensor, Tensor]]  # latents and tokens of step 0 (the start), 1, ...


def regscale_sampler(model: SiT, num_steps: int, device: torch.device) -> Sampler:
    """As `python -m regscale.sample` builds it; the state is float64, the noise of each seed."""
    config = euler_maruyama.Config(num_steps=num_steps, last_time=LAST_TIME)
    return Sampler(
        model=model,
        conditioner=CONDITIONER,
        autoencoder=identity.build(identity.Config()),
        solver=euler_maruyama.build(config, diffusion_path.build("linear")),
        latent_shape=LATENT_SHAPE,
        token_shapes=(TOKEN_SHAPE,),
        device=device,
    )


def sample_by_regscale(sampler: Sampler, labels: Tensor) -> Tensor:
    """Latents at t = 0 of the seeds 0, 1, 2, ..."""
    guidance = GuidanceConfig(scale=SCALE)
    return sampler.state(Labels(labels), range(len(labels)), guidance).latents


@torch.no_grad()
def sample_plainly(model: SiT, labels: Tensor, noise: Noise, *, num_steps: int) -> Tensor:
    """Latents at t = 0, in float64 between the forwards.

    On the linear path with w = 2t the drift v - t score is (2 - t) v + x (SiT, eq. 5 and 9).
    """
    x, z = noise(0)
    both = Labels(torch.cat([labels, torch.full_like(labels, NUM_CLASSES)]))
    times = torch.linspace(1, LAST_TIME, num_steps, dtype=torch.float64).tolist()
    for step, (t, t_next) in enumerate(pairwise([*times, 0.0]), start=1):
        now = torch.full((2 * len(labels),), t, device=labels.device)
        tokens = torch.cat([z, z]).float()
        made = model(torch.cat([x, x]).float(), (tokens,), now, (now,), both)
        velocity, token_velocity = (_guided(v.double()) for v in (made.latents, made.tokens[0]))
        dt = t_next - t
        x = x + dt * ((2 - t) * velocity + x)
        z = z + dt * ((2 - t) * token_velocity + z)
        if t_next > 0:
            dx, dz = noise(step)
            x, z = x + (-2 * t * dt) ** 0.5 * dx, z + (-2 * t * dt) ** 0.5 * dz
    return x


def _guided(twice: Tensor) -> Tensor:
    conditional, unconditional = twice.chunk(2)
    return unconditional + SCALE * (conditional - unconditional)


def device_noise(batch_size: int, device: torch.device) -> Noise:
    """Numbers of the device's own generator: they depend on the batch and on the device."""

    def noise(step: int) -> tuple[Tensor, Tensor]:
        del step
        latents = torch.randn(batch_size, *LATENT_SHAPE, device=device, dtype=torch.float64)
        return latents, torch.randn(batch_size, *TOKEN_SHAPE, device=device, dtype=torch.float64)

    return noise
