"""A person ready to be photographed: meshes, and one sheet of colours and normals for all of them.

The sheet holds the head's grid, to its right the two ears, and under them neck and shoulders.

Shapes: N points, T triangles; A, B rows and columns of the sheet.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tools.demo_faces.hair import build_hair, scalp
from tools.demo_faces.head import HEIGHT, THETA, WIDTH, Head, build_head, grid_normals, move, smoothstep
from tools.demo_faces.paint import Mood, Patch, blend, paint_eye, paint_mask, paint_mouth, paint_skin, patch_of
from tools.demo_faces.traits import Array, Traits, draw_traits

SHEET = (HEIGHT, WIDTH + 96)
_EARS = ((slice(0, 64), slice(WIDTH, WIDTH + 48)), (slice(0, 64), slice(WIDTH + 48, WIDTH + 96)))
TORSO = (slice(72, 168), slice(WIDTH, WIDTH + 96))


@dataclass(frozen=True)
class Mesh:
    """Triangles and where their corners lie on a sheet."""

    points: Array  # (N, 3)
    triangles: np.ndarray[tuple[int, int], np.dtype[np.int32]]  # (T, 3)
    sheet_uv: Array  # (N, 3): column and row on the sheet as parts of its size, and 1


@dataclass(frozen=True)
class Person:
    """All that the pictures of one person share."""

    traits: Traits
    head: Mesh  # with ears
    torso: Mesh
    colours: Array  # (A, B, 3)
    normals: Array  # (A, B, 3)
    hair: tuple[Mesh, ...]  # the far part first
    hair_sheet: Array  # (H, W, 4) colour, alpha
    hair_normals: Array  # (H, W, 3)
    eyes: tuple[Patch, Patch]
    mouth: Patch
    face_xy: Array  # (H, W, 2)
    landmarks: Array  # (5, 3) eyes, nose tip, corners of the mouth; image's left first


def make_person(rng: np.random.Generator) -> Person:
    """Draw and build one person."""
    t = draw_traits(rng)
    head = build_head(t)
    colours = np.empty((*SHEET, 3), np.float32)
    colours[:, WIDTH:] = t.skin
    colours[:, :WIDTH] = paint_skin(head, t, scalp(head, t))
    normals = np.zeros((*SHEET, 3), np.float32)
    normals[:, :WIDTH] = head.normals
    meshes = [_grid_mesh(head.points, (slice(0, HEIGHT), slice(0, WIDTH)), SHEET, 4)]
    for side, block in zip((-1, 1), _EARS, strict=True):
        points = _ear(t, side, head)
        normals[block] = grid_normals(points)
        colours[block] = _ear_colour(t)
        meshes.append(_grid_mesh(points, block, SHEET, 5))
    torso = _torso(t)
    normals[TORSO] = grid_normals(torso)
    hair = build_hair(head, t)
    if hair is None:
        hair_meshes: tuple[Mesh, ...] = ()
        hair_sheet, hair_normals = np.zeros((1, 1, 4), np.float32), np.zeros((1, 1, 3), np.float32)
    else:
        whole = (slice(0, HEIGHT), slice(0, WIDTH))
        shown = hair.alpha > 0.004
        behind = np.broadcast_to(np.abs(THETA) > 1.8, shown.shape)
        parts = (shown & behind, shown & ~behind) if hair.hangs else (shown,)
        hair_meshes = tuple(_grid_mesh(hair.points, whole, (HEIGHT, WIDTH), 5, part) for part in parts)
        hair_sheet = np.concatenate([hair.colour, hair.alpha[..., None]], -1)
        hair_normals = hair.normals
    ex, ew = t.eye_x, 1.35 * t.eye_w
    eyes = patch_of(head, -ex - ew, ew - ex, -0.2, 0.24), patch_of(head, ex - ew, ex + ew, -0.2, 0.24)
    mouth = patch_of(head, -1.15 * t.mouth_w, 1.15 * t.mouth_w, t.mouth_y - 0.36, t.mouth_y + 0.17)
    spots = ((-ex, 0.0), (ex, 0.0), (t.nose_x, t.nose_y), (-t.mouth_w, t.mouth_y), (t.mouth_w, t.mouth_y))
    return Person(
        t,
        _join(meshes),
        _grid_mesh(torso, TORSO, SHEET, 3),
        colours,
        normals,
        hair_meshes,
        hair_sheet,
        hair_normals,
        eyes,
        mouth,
        head.points[..., :2].copy(),
        np.stack([_surface_point(head, x, y) for x, y in spots]),
    )


def dress(person: Person, mood: Mood, cloth: Array, glint: tuple[float, float], neckline: float) -> Array:
    """The sheet of colours for one picture."""
    t = person.traits
    colours = person.colours.copy()
    for side, patch in zip((-1, 1), person.eyes, strict=True):
        x, y = person.face_xy[patch][..., 0], person.face_xy[patch][..., 1]
        colours[patch] = paint_eye(colours[patch], x, y, side, t, mood, glint)
    patch = person.mouth
    colours[patch] = paint_mouth(
        colours[patch], person.face_xy[patch][..., 0], person.face_xy[patch][..., 1], t, mood
    )
    if mood.mask is not None:
        low = (slice(HEIGHT // 2, HEIGHT), slice(WIDTH // 8, WIDTH - WIDTH // 8))
        xy = person.face_xy[low]
        colours[low] = paint_mask(colours[low], xy[..., 0], xy[..., 1], t, np.asarray(mood.mask, np.float32))
    rows = np.linspace(0, 1, 96, dtype=np.float32)[:, None]
    around = np.abs(np.linspace(-1, 1, 96, dtype=np.float32))[None]
    edge = neckline + 0.14 * np.exp(-((around / 0.16) ** 2))
    worn = smoothstep(-0.015, 0.015, rows - edge)
    skin = (
        np.broadcast_to(t.skin * np.float32(0.93), (96, 96, 3))
        * (0.62 + 0.38 * smoothstep(0.08, 0.4, rows))[..., None]
    )
    colours[TORSO] = blend(skin, cloth * (1 - 0.3 * np.exp(-(((rows - edge) / 0.02) ** 2)))[..., None], worn)
    return colours


def expressive_points(person: Person, mood: Mood) -> tuple[Array, Array]:
    """Head mesh points and landmarks under the mood."""
    args = (person.traits, mood.smile, mood.jaw, mood.brow)
    return move(person.head.points, *args), move(person.landmarks, *args)


def _surface_point(head: Head, x: float, y: float) -> Array:
    away = (head.points[..., 0] - x) ** 2 + (head.points[..., 1] - y) ** 2 + 9.0 * (head.points[..., 2] < 0.1)
    found = head.points.reshape(-1, 3)[int(np.argmin(away))]
    return np.array([x, y, found[2]], np.float32)


def _ear(t: Traits, side: int, head: Head) -> Array:
    """(64, 48, 3) a shallow cup; rows go from its rim to its middle, columns round it."""
    r = np.linspace(1, 0, 64, dtype=np.float32)[:, None]
    angle = np.linspace(0, 2 * np.pi, 48, dtype=np.float32)[None] * -side
    tall = 0.36 * t.ear
    back = 0.235 * t.ear * (1 - 0.18 * np.sin(angle) * side)
    a = r * np.cos(angle) * back  # backwards
    b = r * np.sin(angle) * tall * -side
    cup = 0.075 * smoothstep(0.55, 0.92, r) - 0.09 * smoothstep(0.97, 1.0, r)
    cup = cup + 0.03 * np.exp(-(((r - 0.45) / 0.12) ** 2)) * (np.cos(angle) > -0.4) - 0.03 * (1 - r)
    row = int(np.argmin(np.abs(head.points[:, WIDTH // 4, 1] + 0.12)))
    wide = float(np.abs(head.points[row, :, 0]).max())
    out = t.ear_out + 0.12
    x = wide - 0.10 + (a + back.max() * 0.75) * np.sin(out) + cup * np.cos(out)
    z = -0.12 - (a + 0.05) * np.cos(out) + cup * np.sin(out)
    y = -0.13 + b - 0.075 * a
    return np.stack([side * x, y + 0 * x, z], -1).astype(np.float32)


def _ear_colour(t: Traits) -> Array:
    r = np.linspace(1, 0, 64, dtype=np.float32)[:, None]
    angle = np.linspace(0, 2 * np.pi, 48, dtype=np.float32)[None]
    dark = 0.42 * smoothstep(0.42, 0.1, r) + 0.25 * np.exp(-(((r - 0.72) / 0.09) ** 2)) * (np.cos(angle) > -0.5)
    out: Array = t.skin * np.array([1.0, 0.88, 0.86], np.float32) * (1 - dark)[..., None]
    return out


def _torso(t: Traits) -> Array:
    """(96, 96, 3) neck and shoulders."""
    v = np.linspace(0, 1, 96)
    angle = np.linspace(-np.pi, np.pi, 96)[None]
    neck = 0.56 + 0.10 * (float(t.outline[5]) - 0.9)
    y = np.interp(v, [0, 0.45, 0.62, 0.8, 1], [-0.75, -1.85, -2.12, -2.5, -4.2])[:, None]
    wide = np.interp(v, [0, 0.35, 0.5, 0.66, 0.8, 1], [neck, neck, neck + 0.22, 1.55, 2.1, 2.3])[:, None]
    deep = np.interp(v, [0, 0.4, 0.6, 0.8, 1], [0.52, 0.52, 0.66, 0.95, 1.1])[:, None]
    x = wide * np.sin(angle)
    z = -0.28 + deep * np.cos(angle) - 0.1 * v[:, None]
    return np.stack([x, y + 0 * x, z], -1).astype(np.float32)


def _grid_mesh(
    points: Array,
    block: Patch,
    sheet: tuple[int, int],
    step: int,
    keep: np.ndarray[tuple[int, int], np.dtype[np.bool_]] | None = None,
) -> Mesh:
    """Triangles over every ``step``-th point of a grid that lies in ``block`` of the sheet."""
    rows = np.unique(np.append(np.arange(0, points.shape[0], step), points.shape[0] - 1))
    cols = np.unique(np.append(np.arange(0, points.shape[1], step), points.shape[1] - 1))
    at = np.ix_(rows, cols)
    uv = np.ones((len(rows), len(cols), 3), np.float32)
    uv[..., 0] = (cols + (block[1].start or 0)) / (sheet[1] - 1)
    uv[..., 1] = ((rows + (block[0].start or 0)) / (sheet[0] - 1))[:, None]
    index = np.arange(len(rows) * len(cols)).reshape(len(rows), len(cols))
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    triangles = np.stack([np.stack([a, c, b], -1), np.stack([b, c, d], -1)], 2).reshape(-1, 3)
    if keep is not None:
        triangles = triangles[keep[at].reshape(-1)[triangles].any(1)]
    return Mesh(points[at].reshape(-1, 3), triangles.astype(np.int32), uv.reshape(-1, 3))


def _join(meshes: list[Mesh]) -> Mesh:
    start = np.cumsum([0] + [len(m.points) for m in meshes[:-1]])
    return Mesh(
        np.concatenate([m.points for m in meshes]),
        np.concatenate([m.triangles + s for m, s in zip(meshes, start, strict=True)]).astype(np.int32),
        np.concatenate([m.sheet_uv for m in meshes]),
    )
