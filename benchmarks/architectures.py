"""Networks of torchvision, timm and transformers, at least one of each family, with random weights, as ONNX files.

    python -m architectures NAME FILE

NAME is `torchvision/NAME` (any kind of network; `torchvision/NAME.backbone` for the detectors), `timm/NAME` or
`transformers/NAME`.  Needs what classifiers.py needs, timm and transformers; nothing is downloaded.  Start reading at `names`.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import classifiers
import torch
from torch import nn

TIMM = """
    aimv2_1b_patch14_224 bat_resnext26ts beit_base_patch16_224 caformer_s18 cait_xs24_384 coat_tiny coatnet_0_224
    convit_tiny convmixer_1024_20_ks9_p14 convnext_atto convnextv2_atto cpubone_nano crossvit_18_240 cs3darknet_s
    csatv2 cspdarknet53 cspnext_s darknetaa53 davit_tiny deepseek_vit_412m deit_tiny_patch16_224 densenet264d dla34
    dm_nfnet_f0 dpn68 eca_nfnet_l0 ecaresnet26t edgenext_small efficientformer_l1 efficientformerv2_l efficientnet_b0
    efficientnetv2_rw_t efficientvim_m1 efficientvit_b0 efficientvit_m0 eva02_tiny_patch14_224 fasternet_s fastvit_t8
    fbnetc_100 focalnet_tiny_lrf gcvit_tiny gemma4_vit_167m gernet_s ghostnet_050 gmlp_b16_224 halonet26t
    hardcorenas_a hgnet_tiny hiera_tiny_224 hieradet_small hrnet_w18 iformer_s inception_next_atto inception_resnet_v2
    inception_v3 inception_v4 lcnet_035 lcnetv2_small legacy_seresnet18 legacy_xception levit_128 lowformer_b0
    mambaout_base mixer_s16_224 mixnet_s mnasnet_small mobilenetv3_small_100 mobilenetv4_conv_small mobilenetv5_300m
    mobileone_s0 mobilevit_s mobilevitv2_050 mvitv2_tiny naflexvit_base_patch16_gap nasnetalarge nest_tiny
    nextvit_small nfnet_l0 pit_xs_224 pnasnet5large poolformer_s12 poolformerv2_s12 pvt_v2_b0 qwen3_vit_88m rdnet_tiny
    regnetv_040 regnetx_002 regnetz_b16 repghostnet_050 repvgg_a0 repvit_m1 res2net50_26w_4s resmlp_12_224 resnest26d
    resnet18d resnetblur18 resnetrs50 resnetv2_18 rexnet_100 samvit_base_patch16 selecsls42 semnasnet_075
    sequencer2d_s seresnext26t_32x4d shvit_s1 skresnet18 starnet_s050 swiftformer_s swin_s3_tiny_224
    swinv2_cr_tiny_224 swinv2_tiny_window8_256 tiny_vit_5m_224 tinynet_e tnt_b_patch16_224 tresnet_l twins_svt_small
    vgg11 visformer_tiny vit_base_r26_s32_224 vit_relpos_base_patch16_224 vit_tiny_patch16_224 vitamin_small_224
    volo_d1_224 vovnet39a wide_resnet50_2 xception41 xcit_nano_12_p8_224
"""
"""One network of every module of timm 1.0, the smallest that torch exports or nearly so, and some more."""

LARGEST_INSIDE = 1_900_000_000
"""Bytes of weights; above, they go into a file beside the model, because protobuf ends at 2 GB."""

CLIP = ("mvit", "swin3d", "r3d", "mc3", "r2plus1d", "s3d")


def names() -> list[str]:
    """Every torchvision network but the optical flow and quantised ones, then timm's and transformers'."""
    import transformers_networks

    models = classifiers.torchvision().models
    kinds = {models: "", models.segmentation: "", models.detection: ".backbone", models.video: ""}
    vision = [name + part for kind, part in kinds.items() for name in models.list_models(module=kind)]
    parts = {"torchvision": vision, "timm": TIMM.split(), "transformers": list(transformers_networks.MODELS)}
    return [f"{source}/{name}" for source, found in parts.items() for name in found]


def build(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """A network in evaluation mode with seeded random weights, and its inputs."""
    source, _, plain = name.partition("/")
    torch.manual_seed(0)
    if source == "transformers":
        import transformers_networks

        return transformers_networks.build(plain)
    if source == "timm":
        classifiers.torchvision()  # before timm, which imports it
        import timm

        model = timm.create_model(plain, pretrained=False)
        return randomised(model), (torch.randn(1, *model.default_cfg["input_size"]),)
    return randomised(torchvision_network(plain)), (torch.randn(1, *size(plain)),)


def torchvision_network(name: str) -> nn.Module:
    """A network of any kind; of a detector the backbone with its pyramid."""
    plain, _, part = name.partition(".")
    options = {"weights_backbone": None} if part or plain.startswith(("deeplab", "fcn", "lraspp")) else {}
    model = classifiers.network(plain, **options)
    return model.backbone if part else model


def size(name: str) -> tuple[int, ...]:
    """Of an image or a clip."""
    if name.startswith(CLIP):
        return (3, 16, 224, 224) if name.startswith(("mvit", "s3d")) else (3, 8 if name.startswith("swin3d") else 16, 112, 112)
    if name.endswith(".backbone"):
        return (3, 320, 320)
    side = 299 if name == "inception_v3" else 256 if name.startswith("swin_v2") else 224
    return (3, side, side)


def randomised(model: nn.Module) -> nn.Module:
    """Statistics, scales and biases that start at 0 or 1 become random, so that nothing is equal, or zero, by chance."""
    classifiers.randomise(model.eval())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.05 * torch.randn_like(parameter))
            if not parameter.any():
                parameter.normal_(0, 0.05)
    return model


class Plain(nn.Module):
    """The tensors of a dictionary of results."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *values: torch.Tensor) -> Any:
        """One tensor or a tuple."""
        result = self.model(*values)
        return tuple(result.values()) if isinstance(result, dict) else result


def main() -> None:
    """Write a network by the new exporter, with a static batch."""
    warnings.simplefilter("ignore")
    name, path = sys.argv[1], Path(sys.argv[2])
    model, inputs = build(name)
    bytes_ = sum(each.numel() * each.element_size() for each in model.parameters())
    torch.onnx.export(Plain(model), inputs, path, dynamo=True, verbose=False, external_data=bytes_ > LARGEST_INSIDE)


if __name__ == "__main__":
    main()
