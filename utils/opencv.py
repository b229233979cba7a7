"""OpenCV, of either package: requirement.txt names none, because pip cannot ask for one of two."""

try:
    import cv2
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "OpenCV 4.9 or newer is needed: pip install -r requirement-opencv.txt (or opencv-python, see docs/install.md)"
    ) from error

__all__ = ["cv2"]
