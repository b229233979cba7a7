"""OpenCV, of either package: requirement.txt names none, because pip cannot ask for one of two.

It takes images of up to 2^27 pixels, instead of its own limit of 2^30: decoding such a one takes 0.4 GB, whatever a
small file announces. The environment variable OPENCV_IO_MAX_IMAGE_PIXELS, which OpenCV reads when it is imported,
sets another limit; a program that imports cv2 before this module keeps OpenCV's own.
"""

import os

os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 27))

try:
    import cv2
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "OpenCV 4.9 or newer is needed: pip install -r requirement-opencv.txt (or opencv-python, see docs/install.md)"
    ) from error

__all__ = ["cv2"]
