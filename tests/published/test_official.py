"""Official SiT weights, folded, give minus the official velocity at the reversed time."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from regscale.conditioning import class_label
from regscale.layers.position import time_features
from regscale.models import Parts
from regscale.models.sit import Config, SiT, build
from regscale.published import Architecture, from_official
from regscale.published.official import reverse_time, velocity_rows
from regscale.types import Labels

OFFICIAL = Architecture(
    depth=2,
    hidden_size=64,
    patch_size=2,
    channels=3,
    mlp_hidden=256,
    num_labels=11,
    latent_side=8,
    doubled=True,
)


def backbone(channels: int = 3) -> SiT:
    conditioner = class_label.build(class_label.Config(num_classes=10, names=None))
    parts = Parts(
        latent_shape=(channels, 8, 8),
        tokens=(),
        aligned=(),
        embedder_slot=conditioner.slot,
        embedder=conditioner.embedder,
    )
    return build(Config(depth=2, hidden_size=64, num_heads=4), parts)


class OfficialSiT(nn.Module):
    """SiT's own forward: unpatchify 2C channels as nhwpqc -> nchpwq, keep the first C."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.body = backbone()
        self.body.final_layer.linear = nn.Linear(64, 2 * 2 * 6)
        self.body._unpatchify = lambda x, grid: x  # type: ignore[method-assign]
        self.body.load_state_dict(state)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        out = self.body(x, (), t, (), Labels(y)).latents
        h = w = 4
        out = out.reshape(x.shape[0], h, w, 2, 2, 6)
        out = torch.einsum("nhwpqc->nchpwq", out).reshape(x.shape[0], 6, h * 2, w * 2)
        return out.chunk(2, dim=1)[0]


def test_the_folded_model_is_the_official_one_with_time_turned_around(
    make_state: Callable[[Architecture], dict[str, Tensor]],
) -> None:
    state = make_state(OFFICIAL)
    official, folded = OfficialSiT(state).double(), backbone()
    folded.load_state_dict(from_official(state, OFFICIAL))
    folded.double()
    g = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, 8, 8, generator=g, dtype=torch.float64)
    t = torch.tensor([0.0, 0.04, 0.3, 0.5, 0.9, 1.0], dtype=torch.float64)
    y = torch.arange(6) + 5  # "no class" among them
    with torch.no_grad():
        want = -official(x, 1 - t, y)
        made = folded(x, (), t, (), Labels(y)).latents
    # weights of 0.2 make velocities near 1; W' is rounded to fp32 and so are the angles of t
    assert float(want.abs().mean()) > 0.3
    torch.testing.assert_close(made, want, rtol=2e-5, atol=2e-5)


def test_turning_time_around_is_exact_and_its_own_inverse() -> None:
    g = torch.Generator().manual_seed(1)
    weight = torch.randn(8, 256, generator=g, dtype=torch.float64)
    # t and 1 - t are exact binary fractions, so the angles differ by rounding of t * w alone
    t = torch.arange(0, 65) / 64
    want = time_features(1 - t).double() @ weight.T
    torch.testing.assert_close(
        time_features(t).double() @ reverse_time(weight).T, want, rtol=0, atol=2e-6
    )
    torch.testing.assert_close(reverse_time(reverse_time(weight)), weight, rtol=0, atol=1e-12)


def test_of_each_place_in_a_patch_the_first_half_of_channels_is_kept() -> None:
    model = replace(OFFICIAL, channels=2)
    rows = torch.tensor([[10 * p + q + 100 * c for c in range(4)] for p in (1, 2) for q in (1, 2)])
    kept = velocity_rows(rows.reshape(-1), model)
    assert kept.tolist() == [11, 111, 12, 112, 21, 121, 22, 122]
