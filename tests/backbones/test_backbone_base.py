import pytest
import torch

from backbones import get_model

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def tiny(fill):
    return fill(get_model("rtiny"))


@pytest.mark.parametrize("name", ["rtiny", "r18", "mbf", "vtiny"])
@pytest.mark.parametrize(
    ("amp_dtype", "largest", "mean"), [(torch.bfloat16, 0.05, 0.04), (torch.float16, 0.01, 0.005)]
)
def test_half_precision_is_close_and_comes_out_as_float32(
    name, amp_dtype, largest, mean, fill, faces, relative_error
):
    """By the largest difference, and by the root mean square, which varies half as much with the kernels."""
    full = fill(get_model(name))
    half = fill(get_model(name, amp_dtype=amp_dtype))
    with torch.inference_mode():
        expected, found = full(faces), half(faces)
    assert found.dtype == torch.float32
    assert 0 < relative_error(found, expected) < largest
    assert (found - expected).norm() / expected.norm() < mean


@pytest.mark.parametrize("name", ["rtiny", "mbf"])
def test_trunk_runs_in_amp_dtype_and_head_in_float32(name, faces):
    model = get_model(name, amp_dtype=torch.bfloat16).eval()
    seen = {}
    stem, linear = (model.conv1, model.fc) if name == "rtiny" else (model.conv_sep, model.features.layers[2])
    stem.register_forward_hook(lambda module, inputs, output: seen.update(trunk=output.dtype))
    linear.register_forward_hook(
        lambda module, inputs, output: seen.update(head_in=inputs[0].dtype, head_out=output.dtype)
    )
    with torch.inference_mode():
        model(faces)
    assert seen == {"trunk": torch.bfloat16, "head_in": torch.float32, "head_out": torch.float32}


def test_the_callers_autocast_reaches_the_trunk_but_not_the_head(tiny, faces, fill):
    own = fill(get_model("rtiny", amp_dtype=torch.bfloat16))
    with torch.inference_mode():
        expected = own(faces)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = tiny(faces)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_weights_stay_float32_under_amp():
    assert {p.dtype for p in get_model("rtiny", fp16=True).parameters()} == {torch.float32}


def test_a_float64_model_computes_in_float64(fill, faces, tiny, relative_error):
    double = fill(get_model("rtiny")).double()
    with torch.inference_mode():
        out = double(faces.double())
        assert out.dtype == torch.float64
        assert relative_error(tiny(faces).double(), out) < 1e-5


@pytest.mark.parametrize("name", ["rtiny", "r18", "mbf", "vtiny"])
def test_channels_last_equals_contiguous(name, fill, faces, relative_error):
    """In float64: a PReLU's slope jumps at zero, so where rounding turns a sign, a gradient moves by far more.

    In float32 that moved one gradient by 1 % of its largest value on one processor, and by 4e-6 on another.
    """
    results, short = [], []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model = fill(get_model(name)).to(memory_format=memory_format)
        x = faces.contiguous(memory_format=memory_format)
        with torch.inference_mode():
            short.append(model(x))
        out = model.double()(x.double())
        out.square().mean().sqrt().backward()
        results.append((out.detach(), {key: p.grad for key, p in model.named_parameters()}))
    (out, grads), (out_last, grads_last) = results
    assert relative_error(out_last, out) < 1e-12
    for key, grad in grads.items():
        if grad is not None:
            assert relative_error(grads_last[key], grad) < 1e-12, key
    # In float32 both are off by their own rounding alone, which is of one size.
    error, error_last = (relative_error(found.double(), out) for found in short)
    assert error_last < 4 * error < 1e-4
    assert error < 4 * error_last


@pytest.mark.parametrize(
    ("shape", "cure"),
    [
        ((2, 3, 128, 128), "112x112"),
        ((2, 1, 112, 112), "112x112 RGB"),
        ((3, 112, 112), "batch dimension"),
        ((2, 112, 112, 3), "channels first"),
        ((2, 3, 112), "112x112"),
        ((), "112x112"),
    ],
)
def test_wrong_shape_says_expected_found_and_cure(tiny, shape, cure):
    with pytest.raises(ValueError, match=r"expected .*\(B, 3, 112, 112\)") as error:
        tiny(torch.zeros(shape))
    assert str(shape) in str(error.value)
    assert cure in str(error.value)


def test_pixels_are_not_scaled_silently(tiny):
    with pytest.raises(ValueError, match="scale pixels first"):
        tiny(torch.zeros(2, 3, 112, 112, dtype=torch.uint8))


def test_the_check_reads_no_value(tiny):
    with pytest.raises(ValueError, match="expected images"):
        tiny(torch.empty(2, 3, 96, 112, device="meta"))  # a meta tensor has no values to read


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_any_batch_size_in_eval(tiny, batch):
    with torch.inference_mode():
        assert tiny(torch.zeros(batch, 3, 112, 112)).shape == (batch, 512)


def test_the_input_is_not_modified(tiny, faces):
    before = faces.clone()
    tiny(faces)
    assert torch.equal(faces, before)
