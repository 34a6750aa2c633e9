"""What a loader costs besides its rate: the start and a resume, memory, and the encoder's calls."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import Dinov2Config, Dinov2Model

from benchmarks._data_made import Size
from regscale.autoencoders import sd_vae
from regscale.data import NoiseShapes, _fields, batches, shards
from regscale.data._index import opened
from regscale.data._tar import Member, walk
from regscale.prepare._encoders import Encoders
from regscale.prepare.encode import encode_shard
from regscale.representations import dinov2

NOISE = NoiseShapes(latents=(4, 32, 32), tokens=((1, 768),))  # SiT at 256 px with DINOv2-B's token


def source(folder: Path) -> shards.Shards:
    """Moments and labels, nothing opened yet."""
    return shards.build(shards.Config(urls=(str(folder),), fields=("moments", "labels")))


def starts(folder: Path, *, batch_size: int, num_workers: int, repeats: int) -> dict[str, float]:
    """Seconds from building the source to its first batch, by the place where the run goes on."""
    N = source(folder).num_samples
    places = {"start": 0, "50% of epoch 1": N // 2, "99% of epoch 1": N * 99 // 100}
    places["50% of epoch 3"] = 2 * N + N // 2
    seconds: dict[str, list[float]] = {name: [] for name in places}
    for _ in range(repeats):
        for name, start in places.items():
            began = perf_counter()
            data = source(folder)
            with closing(
                batches(
                    data,
                    NOISE,
                    seed=0,
                    start=start,
                    batch_size=batch_size,
                    num_workers=num_workers,
                )
            ) as made:
                next(made)
                seconds[name].append(perf_counter() - began)
    return {name: round(median(values), 4) for name, values in seconds.items()}


def memory(folder: Path, *, batch_size: int, num_workers: int, epochs: int) -> dict[str, Any]:
    """MiB that this process and its workers wrote and share with none, after each epoch."""
    data = source(folder)
    count = data.num_samples // batch_size
    own = []
    with closing(
        batches(data, None, seed=0, start=0, batch_size=batch_size, num_workers=num_workers)
    ) as made:
        for _ in range(epochs + 1):
            for _ in range(count):
                next(made)
            own.append(round(sum(map(_private_mib, [os.getpid(), *_children()])), 2))
    return {"mib": own, "growth_mib": round(own[-1] - own[0], 2)}


def _private_mib(process: int) -> float:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return sizes["Private_Dirty"] / 1024


def _children() -> list[int]:
    """The workers, whichever thread began them."""
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has just ended
            found += map(int, (task / "children").read_text().split())
    return found


def encoding(
    root: Path, pictures: Path, size: Size, *, batch: int, repeats: int, device: str = "cpu"
) -> dict[str, Any]:
    """`prepare encode` of one shard with tiny models, batch by batch and picture by picture."""
    shard = sorted(pictures.glob("*.tar"))[0]
    calls: list[int] = []
    encoders = _tiny_encoders(root, size, calls, torch.device(device))
    seconds: dict[int, list[float]] = {batch: [], 1: []}
    made: dict[int, dict[str, np.ndarray]] = {}
    counts: dict[int, int] = {}
    with ThreadPoolExecutor(2) as pool:
        for turn in range(repeats):
            for size_of_batch in (batch, 1)[:: 1 if turn % 2 else -1]:
                calls.clear()
                out = root / f"{size_of_batch}.tar"
                began = perf_counter()
                encode_shard(
                    shard,
                    out,
                    encoders,
                    identities=encoders.identities,
                    batch_size=size_of_batch,
                    pool=pool,
                    progress=lambda _: None,
                )
                seconds[size_of_batch].append(perf_counter() - began)
                made[size_of_batch], counts[size_of_batch] = _arrays(out), len(calls)
    num_samples = len(made[1]) // 2
    pairs = [b / a for a, b in zip(seconds[batch], seconds[1], strict=True)]
    return {
        "samples": num_samples,
        "batch_size": batch,
        "calls_of_two_models": counts[batch],
        "calls_wanted": 2 * -(-num_samples // batch),
        "largest_difference": max(
            float(np.abs(values - made[batch][name]).max()) for name, values in made[1].items()
        ),
        "rate_over_batch_1": round(median(pairs), 3),
    }


class _Counted:
    """An encoder that notes the pictures of each call."""

    def __init__(self, encoder: Any, calls: list[int]) -> None:
        self._encoder, self._calls = encoder, calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def __call__(self, images: torch.Tensor) -> Any:
        self._calls.append(len(images))
        return self._encoder(images)

    def encode(self, images: torch.Tensor) -> Any:
        self._calls.append(len(images))
        return self._encoder.encode(images)


def _tiny_encoders(root: Path, size: Size, calls: list[int], device: torch.device) -> Encoders:
    """A real AutoencoderKL and a real Dinov2Model of few channels, saved and loaded."""
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
    ).save_pretrained(root / "vae")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(image_size=56, patch_size=14, **sizes)).save_pretrained(root / "dino")
    autoencoder = sd_vae.build(sd_vae.Config(model=str(root / "vae"), factor=4)).to(device)
    target = dinov2.build(dinov2.Config(model=str(root / "dino"), size=56)).to(device)
    return Encoders(
        autoencoder=_Counted(autoencoder, calls),
        targets={"dinov2": _Counted(target, calls)},
        image_size=(size.image_size, size.image_size),
        dtype="fp32",
        flip=False,
        patches=False,
        device=device,
    )


def _arrays(shard: Path) -> dict[str, np.ndarray]:
    """The moments and tokens of a shard, by member."""
    with opened(shard) as (read, size):
        return {
            member.name: _fields.array(memoryview(read(member.start, member.size)))
            for member in walk(read, size)
            if isinstance(member, Member) and member.name.endswith(".npy")
        }
