"""SiT: published shapes, initial values and structure."""

import json
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from regscale.conditioning import class_label
from regscale.config import Invalid
from regscale.layers.initial import initial_values, materialise
from regscale.models import AlignPart, Parts, TokenPart
from regscale.models.sit import Config, SiT, build
from regscale.types import Labels, Prediction

SHAPES = json.loads((Path(__file__).parents[1] / "reference/state_dict_shapes.json").read_text())


def parts(
    *,
    tokens: tuple[TokenPart, ...] = (TokenPart(0, 1, 768),),
    aligned: tuple[AlignPart, ...] = (AlignPart(2, 768, 2048, 0, True),),
    latent_shape: tuple[int, int, int] = (4, 32, 32),
    classes: int = 1000,
) -> Parts:
    conditioner = class_label.build(class_label.Config(num_classes=classes, names=None))
    return Parts(
        latent_shape=latent_shape,
        tokens=tokens,
        aligned=aligned,
        embedder_slot=conditioner.slot,
        embedder=conditioner.embedder,
    )


def on_meta(config: Config, around: Parts) -> SiT:
    with torch.device("meta"):
        return build(config, around)


@pytest.mark.parametrize("size", ["B", "L", "XL"])
def test_names_shapes_and_counts_are_the_published_ones(size: str) -> None:
    want = SHAPES[f"SiT-{size}/2"]
    model = on_meta(Config(size=size), parts())  # type: ignore[arg-type]
    assert {n: list(t.shape) for n, t in model.state_dict().items()} == want["state"]
    assert sum(t.numel() for t in model.state_dict().values()) == want["parameters"]
    assert sum(p.numel() for p in model.parameters()) == want["trainable"]
    assert sum(p.numel() for p in model.projectors.parameters()) == want["projector_parameters"]


@pytest.mark.parametrize("size", ["S", "B", "L", "XL"])
@pytest.mark.parametrize("patch_size", [1, 2, 4, 8])
def test_every_size_and_patch_keeps_the_shapes_of_its_input(size: str, patch_size: int) -> None:
    model = on_meta(Config(size=size, patch_size=patch_size), parts())  # type: ignore[arg-type]
    x, token = torch.zeros(2, 4, 32, 32, device="meta"), torch.zeros(2, 1, 768, device="meta")
    t = torch.zeros(2, device="meta")
    made = model(x, (token,), t, (t,), Labels(torch.zeros(2, dtype=torch.int64, device="meta")))
    assert made.latents.shape == x.shape
    assert made.tokens[0].shape == token.shape
    assert made.aligned[0] is not None
    assert made.aligned[0].shape == (2, 1 + (32 // patch_size) ** 2, 768)


def test_building_the_largest_model_allocates_nothing() -> None:
    model = on_meta(Config(size="XL"), parts())
    assert all(t.is_meta for t in model.state_dict().values())


TINY = Config(depth=3, hidden_size=32, num_heads=4, patch_size=2)


def tiny(config: Config = TINY, **changes: object) -> SiT:
    around = {
        "tokens": (TokenPart(0, 1, 16),),
        "aligned": (AlignPart(2, 16, 24, 0, True),),
        "latent_shape": (4, 8, 8),
        "classes": 10,
    }
    model = on_meta(config, parts(**(around | changes)))  # type: ignore[arg-type]
    materialise(model, seed=0, device=torch.device("cpu"))
    return model


def run(model: SiT, batch: int = 2, seed: int = 0) -> Prediction:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, *model.parts.latent_shape, generator=g)
    tokens = tuple(
        torch.randn(batch, p.num_tokens, p.width, generator=g) for p in model.parts.tokens
    )
    t = torch.rand(batch, generator=g)
    made = model(x, tokens, t, (t,) * len(tokens), Labels(torch.arange(batch) % 10))
    assert isinstance(made, Prediction)
    return made


def rule(name: str) -> str:
    """The published rule for a parameter of REG's SiT."""
    if "adaLN_modulation" in name or name.startswith("final_layer.linear"):
        return "zeros"
    if name.endswith("bias"):
        return "zeros"
    if "norm" in name:
        return "ones"
    if "embedding_table" in name or name.startswith("t_embedder"):
        return "normal 0.02"
    return "xavier"


@pytest.mark.parametrize("qk_norm", [False, True])
def test_every_parameter_begins_by_the_published_rule(qk_norm: bool) -> None:
    config = Config(depth=2, hidden_size=128, num_heads=4, qk_norm=qk_norm)
    with torch.device("meta"):
        model = build(config, parts(aligned=(AlignPart(2, 768, 256, 0, True),)))
    seen = set()
    for name, value in initial_values(model, seed=0):
        if name == "pos_embed":
            assert float(value[0, 0].abs().max()) == 0  # the token's place is zero
            assert float(value.abs().max()) <= 1
            continue
        kind = rule(name)
        seen.add(kind)
        if kind in ("zeros", "ones"):
            assert (value == (kind == "ones")).all(), name
        elif kind == "normal 0.02":
            # n numbers: the deviation is known to 4 / sqrt(2 n)
            assert abs(float(value.std()) / 0.02 - 1) < 4 / (2 * value.numel()) ** 0.5, name
            assert abs(float(value.mean())) < 4 * 0.02 / value.numel() ** 0.5, name
        else:
            bound = (6 / (value[0].numel() + len(value))) ** 0.5
            assert 0.99 * bound < float(value.abs().max()) <= bound, name
            error = 4 / value.numel() ** 0.5
            assert abs(float(value.std()) * 3**0.5 / bound - 1) < error, name
    assert seen == {"zeros", "ones", "normal 0.02", "xavier"}


def test_initial_values_depend_on_the_seed_and_the_name_alone() -> None:
    model = on_meta(TINY, parts(latent_shape=(4, 8, 8)))
    first = dict(initial_values(model, seed=0))
    block = dict(initial_values(model.blocks[1], seed=0, prefix="blocks.1"))
    assert all(torch.equal(first[name], value) for name, value in block.items())
    other = dict(initial_values(model, seed=1))
    name = "blocks.1.mlp.fc1.weight"
    assert not torch.equal(first[name], other[name])
    assert not torch.equal(first[name], first["blocks.2.mlp.fc1.weight"])


def test_without_targets_no_parameter_of_theirs_exists() -> None:
    model = tiny(tokens=(), aligned=())
    names = "".join(model.state_dict())
    assert "cls" not in names
    assert "wg_norm" not in names
    assert "projectors" not in names
    assert model.pos_embed.shape == (1, 16, 32)
    made = run(model)
    assert made.tokens == ()
    assert made.aligned == ()


def shaken(model: SiT) -> SiT:
    """Away from the start, where blocks and heads are zero and hide what goes into them."""
    for name, p in model.named_parameters():
        chance = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        nn.init.normal_(p, std=0.1, generator=chance)
    return model


def leaves(made: Prediction) -> list[Tensor]:
    return [made.latents, *made.tokens, *(a for a in made.aligned if a is not None)]


def test_learnable_tokens_are_one_parameter_more_and_no_output() -> None:
    config = Config(size="B", learnable_tokens=3)
    plain, model = on_meta(Config(size="B"), parts()), on_meta(config, parts())
    more = model.state_dict().keys() - plain.state_dict().keys()
    assert more == {"learnable_tokens"}
    assert model.state_dict()["learnable_tokens"].shape == (1, 3, 768)
    without, with_them = (sum(p.numel() for p in m.parameters()) for m in (plain, model))
    assert with_them == without + 3 * 768
    made = [run(tiny(replace(TINY, learnable_tokens=k))) for k in (0, 3)]
    assert [x.shape for x in leaves(made[0])] == [x.shape for x in leaves(made[1])]


def test_learnable_tokens_begin_normal_and_their_places_add_nothing() -> None:
    model = tiny(replace(TINY, hidden_size=512, learnable_tokens=16))
    assert model.learnable_tokens is not None
    tokens = model.learnable_tokens.detach()
    # 8,192 numbers: the deviation is known to 4 / sqrt(2 n), the mean to 4 / sqrt(n)
    assert abs(float(tokens.std()) / 0.02 - 1) < 4 / (2 * tokens.numel()) ** 0.5
    assert abs(float(tokens.mean())) < 4 * 0.02 / tokens.numel() ** 0.5
    assert not model.pos_embed[0, 1:17].any()
    plain = tiny(replace(TINY, hidden_size=512))
    assert torch.equal(model.pos_embed[0, 17:], plain.pos_embed[0, 1:])


@pytest.mark.parametrize("entangled", [True, False])
def test_every_output_depends_on_learnable_tokens_and_gradients_reach_them(entangled: bool) -> None:
    around: dict[str, object] = {} if entangled else {
        "tokens": (), "aligned": (AlignPart(2, 16, 24, None, True),)
    }  # fmt: skip
    model = shaken(tiny(replace(TINY, learnable_tokens=2), **around))
    tokens = model.learnable_tokens
    assert tokens is not None
    before = leaves(run(model))
    for leaf in before:
        (gradient,) = torch.autograd.grad(leaf.square().sum(), tokens, retain_graph=True)
        assert (gradient.abs().amax(dim=2) > 0).all()
    with torch.no_grad():
        tokens.add_(1)
    assert all((a != b).any() for a, b in zip(before, leaves(run(model)), strict=True))


def test_learnable_tokens_stand_between_tokens_and_patches() -> None:
    model = shaken(tiny(replace(TINY, learnable_tokens=2)))
    seen: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    run(model)
    assert seen[0].shape == (2, 1 + 2 + 16, 32)
    assert model.learnable_tokens is not None
    assert torch.equal(seen[0][:, 1:3], model.learnable_tokens.expand(2, -1, -1))


def test_heads_and_projectors_read_the_same_places_with_learnable_tokens() -> None:
    def heads_alone(num: int) -> Prediction:
        model = tiny(
            replace(TINY, learnable_tokens=num),
            tokens=(TokenPart(0, 1, 16), TokenPart(1, 3, 8)),
            aligned=(AlignPart(1, 8, 24, 1, True), AlignPart(3, 16, 24, None, True)),
        )
        before = {name: p.clone() for name, p in model.named_parameters()}
        shaken(model)
        with torch.no_grad():
            for name, p in model.blocks.named_parameters(prefix="blocks"):
                p.copy_(before[name])  # whose gates are zero, so that no place sees another
        return run(model)

    pairs = zip(leaves(heads_alone(0)), leaves(heads_alone(2)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_no_learnable_token_is_the_same_model() -> None:
    plain, model = tiny(), tiny(replace(TINY, learnable_tokens=0))
    assert model.learnable_tokens is None
    assert plain.state_dict().keys() == model.state_dict().keys()
    pairs = zip(leaves(run(shaken(plain))), leaves(run(shaken(model))), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_several_targets_of_several_tokens_keep_their_order() -> None:
    model = tiny(
        tokens=(TokenPart(0, 1, 16), TokenPart(1, 3, 8)),
        aligned=(AlignPart(1, 8, 24, 1, True), AlignPart(3, 16, 24, None, True)),
    )
    made = run(model)
    assert [t.shape for t in made.tokens] == [(2, 1, 16), (2, 3, 8)]
    shapes = [a.shape for a in made.aligned]
    assert shapes == [(2, 3 + 16, 8), (2, 16, 16)]
    assert "cls_projectors2_slot1.weight" in model.state_dict()


def test_a_stopped_alignment_leaves_velocities_and_freezes_the_projector() -> None:
    model = tiny()
    for p in model.parameters():
        nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(p.numel()))
    before = run(model)
    model.stop_aligning(0)
    after = run(model)
    assert after.aligned == (None,)
    assert torch.equal(before.latents, after.latents)
    assert not any(p.requires_grad for p in model.projectors.parameters())


def test_a_rectangle_keeps_its_sides() -> None:
    assert run(tiny(latent_shape=(4, 8, 12))).latents.shape == (2, 4, 8, 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 30, "num_heads": 4}, "is a multiple of num_heads and of 4"),
        ({"depth": 0}, "is a positive number"),
        ({"learnable_tokens": -1}, "is a number of tokens; found -1"),
    ],
)
def test_impossible_sizes_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        Config(**change)  # type: ignore[arg-type]


def test_a_patch_that_does_not_divide_the_latents_is_refused() -> None:
    with pytest.raises(Invalid, match=r"divides the height of the latents; found 8 for 12"):
        on_meta(Config(patch_size=8), parts(latent_shape=(4, 12, 8)))


def test_a_depth_of_alignment_beyond_the_model_is_refused() -> None:
    with pytest.raises(Invalid, match=r"is a block of the model, 1 to 3; found 4"):
        on_meta(TINY, parts(aligned=(AlignPart(4, 768, 24, 0, True),)))
