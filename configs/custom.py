"""Your own faces: a folder of identities or records, up to about 10,000 people. Copy it and change what differs.

Data: rec=FOLDER on the command line, aligned faces as FOLDER/<identity>/<image>, or records.
    `python -m tools.check_data FOLDER` checks them; docs/prepare_data.md says how to hold people out for a test.
Expected: depends on your data; verification with your own held-out pairs tells (val_targets).
Cost: depends on your data; the log says how much time is left.
Launch: python train.py configs/custom rec=FOLDER [val_targets=my.bin] [init_backbone=model.pt lr=0.01]
"""

from easydict import EasyDict as edict  # noqa: N813

config = edict()
config.network = "r18"
config.loss = "arcface"
config.margin = 0.35  # few images a person: a smaller margin than the usual 0.5
config.augment = "adaface"
config.num_classes = "auto"  # counted from the data; without head_size every class is in each step's softmax
config.batch_size = 64
config.lr = 0.05  # with init_backbone set lr = 0.01
config.num_epoch = 20
config.lr_power = 2  # the schedule of the MHE authors; insightface's has 1
config.warmup_epoch = 1
