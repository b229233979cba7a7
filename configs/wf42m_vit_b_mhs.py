"""WebFace42M, ViT-B, heads of 12, after insightface's wf42m_pfc03_40epoch_8gpu_vit_b: its classifier is PartialFC.

Data: WebFace42M as records, 2,059,906 identities, 42,474,557 images.
Expected: not yet run. insightface quotes IJB-C 97.91 at FAR 1e-4 and 97.05 at 1e-5 for its own recipe.
Cost: not yet measured; planned for 8 GPUs. The classifier's centres are 0.49 GiB a rank, their state 0.98 GiB.
Launch: python -m torch.distributed.launch --nproc_per_node=8 train.py configs/wf42m_vit_b_mhs
"""

from easydict import EasyDict as edict  # noqa: N813

config = edict()
config.network = "vit_b_dp005_mask_005"
config.loss = "cosface"
config.margin = 0.4
config.head_size = 12
config.optimizer = "adamw"
config.lr = 0.001
config.weight_decay = 0.1
config.batch_size = 256
config.gradient_acc = 12  # 24,576 images a step
config.rec = "/train_tmp/WebFace42M"
config.num_classes = 2059906
config.num_image = 42474557
config.num_epoch = 40
config.warmup_epoch = 4
config.lr_power = 1  # insightface's schedule; that of the MHE authors has 2
config.val_targets = ["lfw", "cfp_fp", "agedb_30"]
