"""A thousand seeded damages to training data and verification sets, and what comes of each.

Run as a program of its own, so that a crash of the interpreter or a hang is seen from outside: it prints the number
of a case before it begins, and its result as a line of JSON. A result is one of

- "error": ValueError or OSError that names the file and the record, line, image or byte;
- "skipped": counted, others stand in, every delivered label is right;
- "harmless": every image and label comes as before the damage;
- "pixels": labels are right, an image still decodes but looks different (no format here has a checksum of pixels);
- "said": a label was changed, or a file is left out, and a note says so;
- "unseen": a label or flag was changed into another valid one, in a form that says it only once;
- anything else: a fault of ours, in words.
"""

import faulthandler
import json
import pickle
import re
import shutil
import struct
import sys
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from data.records.layout import MAGIC, pack
from data.records.reader import RecordReader
from data.records.writer import RecordWriter, write_face_records
from dataset import get_dataloader
from embedder.batches import embed_batches
from eval.pairs.bin_file import load_bin
from eval.pairs.protocol import pair_loader
from training.data import examine
from utils.decode import decode_rgb

IDENTITIES, EACH = 8, 3
N = IDENTITIES * EACH
CASE_TIME_S = 30  # no case takes half a second
NAMES_A_PLACE = re.compile(r"key \d+|line \d+|[Bb]yte \d+|(image|flag) \d+|\d\.(jpg|png)\b|\d images")
WHOLE_FILE = re.compile(
    r"the index is empty|none of its \d+ records|cut short|expected a multiple of 4 inside|no such file"
)


class Damage(NamedTuple):
    """What was done, and what that may change."""

    name: str
    image_hit: int | None = None  # the image whose bytes were changed
    label_hit: int | None = None  # the image or pair whose label was changed


def faces():
    """24 JPEG files of different pictures; one holds the records' magic on a boundary of its payload."""
    rng = np.random.default_rng(0)
    files = []
    for i in range(N):
        small = rng.integers(0, 256, (7, 7, 3), np.uint8)
        image = cv2.resize(small, (112, 112), interpolation=cv2.INTER_CUBIC)
        files.append(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes())
        if i == 5:
            comment = bytes([0xFF, 0xFE]) + struct.pack(">H", 8) + b"\0\0" + struct.pack("<I", MAGIC)
            files[i] = files[i][:2] + comment[:6] + comment[6:] + files[i][2:]
    return files


FILES = faces()
PICTURES = [decode_rgb(file).tobytes() for file in FILES]
LABELS = [i // EACH for i in range(N)]
NUMBER_OF = {picture: i for i, picture in enumerate(PICTURES)}


def make_insightface(folder):
    write_face_records(folder, [FILES[i * EACH : (i + 1) * EACH] for i in range(IDENTITIES)])


def make_im2rec(folder):
    with RecordWriter(folder / "train.rec") as writer:
        for i in range(N):
            writer.write(i, pack([LABELS[i], 7.5] if i == 11 else LABELS[i], FILES[i], i))


def make_folder(folder):
    for i in range(N):
        path = folder / f"person{LABELS[i]}" / f"{i:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(FILES[i])


def make_bin(folder):
    images = FILES[:20]
    (folder / "two.bin").write_bytes(pickle.dumps((images, [i % 3 == 0 for i in range(10)]), protocol=2))
    arrays = [np.frombuffer(image, np.uint8) for image in images]
    (folder / "four.bin").write_bytes(pickle.dumps((arrays, [i % 3 == 0 for i in range(10)]), protocol=4))


def flip(data, at, rng, bits=1):
    for _ in range(bits):
        data[at] ^= 1 << int(rng.integers(8))


def damage_rec(folder, rng):
    """Damage the .rec file; the field is chosen before the byte, so that small ones get their share."""
    path = folder / "train.rec"
    data = bytearray(path.read_bytes())
    reader = RecordReader(path)
    first = int(reader.read_face(0)[0].flag == 2 and len(reader.read_face(0)[1]) == 0)
    number = int(rng.integers(N))
    start = int(reader.offsets[first + number])
    header, image = reader.read_face(first + number)
    image_at = start + 32 + 4 * header.flag
    image_end = image_at + len(image) + (4 if number == 5 else 0)  # the second part's head
    kinds = ["flip field", "flip image", "flip anywhere", "cut", "length", "empty record", "empty", "junk", "label"]
    kind = rng.choice(kinds)
    if kind == "flip field":
        field, low, high = [
            ("magic", 0, 4), ("length", 4, 8), ("flag", 8, 12), ("label", 12, 16), ("ids", 16, 32),
            ("labels", 32, 32 + 4 * header.flag),
        ][int(rng.integers(6 if header.flag else 5))]  # fmt: skip
        flip(data, start + int(rng.integers(low, high)), rng)
        kind = f"flip {field}"
        path.write_bytes(data)
        return Damage(f".rec {kind}", label_hit=number if field in ("label", "labels", "flag") else None)
    if kind == "flip image":
        flip(data, int(rng.integers(image_at, image_end)), rng, 3)
    elif kind == "flip anywhere":
        at = int(rng.integers(len(data)))
        flip(data, at, rng)
        position = int(np.searchsorted(reader.offsets, at, side="right")) - 1
        number = position - first
        label_hit = number if 0 <= number < N and 12 <= at - int(reader.offsets[position]) < 40 else None
        path.write_bytes(data)
        return Damage(".rec flip anywhere", number if 0 <= number < N else None, label_hit)
    elif kind == "cut":
        data = data[: int(rng.integers(1, len(data)))]
    elif kind == "length":
        struct.pack_into("<I", data, start + 4, int(rng.integers(1 << int(rng.integers(4, 30)))))
    elif kind == "empty record":
        struct.pack_into("<I", data, start + 4, int(rng.choice([0, 24])))
    elif kind == "empty":
        data = bytearray()
    elif kind == "label":
        other = (LABELS[number] + int(rng.integers(1, IDENTITIES))) % IDENTITIES
        struct.pack_into("<f", data, start + (32 if header.flag else 12), other)
        path.write_bytes(data)
        return Damage(".rec label", label_hit=number)
    else:
        size = image_end - image_at
        data[image_at:image_end] = bytes([rng.bytes(size), b"text " * size, bytes(size)][int(rng.integers(3))][:size])
    path.write_bytes(data)
    return Damage(f".rec {kind}", image_hit=number if kind in ("flip image", "length", "junk") else None)


def damage_idx(folder, rng):
    path = folder / "train.idx"
    text = path.read_bytes()
    lines = text.splitlines(keepends=True)
    kind = rng.choice(["flip", "cut", "missing lines", "swapped offsets", "repeated line", "empty"])
    if kind == "flip":
        data = bytearray(text)
        flip(data, int(rng.integers(len(data))), rng)
        path.write_bytes(data)
    elif kind == "cut":
        path.write_bytes(text[: int(rng.integers(1, len(text)))])
    elif kind == "missing lines":
        gone = rng.choice(len(lines), int(rng.integers(1, 4)), replace=False)
        path.write_bytes(b"".join(line for i, line in enumerate(lines) if i not in gone))
    elif kind == "swapped offsets":
        rows = [line.rstrip().split(b"\t") for line in lines]
        a, b = rng.choice(len(rows), 2, replace=False)
        rows[a][1], rows[b][1] = rows[b][1], rows[a][1]
        path.write_bytes(b"".join(b"\t".join(row) + b"\n" for row in rows))
    elif kind == "repeated line":
        a, b = rng.choice(len(lines), 2, replace=False)
        path.write_bytes(b"".join([*lines[:a], lines[b], *lines[a + 1 :]]))
    else:
        path.write_bytes(b"")
    return Damage(f".idx {kind}")


def damage_folder(folder, rng):
    number = int(rng.integers(N))
    path = folder / f"person{LABELS[number]}" / f"{number:02}.jpg"
    data = bytearray(FILES[number])
    kind = rng.choice(["flip", "cut", "empty", "junk", "other size", "a folder", "dead link"])
    if kind == "flip":
        flip(data, int(rng.integers(len(data))), rng, int(rng.integers(1, 4)))
    elif kind == "cut":
        data = data[: int(rng.integers(1, len(data)))]
    elif kind == "empty":
        data = bytearray()
    elif kind == "junk":
        data = bytearray([rng.bytes(2000), b"<html>not found</html>", bytes(500)][int(rng.integers(3))])
    elif kind == "other size":
        size = (int(rng.integers(1, 300)), 113)
        data = bytearray(cv2.imencode(".jpg", np.zeros((*size, 3), np.uint8))[1].tobytes())
    path.unlink()
    if kind == "a folder":
        path.mkdir()
    elif kind == "dead link":
        path.symlink_to(folder / "nowhere.jpg")
    else:
        path.write_bytes(data)
    return Damage(f"image {kind}", image_hit=number)


def damage_bin(path, rng):
    data = bytearray(path.read_bytes())
    number = int(rng.integers(20))
    at = data.find(FILES[number])
    kind = rng.choice(["flip", "flip frame", "cut", "length", "empty", "junk", "flags missing", "flag", "image gone"])
    if kind == "flip":
        spot = int(rng.integers(len(data)))
        flip(data, spot, rng)
    elif kind == "flip frame":  # a byte that belongs to no image
        inside = np.zeros(len(data), bool)
        for file in FILES[:20]:
            begin = data.find(file)
            inside[begin : begin + len(file)] = True
        flip(data, int(rng.choice(np.flatnonzero(~inside))), rng)
    elif kind == "cut":
        data = data[: int(rng.integers(1, len(data)))]
    elif kind == "length":
        struct.pack_into("<I", data, at - 4, int(rng.integers(1 << int(rng.integers(4, 31)))))
    elif kind == "empty":
        data = bytearray()
    elif kind == "junk":
        data[at : at + len(FILES[number])] = rng.bytes(len(FILES[number]))
    else:
        images, flags = pickle.loads(bytes(data))
        if kind == "flags missing":
            flags = flags[: int(rng.integers(9))]
        elif kind == "flag":
            flags[number // 2] = not flags[number // 2]
        else:
            images = [b"" if i == number else image for i, image in enumerate(images)]
        data = bytearray(pickle.dumps((images, flags), protocol=2))
    path.write_bytes(data)
    return Damage(f".bin {kind}")


def named(error, folder):
    text = str(error)
    names_file = str(folder) in text
    if names_file and (NAMES_A_PLACE.search(text) or WHOLE_FILE.search(text)):
        return "error"
    return f"an error that does not say where: {text}"


def train_on(folder, mode, num_classes, damage):
    """Open, check and read all of a set as training does; what came of it."""
    try:
        loader = get_dataloader(folder, 2, num_workers=0, on_bad_sample=mode)
        summary, _ = examine(loader.dataset, num_classes)
        batches = list(loader)
    except (ValueError, OSError) as error:
        return named(error, folder)
    delivered, result = set(), "harmless"
    for batch in batches:
        if batch.images_BHW3.shape != (2, 112, 112, 3):
            return f"a batch of shape {tuple(batch.images_BHW3.shape)}"
        for image, label in zip(batch.images_BHW3.numpy(), batch.labels_B.tolist(), strict=True):
            number = NUMBER_OF.get(image.tobytes())
            if number is None:
                number, result = damage.image_hit, "pixels" if result == "harmless" else result
                if number is None:
                    return "an image that is not in the set"
            if label != LABELS[number]:
                if damage.label_hit != number:
                    return f"silently wrong label {label} for {LABELS[number]}"
                result = "said" if any(one.note for one in loader.dataset.sets) else "unseen"
            delivered.add(number)
    if result == "said":
        return result
    sets = loader.dataset.sets
    if any(one.warning for one in sets) or summary.unusable or any(batch.damaged for batch in batches):
        return "skipped"
    if any(one.note for one in sets):
        return "said"
    if len(delivered) < summary.num_image - summary.num_image % 2 or len(delivered) < N - 1:
        return f"silently only {len(delivered)} of {N} images"
    return result


class Pooling(torch.nn.Module):
    """A network that decoding and batching can be seen through."""

    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)


def verify_on(path, truth):
    """Open and embed a verification set; what came of it."""
    try:
        pairs = load_bin(path)
        embed_batches(Pooling(), pair_loader(pairs.encoded), len(pairs.encoded), torch.device("cpu"), batch_size=20)
    except (ValueError, OSError) as error:
        text = str(error)
        is_placed = str(path) in text or re.match(r"image \d+: ", text)  # the caller adds the set's name to these
        return "error" if is_placed else f"an error that does not say where: {text}"
    encoded, issame = truth
    if len(pairs.encoded) != len(encoded):
        return f"silently {len(pairs.encoded)} images"
    changed = [i for i, image in enumerate(pairs.encoded) if image != encoded[i]]
    if (pairs.issame != issame).any() or any(pairs.encoded[i] in encoded for i in changed):
        return "unseen"
    return "pixels" if changed else "harmless"


def run_case(number, originals, place):
    rng = np.random.default_rng([2024, number])
    family = ("insightface", "im2rec", "insightface", "im2rec", "folder", "bin")[number % 6]
    folder = place / f"case{number}"
    shutil.copytree(originals / family, folder)
    if family == "bin":
        path = folder / ("two.bin", "four.bin")[number // 6 % 2]
        truth = load_bin(path)
        damage = damage_bin(path, rng)
        results = {"stop": verify_on(path, (truth.encoded, truth.issame))}
    else:
        is_index = family != "folder" and rng.random() < 0.4
        damage = (damage_folder if family == "folder" else damage_idx if is_index else damage_rec)(folder, rng)
        num_classes = IDENTITIES if family == "folder" or rng.random() < 0.5 else None
        results = {mode: train_on(folder, mode, num_classes, damage) for mode in ("stop", "skip")}
    shutil.rmtree(folder)
    return {"case": number, "family": family, "damage": damage.name, **results}


def main(start, stop):
    warnings.simplefilter("error")
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        makers = {"insightface": make_insightface, "im2rec": make_im2rec, "folder": make_folder, "bin": make_bin}
        for family, make in makers.items():
            (place / "as made" / family).mkdir(parents=True)
            make(place / "as made" / family)
        for number in range(start, stop):
            print(f"begin {number}", flush=True)
            faulthandler.dump_traceback_later(CASE_TIME_S, exit=True)
            print(json.dumps(run_case(number, place / "as made", place)), flush=True)
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
