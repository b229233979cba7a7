"""Small tar shards, made by Python's tarfile from the faces of ``face_files``."""

import io
import tarfile

from face_files import FACES


def write_tar(path, members, form=tarfile.PAX_FORMAT):
    """A tar of these (name, bytes); bytes of None make a TarInfo that is given instead of a name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            if isinstance(name, tarfile.TarInfo):
                tar.addfile(name, None if data is None else io.BytesIO(data))
                continue
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def samples(names=None):
    """FACES as (key.png, image), (key.cls, label) pairs; ``names`` in place of the labels."""
    members = []
    for label, images in enumerate(FACES):
        for i, image in enumerate(images):
            text = names[label] if names else str(label)
            members += [(f"{label}{i}.png", image), (f"{label}{i}.cls", text.encode())]
    return members


def write_shards(folder, names=None):
    """FACES in two shards, train-0.tar and train-1.tar."""
    members = samples(names)
    write_tar(folder / "train-0.tar", members[:6])
    write_tar(folder / "train-1.tar", members[6:])
    return folder
