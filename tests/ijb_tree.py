"""A small IJB tree of made-up faces, a network for it, and the protocol in loops."""

import json

import cv2
import numpy as np
import torch

from backbones import get_model
from backbones.base import to_network_input
from embedder.align import TEMPLATE, align_face
from utils.decode import decode_rgb

PEOPLE, TEMPLATES_EACH, IMAGES_EACH = 5, 2, 3


def save_jpg(path, image):
    path.write_bytes(cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes())


def make_tree(root):
    """Five persons with two templates of three images each; every pair of templates is compared."""
    (root / "meta").mkdir(parents=True)
    (root / "loose_crop").mkdir()
    rng = np.random.default_rng(0)
    media_lines, point_lines, persons = [], [], []
    for person in range(PEOPLE):
        look = rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)
        for t in range(TEMPLATES_EACH):
            template = 10 * person + t
            persons.append((template, person))
            for i in range(IMAGES_EACH):
                name = f"{len(media_lines)}.jpg"
                face = cv2.resize(look, (160, 150), interpolation=cv2.INTER_CUBIC).astype(float)
                face = np.clip(face + rng.normal(0, 12, face.shape), 0, 255).astype(np.uint8)
                save_jpg(root / "loose_crop" / name, face)
                points = TEMPLATE * 1.2 + 10 + rng.normal(0, 1, (5, 2))
                media_lines.append(f"{name} {template} {i // 2}")
                numbers = " ".join(f"{x:.4f}" for x in points.ravel())
                point_lines.append(f"{name} {numbers} {rng.uniform(0.5, 1):.6f}")
    pairs = [f"{a} {b} {int(p == q)}" for i, (a, p) in enumerate(persons) for b, q in persons[i + 1 :]]
    for lower in ("ijbc", "ijbb"):
        for what, lines in (
            ("face_tid_mid", media_lines),
            ("name_5pts_score", point_lines),
            ("template_pair_label", pairs),
        ):
            (root / "meta" / f"{lower}_{what}.txt").write_text("\n".join(lines) + "\n")
    write_galleries(root)
    return root


def write_galleries(root):
    """Persons 0 to 2 in the first gallery, 3 and 4 in the second, by their first template; probes by the other."""
    for lower, galleries in (("ijbc", ("G1", "G2")), ("ijbb", ("S1", "S2"))):
        lists = {
            f"gallery_{galleries[0]}": [(10 * p, p) for p in range(3)],
            f"gallery_{galleries[1]}": [(10 * p, p) for p in range(3, PEOPLE)],
            "probe_mixed": [(10 * p + 1, p) for p in range(PEOPLE)],
        }
        for what, rows in lists.items():
            lines = ["TEMPLATE_ID,SUBJECT_ID,FILENAME", *(f"{t},{p},{t}.jpg" for t, p in rows)]
            (root / "meta" / f"{lower}_1N_{what}.csv").write_text("\n".join(lines) + "\n")


def make_model(path):
    """An untrained network of 64 numbers, and the config.json that a run leaves beside it."""
    torch.manual_seed(0)
    path.parent.mkdir()
    (path.parent / "config.json").write_text(json.dumps({"network": "rtiny", "embedding_size": 64}))
    torch.save(get_model("rtiny", num_features=64).state_dict(), path)
    return path


def arguments(model, ijb, tmp_path, *more):
    return [
        *("--model-prefix", str(model), "--image-path", str(ijb), "--result-dir", str(tmp_path / "out")),
        *("--batch-size", "8", "--device", "cpu", "--num-workers", "2", "--no-report", *more),
    ]


def loop_templates(model, root, flip=True, norm_score=True, detector_score=True):
    """Features of templates, one image at a time."""
    net = get_model("rtiny", num_features=64).eval()
    net.load_state_dict(torch.load(model))
    images = {}
    media_lines = (root / "meta" / "ijbc_face_tid_mid.txt").read_text().splitlines()
    point_lines = (root / "meta" / "ijbc_name_5pts_score.txt").read_text().splitlines()
    for media_line, point_line in zip(media_lines, point_lines, strict=True):
        name, template, media = media_line.split()
        points = np.array(point_line.split()[1:], np.float32)  # pixels at this precision, as in the field
        face = align_face(decode_rgb((root / "loose_crop" / name).read_bytes()), points[:10].reshape(5, 2))
        with torch.no_grad():
            x = to_network_input(torch.from_numpy(face)[None])
            feature = net(x) + net(x.flip(-1)) if flip else net(x)
        feature = feature[0].double().numpy()
        feature = feature / (1 if norm_score else np.linalg.norm(feature)) * (points[10] if detector_score else 1)
        images.setdefault(int(template), {}).setdefault(int(media), []).append(feature)
    features = {}
    for template, by_media in images.items():
        total = sum(np.mean(group, axis=0) for group in by_media.values())
        features[template] = total / np.linalg.norm(total)
    return features


def loop_scores(model, root, **mode):
    """The whole protocol, one image and one pair at a time."""
    features = loop_templates(model, root, **mode)
    pairs = [line.split() for line in (root / "meta" / "ijbc_template_pair_label.txt").read_text().splitlines()]
    return [features[int(a)] @ features[int(b)] for a, b, _ in pairs]
