"""Each operation against a loop over images, and what holds for all: reproducible, independent, in range."""

import json
import math
from itertools import product

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

import train
from backbones.base import to_network_input
from data import augment
from data.augment import OPERATIONS, PRESETS, Augmentation, Draws
from data.sampler import EpochSampler
from paths import ROOT
from pretend_device import NAME, PretendDevice
from utils.config import get_config
from utils.hashing import key, mix

pytestmark = pytest.mark.numeric

N = 6
CV2_METHODS = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)


def pictures(n=N, height=112, width=112):
    """(n, height, width, 3) uint8: smooth shapes with edges and some noise, as photographs have."""
    rng = np.random.default_rng(n)
    out = np.empty((n, height, width, 3), np.uint8)
    for image in out:
        small = rng.integers(0, 256, (9, 9, 3), np.uint8)
        image[:] = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
        cv2.circle(image, (width // 2, height // 2), height // 4, rng.integers(0, 256, 3).tolist(), 3)
        image[:] = np.clip(image + rng.normal(0, 5, image.shape), 0, 255)
    return out


class Scripted(Draws):
    """Draws that a test has chosen: each call takes the next row of numbers in [0, 1)."""

    def __init__(self, *rows):
        super().__init__(torch.arange(len(rows[0])), torch.device("cpu"), 0)
        self.rows = [torch.tensor(row, dtype=torch.float64) for row in rows]

    def uniform(self, low=0.0, high=1.0):
        return low + (high - low) * self.rows.pop(0)


def apply(change, images, draws):
    """The result as (n, H, W, 3), float; every scripted number must have been used."""
    out = change(torch.from_numpy(images).permute(0, 3, 1, 2).float(), draws)
    assert not getattr(draws, "rows", [])
    return out.permute(0, 2, 3, 1).numpy()


def region_numbers(seed):
    """Numbers for ten tries of a region and its place, and the regions they give, one by one as torchvision does."""
    u = np.random.default_rng(seed).random((22, N))

    def of(i, least):
        top_left = u[20:, i]
        for t in range(10):
            area = 112 * 112 * (least + (1 - least) * u[2 * t, i])
            aspect = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * u[2 * t + 1, i])
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= 112 and 0 < h <= 112:
                return int(top_left[0] * (113 - h)), int(top_left[1] * (113 - w)), h, w
        return 0, 0, 112, 112

    return u, of


class TestOperations:
    images = pictures()

    @pytest.mark.parametrize("seed", range(3))
    def test_crop(self, seed):
        u, region = region_numbers(seed)
        out = apply(augment.crop, self.images, Scripted(*u))
        for i, image in enumerate(self.images):
            top, left, h, w = region(i, 0.2)
            expected = np.zeros_like(image)
            expected[top : top + h, left : left + w] = image[top : top + h, left : left + w]
            assert (out[i] == expected).all()

    def test_a_region_that_never_fits_is_the_whole_image(self):
        out = apply(augment.crop, self.images, Scripted(*np.full((22, N), 0.999)))
        assert (out == self.images).all()

    @pytest.mark.parametrize("seed", range(3))
    def test_zoom(self, seed):
        u, region = region_numbers(seed)
        out = apply(augment.zoom, self.images, Scripted(*u))
        for i, image in enumerate(self.images):
            top, left, h, w = region(i, 0.5)
            piece = Image.fromarray(image[top : top + h, left : left + w])
            assert np.abs(out[i] - np.asarray(piece.resize((112, 112), Image.Resampling.BILINEAR), float)).max() <= 1

    @pytest.mark.parametrize(("down", "up"), list(product(range(5), range(5))))
    def test_low_res(self, down, up):
        sides = np.array([22, 41, 57, 75, 93, 111])  # no whole multiples, where OpenCV's rounding picks a neighbour
        ratios = ((sides + 0.01) / 112 - 0.2) / 0.8
        ratios[0] = 0
        numbers = np.full(N, (down + 0.5) / 5), np.full(N, (up + 0.5) / 5)
        out = apply(augment.low_res, self.images, Scripted(ratios, *numbers))
        for i, image in enumerate(self.images):
            side = sides[i]
            small = cv2.resize(image, (side, side), interpolation=CV2_METHODS[down])
            expected = cv2.resize(small, (112, 112), interpolation=CV2_METHODS[up])
            difference = np.abs(out[i] - expected.astype(float))
            assert difference.max() <= 3, f"image {i}, {side} pixels"
            assert difference.mean() < 0.35

    def test_resize(self):
        ratios = np.linspace(0, 0.999, N)
        out = apply(augment.resize, self.images, Scripted(ratios))
        for i, image in enumerate(self.images):
            side = int((56 + 33 * ratios[i]) / 112 * 112)
            small = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
            expected = np.asarray(small.resize((112, 112), Image.Resampling.BILINEAR), float)
            inside = np.s_[4:-4, 4:-4]  # at the edge PIL leaves out what lies outside, here the edge is repeated
            assert np.abs(out[i] - expected)[inside].max() <= 2

    def test_blur(self):
        out = apply(augment.blur, self.images, Scripted(np.linspace(0, 0.999, N)))
        for i, image in enumerate(self.images):
            window, sigma = (3, 0.8) if i < N / 2 else (5, 1.1)
            expected = cv2.GaussianBlur(image, (window, window), sigma, borderType=cv2.BORDER_REFLECT_101)
            assert np.abs(out[i] - expected.astype(float)).max() <= 1

    def test_motion(self):
        angles, lengths = np.linspace(0, 0.9, N), np.linspace(0, 0.999, N)
        images = self.images[:, :20, :25]
        out = apply(augment.motion, images, Scripted(angles, lengths))
        for i, image in enumerate(images):
            radius = 1 + int(4 * lengths[i])
            angle = math.pi * angles[i]
            expected = np.zeros(image.shape)
            for y, x, t in product(range(20), range(25), range(-radius, radius + 1)):
                at_y = min(max(y + round(t * math.sin(angle)), 0), 19)
                at_x = min(max(x + round(t * math.cos(angle)), 0), 24)
                expected[y, x] += image[at_y, at_x] / (2 * radius + 1)
            assert np.abs(out[i] - expected).max() < 1e-4

    def test_colour(self):
        u = np.random.default_rng(0).random((4, N))
        out = apply(augment.colour, self.images, Scripted(*u))
        enhancers = ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color
        for i, image in enumerate(self.images):
            expected, by_pil = image.astype(np.float64), Image.fromarray(image)
            for which in augment._ORDERS[int(6 * u[3, i])]:
                factor = np.float32(0.5 + u[which, i])
                grey = np.asarray(Image.fromarray(expected.astype(np.uint8)).convert("L"), float)
                target = (0.0, math.floor(grey.mean() + 0.5), grey[..., None])[which]
                expected = np.clip(np.rint(factor * expected + (1 - factor) * target), 0, 255)
                by_pil = enhancers[which](by_pil).enhance(float(factor))
            assert np.abs(out[i] - expected).max() <= 1  # a product that falls between two levels
            assert (out[i] == expected).mean() > 0.999
            assert np.abs(out[i] - np.asarray(by_pil, float)).max() <= 4

    def test_hsv(self):
        u = np.random.default_rng(0).random((2, N))
        out = apply(augment.hsv, self.images, Scripted(*u))
        to_yiq = np.array(augment._RGB_TO_YIQ)
        for i in range(N):
            angle, saturation = math.radians(20 * u[0, i]), 1 + 0.2 * u[1, i]
            for y, x in ((0, 0), (50, 60), (111, 3)):
                luma, in_phase, quadrature = to_yiq @ self.images[i, y, x]
                turned = complex(in_phase, -quadrature) * complex(math.cos(angle), math.sin(angle)) * saturation
                expected = np.linalg.solve(to_yiq, [luma, turned.real, -turned.imag])
                assert np.abs(out[i, y, x] - expected).max() < 1e-3

    def test_hsv_leaves_grey_alone(self):
        grey = self.images[..., :1].repeat(3, 3)
        out = apply(augment.hsv, grey, Scripted(*np.full((2, N), 0.7)))
        assert np.abs(out - grey).max() < 0.2

    def test_grey(self):
        out = apply(augment.grey, self.images, Draws(torch.arange(N), torch.device("cpu"), 0))
        for i, image in enumerate(self.images):
            assert (out[i] == np.asarray(Image.fromarray(image).convert("L"))[..., None]).all()


IMAGES = torch.from_numpy(pictures(40, 36, 40))
IDS = torch.arange(40) * 1001
EVERYTHING = dict.fromkeys(OPERATIONS, 0.6)
CHOICES = [None, "adaface", "insightface", EVERYTHING, *({name: 1.0} for name in OPERATIONS)]


def name_of(choice):
    return choice if isinstance(choice, str) else "+".join(choice) if choice and len(choice) == 1 else "flip or all"


@pytest.mark.parametrize("choice", CHOICES, ids=name_of)
class TestEveryChoice:
    def test_alone_or_in_any_batch(self, choice):
        augmentation = Augmentation(choice, seed=7)
        whole = augmentation(IMAGES, IDS, 3)
        parts = [augmentation(IMAGES[part], IDS[part], 3) for part in torch.arange(40).split(7)]
        assert torch.equal(torch.cat(parts), whole)
        order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
        assert torch.equal(augmentation(IMAGES[order], IDS[order], 3), whole[order])
        assert torch.equal(augmentation(IMAGES[5:6], IDS[5:6], 3), whole[5:6])

    def test_form_and_range(self, choice):
        before = IMAGES.clone()
        out = Augmentation(choice, seed=7)(IMAGES, IDS, 0)
        assert torch.equal(IMAGES, before)
        assert out.shape == (40, 36, 40, 3)
        assert out.dtype == torch.uint8
        network_input = to_network_input(out)
        assert network_input.shape == (40, 3, 36, 40)
        assert network_input.dtype == torch.float32
        assert network_input.is_contiguous(memory_format=torch.channels_last)
        levels = (network_input + 1) * 127.5
        assert ((levels - levels.round()).abs() < 1e-4).all()
        assert (network_input.min() >= -1) & (network_input.max() <= 1)

    def test_other_epoch_or_seed(self, choice):
        first = Augmentation(choice, seed=7)(IMAGES, IDS, 0)
        for other in (Augmentation(choice, seed=7)(IMAGES, IDS, 1), Augmentation(choice, seed=8)(IMAGES, IDS, 0)):
            assert (first != other).flatten(1).any(1).float().mean() > 0.2

    def test_whole_faces(self, choice):
        images = torch.from_numpy(pictures(20, 112, 112))
        assert Augmentation(choice, seed=7)(images, torch.arange(20), 0).shape == (20, 112, 112, 3)


class TestProbabilities:
    images = torch.from_numpy(pictures(1, 12, 12)).expand(3000, -1, -1, -1)
    ids = torch.arange(3000)

    @pytest.mark.parametrize("name", OPERATIONS)
    def test_as_often_as_asked(self, name):
        out = Augmentation({name: 0.2, "flip": 0}, seed=1)(self.images, self.ids, 0)
        changed = (out != self.images).flatten(1).any(1).float().mean()
        unchanged_draws = 0.06 if name in ("crop", "zoom", "low_res") else 0.01  # a region may be the whole image
        assert 0.2 - 0.03 - unchanged_draws < changed < 0.2 + 0.03

    def test_operations_are_independent(self):
        made = Augmentation({"grey": 0.5, "crop": 0.5, "flip": 0.5}, seed=1)
        chosen = torch.stack([made._chosen(self.ids, 0, number, 0.5) for number in (1, 2, 10)]).double()
        correlation = torch.corrcoef(chosen) - torch.eye(3)
        assert correlation.abs().max() < 0.06

    def test_zero_changes_nothing(self):
        out = Augmentation({**dict.fromkeys(OPERATIONS, 0.0), "flip": 0.0}, seed=1)(IMAGES, IDS, 0)
        assert torch.equal(out, IMAGES)

    def test_one_changes_every_image(self):
        out = Augmentation({"grey": 1, "flip": 1}, seed=1)(IMAGES, IDS, 0)
        assert torch.equal(out[..., 0], out[..., 1])
        mirrored = Augmentation({"grey": 1, "flip": 0}, seed=1)(IMAGES, IDS, 0).flip(2)
        assert torch.equal(out, mirrored)

    def test_flips_are_those_of_earlier_versions(self):
        flipped = mix(self.ids ^ key(7, 2, 1)) < 0
        out = Augmentation(None, seed=7)(self.images, self.ids, 2)
        expected = torch.where(flipped[:, None, None, None], self.images.flip(2), self.images)
        assert torch.equal(out, expected)
        assert 0.46 < flipped.float().mean() < 0.54

    def test_draws(self):
        draws = Draws(self.ids, torch.device("cpu"), 1, 2, 3)
        first, second, whole = draws.uniform(2, 4), draws.uniform(2, 4), draws.integer(0, 4)
        assert 2 <= first.min() <= first.max() < 4
        assert abs(first.mean() - 3) < 0.05
        assert abs(torch.corrcoef(torch.stack((first, second)))[0, 1]) < 0.06
        assert (torch.bincount(whole) / 3000 - 0.2).abs().max() < 0.03


def test_the_same_with_more_threads():
    augmentation = Augmentation(EVERYTHING, seed=5)
    one = augmentation(IMAGES, IDS, 0)
    torch.set_num_threads(2)
    try:
        assert torch.equal(augmentation(IMAGES, IDS, 0), one)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("choice", CHOICES, ids=name_of)
def test_on_a_device_of_its_own(choice):
    """The same bits as on the CPU, nothing that a GPU would refuse, and no waiting for the device."""
    augmentation = Augmentation(choice, seed=7)
    expected = augmentation(IMAGES, IDS, 3)
    with PretendDevice() as pretended:
        images = IMAGES.to(NAME)
        pretended.waits.clear()
        out = augmentation(images, IDS, 3)
        assert not pretended.waits
        assert torch.equal(out.cpu(), expected)


def test_the_same_on_any_number_of_ranks():
    """Every image of an epoch, as each rank's sampler gives it out."""
    images, augmentation = torch.from_numpy(pictures(48, 20, 20)), Augmentation(EVERYTHING, seed=5)
    results = []
    for world_size in (1, 2, 3):
        by_id = torch.empty(48, 20, 20, 3, dtype=torch.uint8)
        for rank in range(world_size):
            for ids in EpochSampler(48, 16 // world_size if world_size < 3 else 4, rank, world_size, seed=1):
                by_id[ids] = augmentation(images[ids], torch.tensor(ids), 0)
        results.append(by_id)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


class TestChoice:
    def test_sets(self):
        assert Augmentation("adaface", 0).probabilities == {"crop": 0.2, "low_res": 0.2, "colour": 0.2}
        assert Augmentation("insightface", 0).probabilities == {"resize": 0.1, "blur": 0.2, "hsv": 0.2, "grey": 0.1}
        assert str(Augmentation(None, 0)) == "flip 0.5"
        assert str(Augmentation({"grey": 0.1, "crop": 0.25, "flip": 0}, 0)) == "crop 0.25, grey 0.1, flip 0"
        assert all(Augmentation(name, 0).flip == 0.5 for name in PRESETS)

    def test_unknown_names_list_the_known_ones(self):
        with pytest.raises(ValueError, match=r"augment = 'adaFace' is not known; sets: adaface, insightface"):
            Augmentation("adaFace", 0)
        with pytest.raises(
            ValueError, match=r"no operation 'lowres'; did you mean 'low_res'\? known: crop, zoom, low_res"
        ):
            Augmentation({"lowres": 0.1}, 0)

    @pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
    def test_probabilities_in_range(self, value):
        with pytest.raises(ValueError, match=r"'crop' must be in \[0, 1\]"):
            Augmentation({"crop": value}, 0)

    def test_numbers_tell_operations_apart(self):
        numbers = [operation.number for operation in OPERATIONS.values()]
        assert len({1, *numbers}) == len(OPERATIONS) + 1

    @pytest.mark.parametrize(
        ("overrides", "expected"),
        [
            ([], None),
            (["augment=adaface"], "adaface"),
            (["dali_aug=True"], "insightface"),
            (["dali_aug=True", "augment=insightface"], "insightface"),
            (['augment={"crop": 0.2, "grey": 1}'], {"crop": 0.2, "grey": 1.0}),
        ],
    )
    def test_config(self, overrides, expected):
        cfg = get_config("demo", overrides)
        assert cfg.augmentation() == expected
        assert not cfg.without_effect()

    def test_config_refuses(self):
        with pytest.raises(ValueError, match="augment must be a text or a dictionary of numbers or None, got"):
            get_config("demo", ['augment={"crop": "often"}'])
        with pytest.raises(
            ValueError, match="dali_aug = True means augment = 'insightface', but augment = 'adaface'"
        ):
            get_config("demo", ["dali_aug=True", "augment=adaface"])


class TestInTraining:
    tiny = str(ROOT / "tests" / "tiny.py")

    def losses(self, output, *overrides):
        train.main([self.tiny, f"output={output}", "num_image=32", *overrides])
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        return [line["loss"] for line in lines if "loss" in line]

    def test_runs_are_reproducible_and_named(self, tmp_path):
        first = self.losses(tmp_path / "a", "augment=adaface")
        assert first == self.losses(tmp_path / "b", "augment=adaface")
        assert first != self.losses(tmp_path / "c")
        log = (tmp_path / "a" / "training.log").read_text()
        assert "augmentation: crop 0.2, low_res 0.2, colour 0.2, flip 0.5" in log
        assert json.loads((tmp_path / "a" / "config.json").read_text())["augment"] == "adaface"

    def test_unknown_operation_is_one_line(self, tmp_path, capsys):
        with pytest.raises(SystemExit, match="2"):
            self.losses(tmp_path / "a", 'augment={"blurr": 0.2}')
        assert capsys.readouterr().err.startswith("train.py: augment has no operation 'blurr'; did you mean 'blur'?")
        assert not (tmp_path / "a").exists()
