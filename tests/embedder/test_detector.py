import numpy as np
import pytest

from embedder import detector
from made_photos import LANDMARKS


@pytest.mark.parametrize(
    ("boxes", "scores", "main"),
    [
        ([[0, 0, 90, 90], [160, 110, 70, 70]], [0.9, 0.9], 1),  # 0.6 of the largest, in the middle
        ([[0, 0, 90, 90], [160, 110, 60, 60]], [0.9, 0.9], 0),  # 0.44 of it
        ([[0, 0, 90, 90], [160, 110, 70, 70]], [0.9, 0.6], 0),  # unsure
        ([[150, 100, 80, 80], [300, 0, 90, 90]], [0.9, 0.9], 0),
    ],
)
def test_the_main_face_is_large_and_near_the_middle(boxes, scores, main):
    faces = detector.Faces(np.float64(boxes), np.zeros((2, 5, 2)), np.array(scores))
    assert faces.main(400, 300) == main


def test_opencvs_detector_gives_the_projects_order(monkeypatch, tmp_path):
    """Its right is the person's: its "right eye" lies left in the photo. The graph itself is not run here."""
    row = [20, 10, 60, 80, *LANDMARKS.ravel(), 0.75]
    seen = {}

    class OpenCv:
        def setInputSize(self, size):  # noqa: N802 - OpenCV's name
            seen["size"] = size

        def detect(self, image):
            seen["image"] = image
            return 1, np.float32([row])

    monkeypatch.setattr(detector.cv2.FaceDetectorYN, "create", lambda *_: OpenCv(), raising=False)
    (tmp_path / "yunet.onnx").write_bytes(b"graph")
    image = np.zeros((100, 2560, 3), np.uint8)
    image[..., 0] = 200  # red
    faces = detector.open_detector(tmp_path / "yunet.onnx").detect(image)
    assert seen["size"] == (1280, 50)  # a large photo is searched at half its size
    assert seen["image"][0, 0].tolist() == [0, 0, 200]
    np.testing.assert_allclose(faces.landmarks[0], 2 * LANDMARKS, rtol=1e-5)
    np.testing.assert_allclose(faces.boxes[0], [40, 20, 120, 160])
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.onnx.* face_detection_yunet"):
        detector.open_detector(tmp_path / "none.onnx")


def test_a_file_that_is_no_detector_is_named(tmp_path):
    (tmp_path / "yunet.onnx").write_bytes(b"version https://git-lfs")
    with pytest.raises(ValueError, match=r"yunet\.onnx is no face detector"):
        detector.open_detector(tmp_path / "yunet.onnx")
