"""One picture: pose, projection, light and shadow, layer over layer.

Shapes: S height and width of the canvas in pixels; N points; P lit pixels.
"""

from __future__ import annotations

import numpy as np

from tools.demo_faces.accessories import wear_glasses
from tools.demo_faces.camera import View, rotation
from tools.demo_faces.person import TORSO, Mesh, Person, dress, expressive_points
from tools.demo_faces.shade import Scene, shade_hair, shade_skin
from tools.demo_faces.traits import Array
from utils.opencv import cv2

_FAR = 100.0


def render(person: Person, scene: Scene, size: int, scale: float, low: float = 0.0) -> tuple[Array, Array]:
    """Photograph a person.

    Args:
        person: who.
        scene: how.
        size: height and width of the canvas S in pixels.
        scale: pixels of half a head width.
        low: how far under the middle of the canvas the middle of the face is, in half head widths.

    Returns:
        (S, S, 3) uint8 RGB, and the five landmarks (5, 2) in pixels.
    """
    points, landmarks = expressive_points(person, scene.mood)
    turn = rotation(scene.yaw, scene.pitch, scene.roll)
    torso_turn = rotation(scene.yaw * 0.35, 0.0, scene.roll * 0.25)
    view = View(turn, torso_turn, np.array([0, 0, -scene.distance], np.float32), scale * scene.distance, size)
    # Look at the middle of the face.
    middle = view.place(landmarks, turn).mean(0)
    view.shift[:2] -= middle[:2] + np.array([0, low], np.float32)
    light = scene.towards_light()
    in_head = turn.T @ light
    colours = dress(
        person,
        scene.mood,
        np.asarray(scene.cloth, np.float32),
        (float(in_head[0]) * 0.45, 0.15 + float(in_head[1]) * 0.4),
        scene.neckline,
    )
    normals = person.normals.copy()
    normals[TORSO] = normals[TORSO] @ (turn.T @ torso_turn).T
    uv, depth = _canvas(size)
    _rasterize(view, person.head, view.place(points, turn), uv, depth)
    _rasterize(view, person.torso, view.place(person.torso.points, torso_turn), uv, depth)
    image = background(scene, size)
    lit = _shadow(depth, light, scale, scene.hardness)
    pixels = np.flatnonzero(uv[..., 2])
    at = uv.reshape(-1, 3)[pixels]
    albedo, normal = _sample(colours, at), turn @ _sample(normals, at)
    image.reshape(-1, 3)[pixels] = shade_skin(albedo, normal, lit.reshape(-1)[pixels], scene).T
    wear_glasses(image, depth, view, person, landmarks, scene.glasses, scene.lens)
    for mesh in person.hair:
        _draw_hair(person, mesh, view, scene, image, depth)
    return image, view.project(view.place(landmarks, turn))


def _canvas(size: int) -> tuple[Array, Array]:
    return np.zeros((size, size, 3), np.float32), np.full((size, size), _FAR, np.float32)


def _rasterize(view: View, mesh: Mesh, placed: Array, uv: Array, depth: Array, both_sides: bool = False) -> None:
    settings = cv2.TriangleRasterizeSettings()
    settings.setShadingType(cv2.RASTERIZE_SHADING_SHADED)
    settings.setCullingMode(cv2.RASTERIZE_CULLING_NONE if both_sides else cv2.RASTERIZE_CULLING_CW)
    field_of_view = 2 * np.arctan(view.size / 2 / view.focal)
    cv2.triangleRasterize(
        placed,
        mesh.triangles,
        mesh.sheet_uv,
        uv,
        depth,
        np.eye(4, dtype=np.float32),
        field_of_view,
        1.0,
        _FAR,
        settings,
    )


def _sample(sheet: Array, at_P3: Array) -> Array:
    """(C, P) bilinear values of a sheet (A, B, C) at columns and rows given as parts of its size."""
    count, wide = len(at_P3), 256
    padded = -(-count // wide) * wide  # remap takes no image wider than 32767
    maps = []
    for axis, size in ((0, sheet.shape[1]), (1, sheet.shape[0])):
        where = np.zeros(padded, np.float32)
        np.multiply(at_P3[:, axis], size - 1, out=where[:count])
        maps.append(where.reshape(-1, wide))
    out = cv2.remap(sheet, maps[0], maps[1], cv2.INTER_LINEAR)
    return np.ascontiguousarray(np.asarray(out).reshape(padded, -1)[:count].T)


def _shadow(depth: Array, light: Array, scale: float, hardness: float) -> Array:
    """(S, S) how much of the key light arrives, by marching towards it through the depth image."""
    size = depth.shape[0]
    small = cv2.resize(depth, (size // 2, size // 2), interpolation=cv2.INTER_NEAREST)
    blocked = np.zeros_like(small)
    for reach in (0.07, 0.13, 0.21, 0.32, 0.46, 0.64):
        dx, dy = light[0] * reach * scale / 2, -light[1] * reach * scale / 2
        there = cv2.warpAffine(
            small,
            np.array([[1, 0, dx], [0, 1, dy]], np.float64),
            small.shape,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        over = small - light[2] * reach - there - 0.03  # how far the other surface is in front of the ray
        np.maximum(blocked, np.clip(over * 14, 0, 1) * (over < 0.9), out=blocked)
    blocked = cv2.GaussianBlur(blocked, (0, 0), 0.6 + scale * 0.014)
    return 1 - hardness * cv2.resize(blocked, (size, size), interpolation=cv2.INTER_LINEAR)


def _draw_hair(person: Person, mesh: Mesh, view: View, scene: Scene, image: Array, depth: Array) -> None:
    uv, hair_depth = _canvas(view.size)
    _rasterize(view, mesh, view.place(mesh.points, view.turn), uv, hair_depth, both_sides=True)
    pixels = np.flatnonzero((hair_depth < depth) & (uv[..., 2] > 0))
    at = uv.reshape(-1, 3)[pixels]
    sheet, normal = _sample(person.hair_sheet, at), view.turn @ _sample(person.hair_normals, at)
    colour = shade_hair(sheet[:3], normal, view.turn @ np.array([0, -1, 0], np.float32), scene)
    flat_depth, flat = depth.reshape(-1), image.reshape(-1, 3)
    solid = pixels[sheet[3] > 0.5]
    flat_depth[solid] = hair_depth.reshape(-1)[solid]
    under = np.ascontiguousarray(flat[pixels].T, np.float32)
    flat[pixels] = (under + (colour - under) * sheet[3]).astype(np.uint8).T


def background(scene: Scene, size: int) -> Array:
    """(S, S, 3) uint8: blurred shapes and gradients."""
    rng = np.random.default_rng(scene.seed)
    cells = int(rng.integers(2, 7))
    base = rng.uniform(25, 215) + rng.normal(0, 18, 3)
    small = (
        base + rng.normal(0, rng.uniform(8, 55), (cells, cells, 1)) + rng.normal(0, 9, (cells, cells, 3))
    ).astype(np.float32)
    image = cv2.resize(small, (size // 2, size // 2), interpolation=cv2.INTER_CUBIC)
    for _ in range(int(rng.integers(0, 6))):
        x0, y0, x1, y1 = (int(v) for v in rng.integers(-size // 8, size // 2 + size // 8, 4))
        colour = tuple(float(v) for v in np.clip(base + rng.normal(0, 45) + rng.normal(0, 22, 3), 0, 255))
        if rng.random() < 0.6:
            cv2.rectangle(image, (x0, y0), (x0 + abs(x1) // 2, y0 + abs(y1)), colour, -1)
        else:
            cv2.circle(image, (x0, y0), abs(x1) // 3 + 2, colour, -1)
    image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.6, 6)))
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return np.clip(image, 0, 255).astype(np.uint8)
