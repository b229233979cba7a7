"""MS1MV3, r50, heads of 12.

Data: MS1MV3 as records, 93,431 identities, 5,179,510 images (ms1m-retinaface-t1).
Expected: not yet run.
Cost: not yet measured; planned for 8 GPUs.
Launch: python -m torch.distributed.launch --nproc_per_node=8 train.py configs/ms1mv3_r50_mhs
"""

from easydict import EasyDict as edict  # noqa: N813

config = edict()
config.network = "r50"
config.loss = "arcface"
config.head_size = 12
config.rec = "/train_tmp/ms1m-retinaface-t1"
config.num_classes = 93431
config.num_image = 5179510
config.num_epoch = 20
config.lr_power = 2  # the schedule of the MHE authors; insightface's has 1
config.val_targets = ["lfw", "cfp_fp", "agedb_30"]
