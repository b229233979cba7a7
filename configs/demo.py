"""Made-up faces, a small iresnet: what `make demo` trains.

Data: work_dirs/demo_data/train, written by `python -m tools.make_demo_faces work_dirs/demo_data`.
Expected: 95.7 % of the pairs of unseen people classified correctly, 71.8 % before training (docs/results/demo.jsonl).
Cost: 2 minutes on 2 CPU cores.
Launch: python -m torch.distributed.launch --nproc_per_node=2 train.py configs/demo
"""

from pathlib import Path

from easydict import EasyDict as edict  # noqa: N813

config = edict()
config.network = "rtiny"
config.loss = "cosface"
config.margin = 0.2
config.scale = 32
config.head_size = 2
config.rec = str(Path(__file__).resolve().parent.parent / "work_dirs" / "demo_data" / "train")
config.batch_size = 32
config.precision = "float32"  # the recorded figures are of it
config.lr = 0.05
config.num_epoch = 10
config.lr_power = 2  # the schedule of the MHE authors; insightface's has 1
config.warmup_epoch = 0.5
config.num_workers = 1
config.frequent = 20
config.val_targets = ["demo"]
