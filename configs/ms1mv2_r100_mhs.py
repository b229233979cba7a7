"""MS1MV2, r100, heads of 12.

Data: MS1MV2 as records, 85,742 identities, 5,822,653 images (faces_emore).
Expected: not yet run.
Cost: not yet measured; planned for 8 GPUs.
Launch: python -m torch.distributed.launch --nproc_per_node=8 train.py configs/ms1mv2_r100_mhs
"""

from easydict import EasyDict as edict  # noqa: N813

config = edict()
config.network = "r100"
config.loss = "arcface"
config.head_size = 12
config.rec = "/train_tmp/faces_emore"
config.num_classes = 85742
config.num_image = 5822653
config.num_epoch = 20
config.lr_power = 2  # the schedule of the MHE authors; insightface's has 1
config.val_targets = ["lfw", "cfp_fp", "agedb_30"]
