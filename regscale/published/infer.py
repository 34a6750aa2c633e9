"""The architecture of a model from the shapes of its weights; every name is accounted for."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import isqrt
from typing import Any

from regscale.errors import RegscaleError
from regscale.models.sit import SIZES
from regscale.published.layout import Architecture, Shape, shapes

HEADS = {width: heads for _, width, heads in SIZES.values()}
FIX = "Give a checkpoint of REG, REPA or SiT, or a run whose parameters have their names."


def architecture(found: Mapping[str, Shape], where: object) -> Architecture:
    """The model of which `found` is exactly the state, except that pos_embed may be absent."""
    width, channels, patch, columns = _shape(found, "x_embedder.proj.weight", where, 4)
    if patch != columns:
        raise _misfit(where, "patches are square", f"{patch}x{columns}")
    token = found.get("final_layer.linear_cls.weight")
    model = Architecture(
        depth=_count(found, "blocks"),
        hidden_size=width,
        patch_size=patch,
        channels=channels,
        mlp_hidden=_shape(found, "blocks.0.mlp.fc1.weight", where, 2)[0],
        num_labels=_shape(found, "y_embedder.embedding_table.weight", where, 2)[0],
        latent_side=None,
        head_width=found.get("blocks.0.attn.q_norm.weight", (None,))[0],
        token_width=None if token is None else token[0],
        projectors=tuple(
            (
                _shape(found, f"projectors.{number}.0.weight", where, 2)[0],
                _shape(found, f"projectors.{number}.4.weight", where, 2)[0],
            )
            for number in range(_count(found, "projectors"))
        ),
        doubled=_is_doubled(found, patch * patch * channels, where),
    )
    _check_exact({n: s for n, s in found.items() if n != "pos_embed"}, shapes(model), where)
    return replace(model, latent_side=_latent_side(found, model, where))


def num_heads(
    model: Architecture, given: int | None, args: Mapping[str, Any], where: object
) -> int:
    """As given, from normalised queries, from the file's arguments, or that of a known width."""
    named = args.get("num_heads")
    if model.head_width is not None:
        heads = model.hidden_size // model.head_width
        if given not in (None, heads):
            raise RegscaleError(
                f"{where}: --num-heads",
                f"its normalised queries have width {model.head_width} of {model.hidden_size}",
                found=given,
                fix=f"Leave it out, or give {heads}.",
            )
        return heads
    if given is not None:
        return given
    if isinstance(named, int):
        return named
    if model.hidden_size in HEADS:
        return HEADS[model.hidden_size]
    known = ", ".join(f"{width} ({heads} heads)" for width, heads in HEADS.items())
    raise RegscaleError(
        where,
        "does not tell the number of attention heads",
        found=f"width {model.hidden_size}; known are {known}",
        fix="Give --num-heads N.",
    )


def _shape(found: Mapping[str, Shape], name: str, where: object, num_sides: int) -> Shape:
    if len(found.get(name, ())) != num_sides:
        has = found[name] if name in found else f"{len(found)} others, as {_listed(found)}"
        raise _misfit(where, f"has no {name} of {num_sides} sides", has)
    return found[name]


def _count(found: Iterable[str], part: str) -> int:
    numbers = {int(m[1]) for name in found if (m := re.match(rf"{part}\.(\d+)\.", name))}
    return len(numbers)


def _latent_side(found: Mapping[str, Shape], model: Architecture, where: object) -> int | None:
    """Places are those of a square of patches, after one for the token."""
    if "pos_embed" not in found:
        return None
    one, rows, width = _shape(found, "pos_embed", where, 3)
    num_patches = rows - (model.token_width is not None)
    if num_patches < 1 or isqrt(num_patches) ** 2 != num_patches:
        raise _misfit(where, "pos_embed has rows for a square of patches", f"{num_patches} patches")
    if (one, width) != (1, model.hidden_size):
        raise _misfit(where, f"pos_embed has width {model.hidden_size}", found["pos_embed"])
    return isqrt(num_patches) * model.patch_size


def _is_doubled(found: Mapping[str, Shape], values: int, where: object) -> bool:
    rows = _shape(found, "final_layer.linear.weight", where, 2)[0]
    if rows not in (values, 2 * values):
        raise _misfit(where, f"final_layer.linear has {values} or {2 * values} rows", rows)
    return rows == 2 * values


def _check_exact(found: Mapping[str, Shape], want: Mapping[str, Shape], where: object) -> None:
    missing = [name for name in want if name not in found]
    surplus = [name for name in found if name not in want]
    other = [f"{n} {found[n]}, not {want[n]}" for n in want if n in found and found[n] != want[n]]
    parts = {"without": missing, "besides": surplus, "misshapen": other}
    if any(parts.values()):
        raise _misfit(
            where,
            "does not hold exactly the published parameters",
            "; ".join(f"{what} {_listed(names)}" for what, names in parts.items() if names),
        )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _misfit(where: object, what: str, found: object) -> RegscaleError:
    return RegscaleError(where, what, found=found, fix=FIX)
