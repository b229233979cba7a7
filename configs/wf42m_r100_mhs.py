"""WebFace42M, r100, heads of 12 on several machines.

Data: WebFace42M as records, 2,059,906 identities, 42,474,557 images.
Expected: not yet run.
Cost: not yet measured; planned for 2 machines of 8 GPUs. The classifier's centres are 0.25 GiB a rank.
Launch: on machine N of 2, python -m torch.distributed.launch --nproc_per_node=8 --nnodes=2 --node_rank=N
    --master_addr="ip1" --master_port=12581 train.py configs/wf42m_r100_mhs
"""

from easydict import EasyDict as edict  # noqa: N813

config = edict()
config.network = "r100"
config.loss = "cosface"
config.head_size = 12
config.lr = 0.2
config.rec = "/train_tmp/WebFace42M"
config.num_classes = 2059906
config.num_image = 42474557
config.num_epoch = 20
config.lr_power = 2  # the schedule of the MHE authors; insightface's has 1
config.warmup_epoch = 1
config.val_targets = ["lfw", "cfp_fp", "agedb_30"]
