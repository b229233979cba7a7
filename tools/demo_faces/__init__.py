"""Made-up people, rendered with numpy and OpenCV alone: a person is drawn from a seed, and so is each picture."""
