from pathlib import Path

import numpy as np
import pytest

from embedder.embedder import Embedder
from embedder.gallery import person_of, read_embeddings
from embedder.many import Embeddings, write_embeddings
from embedder.origin import Origin

FOUND = Embeddings(["people/ann/s1/1.png", "people/bob/1.png"], np.eye(2, dtype=np.float32), people=["ann", "bob"])


class Exported(Embedder):
    """What an ONNX file is, exported from weights of another hash."""

    sha256, weights_sha256 = "a" * 64, "b" * 64

    def embed(self, images_BHW3):
        return np.zeros((len(images_BHW3), 2), np.float32)


@pytest.mark.parametrize(
    ("name", "roots", "person"),
    [
        ("nest/anna/s1/1.jpg", ["nest"], "anna"),
        ("nest/anna/1.jpg", ["other", "nest"], "anna"),
        ("nest/anna/1.jpg", ["nest/anna"], "anna"),  # nothing but the root holds it
        ("anna/s1/1.jpg", ["."], "anna"),
        ("nest/anna/s1/1.jpg", [], "s1"),  # of a list
    ],
)
def test_whose_face_it_is(name, roots, person):
    assert person_of(name, [Path(root) for root in roots]) == person


def test_a_file_keeps_people_and_origin(tmp_path):
    origin = Origin("c" * 64, True, "BGR")
    write_embeddings(tmp_path / "g.npz", FOUND, "model.pt", origin)
    found, read = read_embeddings(tmp_path / "g.npz")
    assert (found.names, found.people, read) == (FOUND.names, FOUND.people, origin)


def test_an_older_file_was_fed_red_first_and_names_its_folders(tmp_path):
    np.savez(tmp_path / "g.npz", names=FOUND.names, embeddings=FOUND.values_ND, sha256="c" * 64, flip=False)
    found, origin = read_embeddings(tmp_path / "g.npz")
    assert (found.people, origin) == (["s1", "bob"], Origin("c" * 64, False, "RGB"))


@pytest.mark.parametrize("wrong", [{"people": ["ann"]}, {"color_order": "YUV"}])
def test_a_file_with_other_values_is_named(tmp_path, wrong):
    whole = {"names": FOUND.names, "embeddings": FOUND.values_ND, "sha256": "c" * 64, "flip": False}
    np.savez(tmp_path / "g.npz", **whole, **wrong)
    with pytest.raises(ValueError, match=r"g\.npz is no \.npz that inference\.py --out wrote"):
        read_embeddings(tmp_path / "g.npz")


def test_an_export_may_be_compared_with_what_its_weights_gave():
    for model in ("a" * 64, "b" * 64, "a name"):
        Origin(model, False).check("t.json", Exported(), False)
    with pytest.raises(ValueError, match=r"t\.json was made with another model \(sha256 cccccccccccc"):
        Origin("c" * 64, False).check("t.json", Exported(), False)
    with pytest.raises(ValueError, match="was made with --flip, not without it: add --flip, or make it again"):
        Origin("a" * 64, True).check("t.json", Exported(), False)
