import numpy as np
import pytest

from embedder.align import TEMPLATE, misfit
from embedder.landmarks import IMPOSSIBLE_PX, ORDERS, SUSPECT_PX, check_face, check_list, fitting_orders, is_relative

# Eyes, nose and mouth of a head in millimetres: x right, y down, z away from the viewer.
HEAD = np.array([[-32, -35, 0], [32, -35, 0], [0, 0, -28], [-25, 33, 2], [25, 33, 2]], float)


def faces(n, most_yaw_deg, most_tilt_deg=30.0, seed=0):
    """Heads turned, tilted and moved about a photo of 1000 x 1000, with a detector's noise: (n, 5, 2)."""
    rng = np.random.default_rng(seed)
    out = []
    for yaw, tilt in np.radians(rng.uniform(-1, 1, (n, 2)) * (most_yaw_deg, most_tilt_deg)):
        across = HEAD[:, 0] * np.cos(yaw) + HEAD[:, 2] * np.sin(yaw)
        turn = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
        flat = np.stack([across, HEAD[:, 1]], axis=1) @ turn.T
        out.append((flat + rng.normal(0, 1, (5, 2))) * rng.uniform(0.5, 3) + rng.uniform(200, 800, 2))
    return np.array(out)


def given_in(order, points):
    """The ten numbers as someone who uses that order writes them."""
    out = np.empty((len(points), 10))
    out[:, order.places] = points.reshape(-1, 10)
    return out.reshape(-1, 5, 2)


def test_misfit_is_the_rms_distance_after_alignment():
    moved = TEMPLATE.copy()
    moved[2] += (0, 5)
    assert misfit(TEMPLATE * 3 + 70) == pytest.approx(0, abs=1e-9)
    assert 0 < misfit(moved) < 5 / np.sqrt(5)  # where no alignment could give way
    np.testing.assert_allclose(misfit(np.stack([moved, moved * 7 - 3])), misfit(moved))
    # A mirrored form fits in nothing but its centre: the template's own spread is left.
    spread = np.sqrt(((TEMPLATE - TEMPLATE.mean(axis=0)) ** 2).sum(axis=1).mean())
    assert spread - 1 < misfit(TEMPLATE[:, ::-1]) < spread < 23.25


def test_no_face_from_any_side_is_taken_for_another_order():
    misfit_px, order = fitting_orders(faces(2000, 90))
    assert (order == -1).all()
    assert misfit_px.max() < IMPOSSIBLE_PX
    near, _ = fitting_orders(faces(2000, 45))
    assert near.max() < SUSPECT_PX


@pytest.mark.parametrize("name", [order.name for order in ORDERS])
def test_each_known_order_is_refused_by_its_name(name):
    """But for what has a face's form: one that lies on its side."""
    order = next(order for order in ORDERS if order.name == name)
    points = faces(300, 30)
    wrong = given_in(order, points)
    np.testing.assert_array_equal(order.reorder(wrong), points)
    misfit_px, found = fitting_orders(wrong)
    unseen = name[0] == "y" and "left and right" in name and "before" in name
    assert (misfit_px < SUSPECT_PX).mean() > 0.99 if unseen else (found == ORDERS.index(order)).mean() > 0.9


def test_one_face_is_told_how_to_be_given():
    points = TEMPLATE * 2 + (40, 10)
    assert check_face(points, 300, 300) == ""
    order = next(order for order in ORDERS if order.name == "x1,...,x5,y1,...,y5")
    with pytest.raises(
        ValueError, match=r"given with x1,\.\.\.,x5,y1,\.\.\.,y5: expected .* give 116\.5892,113\.3926,"
    ):
        check_face(given_in(order, points[None])[0], 300, 300)
    with pytest.raises(ValueError, match=r"shares of the photo's sides; multiply x by its width, 300, .* 200"):
        check_face(points / (300, 200), 300, 200)
    with pytest.raises(ValueError, match="all landmarks lie outside the photo of 30 x 20"):
        check_face(points, 30, 20)
    with pytest.raises(ValueError, match=r"by 2\d\.\d of 112 pixels, in every order known here"):
        check_face(points[[0, 2, 1, 4, 3]], 300, 300)


def test_a_face_from_the_side_is_a_warning():
    side = np.stack([HEAD[:, 0] * 0.17 + HEAD[:, 2] * 0.98, HEAD[:, 1]], axis=1) + 100
    assert "a face seen from the side, or wrong" in check_face(side, 200, 200)


def turned(points, degrees):
    """Faces (..., 5, 2) in a photo that lies on its side, or stands on its head."""
    a = np.radians(degrees)
    return points @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])


def test_a_face_that_lies_is_a_warning_and_a_list_of_them_is_refused():
    upright = TEMPLATE * 2 + (40, 10)
    order = next(order for order in ORDERS if order.name.startswith("y before x and left and right"))
    sideways = given_in(order, upright[None])[0]
    assert "turned by -89 degrees: it lies on its side, or y stands before x and left and" in check_face(
        sideways, 300, 300
    )
    assert "turned by 180 degrees: it is upside down, or" in check_face(turned(upright, 180) + 300, 300, 300)
    assert check_face(turned(upright, 45) + 100, 400, 400) == ""
    some = faces(100, 60)
    for wrong, message in (
        (given_in(order, some), "y stands before x and left and right are exchanged"),
        (turned(some, 178), "upside down, or left and right are exchanged and y counts upwards"),
    ):
        with pytest.raises(ValueError, match=rf"list: the faces of \d+ of 100 images are turned by more .*{message}"):
            check_list("list", wrong)
        check_list("list", np.concatenate([some, some, wrong]))  # a photo may lie
    check_list("list", faces(500, 90, most_tilt_deg=40))


def test_shares_of_the_sides_are_known():
    assert is_relative(np.stack([TEMPLATE / 112, TEMPLATE])).tolist() == [True, False]
