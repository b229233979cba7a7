import subprocess
import sys

import numpy as np
import pytest
import torch

from data.faces import FaceRecords, ImageFolder
from data.records.layout import pack
from data.records.writer import write_face_records
from dataset import Batch, get_dataloader
from face_files import FACES, LABELS, VALUES, make_image_folder, write
from paths import ROOT


@pytest.fixture
def folder(tmp_path):
    return tmp_path


@pytest.fixture
def image_folder(tmp_path):
    return make_image_folder(tmp_path)


@pytest.mark.parametrize("name", ["faces.txt", "faces.csv", "faces.lst"])
def test_a_list_is_to_be_packed_first(folder, name):
    (folder / name).write_text("a.jpg 0\n")
    with pytest.raises(ValueError, match=rf"python -m tools.pack_rec ROOT OUT --list \S*{name} "):
        get_dataloader(folder / name, 4)


class TestLoader:
    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_epochs_and_resume(self, num_workers):
        loader = get_dataloader("synthetic", 4, num_workers=num_workers, num_classes=5, num_image=30)
        for epoch, step in ((0, 0), (1, 0), (1, 5)):  # the workers persist
            loader.batch_sampler.set_position(epoch, step)
            expected = list(loader.batch_sampler)
            batches = list(loader)
            assert len(batches) == len(loader) == 7 - step
            assert [batch.sample_ids_B.tolist() for batch in batches] == expected
            for batch in batches:
                assert isinstance(batch, Batch)
                images = np.stack([loader.dataset.load(i)[0] for i in batch.sample_ids_B.tolist()])
                assert (batch.images_BHW3.numpy() == images).all()

    def test_workers_read_records_opened_before(self, folder):
        write_face_records(folder, FACES)
        dataset = FaceRecords(folder)
        dataset.load(0)
        (batch,) = get_dataloader(dataset, 6, num_workers=1)
        order = batch.sample_ids_B.argsort()
        assert batch.images_BHW3[order][:, 5, 5, 0].tolist() == VALUES
        assert batch.labels_B[order].tolist() == LABELS

    def test_does_not_touch_the_global_random_state(self):
        loader = get_dataloader("synthetic", 4, num_workers=0, num_classes=5, num_image=30)
        before = torch.get_rng_state()
        list(loader)
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_workers_error_says_which_record(self, folder):
        write(folder, [(8, pack(0, b"no image"))])
        with pytest.raises(ValueError, match=r"train\.rec: record key 8 at byte 0: not a decodable image"):
            list(get_dataloader(folder, 1, num_workers=1))

    def test_sources(self, folder, image_folder):
        assert isinstance(get_dataloader(str(image_folder), 2, num_workers=0).dataset, ImageFolder)
        write_face_records(folder, FACES)
        assert isinstance(get_dataloader(folder, 2, num_workers=0).dataset, FaceRecords)
        loader = get_dataloader(folder / "train.rec", 2, rank=1, world_size=3, seed=5, num_workers=0)
        sampler = loader.batch_sampler
        assert (sampler.n, sampler.rank, sampler.global_batch, sampler.seed) == (6, 1, 6, 5)

    def test_no_source(self, folder):
        with pytest.raises(FileNotFoundError, match=r'nowhere: .* a \.rec file or "synthetic"'):
            get_dataloader(folder / "nowhere", 2)
        with pytest.raises(
            ValueError, match=r"neither train\.rec with train\.idx in it, nor <identity>/<image> below"
        ):
            get_dataloader(folder, 2)
        (folder / "faces.rec").write_bytes(b"")
        with pytest.raises(ValueError, match=r"give faces\.rec by its own path"):
            get_dataloader(folder, 2)
        with pytest.raises(ValueError, match="needs num_classes and num_image, got None and 4"):
            get_dataloader("synthetic", 2, num_image=4)

    def test_fewer_images_than_a_global_batch(self):
        with pytest.raises(ValueError, match="epoch of 7 images has no global batch of 2 ranks x 4 = 8"):
            get_dataloader("synthetic", 4, world_size=2, num_classes=5, num_image=7)


def test_a_process_with_live_workers_ends():
    """Workers that outlast a group's SIGTERM must still end when their parent does."""
    code = (
        "from dataset import get_dataloader\n"
        "loader = get_dataloader('synthetic', 4, num_classes=5, num_image=40, num_workers=2)\n"
        "keep = iter(loader); next(keep)\n"
        "import builtins; builtins.keep = keep, loader\n"
        "import torch.utils.data.dataloader as d\n"
        "d._MultiProcessingDataLoaderIter.__del__ = lambda self: None  # as when an exception's traceback holds it\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
