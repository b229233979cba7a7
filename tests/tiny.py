"""A recipe that trains in a second: 60 made-up identities, 96 random images, 12 steps of 8 an epoch."""

from easydict import EasyDict as edict  # noqa: N813

config = edict()
config.network = "rtiny"
config.embedding_size = 32
config.loss = "cosface"
config.margin = 0.2
config.scale = 16
config.head_size = 7
config.rec = "synthetic"
config.num_classes = 60
config.num_image = 96
config.batch_size = 8
config.precision = "float32"  # on any machine
config.lr = 0.05
config.num_epoch = 1
config.warmup_epoch = 0.25
config.lr_power = 2
config.num_workers = 0
config.frequent = 1
config.device = "cpu"
config.timeout_s = 60
