"""Gradient checkpointing changes nothing but memory: not a bit of a gradient, a statistic or a random draw."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from backbones import _NETWORKS, get_model
from backbones.checkpointing import segments
from backbones.iresnet import IResNet
from training.sync_bn import synchronise_batch_norm

pytestmark = pytest.mark.numeric


def narrow_iresnet(**options):
    """With a stage that is cut into segments of two blocks."""
    return IResNet((1, 2, 24, 1), 16, widths=(16, 16, 16, 32), stem_stride=2, **options)


NETWORKS = {
    "iresnet": narrow_iresnet,
    "mbf": lambda **options: get_model("mbf", 16, **options),
    "vtiny": lambda **options: get_model("vtiny", 16, **options),
}


def step(model, x, seed=5):
    """Output, gradients, buffers and the next random number after two forwards and a backward of both."""
    torch.manual_seed(seed)
    out = model(x)
    (out.sin().sum() + model(-x).square().sum()).backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"out": out.detach(), **grads, **dict(model.named_buffers()), "next": torch.rand(1)}


def assert_same_to_the_bit(found, expected):
    assert found.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not different


@pytest.mark.parametrize("amp_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_is_the_same_to_the_bit(name, amp_dtype):
    torch.manual_seed(0)
    model = NETWORKS[name](dropout=0.2, amp_dtype=amp_dtype)
    other = copy.deepcopy(model)
    other.gradient_checkpointing = True
    x = torch.randn(2, 3, 112, 112)
    expected, found = step(model, x), step(other, x)
    assert_same_to_the_bit(found, expected)
    counts = [value for key, value in found.items() if key.endswith("num_batches_tracked")]
    assert counts
    assert all(count == 2 for count in counts)


def test_dropout_within_a_segment_is_repeated():
    torch.manual_seed(0)
    model = narrow_iresnet()
    for block in model.layer3:
        block.prelu = nn.Sequential(block.prelu, nn.Dropout(0.3))
    other = copy.deepcopy(model)
    other.gradient_checkpointing = True
    x = torch.randn(4, 3, 112, 112)
    assert_same_to_the_bit(step(other, x), step(model, x))


@pytest.mark.parametrize("change", ["frozen", "synchronised"])
def test_other_batch_norms(change):
    torch.manual_seed(0)
    model = narrow_iresnet()
    if change == "frozen":
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
    else:
        model = synchronise_batch_norm(model, torch.device("cpu"))
    other = copy.deepcopy(model)
    other.gradient_checkpointing = True
    x = torch.randn(4, 3, 112, 112)
    assert_same_to_the_bit(step(other, x), step(model, x))


@pytest.mark.parametrize("name", NETWORKS)
def test_less_is_kept_for_backward(name):
    kept = []
    for checkpointing in (False, True):
        model = NETWORKS[name](gradient_checkpointing=checkpointing)
        sizes = {}

        def pack(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.randn(4, 3, 112, 112))
        kept.append(sum(sizes.values()))
    assert kept[1] < 0.7 * kept[0]


def test_nothing_is_repeated_without_a_backward(monkeypatch):
    model = narrow_iresnet(gradient_checkpointing=True)
    model.run_segment = None  # not to be called
    x = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        model(x)
    model.eval()(x)


@pytest.mark.parametrize(("blocks", "length"), [(1, 1), (4, 1), (13, 1), (30, 2), (60, 3), (128, 4), (896, 12)])
def test_every_block_is_in_one_segment(blocks, length):
    stage = nn.Sequential(*(nn.Identity() for _ in range(blocks)))
    parts = [list(part) for part in segments(stage)]
    assert len(parts[0]) == length
    assert [block for part in parts for block in part] == list(stage)


def test_which_networks_have_it_by_themselves():
    own = [name for name, build in _NETWORKS.items() if build.keywords.get("gradient_checkpointing")]
    with torch.device("meta"):
        assert get_model("vit_b").gradient_checkpointing
        assert not get_model("vit_t").gradient_checkpointing
        assert get_model("vtiny", gradient_checkpointing=True).gradient_checkpointing
        assert not get_model("vit_b", gradient_checkpointing=False).gradient_checkpointing
    assert own == ["r2060", "vit_b", "vit_b_dp005_mask_005", "vit_l_dp005_mask_005", "vit_h"]
