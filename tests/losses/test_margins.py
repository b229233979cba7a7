import inspect
import math
import re

import numpy as np
import pytest
import torch

from losses import OPTIONS, ArcFace, CombinedMargin, CosFace, get_margin

pytestmark = pytest.mark.numeric

MARGINS = {
    "arcface": ArcFace(64, 0.5),
    "cosface": CosFace(64, 0.4),
    "combined_arc": CombinedMargin(64, 1.0, 0.5, 0.0),
    "combined_cos": CombinedMargin(64, 1.0, 0.0, 0.4),
    "combined_filter": CombinedMargin(64, 1.0, 0.0, 0.4, 0.3),
    "combined_all": CombinedMargin(32, 1.2, 0.2, 0.1),
}


@pytest.mark.parametrize(
    ("recorded", "margin"),
    [
        ("arcface_exact", ArcFace(64, 0.5)),
        ("cosface", CosFace(64, 0.4)),
        ("combined_arc_straight_through", CombinedMargin(64, 1.0, 0.5, 0.0)),
        ("combined_cos", CombinedMargin(64, 1.0, 0.0, 0.4)),
        ("combined_cos_filter", CombinedMargin(64, 1.0, 0.0, 0.4, 0.3)),
    ],
)
def test_equals_contract(contracts, recorded, margin):
    data = np.load(contracts / "margin_losses.npz")
    cosines = torch.tensor(data["cos"], requires_grad=True)
    logits = margin(cosines, torch.tensor(data["labels"]).squeeze(1))
    logits.backward(torch.tensor(data["grad_out"]))
    torch.testing.assert_close(logits.detach(), torch.tensor(data[f"{recorded}_out"]), rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(cosines.grad, torch.tensor(data[f"{recorded}_grad"]), rtol=1e-4, atol=1e-4)


def loop_reference(name, margin, cosines, labels):
    out = [[0.0] * cosines.shape[1] for _ in range(len(labels))]
    for i, row in enumerate(cosines.tolist()):
        for j, c in enumerate(row):
            target = j == labels[i]
            if target and name == "arcface":
                theta, m = math.acos(c), margin.margin
                c = math.cos(theta + m) if theta <= math.pi - m else c - m * math.sin(math.pi - m)
            elif target and name == "cosface":
                c -= margin.margin
            elif target:
                c = math.cos(margin.m1 * math.acos(c) + margin.m2) - margin.m3
            elif name.startswith("combined") and 0 < margin.threshold < c:
                c = 0.0
            out[i][j] = c * margin.scale
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("name", MARGINS)
def test_equals_loop_form(name):
    g = torch.Generator().manual_seed(0)
    cosines = torch.rand(40, 7, generator=g, dtype=torch.float64) * 1.98 - 0.99
    labels = torch.randint(-1, 7, (40,), generator=g)
    before = cosines.clone(), labels.clone()
    want = loop_reference(name, MARGINS[name], cosines, labels)
    torch.testing.assert_close(MARGINS[name](cosines, labels), want, rtol=0, atol=1e-12)
    assert torch.equal(cosines, before[0])
    assert torch.equal(labels, before[1])


@pytest.mark.parametrize("name", ["arcface", "cosface"])
def test_gradient_is_the_true_derivative(name):
    g = torch.Generator().manual_seed(1)
    cosines = (torch.rand(6, 5, generator=g, dtype=torch.float64) * 1.9 - 0.95).requires_grad_()
    labels = torch.tensor([0, 4, -1, 2, 2, 1])
    assert torch.autograd.gradcheck(lambda c: MARGINS[name](c, labels), (cosines,))


@pytest.mark.parametrize("name", MARGINS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_at_the_ends(name, dtype):
    cosines = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [0.0, 1.0]], dtype=dtype, requires_grad=True)
    logits = MARGINS[name](cosines, torch.tensor([0, 0, 1]))
    logits.sum().backward()
    assert logits.isfinite().all()
    assert cosines.grad.isfinite().all()


@pytest.mark.parametrize("name", MARGINS)
def test_rows_without_a_target_are_only_scaled(name):
    cosines = torch.tensor([[0.1, -0.3], [0.2, 0.25]])
    want = cosines * MARGINS[name].scale
    torch.testing.assert_close(MARGINS[name](cosines, torch.tensor([-1, -1])), want)


@pytest.mark.parametrize("name", MARGINS)
def test_no_columns(name):
    assert MARGINS[name](torch.zeros(3, 0), torch.tensor([-1, -1, -1])).shape == (3, 0)


def test_arcface_without_margin_is_the_scaled_cosine():
    cosines = torch.rand(4, 3, dtype=torch.float64)
    torch.testing.assert_close(ArcFace(10, 0.0)(cosines, torch.tensor([0, 1, 2, -1])), cosines * 10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ArcFace(0), "scale must be above 0"),
        (lambda: ArcFace(64, 3.5), "angle in"),
        (lambda: CosFace(64, -0.1), "cosine difference"),
        (lambda: CombinedMargin(64, 0.5), "m1 >= 1"),
        (lambda: CombinedMargin(interclass_filtering_threshold=1.0), r"\[0, 1\)"),
    ],
)
def test_refuses_values_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_get_margin_follows_the_config():
    assert (type(get_margin("arcface", 64)), get_margin("arcface", 64).margin) == (ArcFace, 0.5)
    assert (type(get_margin("cosface", 30)), get_margin("cosface", 30).margin) == (CosFace, 0.4)
    assert get_margin("cosface", 30, 0.2).margin == 0.2
    combined = get_margin("arcface", 64, 0.5, (1.0, 0.0, 0.4), 0.3)
    assert (type(combined), combined.m3, combined.threshold) == (CombinedMargin, 0.4, 0.3)
    with pytest.raises(ValueError, match="loss must be"):
        get_margin("combined", 64)


def test_get_margin_passes_on_what_the_authors_of_a_loss_can_set():
    magface = {"l_a": 5, "u_a": 100.0, "l_m": 0.4, "u_m": 0.7, "lambda_g": 35, "easy_margin": True}
    found = get_margin("magface", 64, loss_options=magface)
    assert {name: getattr(found, name) for name in magface} == magface
    adaface = get_margin("adaface", 64, 0.3, loss_options={"h": 0.5, "t_alpha": 0})
    assert (adaface.margin, adaface.h, adaface.t_alpha) == (0.3, 0.5, 0)
    assert str(found).endswith("lambda_g=35, easy_margin)")


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        ("adaface", {"l_a": 1.0}, "'adaface' takes h, t_alpha; got l_a"),
        ("adaface", {"margin": 0.4}, "got margin; margin is a setting of its own"),
        ("magface", {"easy": True}, "'magface' takes l_a, u_a, l_m, u_m, lambda_g, easy_margin; got easy"),
        ("magface", {"easy_margin": 1.0}, "easy_margin in loss_options must be True or False, got 1.0"),
        ("magface", {"l_a": True}, "l_a in loss_options must be a number, got True"),
        ("magface", {"l_a": 200}, "0 < l_a < u_a"),
        ("arcface", {"h": 0.3}, "'arcface' takes none; got h"),
    ],
)
def test_get_margin_names_the_options_that_a_loss_has(loss, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        get_margin(loss, 64, loss_options=options)


def test_options_are_arguments_of_their_losses():
    for loss, names in OPTIONS.items():
        assert set(names) <= set(inspect.signature(type(get_margin(loss, 64))).parameters)
