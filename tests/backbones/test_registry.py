"""Every network of the registry but r2060, whose blocks are r50's, on the meta device: what needs shapes alone."""

from contextlib import nullcontext

import pytest
import torch

from backbones import MODEL_NAMES, base, get_model

NAMES = [name for name in MODEL_NAMES if name != "r2060"]  # its step takes a minute there, too
VITS = [name for name in MODEL_NAMES if name.startswith("vit_")]


@pytest.fixture(autouse=True)
def on_meta(monkeypatch):
    """Build there, without autocast, which that device lacks."""
    monkeypatch.setattr(base.torch, "autocast", lambda *arguments, **options: nullcontext())
    with torch.device("meta"):
        yield


@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_training_gives_each_parameter_its_gradient(name):
    model = get_model(name, 16, gradient_checkpointing=False).train()
    out = model(torch.empty(2, 3, 112, 112))
    assert out.shape == (2, 16)
    out.sum().backward()
    without = [key for key, p in model.named_parameters() if (p.grad is None) == p.requires_grad]
    assert not without
    still = [key for key, p in model.named_parameters() if not p.requires_grad]
    assert len(still) <= 1  # the last scale of an iresnet, or a mask token that nothing uses
    assert all(p.grad is None or p.grad.shape == p.shape for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_state_dict_fits_another_network_of_the_name_and_none_of_the_others(name):
    state = get_model(name, 16).state_dict()
    get_model(name, 16).load_state_dict(state, assign=True)
    with pytest.raises(RuntimeError, match=r"size mismatch|Missing key"):
        get_model("rtiny" if name != "rtiny" else "r18", 16).load_state_dict(state, assign=True)


@pytest.mark.parametrize(("image_size", "patches"), [(112, 144), (128, 196), (224, 576)])
@pytest.mark.parametrize("name", [name for name in VITS if name != "vit_h"])
def test_vits_take_the_usual_image_sizes(name, image_size, patches):
    model = get_model(name, 16, image_size=image_size).eval()
    assert model.pos_embed.shape[1] == patches
    assert model(torch.empty(2, 3, image_size, image_size)).shape == (2, 16)
