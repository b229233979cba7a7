"""LFW, a small iresnet: real faces on a laptop's CPU, to see that everything works.

Data: Labeled Faces in the Wild as records, 4,040 identities, 9,450 images, and lfw.bin with 1,200 pairs of other
    identities, in the folder lfw_train of MHS_DATA (an environment variable), or rec=FOLDER on the command line.
Expected: 76.9 ± 1.1 % on lfw.bin after its one epoch, 63.2 ± 1.9 % before, over seven seeds
    (docs/results/lfw_mini_seeds.jsonl); its own seed gave 77.4 %. A seed gives the same figure on one machine only.
Cost: half a minute on 2 CPU cores.
Launch: python -m torch.distributed.launch --nproc_per_node=2 train.py configs/lfw_mini rec=FOLDER
"""

import os
from pathlib import Path

from easydict import EasyDict as edict  # noqa: N813

config = edict()
config.network = "rtiny"
config.loss = "cosface"
config.margin = 0.2
config.scale = 32
config.head_size = 12
config.rec = str(Path(os.environ.get("MHS_DATA", ""), "lfw_train"))
config.batch_size = 32
config.precision = "float32"  # the recorded figures are of it
config.lr = 0.05
config.num_epoch = 1
config.lr_power = 2  # the schedule of the MHE authors; insightface's has 1
config.num_workers = 1
config.val_targets = ["lfw"]
