"""Small random networks of Hugging Face's transformers.  Start reading at `MODELS`.

Needs torch, onnxscript and transformers 5; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import classifiers
import torch
from torch import nn

classifiers.torchvision()  # before transformers, which imports it

import transformers as hf  # noqa: E402

COMMON = {"vocab_size": 512, "hidden_size": 96, "num_hidden_layers": 2, "intermediate_size": 160, "max_position_embeddings": 64}
IMAGE = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 160, "patch_size": 8}
PAIR = {"d_model": 96, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 160, "decoder_ffn_dim": 160}
PAIR |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 512}
T5 = {"vocab_size": 512, "d_model": 96, "d_kv": 16, "d_ff": 160, "num_layers": 2, "num_heads": 4}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def tokens(count: int = 12) -> torch.Tensor:
    """Random token ids."""
    return torch.randint(5, 500, (1, count))


def encoder(name: str, **more: Any) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A network like BERT."""
    config = getattr(hf, f"{name}Config")(**COMMON, num_attention_heads=4, **more)
    return getattr(hf, f"{name}Model")(config), {"input_ids": tokens()}


def decoder(name: str, **more: Any) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A network like Llama, with 8 heads for 2 groups of keys and values."""
    sizes = COMMON | SPECIAL | {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 12} | more
    return getattr(hf, f"{name}ForCausalLM")(getattr(hf, f"{name}Config")(**sizes)), {"input_ids": tokens()}


def image(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A network like ViT."""
    config = getattr(hf, f"{name}Config")(**IMAGE, image_size=32)
    return getattr(hf, f"{name}Model")(config), {"pixel_values": torch.randn(1, 3, 32, 32)}


def whisper() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The encoder of Whisper."""
    config = hf.WhisperConfig(**PAIR, **SPECIAL, max_source_positions=300, decoder_start_token_id=1)
    return hf.WhisperModel(config).get_encoder(), {"input_features": torch.randn(1, 80, 600)}


def detr() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """DETR on a small ResNet."""
    backbone = hf.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1] * 4, layer_type="basic", out_features=["stage4"]
    )
    heads = {key: value for key, value in PAIR.items() if key != "vocab_size"} | {"d_model": 64, "num_queries": 10}
    config = hf.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, **heads
    )
    return hf.DetrForObjectDetection(config), {"pixel_values": torch.randn(1, 3, 64, 64)}


def swin() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Two stages of Swin."""
    config = hf.SwinConfig(image_size=64, patch_size=4, embed_dim=48, depths=[2, 2], num_heads=[3, 6], window_size=4)
    return hf.SwinModel(config), {"pixel_values": torch.randn(1, 3, 64, 64)}


def segformer() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """SegFormer with its head."""
    sizes = {"hidden_sizes": [16, 32, 48, 64], "depths": [1] * 4, "num_attention_heads": [1, 2, 4, 4], "decoder_hidden_size": 32}
    return hf.SegformerForSemanticSegmentation(hf.SegformerConfig(**sizes)), {"pixel_values": torch.randn(1, 3, 64, 64)}


def mixture(name: str, **more: Any) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A decoder of which each token chooses two experts, as batched matrix products: the form that torch exports."""
    model, inputs = decoder(name, num_experts_per_tok=2, **more)
    model.config._experts_implementation = "batched_mm"
    return model, inputs


def sam() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The image encoder of SAM, with windows in one layer and relative positions in both."""
    vision = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 64, "patch_size": 8}
    vision |= {"window_size": 4, "global_attn_indexes": [1], "mlp_dim": 96, "output_channels": 32, "attn_implementation": "eager"}
    return hf.SamVisionModel(hf.SamVisionConfig(**vision)), {"pixel_values": torch.randn(1, 3, 64, 64)}


def gpt2() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """GPT-2 with its head."""
    config = hf.GPT2Config(vocab_size=512, n_positions=64, n_embd=96, n_layer=2, n_head=4)
    return hf.GPT2LMHeadModel(config), {"input_ids": tokens()}


def distilbert() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """DistilBERT."""
    config = hf.DistilBertConfig(vocab_size=512, dim=96, n_layers=2, n_heads=4, hidden_dim=160, max_position_embeddings=64)
    return hf.DistilBertModel(config), {"input_ids": tokens()}


def clip_text() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The text encoder of CLIP."""
    sizes = COMMON | {"max_position_embeddings": 32}
    return hf.CLIPTextModel(hf.CLIPTextConfig(**sizes, num_attention_heads=4, eos_token_id=2)), {"input_ids": tokens()}


def mamba() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Mamba, its scan unrolled over six tokens."""
    config = hf.MambaConfig(vocab_size=512, hidden_size=64, state_size=8, num_hidden_layers=2)
    return hf.MambaForCausalLM(config), {"input_ids": tokens(6)}


MODELS: dict[str, Callable[[], tuple[nn.Module, dict[str, torch.Tensor]]]] = {
    "bert": lambda: encoder("Bert"),
    "roberta": lambda: encoder("Roberta", pad_token_id=1),
    "distilbert": distilbert,
    "deberta_v2": lambda: encoder("DebertaV2", relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=16),
    "gpt2": gpt2,
    "llama": lambda: decoder("Llama"),
    "qwen3": lambda: decoder("Qwen3"),
    "gemma": lambda: decoder("Gemma"),
    "gemma2": lambda: decoder("Gemma2"),
    "mistral": lambda: decoder("Mistral"),
    "phi": lambda: decoder("Phi", num_key_value_heads=8),
    "phi3": lambda: decoder("Phi3"),
    "mixtral": lambda: mixture("Mixtral", num_local_experts=4),
    "qwen3_moe": lambda: mixture("Qwen3Moe", num_experts=8, moe_intermediate_size=32),
    "olmoe": lambda: mixture("Olmoe", num_experts=8),
    "t5_encoder": lambda: (hf.T5EncoderModel(hf.T5Config(**T5)), {"input_ids": tokens()}),
    "t5": lambda: (hf.T5Model(hf.T5Config(**T5)), {"input_ids": tokens(), "decoder_input_ids": tokens(7)}),
    "bart": lambda: (hf.BartModel(hf.BartConfig(**PAIR, max_position_embeddings=64)), {"input_ids": tokens()}),
    "whisper": whisper,
    "vit": lambda: image("ViT"),
    "deit": lambda: image("DeiT"),
    "swin": swin,
    "clip_vision": lambda: image("CLIPVision"),
    "clip_text": clip_text,
    "sam_encoder": sam,
    "segformer": segformer,
    "detr": detr,
    "mamba": mamba,
}


class FirstOutput(nn.Module):
    """The logits or the last hidden state of a network, which is then exported with these inputs only."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        """The first output that is a plain tensor of interest."""
        result = self.model(**dict(zip(self.names, values, strict=True)))
        return next((result[key] for key in ("logits", "last_hidden_state") if key in result), result[0])


def build(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """A network with seeded random weights, and inputs; attention is written out: torch 2.13 exports more networks so."""
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return FirstOutput(model.eval(), list(inputs)), tuple(inputs.values())
