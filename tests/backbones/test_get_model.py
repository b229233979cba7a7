import inspect

import pytest
import torch
from torch import nn

from backbones import MODEL_NAMES, get_model

pytestmark = pytest.mark.numeric

RECORDED = ("r18", "r34", "r50", "r100", "r200", "mbf", "mbf_large", "vit_t", "vit_s", "vit_b")
PUBLISHED = (
    *RECORDED,
    "r2060",
    "vit_t_dp005_mask0",  # spelt so there
    "vit_s_dp005_mask_0",
    "vit_b_dp005_mask_005",
    "vit_l_dp005_mask_005",
    "vit_h",
)


OURS = ("amp_dtype", "image_size", "gradient_checkpointing")


def test_the_known_names_are_the_published_ones_and_the_tiny_ones():
    assert sorted(MODEL_NAMES) == sorted((*PUBLISHED, "rtiny", "vtiny"))


def test_the_signature_that_old_scripts_call():
    parameters = inspect.signature(get_model).parameters
    assert list(parameters) == ["name", "num_features", "dropout", "fp16", *OURS]
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in OURS)
    assert isinstance(get_model("rtiny", dropout=0, fp16=False, num_features=8), nn.Module)


@pytest.mark.parametrize("name", RECORDED)
def test_state_dict_is_the_published_one(name, recorded_state_dicts):
    with torch.device("meta"):
        model = get_model(name)
    found = [(key, list(value.shape)) for key, value in model.state_dict().items()]
    assert found == list(recorded_state_dicts[name].items())


def test_r2060_is_deep():
    """No state_dict of it is recorded; its blocks are those of the others, in the numbers of insightface's file."""
    with torch.device("meta"):
        model = get_model("r2060")
    assert [len(getattr(model, f"layer{k}")) for k in (1, 2, 3, 4)] == [3, 128, 896, 3]
    with torch.device("meta"):
        wanted = {key: value.shape for key, value in get_model("r50").state_dict().items()}
    found = {key: value.shape for key, value in model.state_dict().items()}
    assert wanted.items() <= found.items()
    assert model.gradient_checkpointing


@pytest.mark.parametrize("name", ["r18", "r50", "mbf", "vit_t"])
def test_output_is_the_recorded_one(name, fill, faces, recorded_outputs, relative_error):
    model = fill(get_model(name))
    with torch.inference_mode():
        assert relative_error(model(faces), recorded_outputs[name]) < 1e-4


@pytest.mark.parametrize("name", ["rtiny", "mbf", "vtiny"])
@pytest.mark.parametrize("num_features", [1, 128])
def test_num_features_is_the_embedding_size(name, num_features, faces):
    with torch.inference_mode():
        out = get_model(name, num_features).eval()(faces)
    assert out.shape == (2, num_features)
    assert out.dtype == torch.float32


@pytest.mark.parametrize("name", ["rtiny", "mbf"])
def test_dropout_acts_in_training_only(name, faces):
    model = get_model(name, 32, dropout=0.5)
    with torch.no_grad():
        assert not torch.equal(model(faces), model(faces))
        model.eval()
        assert torch.equal(model(faces), model(faces))
    without = get_model(name, 32)
    with torch.no_grad():
        assert torch.equal(without(faces), without(faces))


VITS = (("vit_l", "vit_l_dp005_mask_005"), ("vit_t_dp005_mask_0", "vit_t_dp005_mask0"), ("VIT_B", "vit_b"))


@pytest.mark.parametrize(
    ("name", "nearest"), [("r51", "r50"), ("R50", "r50"), ("mfb", "mbf"), ("rtin", "rtiny"), *VITS]
)
def test_unknown_name_lists_the_known_and_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"did you mean {nearest!r}") as error:
        get_model(name)
    assert all(known in str(error.value) for known in MODEL_NAMES)


@pytest.mark.parametrize("name", ["", "zzz", "???"])
def test_a_name_like_nothing_else_is_still_explained(name):
    with pytest.raises(ValueError, match="unknown network"):
        get_model(name)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": 50}, TypeError, "name must be a string"),
        ({"num_features": 0}, ValueError, "num_features must be at least 1, got 0"),
        ({"num_features": 512.0}, TypeError, "num_features must be an integer, got 512.0"),
        ({"num_features": True}, TypeError, "num_features must be an integer"),
        ({"dropout": 1.0}, ValueError, r"dropout .* in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, ValueError, "dropout"),
        ({"dropout": float("nan")}, ValueError, "dropout"),
        ({"dropout": "0.4"}, TypeError, "dropout must be a number, got '0.4'"),
        ({"dropout": False}, TypeError, "dropout must be a number"),
        ({"fp16": 1}, TypeError, "fp16 must be True or False"),
        ({"amp_dtype": torch.float64}, ValueError, "amp_dtype"),
        ({"amp_dtype": "bfloat16"}, ValueError, "amp_dtype"),
        ({"gradient_checkpointing": 1}, TypeError, "gradient_checkpointing must be True or False"),
        ({"image_size": 96}, ValueError, "'rtiny' takes images of 112 x 112 only, got image_size 96; the ViTs"),
        ({"image_size": (96, 96)}, TypeError, "image_size must be an integer"),
        ({"name": "vtiny", "image_size": 9}, ValueError, "image_size must be at least one patch, 14 pixels, got 9"),
        ({"fp16": True, "amp_dtype": torch.bfloat16}, ValueError, "contradicts"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        get_model(**{"name": "rtiny", **arguments})


def test_fp16_is_the_old_spelling_of_float16():
    assert get_model("rtiny", fp16=True).amp_dtype == torch.float16
    assert get_model("rtiny", fp16=True, amp_dtype=torch.float16).amp_dtype == torch.float16
    assert get_model("rtiny", amp_dtype=torch.bfloat16).amp_dtype == torch.bfloat16
    assert get_model("rtiny").amp_dtype is None


@pytest.mark.parametrize("name", ["rtiny", "r18", "mbf", "vtiny", "vit_t"])
@pytest.mark.parametrize("amp_dtype", [None, torch.bfloat16])
def test_gradients_reach_every_trainable_parameter(name, amp_dtype, fill, faces):
    # In eval mode: with batch statistics, what shifts every sample alike (fc.bias) truly has a zero gradient.
    model = fill(get_model(name, 16, amp_dtype=amp_dtype))
    model(faces[:1]).square().mean().sqrt().backward()
    for key, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, key
            continue
        if key == "mask_token":  # of training; tests/backbones/test_vit.py
            continue
        assert parameter.grad is not None, key
        assert parameter.grad.dtype == torch.float32, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@pytest.mark.parametrize("name", ["rtiny", "mbf", "vtiny"])
def test_same_seed_same_weights(name):
    models = []
    for _ in range(2):
        torch.manual_seed(7)
        models.append(get_model(name).state_dict())
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])
