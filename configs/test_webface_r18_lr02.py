"""CASIA-WebFace, r18, heads of 12: the smallest real recipe.

Data: CASIA-WebFace as records, 10,572 identities; 452,960 images in the MHE authors' copy, 490,623 in
    insightface's faces_webface_112x112. The schedule follows the images found.
Expected: not yet run here.
Cost: not yet measured; 8 GPUs of any recent kind.
Launch: python -m torch.distributed.launch --nproc_per_node=8 train.py configs/test_webface_r18_lr02
"""

from easydict import EasyDict as edict  # noqa: N813

config = edict()
config.network = "r18"
config.loss = "arcface"
config.margin = 0.5
config.num_classes = [881, 12]  # 881 heads of 12 classes
config.lr = 0.2
config.num_epoch = 25
config.lr_power = 2  # the schedule of the MHE authors; insightface's has 1
config.warmup_epoch = 2
config.rec = "/train_tmp/CASIA-WebFace-112x112-bin"
config.num_image = 452960
config.val_targets = ["lfw", "cfp_fp", "agedb_30", "cplfw", "calfw", "cfp_ff"]
