"""Every setting of a run: its name, type and meaning, and what follows from several of them together."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from utils.precision import Precision, spellings_of

LossName = Literal["arcface", "cosface", "combined", "adaface", "magface", "curricularface"]


@dataclass(frozen=True)
class Config:
    """Every setting of a run; a recipe in configs/ holds only what differs from configs/base.py."""

    # Data
    rec: str | tuple[str, ...]  # folder of records, identity folders, tar shards or LMDB; "synthetic"; or
    # a pattern such as shards/train-{0000..0099}.tar; an address such as s3://bucket/folder; a list of such
    class_map: str | None  # JSON: people who are in several sets of rec, as a list of {"SET": CLASS, "SET": CLASS};
    # SET is a set's number from 0 on, or its folder's name; CLASS the person's label or folder in it, or several
    rec_weights: tuple[float, ...] | None  # how often each set's images come in an epoch: 1 once, 0.5 half; None: 1
    num_classes: int | tuple[int, int] | Literal["auto"]  # identities C; (H, L): H heads of L; "auto": from the data
    num_image: int | None  # images; None: counted from the data, a million if it is "synthetic"
    image_size: tuple[int, int]  # height, width in pixels; 112 x 112, for a ViT also another square
    val_targets: tuple[str, ...]  # verification sets <rec>/<name>.bin, or paths of .bin files
    num_workers: int  # loader processes of each rank; 0: load in the training process
    shuffle_chunk: int  # images read in a row, such as 512, for spinning disks and object storage; 0: all shuffled
    on_bad_sample: Literal["stop", "skip"]  # damaged images and labels: an error, or replaced by others and counted
    dali: bool  # decode with nvidia-dali (requirement-dali.txt)
    dali_aug: bool  # the same as augment = "insightface", with either loader
    augment: str | dict[str, float] | None  # "adaface", "insightface", {"crop": 0.2}; None: flips alone

    # Backbone
    network: str  # a name that backbones.get_model knows
    embedding_size: int  # D, the numbers of an embedding
    dropout: float  # before the last layer, in [0, 1)
    sync_bn: bool  # batch statistics over all ranks instead of each rank's own
    gradient_checkpointing: bool | None  # compute parts of the network again in backward, to save memory; it takes a
    # quarter more time on CPUs, and nearly twice the time of vit_b on an H100; None: as insightface has it, in r2060,
    # vit_b, vit_l and vit_h
    compile: bool  # torch.compile makes kernels of the network's training pass; needs a C++ compiler, and minutes
    init_backbone: str | None  # a file of weights to start from; None: random weights
    freeze_backbone: bool  # keep these weights and train the classifier alone
    freeze_bn: bool | Literal["statistics"]  # train the backbone, but keep and use its batch norms' running
    # statistics; True: keep their scales and shifts, too. For few new faces or small batches, with init_backbone

    # Margin loss
    loss: LossName  # which margin; "combined" needs margin_list
    scale: float  # factor on the cosines, above 0
    margin: float | None  # radians or, for cosface and adaface, a cosine; None: the loss's usual one
    margin_list: tuple[float, float, float] | None  # (m1, m2, m3) of insightface; decides the loss when given
    loss_options: dict[str, float | bool] | None  # of adaface: "h", "t_alpha"; of magface: "l_a", "u_a", "l_m",
    # "u_m", "lambda_g", "easy_margin"; None: the usual ones
    interclass_filtering_threshold: float  # combined margin: drop other classes above this cosine; 0: off

    # Classifier
    head_size: int | None  # L, classes of one head; None: L of num_classes = (H, L), else PartialFC by sample_rate
    negative_rate: float | None  # share of further heads drawn each step, 0 to 1; None: 0
    head_scope: Literal["batch", "own"]  # softmax over all selected classes, or the sample's own head
    head_storage: Literal["device", "host", "file"]  # where centres and their state live
    head_folder: str | None  # for "file": a folder on a disk of each machine; None: <output>/heads
    head_cache_gib: float  # for "host" and "file": device memory for the heads updated last, of each rank; 0: none
    sample_rate: float  # PartialFC's share of classes, the batch's own included, in [0, 1]; 0: the batch's own alone;
    # needs head_size None and an integer num_classes
    classifier_amp: bool  # embeddings travel and meet the centres in the type of precision, not in float32
    init_centres: str | None  # None: random; "class_means" of init_backbone's embeddings; or a run's folder or
    # checkpoint: the centres of its people who are here too
    centres_map: str | None  # for a folder: JSON {"old class or name": new class or name}; None: by their names

    # Optimization
    optimizer: Literal["sgd", "adamw"]  # for the backbone and the classifier's rows
    lr: float  # at the end of the warm-up
    lr_batch: int | None  # scale lr by (total batch / lr_batch); None: lr unscaled
    lr_scaling: Literal["linear", "sqrt"]  # by that ratio, or by its square root
    lr_schedule: Literal["poly", "cosine", "step"]  # how the rate falls after the warm-up
    momentum: float  # SGD, in [0, 1)
    nesterov: bool  # SGD: step from where the momentum leads
    row_momentum: float | None  # SGD's momentum of class centres, in [0, 1); None: 0 if rarely visited, else momentum
    row_lr: float  # the rate of class centres, as a factor on lr
    row_idle: Literal["keep", "decay", "dense"] | None  # what steps without a class do to its momentum: nothing, make
    # it smaller, or move the centre as well, as a dense optimizer; None: "decay" with SGD, "keep" with AdamW
    weight_decay: float  # per step, of backbone and selected rows
    decay_norms_and_biases: bool  # False: no weight decay of the backbone's biases, norms and PReLU slopes
    ema_decay: float  # of an average of the backbone's weights over the steps, such as 0.9999, which is then verified
    # and written to model.pt; model_raw.pt holds the last weights. 0: none
    clip_grad_norm: float  # largest norm of the backbone's gradient; 0: no clipping
    batch_size: int  # images of one rank in one forward
    gradient_acc: int  # forwards for one step
    num_epoch: int  # passes over the data
    warmup_epoch: float  # epochs of linear rise from 0; 0 or below: none
    lr_power: float | None  # poly: the rate falls as (1 - t) to this power: 1 is insightface's schedule, 2 that of
    # the MHE authors; None: 2 for their num_classes = (H, L), else 1
    lr_end: float  # poly, cosine: the rate at the end, which lr_batch does not scale
    lr_steps: tuple[float, ...] | None  # step: epochs after which the rate is multiplied by lr_gamma, such as (8, 14)
    lr_gamma: float  # step: that factor
    precision: Precision  # of the network's products; "fp16" with loss scaling;
    # "auto": bf16 where the GPUs or CPUs of all ranks have it in hardware, else float32
    fp16: bool | None  # older spelling: True is precision = "fp16", False without another is "float32"
    bf16: bool | None  # older spelling: True is precision = "bf16", False without another is "float32"
    gradient_compression: Literal["bf16", "fp16"] | None  # between ranks the backbone's gradients travel as this,
    # half the bytes, for slow networks: bf16 keeps 8 bits of a number; fp16 11, but nothing above 65504 or below 6e-8
    max_nonfinite: int  # steps in a row without a finite gradient before the run stops

    # Run
    output: str | None  # folder of everything that the run leaves; None: work_dirs/<name of the config>
    resume: bool | str  # True: go on from the newest checkpoint in output; "auto": if it has a sound one, else start;
    # a checkpoint's or another run's folder: go on from that one
    overwrite: bool  # start over in an output folder that holds another run
    seed: int  # of first weights, order of images, flips, centres and negatives
    device: Literal["auto", "cpu", "cuda"]  # "auto": CUDA where there is a GPU
    timeout_s: float  # a collective that a peer does not join within this is an error
    verbose: int  # verify every this many optimizer steps; 0: at the end of epochs only
    frequent: int  # log every this many optimizer steps
    save_all_states: bool  # write checkpoints
    checkpoint_steps: int  # also every this many steps; 0: at the end of epochs only
    checkpoint_minutes: float  # also after this many minutes; 0: never
    checkpoint_full_every: int  # of so many checkpoints one holds all class centres, the others those changed since
    keep_checkpoints: int  # newest checkpoints that are kept
    keep_best: str | None  # also the best by this figure of the verification, "lfw/accuracy", and model_best.pt

    # Weights & Biases; it finds its login itself (`wandb login`, WANDB_API_KEY), and WANDB_MODE=offline needs none
    using_wandb: bool  # log there too
    wandb_key: str | None  # refused unless it is empty or a placeholder
    wandb_entity: str | None  # team or user
    wandb_project: str | None  # name of the project
    wandb_resume: bool  # go on with the run of the same name
    wandb_log_all: bool  # every rank logs, not only rank 0
    save_artifacts: bool  # upload model.pt
    suffix_run_name: str | None  # added to the recipe's name
    notes: str | None  # free text of the run

    # Old files set it; nothing reads it
    score: float | None  # of the MHE authors' files

    name: str = ""  # of the recipe's file

    def amp_dtype(self) -> torch.dtype | None:
        """The autocast type, or None for float32 throughout; "auto" is to be settled before."""
        assert self.precision != "auto", "training.precision.settle_precision decides what auto is on this machine"
        return {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]

    def with_precision(self, precision: Precision) -> Config:
        """These settings with another precision, its older spellings included."""
        return dataclasses.replace(self, **spellings_of(precision))

    def network_options(self) -> dict[str, Any]:
        """What decides the backbone, under the names that ``backbones.get_model`` takes."""
        return {
            "name": self.network,
            "num_features": self.embedding_size,
            "dropout": self.dropout,
            "amp_dtype": self.amp_dtype(),
            "image_size": self.image_size[0],
            "gradient_checkpointing": self.gradient_checkpointing,
        }

    def total_batch(self, world_size: int) -> int:
        """Images that one optimizer step sees."""
        return self.batch_size * world_size * self.gradient_acc

    def base_lr(self, world_size: int) -> float:
        """The rate at the end of the warm-up, scaled to the total batch where ``lr_batch`` asks for it."""
        if self.lr_batch is None:
            return self.lr
        if self.lr_scaling == "sqrt":
            return self.lr * math.sqrt(self.total_batch(world_size) / self.lr_batch)
        return self.lr * self.total_batch(world_size) / self.lr_batch

    def average_decay(self) -> float:
        """The decay of the average of the backbone's weights, 0 for none."""
        return 0.0 if self.freeze_backbone else self.ema_decay

    def margin_options(self) -> dict[str, Any]:
        """What decides the margin, under the names that ``losses.get_margin`` takes."""
        names = ("loss", "scale", "margin", "margin_list", "interclass_filtering_threshold", "loss_options")
        return {name: getattr(self, name) for name in names}

    def schedule_power(self) -> float:
        """The exponent of the fall of the rate: ``lr_power``, or what the authors of such a recipe use."""
        return self.lr_power or (2.0 if isinstance(self.num_classes, tuple) else 1.0)

    def classifier_dtype(self) -> torch.dtype | None:
        """The type of the classifier's exchange and product, or None for float32."""
        return self.amp_dtype() if self.classifier_amp else None

    def augmentation(self) -> str | dict[str, float] | None:
        """What ``augment`` and ``dali_aug`` ask for together."""
        return "insightface" if self.dali_aug else self.augment

    def sources(self) -> tuple[str, ...]:
        """The sets of faces that ``rec`` names."""
        return (self.rec,) if isinstance(self.rec, str) else self.rec

    def class_count(self) -> int | None:
        """Identities C, or None where they are to be counted from the data."""
        if isinstance(self.num_classes, tuple):
            return self.num_classes[0] * self.num_classes[1]
        return None if self.num_classes == "auto" else self.num_classes

    def head_layout(self) -> tuple[int, float, float | None]:
        """Classes of one head, the share of further heads drawn each step, and PartialFC's rate if it rules."""
        if isinstance(self.num_classes, tuple):
            return self.num_classes[1], self.negative_rate or 0.0, None
        if self.head_size is not None:
            return self.head_size, self.negative_rate or 0.0, None
        return (1, 1.0, None) if self.sample_rate == 1 else (1, 0.0, self.sample_rate)

    def head_options(self, output: Path) -> dict[str, Any]:
        """What a classifier is told about its heads, under the names that ``heads.shard.HeadShard`` takes."""
        head_size, negative_rate, sample_rate = self.head_layout()
        return {
            "head_size": head_size,
            "negative_rate": negative_rate,
            "sample_rate": sample_rate,
            "head_scope": self.head_scope,
            "head_storage": self.head_storage,
            "head_folder": Path(self.head_folder) if self.head_folder else output / "heads",
            "head_cache_gib": self.head_cache_gib,
            "seed": self.seed,
        }

    def output_dir(self) -> Path:
        """The run's folder, absolute."""
        return Path(self.output or Path("work_dirs", self.name)).expanduser().resolve()

    def without_effect(self) -> list[str]:
        """Settings given here that nothing reads, or that another setting overrules."""
        unread = [name for name in ("score",) if getattr(self, name)]
        if self.dali and self.rec == "synthetic":
            unread.append("dali")  # nothing to decode
        if self.resume and self.init_centres is not None:
            unread.append("init_centres")  # the checkpoint's go on
        if self.freeze_backbone:
            unread += [
                key
                for key in (
                    "sync_bn",
                    "dropout",
                    "freeze_bn",
                    "gradient_checkpointing",
                    "gradient_compression",
                    "compile",
                    "ema_decay",
                )
                if getattr(self, key)
            ]
            if not self.decay_norms_and_biases:
                unread.append("decay_norms_and_biases")
        elif self.freeze_bn and self.sync_bn:
            unread.append("sync_bn")
        if self.margin_list is not None and self.margin is not None:
            unread.append("margin")  # margin_list decides
        if self.classifier_amp and self.precision == "float32":
            unread.append("classifier_amp")  # there is no other type
        if self.optimizer != "sgd" and self.row_momentum is not None:
            unread.append("row_momentum")
        if isinstance(self.num_classes, tuple) and self.sample_rate != 1:
            unread.append("sample_rate")  # the heads decide
        return unread + self._unread_by_schedule()

    def _unread_by_schedule(self) -> list[str]:
        """Settings given here that belong to another ``lr_schedule``."""
        is_idle = {
            "lr_power": self.lr_power is not None and self.lr_schedule != "poly",
            "lr_end": self.lr_end > 0 and self.lr_schedule == "step",
            "lr_steps": bool(self.lr_steps) and self.lr_schedule != "step",
            "lr_gamma": self.lr_gamma != 0.1 and self.lr_schedule != "step",
        }
        return [name for name, idle in is_idle.items() if idle]

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values, for config.json, the log and W&B; of ``wandb_key`` only that it is given."""
        return dataclasses.asdict(self) | {"wandb_key": "***" if self.wandb_key else None}
