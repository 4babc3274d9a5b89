"""The models that every cut is tried on: public architectures at true size and small, and graphs made by hand.

A factory is ``tests.support.model_zoo:NAME``, and ``tests.support.model_zoo:small_NAME`` for one of the same structure
with few and thin layers. Torchvision and transformers give the classes; weights are random, but no layer is a mere
identity (:func:`disturb`).
"""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision  # type: ignore[import-untyped]
from safetensors.torch import save_file
from torch import nn

from splitplane.domain.profiles import TensorSpec
from splitplane.model import ModelSource

Tensors = dict[str, torch.Tensor]
VOCABULARY = 500
"""Token ids that every model knows, small ones too."""


def resnet50(*, small: bool = False) -> nn.Module:
    from torchvision.models.resnet import Bottleneck, ResNet  # type: ignore[import-untyped]

    return ResNet(Bottleneck, [1, 2, 1, 1], width_per_group=16) if small else torchvision.models.resnet50()


def mobilenet_v2(*, small: bool = False) -> nn.Module:
    settings = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]] if small else None
    return torchvision.models.MobileNetV2(inverted_residual_setting=settings, width_mult=0.5 if small else 1.0)


def efficientnet_b0(*, small: bool = False) -> nn.Module:
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig  # type: ignore[import-untyped]

    if not small:
        return torchvision.models.efficientnet_b0()
    settings = [MBConvConfig(1, 3, 1, 16, 8, 1, 1, 1), MBConvConfig(6, 5, 2, 8, 16, 2, 1, 1)]
    return EfficientNet(settings, dropout=0.2, last_channel=64)


def convnext_tiny(*, small: bool = False) -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt  # type: ignore[import-untyped]

    if not small:
        return torchvision.models.convnext_tiny()
    return ConvNeXt([CNBlockConfig(16, 32, 2), CNBlockConfig(32, 64, 1), CNBlockConfig(64, None, 1)])


def vit_b(*, small: bool = False) -> nn.Module:
    if not small:
        return torchvision.models.vit_b_16()
    return torchvision.models.VisionTransformer(
        image_size=64, patch_size=16, num_layers=3, num_heads=2, hidden_dim=32, mlp_dim=64
    )


def swin_tiny(*, small: bool = False) -> nn.Module:
    from transformers import SwinConfig, SwinModel

    config = {"image_size": 64, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 8}
    return SwinModel(SwinConfig(**(config if small else {})))


def detr(*, small: bool = False) -> nn.Module:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = {"embedding_size": 8, "hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1]} if small else {}
    config = {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 5,
    }  # fmt: skip
    return DetrForObjectDetection(
        DetrConfig(
            use_timm_backbone=False, use_pretrained_backbone=False, num_labels=91,
            backbone_config=ResNetConfig(out_features=["stage4"], **backbone), **(config if small else {}),
        )
    )  # fmt: skip


def bert_base(*, small: bool = False) -> nn.Module:
    from transformers import BertConfig, BertModel

    config = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    return BertModel(BertConfig(**({**config, "vocab_size": VOCABULARY} if small else {})))


def gpt2(*, small: bool = False) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = {"n_embd": 32, "n_layer": 3, "n_head": 2, "vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(use_cache=False, **(config if small else {})))


def t5_encoder(*, small: bool = False) -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    config = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 3, "num_heads": 2, "vocab_size": VOCABULARY}
    return T5EncoderModel(T5Config(**(config if small else {})))


def bart_encoder(*, small: bool = False) -> nn.Module:
    from transformers import BartConfig
    from transformers.models.bart.modeling_bart import BartEncoder

    config = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
    return BartEncoder(BartConfig(**({**config, "vocab_size": VOCABULARY} if small else {})))


def whisper_encoder(*, small: bool = False) -> nn.Module:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = {
        "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64,
        "max_source_positions": 50,
    }  # fmt: skip
    return WhisperEncoder(WhisperConfig(**(config if small else {})))


@dataclass(frozen=True, slots=True)
class Model:
    """A model to try: where it is built, what it takes, and what saves its trained weights, if it has any."""

    name: str
    factory: str
    inputs: tuple[TensorSpec, ...]
    save: Callable[[Path], object] | None = None

    def source(self, folder: Path) -> ModelSource:
        """Write its weights, and say where they are."""
        path = folder / f"{self.name}.safetensors"
        if self.save is not None:
            self.save(path)
        else:
            save_random(self.factory, path)
        return ModelSource(self.name, self.factory, path.as_uri(), None, self.inputs)

    def samples(self, batches: Sequence[int]) -> Mapping[int, Tensors]:
        """Inputs of each batch size; free dimensions differ between them."""
        return {batch: inputs(self.inputs, batch, index) for index, batch in enumerate(batches)}


def inputs(specs: Sequence[TensorSpec], batch: int, seed: int) -> Tensors:
    """Noise; token ids; masks of mixed lengths. A free dimension is halved for every other seed."""
    generator = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    for spec in specs:
        free = spec.free or (None,) * len(spec.shape)
        shape = tuple(
            size if name is None or not seed % 2 else size // 2 for size, name in zip(spec.shape, free, strict=True)
        )
        if spec.name.endswith("mask"):
            lengths = torch.randint(1, shape[0] + 1, (batch, 1), generator=generator)
            tensors[spec.name] = (torch.arange(shape[0])[None] < lengths).long()
        elif spec.datatype == "INT64":
            tensors[spec.name] = torch.randint(0, 100, (batch, *shape), generator=generator)
        else:
            tensors[spec.name] = torch.randn((batch, *shape), generator=generator)
    return tensors


def save_random(factory: str, path: Path) -> None:
    """Write the weights that the factory makes, disturbed."""
    module_name, _, name = factory.partition(":")
    torch.manual_seed(5)
    state = getattr(importlib.import_module(module_name), name)().state_dict()
    unique = {value.data_ptr(): key for key, value in reversed(state.items()) if value.numel()}
    save_file({key: disturb(key, state[key]) for key in unique.values()}, path)


def disturb(name: str, value: torch.Tensor) -> torch.Tensor:
    """Weights as after some training: nothing is exactly 0 or 1, so that a layer left out or doubled shows."""
    if not value.is_floating_point():
        return value
    if name.endswith("running_var"):
        return value * (0.5 + torch.rand_like(value))
    if value.ndim < 2 or "layer_scale" in name:
        return value + 0.2 * torch.randn_like(value)
    return value.contiguous()


def image(name: str, *shape: int) -> tuple[TensorSpec, ...]:
    return (TensorSpec(name, "FP32", shape),)


def tokens(count: int, *names: str) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, "INT64", (count,), ("tokens",)) for name in names)


def example(module: str, build: str, name: str, specs: tuple[TensorSpec, ...], *capacity: str) -> Model:
    """A trained model of ``examples/models``."""
    folder = str(Path(__file__).parents[2] / "examples" / "models")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    found: Any = importlib.import_module(module)
    return Model(name, f"{module}:{build}", specs, lambda path: found.save(path, *capacity))


_BUILDERS: tuple[tuple[Callable[..., nn.Module], tuple[TensorSpec, ...], tuple[TensorSpec, ...]], ...] = (
    (resnet50, image("x", 3, 224, 224), image("x", 3, 64, 64)),
    (mobilenet_v2, image("x", 3, 224, 224), image("x", 3, 64, 64)),
    (efficientnet_b0, image("x", 3, 224, 224), image("x", 3, 64, 64)),
    (convnext_tiny, image("x", 3, 224, 224), image("x", 3, 64, 64)),
    (vit_b, image("x", 3, 224, 224), image("x", 3, 64, 64)),
    (swin_tiny, image("pixel_values", 3, 224, 224), image("pixel_values", 3, 64, 64)),
    (detr, image("pixel_values", 3, 256, 256), image("pixel_values", 3, 64, 64)),
    (bert_base, tokens(64, "input_ids", "attention_mask"), tokens(16, "input_ids", "attention_mask")),
    (gpt2, tokens(64, "input_ids"), tokens(16, "input_ids")),
    (t5_encoder, tokens(64, "input_ids", "attention_mask"), tokens(16, "input_ids", "attention_mask")),
    (bart_encoder, tokens(64, "input_ids", "attention_mask"), tokens(16, "input_ids", "attention_mask")),
    (whisper_encoder, image("input_features", 80, 3000), image("input_features", 80, 100)),
)
for _build, _, _ in _BUILDERS:
    globals()[f"small_{_build.__name__}"] = partial(_build, small=True)

FULL = tuple(Model(build.__name__, f"tests.support.model_zoo:{build.__name__}", specs) for build, specs, _ in _BUILDERS)
"""The architectures at true size."""
SMALL = tuple(
    Model(f"small_{build.__name__}", f"tests.support.model_zoo:small_{build.__name__}", specs)
    for build, _, specs in _BUILDERS
)
TRAINED = (
    example("pitch_tracker", "build_tiny", "crepe", image("frames", 1024), "tiny"),
    example("sentence_encoder", "build", "minilm", tokens(64, "input_ids", "attention_mask")),
    example("text_detector", "build", "craft", image("image", 3, 64, 64)),
)
VECTOR = image("x", 64)
HAND_MADE = tuple(
    Model(name, f"tests.support.model_graphs:{name}", specs)
    for name, specs in (
        ("TiedWeights", VECTOR),
        ("OneMatrix", VECTOR),
        ("RandomFeatures", VECTOR),
        ("LongSkips", VECTOR),
        ("TwoInputs", (*VECTOR, *image("condition", 8))),
        ("TwoOutputs", VECTOR),
        ("Buffers", VECTOR),
        ("Integers", VECTOR),
        ("Conditional", VECTOR),
        ("TimeFirst", image("x", 10, 32)),
        ("Windows", VECTOR),
        ("Lengths", tokens(12, "ids")),
        ("Shared", VECTOR),
        ("Recurrent", image("x", 5, 16)),
        ("RecurrentTokens", tokens(12, "ids")),
        ("AsLongAsBatch", VECTOR),
        ("WritesToInputs", (*VECTOR, TensorSpec("mask", "INT64", (64,)))),
        ("Normalised", VECTOR),
        ("SharedOutputs", VECTOR),
        ("Blinded", VECTOR),
        ("CastBuffers", VECTOR),
        ("PerSample", VECTOR),
    )
)
