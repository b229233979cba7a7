"""The demo's sets, identity by identity: each function needs a seed and a number, and nothing that ran before it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from embedder.align import align_face
from tools.demo_faces.person import Person, make_person
from tools.demo_faces.photo import Shot, draw_shot, next_frame, take
from tools.demo_faces.traits import Array, Rng
from utils.opencv import cv2

CANVAS, SCALE, LOW = 176, 54.0, 0.36  # pixels, pixels of half a head width, half head widths
_JITTER = 0.012  # of landmarks, as a part of the distance between the eyes
KINDS = {"train": 0, "pairs": 1, "templates": 2}


@dataclass(frozen=True)
class LooseCrop:
    """One image of a template."""

    encoded: bytes
    landmarks: Array  # (5, 2)
    score: float
    template: int  # counted within the identity
    medium: int  # counted within the identity


def aligned_faces(seed: int, kind: str, identity: int, count: int) -> list[bytes]:
    """Pictures of one made-up person, aligned to 112 x 112, as JPEG.

    Args:
        seed: of the whole demo.
        kind: the set, a key of ``KINDS``; each has people of its own.
        identity: number of the person in the set.
        count: how many pictures; the first ones do not depend on it.
    """
    cv2.setNumThreads(1)
    person = make_person(np.random.default_rng((seed, KINDS[kind], identity)))
    out = []
    for number in range(count):
        rng = np.random.default_rng((seed, KINDS[kind], identity, number))
        picture = take(person, draw_shot(rng, person), CANVAS, SCALE, LOW)
        apart = float(np.linalg.norm(picture.landmarks[1] - picture.landmarks[0])) + 8
        found = picture.landmarks + rng.normal(0, _JITTER * apart, (5, 2))
        out.append(_jpeg(align_face(picture.image, found), int(rng.integers(60, 96))))
    return out


def loose_crops(seed: int, identity: int, count: int) -> list[LooseCrop]:
    """Unaligned pictures of one made-up person, about ``count``, in templates of 1 to 6.

    Frames of one video share a medium and are a moment apart.
    """
    cv2.setNumThreads(1)
    kind = KINDS["templates"]
    person = make_person(np.random.default_rng((seed, kind, identity)))
    rng = np.random.default_rng((seed, kind, identity, 1 << 20))
    out: list[LooseCrop] = []
    template = medium = 0
    while len(out) < count or template < 2:
        left = int(rng.choice([1, 2, 3, 4, 5, 6], p=[0.25, 0.15, 0.15, 0.15, 0.15, 0.15]))
        while left > 0:
            frames = min(left, int(rng.integers(2, 5))) if rng.random() < 0.45 else 1
            shot = draw_shot(rng, person)
            size = int(rng.integers(150, 251))
            width, low = float(rng.uniform(3.5, 4.3)), float(rng.uniform(0.0, 0.3))
            for _ in range(frames):
                encoded, landmarks, score = _loose_crop(person, shot, size, width, low, rng)
                out.append(LooseCrop(encoded, landmarks, score, template, medium))
                shot = next_frame(shot, rng)
            left -= frames
            medium += 1
        template += 1
    return out


def _loose_crop(
    person: Person, shot: Shot, size: int, width: float, low: float, rng: Rng
) -> tuple[bytes, Array, float]:
    """A JPEG of ``size`` pixels that shows ``width`` half head widths, with landmarks and detector score."""
    canvas = round(size * 1.3)
    picture = take(person, shot, canvas, canvas / width, low)
    image = cv2.resize(picture.image, (size, size), interpolation=cv2.INTER_AREA)
    landmarks = (picture.landmarks + 0.5) * (size / canvas) - 0.5
    apart = float(np.linalg.norm(landmarks[1] - landmarks[0])) + 8
    landmarks = landmarks + rng.normal(0, 0.5 * _JITTER * apart, (5, 2))
    return _jpeg(image, int(rng.integers(65, 96))), landmarks.astype(np.float32), picture.score


def _jpeg(image: Array, quality: int) -> bytes:
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return encoded.tobytes()


def verification_pairs(
    identities: int, per_identity: int, rng: Rng
) -> list[tuple[tuple[int, int], tuple[int, int], bool]]:
    """Pairs of (identity, image), genuine and impostor by turns; every image is in one pair.

    With 20 or more identities, ten groups of them follow one another and no impostor pair crosses groups, so that
    contiguous tenths are balanced and, where the numbers divide, disjoint in identities.

    Args:
        identities: at least 2.
        per_identity: images of each, a multiple of 4.
        rng: for the order and the impostors.
    """
    half = per_identity // 2
    pairs: list[tuple[tuple[int, int], tuple[int, int], bool]] = []
    for group in np.array_split(np.arange(identities), 10 if identities >= 20 else 1):
        people = [int(i) for i in group]
        genuine = [((i, 2 * k), (i, 2 * k + 1), True) for i in people for k in range(half // 2)]
        others: list[int] = []
        for _ in range(half):
            turn = [int(i) for i in rng.permutation(people)]
            if len(others) % 2 and others[-1] == turn[0]:
                turn = [*turn[1:], turn[0]]
            others += turn
        used = dict.fromkeys(people, half)
        impostors = []
        for a, b in zip(others[::2], others[1::2], strict=True):
            impostors.append(((a, used[a]), (b, used[b]), False))
            used[a], used[b] = used[a] + 1, used[b] + 1
        order = rng.permutation(len(genuine))
        for k, impostor in zip(order, impostors, strict=True):
            pairs += [genuine[int(k)], impostor]
    return pairs


def template_pairs(owners: Array, impostors: int, rng: Rng) -> Array:
    """(n, 3) rows ``template template 0|1`` in random order: every genuine pair, and a sample of the others.

    Args:
        owners: identity of template 1, 2, ...
        impostors: how many impostor pairs, at most all there are.
        rng: for the sample and the order.
    """
    first, second = np.triu_indices(len(owners), 1)
    same = owners[first] == owners[second]
    other = np.flatnonzero(~same)
    other = rng.choice(other, min(impostors, len(other)), replace=False)
    rows = rng.permutation(np.concatenate([np.flatnonzero(same), other]))
    return np.stack([first[rows] + 1, second[rows] + 1, same[rows].astype(np.int64)], 1)
