"""Glint360K, r100, heads of 12, after insightface's glint360k_r100: its classifier is the full softmax.

Data: Glint360K as records, 360,232 identities, 17,091,657 images.
Expected: not yet run. insightface quotes IJB-C 97.55 at FAR 1e-4 and 96.38 at 1e-5 for its own recipe.
Cost: not yet measured; planned for 8 GPUs. The classifier's centres are 0.09 GiB a rank.
Launch: python -m torch.distributed.launch --nproc_per_node=8 train.py configs/glint360k_r100_mhs
"""

from easydict import EasyDict as edict  # noqa: N813

config = edict()
config.network = "r100"
config.loss = "cosface"
config.margin = 0.4
config.head_size = 12
config.weight_decay = 1e-4
config.rec = "/train_tmp/glint360k"
config.num_classes = 360232
config.num_image = 17091657
config.num_epoch = 20
config.lr_power = 1  # insightface's schedule; that of the MHE authors has 2
config.val_targets = ["lfw", "cfp_fp", "agedb_30"]
