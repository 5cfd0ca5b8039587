"""LoRA: weights merge by the formula, and what cannot be is refused; with peft: against its own merge."""

from __future__ import annotations

import logging
import sys

import pytest
import timm
import torch
from torch.nn import functional as F

from harness.config.compose import compose_run, compose_sweep
from harness.config.finetune import Lora
from harness.config.schema import AdamW, TimmModel
from harness.errors import ConfigError, ModelError
from harness.models import ImageClassifier, apply_freezing, build_model
from harness.models.lora import merge_adapters
from harness.models.protocol import head_names
from harness.models.sync_norm import batch_norms
from harness.search.suggest.space import check_space
from harness.training.command import run_training
from harness.training.commands.dry_run import describe_run
from harness.training.flops import count_image_flops
from harness.training.optimisation.optim import build_optimizer

LITE0 = ("data=digits", "model=efficientnet_lite0", "model.image_size=32", "finetune=lora")
needs_peft = pytest.mark.integration  # which `make test-integration` installs


@pytest.fixture
def peft() -> None:
    pytest.importorskip("peft", reason="needs the extra: make setup-lora (or pip install 'harness[lora]')")


# ── without peft ──────────────────────────────────────────────────────────────────────────────────


def test_a_merged_layer_computes_what_the_layer_and_its_adapter_do() -> None:
    torch.manual_seed(0)
    conv, down, up = torch.randn(6, 4, 3, 3), torch.randn(2, 4, 3, 3), torch.randn(6, 2, 1, 1)
    linear, a, b = torch.randn(5, 7), torch.randn(2, 7), torch.randn(5, 2)
    state = {
        "network.conv.base_layer.weight": conv,
        "network.conv.base_layer.bias": torch.ones(6),
        "network.conv.lora_A.default.weight": down,
        "network.conv.lora_B.default.weight": up,
        "network.0.fc.base_layer.weight": linear,
        "network.0.fc.lora_A.default.weight": a,
        "network.0.fc.lora_B.default.weight": b,
        "network.head.weight": torch.eye(2),
    }
    merged = merge_adapters(state, Lora(rank=2, alpha=3.0))
    assert list(merged) == [
        "network.conv.weight",
        "network.conv.bias",
        "network.0.fc.weight",
        "network.head.weight",
    ]
    images, rows = torch.randn(2, 4, 8, 8), torch.randn(3, 7)
    expected = F.conv2d(images, conv, stride=2, padding=1)
    expected += 1.5 * F.conv2d(F.conv2d(images, down, stride=2, padding=1), up)
    found = F.conv2d(images, merged["network.conv.weight"], stride=2, padding=1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        rows @ merged["network.0.fc.weight"].T, rows @ linear.T + 1.5 * rows @ a.T @ b.T
    )
    assert merge_adapters(merged, Lora(rank=2, alpha=3.0)) == merged  # a soup's, say


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["finetune.layers='(('"], r"finetune.layers: '\(\(' is no regular expression"),
        (["finetune.rank=0"], "finetune.rank"),
        (["finetune.dropout=1"], "finetune.dropout"),
        (["model=lenet"], "finetune=lora would freeze random weights of lenet"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        compose_run([*LITE0, *overrides])
    assert "\n" not in str(caught.value)


def test_without_peft_the_extra_is_named_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    config = compose_run([*LITE0, "data=folder", "data.dir=nowhere"])
    message = r"finetune=lora needs the package peft: make setup-lora \(or pip install 'harness\[lora\]'\)"
    for begin in (run_training, describe_run):
        with pytest.raises(ConfigError, match=message):
            begin(config)
    plan = compose_sweep(["sweep.space.finetune.values=[partial,full,lora]"])
    with pytest.raises(ConfigError, match=rf"\(.*finetune=lora.*\): {message}"):
        check_space(plan)


# ── with it ───────────────────────────────────────────────────────────────────────────────────────


def trained_a_little(name: str, finetune: Lora) -> tuple[ImageClassifier, dict[str, torch.Tensor]]:
    """Return a classifier after three steps, and its tensors as they were before."""
    torch.manual_seed(0)
    classifier = build_model(TimmModel(name=name, image_size=32), 10)
    for norm in batch_norms(
        classifier.network
    ):  # timm's ResNets begin with weights of 0, which stop gradients
        norm.weight.data.fill_(1.0)
    apply_freezing(classifier, finetune)
    before = {key: tensor.clone() for key, tensor in classifier.network.state_dict().items()}
    optimizer = build_optimizer(classifier, AdamW(lr=0.01), finetune)
    classifier.train()
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(classifier(torch.rand(4, 3, 32, 32)), torch.arange(4)).backward()
        optimizer.step()
    return classifier.eval(), before


@needs_peft
@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "test_resnet", "test_convnext", "test_vit"])
def test_the_merged_network_is_the_one_with_adapters(name: str, peft: None) -> None:
    """Its weights are peft's own; nothing but adapters and head has trained, and all of these have."""
    from peft.tuners.lora import LoraLayer

    finetune = Lora(rank=4, alpha=6.0, dropout=0.1)
    classifier, before = trained_a_little(name, finetune)
    changed = {key for key, t in classifier.network.state_dict().items() if not torch.equal(t, before[key])}
    adapters = {key for key in before if ".lora_" in key}
    assert changed - adapters == head_names(classifier.network)
    assert changed >= adapters

    merged = merge_adapters(classifier.state_dict(), finetune)
    plain = build_model(TimmModel(name=name, image_size=32), 10)
    plain.load_state_dict(merged)
    images = torch.rand(8, 3, 32, 32)
    with torch.inference_mode():
        expected = classifier(images)
        torch.testing.assert_close(plain.eval()(images), expected, atol=1e-4, rtol=1e-4)
        for key in adapters:
            if key.endswith("lora_B.default.weight"):
                classifier.network.get_parameter(key).zero_()
        assert (classifier(images) - expected).abs().max() > 1e-2  # without them, it answers otherwise
    classifier, _ = trained_a_little(name, finetune)
    layers = {key: one for key, one in classifier.named_modules() if isinstance(one, LoraLayer)}
    assert len(layers) == len(adapters) / 2
    for key, layer in layers.items():
        layer.merge()
        torch.testing.assert_close(layer.base_layer.weight.data, merged[f"{key}.weight"])


@needs_peft
def test_layers_are_chosen_by_a_pattern_and_those_that_do_not_run_are_named(
    peft: None, caplog: pytest.LogCaptureFixture
) -> None:
    def adapted(name: str, layers: str | None = None) -> tuple[str, set[str]]:
        with torch.device("meta"):
            classifier = build_model(TimmModel(name=name), 10)
            report = apply_freezing(classifier, Lora(layers=layers))
        names = (key.partition(".lora_A.") for key, _ in classifier.network.named_parameters())
        return str(report), {layer for layer, is_adapter, _ in names if is_adapter}

    report, found = adapted("tf_efficientnet_lite0", r"blocks\.[56]\..*conv_pwl?$")
    assert report.endswith("the head and adapters of rank 8 in 10 layers")
    assert found == {
        f"blocks.{stage}.conv_{kind}"
        for stage in ("5.0", "5.1", "5.2", "5.3", "6.0")
        for kind in ("pw", "pwl")
    }
    everything = timm.create_model("tf_efficientnet_lite0").named_modules()
    _, found = adapted("tf_efficientnet_lite0")
    assert found == {key for key, one in everything if getattr(one, "groups", 0) == 1}
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        _, found = adapted("beit_base_patch16_224")
    assert "12 layers get no adapter" in caplog.text
    assert "blocks.0.attn.proj" in found
    assert "blocks.0.attn.qkv" not in found
    with pytest.raises(ModelError, match=r"whose name has 'layer9'.*there are conv1\.0, conv1\.3, "):
        adapted("test_resnet", "layer9")
    with pytest.raises(ModelError, match="NormFreeNet has no plain linear layer or convolution"):
        adapted("nf_resnet26")  # its convolutions standardise their weights


@needs_peft
def test_operations_are_those_of_a_step_by_hand(peft: None) -> None:
    """All of the forward pass; backward, gradients of what enters a layer, and of the adapters' weights."""
    how = ("model=timm", "model.name=test_vit", "model.image_size=32", "model.pretrained=true")
    config = compose_run(["data=digits", *how, "finetune=lora", "finetune.rank=2", "finetune.layers=mlp"])
    with torch.device("meta"):
        vit = build_model(config.model, 10, load_weights=False).network
    tokens, dim, depth = vit.patch_embed.num_patches + vit.num_prefix_tokens, vit.embed_dim, len(vit.blocks)
    hidden = vit.blocks[0].mlp.fc1.out_features
    head, patches = 2 * dim * 10, 2 * vit.patch_embed.proj.weight.numel() * vit.patch_embed.num_patches
    attention = 2 * tokens * 4 * dim * dim, 2 * 2 * tokens * tokens * dim  # projections; products
    mlp, adapters = 2 * 2 * tokens * dim * hidden, 2 * 2 * tokens * 2 * (dim + hidden)
    forward = patches + depth * (sum(attention) + mlp + adapters) + head
    # The first adapter's input needs no gradient: neither does what lies below, its layer's and its A's.
    backward = depth * (mlp + 2 * adapters) + 2 * head - mlp / 2 - 2 * tokens * 2 * dim
    backward += (depth - 1) * (attention[0] + 2 * attention[1])
    assert count_image_flops(config, 10, None).step == forward + backward
