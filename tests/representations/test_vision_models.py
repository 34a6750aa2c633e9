"""Targets from the transformers library: its own forward and its own processors on tiny models."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    IJepaConfig,
    IJepaModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import (
    Siglip2ImageProcessorPil,
    convert_image_to_patches,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from regscale.config import Invalid, plugin
from regscale.errors import RegscaleError
from regscale.representations._pixels import CLIP, HALVES, IMAGENET, Preprocessing

SIDE, PATCH = 32, 8
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "patch_size": PATCH,
    "image_size": SIDE,
}
CLIP_TINY = CLIPConfig(
    vision_config=TINY | {"projection_dim": 12},
    text_config=TINY | {"vocab_size": 32, "projection_dim": 12},
    projection_dim=12,
)
# kind: the saved model, the model whose forward is the reference, its processor
CASES = {
    "dinov3": (
        DINOv3ViTModel(DINOv3ViTConfig(num_register_tokens=3, **TINY)),
        DINOv3ViTModel,
        None,  # the library has it for torchvision alone
    ),
    "siglip2": (
        SiglipVisionModel(SiglipVisionConfig(**TINY)),
        SiglipVisionModel,
        SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}),
    ),
    "siglip2 naflex": (
        Siglip2VisionModel(Siglip2VisionConfig(**TINY, num_patches=(SIDE // PATCH) ** 2)),
        Siglip2VisionModel,
        Siglip2ImageProcessorPil(patch_size=PATCH, max_num_patches=(SIDE // PATCH) ** 2),
    ),
    "clip": (
        CLIPModel(CLIP_TINY),
        CLIPVisionModel,
        CLIPImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
    ),
    "clip projection": (CLIPModel(CLIP_TINY), CLIPVisionModelWithProjection, None),
    "mae": (
        ViTMAEForPreTraining(
            ViTMAEConfig(
                decoder_hidden_size=16,
                decoder_num_hidden_layers=1,
                decoder_num_attention_heads=2,
                decoder_intermediate_size=32,
                **TINY,
            )
        ),
        ViTMAEModel,
        ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}),
    ),
    "ijepa": (
        IJepaModel(IJepaConfig(**TINY)),
        IJepaModel,
        ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_mean=[0.485, 0.456, 0.4]),
    ),
}
HEADED = {"dinov3": 4, "mae": 1}  # states before the patches


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny models whose parameters are all random, so that each of them is seen."""
    root = tmp_path_factory.mktemp("vision")
    torch.manual_seed(0)
    for name, (model, _, processor) in CASES.items():
        for parameter in model.requires_grad_(False).parameters():
            parameter.normal_(std=0.3)
        model.save_pretrained(root / name)
        if processor is not None:
            processor.save_pretrained(root / name)
    return {name: str(root / name) for name in CASES}


@pytest.fixture(scope="module")
def images():
    chance = torch.Generator().manual_seed(1)
    # bicubic does not leave 0 to 255 here: Pillow would clip it after each direction
    return torch.randint(50, 206, (2, 3, 40, 40), generator=chance).to(torch.uint8)


def target_of(name, folder, **settings):
    kind, _, option = name.partition(" ")
    module = plugin("regscale.representations", kind)
    options = {"projection": True} if option == "projection" else {}
    return module.build(module.Config(model=folder, **options, **settings))


def reference(name, folder, pixels):
    """(token, patches) of the library's own forward on `pixels`."""
    kind, _, option = name.partition(" ")
    options = {"mask_ratio": 0.0} if kind == "mae" else {}
    model = CASES[name][1].from_pretrained(folder, dtype=torch.float32, **options).eval()
    if option == "naflex":
        patches = torch.stack(
            [torch.from_numpy(convert_image_to_patches(p.numpy(), PATCH)) for p in pixels]
        )
        grid = [[side // PATCH for side in pixels.shape[-2:]]] * len(pixels)
        mask = torch.ones(patches.shape[:2], dtype=torch.long)
        out = model(patches, pixel_attention_mask=mask, spatial_shapes=torch.tensor(grid))
        return out.pooler_output, out.last_hidden_state
    flexible = {} if kind == "dinov3" else {"interpolate_pos_encoding": True}
    out = model(pixels, **flexible)
    if option == "projection":
        return out.image_embeds, None
    hidden = out.last_hidden_state
    if kind == "mae":  # drawn noise shuffles the patches; ids_restore puts them back
        order = out.ids_restore[..., None].expand(-1, -1, hidden.shape[-1])
        return hidden[:, 0], hidden[:, 1:].gather(1, order)
    if kind == "ijepa":
        return hidden.mean(1), hidden
    if kind == "clip":
        return out.pooler_output, hidden[:, 1:]
    if kind == "dinov3":
        return out.pooler_output, hidden[:, 4:]
    return out.pooler_output, hidden


@pytest.mark.parametrize("size", [None, 48])
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_features_are_those_of_the_librarys_forward(folders, images, name, size):
    target = target_of(name, folders[name], size=size)
    features = target(images)
    pixels = target.preprocessing(images, target.input_size(40, 40))
    token, patches = reference(name, folders[name], pixels)
    # the order of sums differs: the mask of NaFlex, the shuffled patches of MAE
    torch.testing.assert_close(features.tokens[:, 0], token, rtol=0, atol=2e-5)
    assert features.tokens.shape == (2, target.num_tokens, target.width)
    if patches is None:
        assert features.patches is None
        assert target.grid(40, 40) is None
        return
    rows, columns = target.grid(40, 40)
    assert (rows, columns) == {None: (5, 5) if name == "dinov3" else (4, 4), 48: (6, 6)}[size]
    torch.testing.assert_close(features.patches, patches, rtol=0, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in CASES if name != "clip projection"])
def test_the_mean_of_the_patches_can_be_the_token(folders, images, name):
    target, own = (target_of(name, folders[name], token=token) for token in ("mean", "class"))
    features = target(images)
    torch.testing.assert_close(features.tokens[:, 0], own(images).patches.mean(1))
    assert features.tokens.shape == (2, target.num_tokens, target.width)
    assert target.identity != own.identity


@torch.no_grad()
def test_registers_can_be_tokens_behind_the_class_token(folders, images):
    target = target_of("dinov3", folders["dinov3"], token="registers")
    assert target.num_tokens == 4
    pixels = target.preprocessing(images, target.input_size(40, 40))
    hidden = DINOv3ViTModel.from_pretrained(folders["dinov3"])(pixels).last_hidden_state
    torch.testing.assert_close(target(images).tokens, hidden[:, :4], rtol=0, atol=2e-5)
    assert target.identity != target_of("dinov3", folders["dinov3"]).identity
    published = "facebook/dinov3-vitl16-pretrain-lvd1689m"
    assert target_of("dinov3", published, token="registers").num_tokens == 5


def test_a_token_that_the_model_does_not_give_is_refused(folders):
    with pytest.raises(Invalid, match="token: is class: the model gives no patches; found mean"):
        target_of("clip projection", folders["clip projection"], token="mean")
    with pytest.raises(Invalid, match="is class or mean: the model has no registers"):
        target_of("siglip2", folders["siglip2"], token="registers")


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[2] is not None])
def test_the_input_is_the_librarys_own_up_to_its_rounding(folders, images, name):
    target = target_of(name, folders[name])
    ours = target.preprocessing(images, (SIDE, SIDE))
    processor = CASES[name][2]
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    given = torch.tensor(np.stack(processor(pictures)["pixel_values"]))
    if name == "siglip2 naflex":
        cut = [convert_image_to_patches(image.numpy(), PATCH) for image in ours]
        ours = torch.from_numpy(np.stack(cut))
    # Pillow rounds to whole levels after the rows and after the columns: half a level each,
    # the first times the absolute weights of the second filter, at most 1.3 for bicubic
    level = 1 / 255 / min(target.preprocessing.std)
    assert (ours - given).abs().max() < 1.15 * level
    assert (ours - given).abs().mean() < 0.35 * level
    values = json.loads((Path(folders[name]) / "preprocessor_config.json").read_text())
    assert list(target.preprocessing.mean) == list(values["image_mean"])


@pytest.mark.parametrize("preprocessing", [CLIP, HALVES, IMAGENET._replace(filter="bilinear")])
@pytest.mark.parametrize("size", [(32, 32), (24, 56)])
def test_resizing_is_pillows_in_floating_point(images, preprocessing: Preprocessing, size):
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    expected = torch.empty(2, 3, *size)
    for n, image in enumerate(images):
        for channel, plane in enumerate(image):
            picture = Image.fromarray(plane.numpy().astype(np.float32))  # mode F is not rounded
            resized = picture.resize(size[::-1], filters[preprocessing.filter])
            level = torch.tensor(np.asarray(resized)).clamp(0, 255) / 255
            mean, std = preprocessing.mean[channel], preprocessing.std[channel]
            expected[n, channel] = (level - mean) / std
    torch.testing.assert_close(preprocessing(images, size), expected, rtol=0, atol=2e-5)


def test_an_image_of_the_encoders_size_is_not_resampled(images):
    ours = HALVES(images, (40, 40))
    torch.testing.assert_close(ours, images / 127.5 - 1, rtol=0, atol=1e-6)


def test_dinov3_gets_what_the_librarys_processor_gives(folders, images):
    pytest.importorskip("torchvision")
    from transformers import DINOv3ViTImageProcessor

    target = target_of("dinov3", folders["dinov3"])
    processor = DINOv3ViTImageProcessor(size={"height": SIDE, "width": SIDE})
    given = processor(list(images), return_tensors="pt")["pixel_values"]
    ours = target.preprocessing(images, (SIDE, SIDE))
    torch.testing.assert_close(ours, given, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_bf16_gives_fp32_features_near_the_exact_ones(folders, images, name):
    exact, again = target_of(name, folders[name])(images), target_of(name, folders[name])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(again(images).tokens, exact.tokens)
    coarse = target_of(name, folders[name], dtype="bf16")(images)
    assert coarse.tokens.dtype == torch.float32
    assert not torch.equal(coarse.tokens, exact.tokens)
    likeness = torch.cosine_similarity(coarse.tokens, exact.tokens, dim=-1)
    assert likeness.min() > 0.99  # bf16 has 8 bits


@pytest.mark.parametrize("name", CASES)
def test_identity_is_of_weights_preprocessing_and_size(folders, name, tmp_path):
    first, again = (target_of(name, folders[name]) for _ in range(2))
    assert "model" not in vars(first)  # the folder's config.json was enough until here
    other = target_of(name, folders[name], size=48)
    names = {first.identity, other.identity, target_of(name, folders[name], dtype="bf16").identity}
    assert first.identity == again.identity
    assert len(names) == 3
    assert first.identity.startswith(name.split()[0] + "-")
    first.preprocessing = first.preprocessing._replace(mean=(0.1, 0.2, 0.3))
    del first.identity
    assert first.identity != again.identity


PUBLISHED = [
    ("dinov3", "facebook/dinov3-vitb16-pretrain-lvd1689m", 768, (16, 16), (32, 32)),
    ("dinov3", "facebook/dinov3-vith16plus-pretrain-lvd1689m", 1280, (16, 16), (32, 32)),
    ("siglip2", "google/siglip2-base-patch16-256", 768, (16, 16), (16, 16)),
    ("siglip2", "google/siglip2-so400m-patch14-384", 1152, (27, 27), (27, 27)),
    ("siglip2", "google/siglip2-so400m-patch16-naflex", 1152, (16, 16), (16, 16)),
    ("clip", "openai/clip-vit-large-patch14", 1024, (16, 16), (16, 16)),
    ("clip projection", "openai/clip-vit-large-patch14", 768, None, None),
    ("mae", "facebook/vit-mae-huge", 1280, (16, 16), (16, 16)),
    ("ijepa", "facebook/ijepa_vith14_1k", 1280, (16, 16), (16, 16)),
]


@pytest.mark.parametrize(("name", "model", "width", "at_256", "at_512"), PUBLISHED)
def test_published_models_are_described_without_weights(name, model, width, at_256, at_512):
    target = target_of(name, model)
    assert (target.width, target.num_tokens) == (width, 1)
    assert (target.grid(256, 256), target.grid(512, 512)) == (at_256, at_512)
    assert "model" not in vars(target)


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_a_wide_image_keeps_its_shape_in_whole_patches(folders, images, name):
    wide = images.repeat(1, 1, 1, 2)[..., :66]  # 40 x 66
    target = target_of(name, folders[name])
    features = target(wide)
    if features.patches is not None:
        rows, columns = target.grid(40, 66)
        assert (rows, columns) == ((5, 8) if name == "dinov3" else (4, 6))
        assert features.patches.shape == (2, rows * columns, target.width)
    token, _ = reference(name, folders[name], target.preprocessing(wide, target.input_size(40, 66)))
    torch.testing.assert_close(features.tokens[:, 0], token, rtol=0, atol=2e-5)


def test_what_cannot_be_read_is_refused(tmp_path, folders):
    with pytest.raises(RegscaleError, match=r"clip: model .*none: cannot be loaded"):
        target_of("clip", str(tmp_path / "none"))
    with pytest.raises(RegscaleError, match=r"mae: model .* is not of type vit_mae; found ijepa"):
        target_of("mae", folders["ijepa"])
    model = CASES["ijepa"][0]
    kept = {n: t for n, t in model.state_dict().items() if n != "layernorm.weight"}
    model.save_pretrained(tmp_path, state_dict=kept)
    with pytest.raises(RegscaleError, match=r"ijepa: .*weights without layernorm\.weight"):
        _ = target_of("ijepa", str(tmp_path)).model
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"resample": 1}')
    with pytest.raises(RegscaleError, match=r"config\.json with resample 1, not 2 or 3"):
        _ = target_of("ijepa", str(tmp_path)).preprocessing
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(RegscaleError, match="cannot be loaded"):
        _ = target_of("ijepa", str(tmp_path)).preprocessing
