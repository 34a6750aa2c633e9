"""Frozen text encoders: the library's own classes on tiny models, saved as published ones are."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import tests.sitecustomize  # noqa: F401
from regscale.conditioning import hf_text, t5
from regscale.config import Invalid
from regscale.errors import RegscaleError
from regscale.layers.initial import materialise
from regscale.types import Batch

spm = pytest.importorskip("sentencepiece")
transformers = pytest.importorskip("transformers")

PROMPTS = ["a red fox", "two small birds sit on a long branch above the river", "", "a red fox"]
CORPUS = [
    *PROMPTS,
    "the quick brown fox jumps over the lazy dog",
    "a lighthouse in fog near the sea with two boats and a bird",
    "three apples in a wooden bowl on the old table of my house",
]


def sentencepiece(path: Path, **options: Any) -> Path:
    """A trained sentencepiece model with T5's special tokens."""
    written = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20),
        model_writer=written,
        vocab_size=90,
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    path.write_bytes(written.getvalue())
    return path


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    sentencepiece(folder / "spiece.model", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "eos_token": "</s>"}
    settings |= {"unk_token": "<unk>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = transformers.T5Config(
        vocab_size=100, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)  # as on the hub
    return folder


def byte_tokenizer(folder: Path, *, side: str, begin: bool) -> None:
    """A byte-level BPE tokenizer, as Qwen's; with a begin token, as Gemma's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>", "<bos>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 2)]
        )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>",
        padding_side=side,
    ).save_pretrained(folder)  # fmt: skip


def decoder_folder(folder: Path, family: str, *, side: str = "right") -> Path:
    sizes = {"vocab_size": 400, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    config = {"qwen": transformers.Qwen3Config, "gemma": transformers.Gemma2Config}[family](
        **sizes, pad_token_id=0, eos_token_id=1, bos_token_id=2
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    byte_tokenizer(folder, side=side, begin=family == "gemma")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, t5_folder: Path) -> dict[str, Path]:
    made = {"t5": t5_folder}
    for family in ("qwen", "gemma"):
        made[family] = decoder_folder(tmp_path_factory.mktemp(family), family)
    return made


def conditioner(folders: dict[str, Path], name: str, **settings: Any) -> Any:
    module: Any = t5 if name == "t5" else hf_text
    settings = {"max_length": 32, **settings}
    return module.build(module.Config(model=str(folders[name]), **settings))


@pytest.fixture(params=["t5", "qwen", "gemma"])
def each(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Any:
    return conditioner(folders, request.param)


def batch(captions: list[str] | None) -> Batch:
    keys = tuple(str(i) for i in range(len(captions or [0])))
    positions = torch.zeros(len(keys), dtype=torch.int64)
    return Batch(keys=keys, positions=positions, captions=captions and tuple(captions))


def test_the_states_are_the_librarys_own(folders: dict[str, Path]) -> None:
    found = conditioner(folders, "t5").parse(PROMPTS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["t5"])
    model = transformers.T5EncoderModel.from_pretrained(folders["t5"]).eval()
    for row, prompt in enumerate(PROMPTS):
        given = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            own = model(**given).last_hidden_state[0]
        length = int(found.lengths[row])
        assert given["input_ids"][0, -1] == tokenizer.eos_token_id
        assert length == len(own)
        torch.testing.assert_close(found.tokens[row, :length], own, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.pooled[row], own.mean(dim=0), rtol=0, atol=1e-5)
    assert found.lengths[2] == 1  # the end alone


@pytest.mark.parametrize("family", ["qwen", "gemma"])
@pytest.mark.parametrize("layer", [-1, -2, 1])
def test_the_states_of_a_decoder_are_those_of_a_layer(
    folders: dict[str, Path], family: str, layer: int
) -> None:
    instruction = "draw: "
    found = conditioner(folders, family, layer=layer, instruction=instruction).parse(PROMPTS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[family])
    model = transformers.AutoModel.from_pretrained(folders[family]).eval()
    head = tokenizer(instruction)["input_ids"]
    assert (head[0] == 2) == (family == "gemma")
    for row, prompt in enumerate(PROMPTS):
        ids = [*head, *tokenizer(prompt, add_special_tokens=False)["input_ids"], 1]
        with torch.no_grad():
            every = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        own, length = every[layer][0, len(head) :], int(found.lengths[row])
        assert length == len(ids) - len(head)
        torch.testing.assert_close(found.tokens[row, :length], own, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.pooled[row], own[-1], rtol=0, atol=1e-5)


def test_the_side_on_which_a_tokenizer_pads_changes_nothing(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    left = {"qwen": decoder_folder(tmp_path, "qwen", side="left")}
    a, b = (conditioner(where, "qwen").parse(PROMPTS) for where in (folders, left))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_caption_does_not_depend_on_the_captions_beside_it(each: Any) -> None:
    together = each.parse(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        alone = each.parse([prompt])
        length = int(alone.lengths[0])
        assert length == together.lengths[row]
        torch.testing.assert_close(
            together.tokens[row, :length], alone.tokens[0, :length], rtol=0, atol=1e-5
        )
        torch.testing.assert_close(together.pooled[row], alone.pooled[0], rtol=0, atol=1e-5)
    assert together.tokens.shape == (4, 32, 16)
    assert not together.tokens[0, int(together.lengths[0]) :].any()


def test_each_distinct_caption_is_encoded_once(each: Any) -> None:
    sizes = []
    each.encoder.model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    found = each.encode(batch(["a red fox", "two birds", "a red fox", "a red fox"]))
    assert [size[0] for size in sizes] == [2]
    assert torch.equal(found.tokens[0], found.tokens[3])
    assert not found.tokens.requires_grad


def test_null_is_the_encoded_empty_text_and_is_cached(each: Any) -> None:
    like = each.parse(PROMPTS)
    null = each.null(like)
    assert [x.shape for x in null] == [x.shape for x in like]
    for field, empty in zip(null, like, strict=True):
        torch.testing.assert_close(field[0], empty[2], rtol=0, atol=1e-5)
    each.encoder.model.register_forward_pre_hook(lambda *_: pytest.fail("encoded again"))
    each.null(like)


def test_a_long_prompt_is_cut_and_said_once(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    short = conditioner(folders, "t5", max_length=6)
    with caplog.at_level(logging.WARNING):
        found = short.parse(["the quick brown fox jumps over", "a lighthouse in fog near the sea"])
    assert found.lengths.tolist() == [6, 6]
    assert found.tokens.shape[1] == 6
    (record,) = caplog.records
    assert "tokens, of which the first 5 are read (max_length): 'the quick" in record.getMessage()
    ids = short._ids("the quick brown fox jumps over")
    assert ids[-1] == short.encoder.end
    assert ids[:-1] == short.encoder.ids("the quick brown fox jumps over")[:5]


def test_shapes_are_known_before_anything_is_loaded(each: Any) -> None:
    blank = each.blank(3)
    assert [tuple(x.shape) for x in blank] == [(3, 32, 16), (3,), (3, 16)]
    assert all(x.is_meta for x in blank)
    assert "encoder" not in vars(each)
    assert [x.shape for x in each.parse(each.examples()[:3])] == [x.shape for x in blank]


def test_the_embedder_takes_what_the_encoder_gives(each: Any) -> None:
    with torch.device("meta"):
        embedder = each.embedder(32)
    materialise(embedder, seed=0, device=torch.device("cpu"))
    made = embedder(each.parse(PROMPTS))
    assert made.pooled.shape == (4, 32)
    assert not made.pooled.any()  # its last layer begins at zero
    assert made.tokens.shape == (4, 32, 32)
    assert made.tokens.isfinite().all()


def test_published_models_are_described_without_a_connection() -> None:
    assert t5.build(t5.Config()).widths == (2048, 2048)
    assert hf_text.build(hf_text.Config()).widths == (1024, 1024)


def test_bf16_stays_near(folders: dict[str, Path]) -> None:
    exact, coarse = (conditioner(folders, "t5", dtype=d).parse(PROMPTS) for d in ("fp32", "bf16"))
    assert coarse.tokens.dtype == torch.bfloat16
    likeness = torch.cosine_similarity(exact.pooled, coarse.pooled.float(), dim=-1)
    assert likeness.min() > 0.99  # bf16 has 8 bits


def test_fp16_is_refused_for_t5_alone() -> None:
    with pytest.raises(Invalid, match=r"dtype: is bf16 or fp32: .* leave the range of fp16; found"):
        t5.Config(dtype="fp16")
    assert hf_text.Config(dtype="fp16").dtype == "fp16"


def test_what_cannot_be_used_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RegscaleError, match="has no 'captions', which t5 needs"):
        conditioner(folders, "t5").encode(batch(None))
    with pytest.raises(RegscaleError, match="is of type t5, mt5, umt5; found qwen3"):
        t5.build(t5.Config(model=str(folders["qwen"]))).parse(["a"])
    with pytest.raises(RegscaleError, match="is a decoder; found an encoder with a decoder"):
        hf_text.build(hf_text.Config(model=str(folders["t5"]))).parse(["a"])
    with pytest.raises(
        RegscaleError, match=r"hf_text: layer of model .*: is within 0 to 3; found 4"
    ):
        conditioner(folders, "qwen", layer=4).parse(["a"])
    with pytest.raises(RegscaleError, match=r"t5: model .* cannot be loaded"):
        t5.build(t5.Config(model=str(tmp_path)))
    with pytest.raises(Invalid, match=r"dropout: is in \[0, 1\)"):
        t5.Config(dropout=1.0)
