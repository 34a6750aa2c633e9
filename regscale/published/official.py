"""Official SiT weights in regscale's convention of time, exactly.

Official SiT counts time from noise to data and its velocity is data - noise; REPA, REG and
regscale count from data to noise. It also predicts a second half of channels that is not used.
"""

from collections.abc import Mapping
from math import log

import torch
from torch import Tensor

from regscale.published.layout import TIME_FEATURES, Architecture

FIRST = "t_embedder.mlp.0.weight"
LAST = ("final_layer.linear.weight", "final_layer.linear.bias")


def from_official(state: Mapping[str, Tensor], model: Architecture) -> dict[str, Tensor]:
    """Weights of which the velocity at t is minus the official velocity at 1 - t."""
    assert model.doubled, "only official SiT has a final layer of twice the width"
    changed = {name: -velocity_rows(state[name], model) for name in LAST}
    return {**state, FIRST: reverse_time(state[FIRST]), **changed}


def velocity_rows(rows: Tensor, model: Architecture) -> Tensor:
    """Of rows ordered (p, p, 2C), as `nhwpqc` in SiT's unpatchify, the first C of each 2C."""
    p, C = model.patch_size, model.channels
    places = rows.reshape(p, p, 2 * C, *rows.shape[1:])
    return places[:, :, :C].reshape(p * p * C, *rows.shape[1:])


def reverse_time(weight: Tensor) -> Tensor:
    """W' (D, 256) with W' f(t) = W f(1 - t), f(t) = [cos(t w), sin(t w)].

    cos(w - wt) = cos w cos wt + sin w sin wt and sin(w - wt) = sin w cos wt - cos w sin wt.
    """
    half = TIME_FEATURES // 2
    w = torch.exp(-log(10000) * torch.arange(half) / half).double()  # as fp32 features have them
    for_cos, for_sin = weight.double().split(half, dim=1)
    reversed_cos = for_cos * w.cos() + for_sin * w.sin()
    reversed_sin = for_cos * w.sin() - for_sin * w.cos()
    return torch.cat([reversed_cos, reversed_sin], dim=1).to(weight.dtype)
