"""A million made-up identities: how fast does a machine train when nothing is read from disk?

Data: random images, made on the fly; there is nothing to learn.
Expected: a steady speed; the loss means nothing.
Cost: 1,000 steps; the classifier's centres are 1.9 GiB over all ranks.
Launch: python -m torch.distributed.launch --nproc_per_node=8 train.py configs/synthetic_1m
"""

from easydict import EasyDict as edict  # noqa: N813

config = edict()
config.network = "r50"
config.loss = "arcface"
config.head_size = 12
config.rec = "synthetic"
config.num_classes = 1000000
config.num_image = 1024000
config.num_epoch = 1
config.lr_power = 2  # the schedule of the MHE authors; insightface's has 1
config.save_all_states = False
