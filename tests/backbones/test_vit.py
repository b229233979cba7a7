"""The ViT against its formulas written out in float64, and what is random in its training."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from backbones import get_model
from backbones.vit import Attention, DropPath, VisionTransformer

pytestmark = pytest.mark.numeric


def layer_norm(x, norm):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias


def attention(x, layer):
    """Softmax of the scaled products, one head after the other."""
    channels = x.shape[-1]
    width = channels // layer.heads
    out = []
    for head in range(layer.heads):
        q, k, v = (
            x @ layer.qkv.weight[part * channels + head * width :][:width].T for part in range(3)
        )  # (B, N, width) each
        weights = (q @ k.transpose(1, 2) / math.sqrt(width)).softmax(-1)  # (B, N, N)
        out.append(weights @ v)
    return torch.cat(out, -1) @ layer.proj.weight.T + layer.proj.bias


def batch_norm(x, norm, training):
    mean, variance = (x.mean(0), x.var(0, unbiased=False)) if training else (norm.running_mean, norm.running_var)
    return (x - mean) / (variance + 2e-5).sqrt() * norm.weight + norm.bias


def by_formula(model, x, order=None):
    """The embedding of images; ``order`` of the patches for a step of training that hides the last of them."""
    weight, side = model.patch_embed.proj.weight, model.patch_embed.proj.kernel_size[0]
    patches = F.unfold(x, side, stride=side).transpose(1, 2)  # (B, N, 3 * side * side)
    x = patches @ weight.flatten(1).T + model.patch_embed.proj.bias + model.pos_embed
    kept = None if order is None else order[:, : model.kept_patches]
    if kept is not None:
        x = torch.stack([tokens[places] for tokens, places in zip(x, kept, strict=True)])
    for block in model.blocks:
        x = x + attention(layer_norm(x, block.norm1), block.attn)
        hidden = layer_norm(x, block.norm2) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
        x = x + hidden.clamp(0, 6) @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
    x = layer_norm(x, model.norm)
    if kept is not None:
        whole = model.mask_token.repeat(len(x), order.shape[1], 1)
        for sample, places in enumerate(kept):
            whole[sample, places] = x[sample]
        x = whole
    narrow, narrow_norm, embed, embed_norm = model.feature
    x = batch_norm(x.flatten(1) @ narrow.weight.T, narrow_norm, model.training)
    return batch_norm(x @ embed.weight.T, embed_norm, model.training)


def small(**options):
    return VisionTransformer(32, 3, 16, heads=4, patch_size=28, **options)


@pytest.mark.parametrize("name", ["vtiny", "vit_t"])
def test_output_is_that_of_the_formulas(name, fill, faces):
    model = fill(get_model(name, 16)).double()
    with torch.inference_mode():
        torch.testing.assert_close(model(faces.double()), by_formula(model, faces.double()), rtol=0, atol=1e-10)


@pytest.mark.parametrize("mask_ratio", [0, 0.1, 0.5])
def test_a_step_of_training_and_its_gradients_are_those_of_the_formulas(mask_ratio, fill, faces):
    """The patches to keep are drawn as insightface does it: those of the smallest of uniform numbers."""
    model = fill(small(drop_path=0, mask_ratio=mask_ratio)).double().train()
    x, grad = torch.randn(6, 3, 112, 112, dtype=torch.float64), torch.randn(6, 16, dtype=torch.float64)
    torch.manual_seed(3)
    order = torch.rand(6, 16).argsort(1)
    found, expected = [], []
    for results, run in ((found, model), (expected, lambda x: by_formula(model, x, order if mask_ratio else None))):
        torch.manual_seed(3)
        model.zero_grad()
        out = run(x)
        (out * grad).sum().backward()
        results += [out.detach(), *(p.grad for p in model.parameters() if p.requires_grad)]
    assert len(found) == len(list(model.parameters())) - (mask_ratio == 0) + 1
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "kept", "hidden"),
    [("vit_t", 129, 15), ("vit_b_dp005_mask_005", 129, 15), ("vit_t_dp005_mask0", 144, 0), ("vit_h", 144, 0)],
)
def test_a_tenth_of_the_patches_is_hidden_unless_the_name_says_none(name, kept, hidden):
    with torch.device("meta"):
        model = get_model(name)
    assert (model.kept_patches, model.pos_embed.shape[1] - model.kept_patches) == (kept, hidden)
    assert model.mask_token.requires_grad is (hidden > 0)


@pytest.mark.parametrize(
    ("name", "last"), [("vit_s", 0.1), ("vit_s_dp005_mask_0", 0.05), ("vit_l_dp005_mask_005", 0.05), ("vit_h", 0.1)]
)
def test_drop_path_rises_evenly_from_zero(name, last):
    with torch.device("meta"):
        blocks = get_model(name).blocks
    rates = [block.drop_path.rate for block in blocks]
    assert rates == pytest.approx([last * k / (len(blocks) - 1) for k in range(len(blocks))])


def test_drop_path_leaves_out_samples_as_a_whole_and_keeps_the_mean():
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 3, 2)
    factor = drop(x)
    assert torch.equal(factor, factor[:, :1, :1].expand_as(factor))
    kept = factor[:, 0, 0] != 0
    torch.testing.assert_close(factor[kept], torch.full_like(factor[kept], 4 / 3))
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert drop.eval()(x) is x


def test_nothing_is_random_in_evaluation(fill, faces):
    model = fill(small(drop_path=0.5, mask_ratio=0.5, dropout=0.5))
    with torch.no_grad():
        assert torch.equal(model(faces), model(faces))
        for part in ({"drop_path": 0.5, "mask_ratio": 0}, {"drop_path": 0, "mask_ratio": 0.5}, {"dropout": 0.5}):
            options = {"drop_path": 0, "mask_ratio": 0, **part}
            model = small(**options).train()
            assert not torch.equal(model(faces), model(faces)), part
        model = small(drop_path=0, mask_ratio=0).train()
        assert torch.equal(model(faces), model(faces))


def test_initial_weights():
    torch.manual_seed(0)
    model = get_model("vtiny")
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm1d):
            assert module.eps == (1e-5 if isinstance(module, nn.LayerNorm) else 2e-5)
            assert (module.weight == 1).all()
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.mask_token.std().item() == pytest.approx(0.02, rel=0.3)


@pytest.mark.parametrize("amp_dtype", [torch.bfloat16, torch.float16])
def test_norms_and_sums_stay_float32_and_products_do_not(amp_dtype, faces):
    model, seen = small(amp_dtype=amp_dtype), {}
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm | nn.BatchNorm1d | nn.Linear | Attention):
            module.register_forward_hook(
                lambda module, inputs, output, name=name: seen.update({name: (inputs[0].dtype, output.dtype)})
            )
    model(faces).square().mean().backward()
    for name, types in seen.items():
        if "norm" in name or name.startswith("feature"):
            assert types == (torch.float32, torch.float32), name
        else:
            assert types[1] == amp_dtype, name
    assert len(seen) == 3 * 7 + 1 + 4
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize(("image_size", "patches"), [(112, 144), (108, 144), (144, 256), (63, 49)])
def test_other_image_sizes_have_other_numbers_of_patches(image_size, patches):
    model = get_model("vit_t", 8, image_size=image_size).eval()
    assert model.pos_embed.shape == (1, patches, 256)
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, image_size, image_size)).shape == (1, 8)
        with pytest.raises(ValueError, match=rf"\(B, 3, {image_size}, {image_size}\).*{image_size}x{image_size} RGB"):
            model(torch.zeros(1, 3, 96, 96))


def test_the_tiny_one_is_tiny_and_learns():
    torch.manual_seed(0)
    patterns, labels = torch.randn(8, 3, 14, 14), torch.arange(8).repeat(2)

    def draw():
        return F.interpolate(patterns[labels] + torch.randn(16, 3, 14, 14), scale_factor=8.0).clamp(-1, 1)

    model, classifier = get_model("vtiny", 32), nn.Linear(32, 8)
    assert sum(p.numel() for p in model.parameters()) < 2_000_000
    optimizer = torch.optim.AdamW([*model.parameters(), *classifier.parameters()], lr=1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(classifier(model(draw())), labels).backward()
        optimizer.step()
    model.eval()
    with torch.inference_mode():
        assert (classifier(model(draw())).argmax(1) == labels).float().mean().item() > 0.9
