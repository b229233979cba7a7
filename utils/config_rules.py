"""What a configuration may not ask for: values out of their range, and settings that exclude each other."""

from __future__ import annotations

from itertools import pairwise

from utils.settings import Config


def check_rules(config: Config) -> None:
    """Raise ValueError for the first rule that ``config`` breaks; its message says what is allowed."""
    _check_ranges(config)
    _check_combinations(config)


def _check_ranges(c: Config) -> None:
    sizes = c.num_classes if isinstance(c.num_classes, tuple) else (c.num_classes,)
    rules: list[tuple[str, bool, str]] = [
        ("num_classes", all(n == "auto" or n >= 1 for n in sizes), "at least 1"),
        ("num_image", c.num_image is None or c.num_image >= 1, "at least 1"),
        ("image_size", _network_takes(c), "(112, 112), or a square for a ViT; other networks take no other"),
        ("rec_weights", all(weight > 0 for weight in c.rec_weights or ()), "above 0 for each set"),
        ("num_workers", c.num_workers >= 0, "at least 0"),
        ("shuffle_chunk", c.shuffle_chunk >= 0, "at least 0"),
        ("embedding_size", c.embedding_size >= 1, "at least 1"),
        ("dropout", 0 <= c.dropout < 1, "in [0, 1)"),
        ("scale", c.scale > 0, "above 0"),
        ("head_size", c.head_size is None or c.head_size >= 1, "at least 1"),
        ("negative_rate", c.negative_rate is None or 0 <= c.negative_rate <= 1, "in [0, 1]"),
        ("head_cache_gib", c.head_cache_gib >= 0, "at least 0"),
        ("sample_rate", 0 <= c.sample_rate <= 1, "in [0, 1]"),
        ("lr", c.lr > 0, "above 0"),
        ("lr_batch", c.lr_batch is None or c.lr_batch >= 1, "at least 1"),
        ("momentum", 0 <= c.momentum < 1, "in [0, 1)"),
        ("row_momentum", c.row_momentum is None or 0 <= c.row_momentum < 1, "in [0, 1)"),
        ("row_lr", c.row_lr > 0, "above 0"),
        ("weight_decay", c.weight_decay >= 0, "at least 0"),
        ("ema_decay", 0 <= c.ema_decay < 1, "in [0, 1), such as 0.9999, or 0 for no average"),
        ("clip_grad_norm", c.clip_grad_norm >= 0, "at least 0"),
        ("batch_size", c.batch_size >= 2, "at least 2 (batch normalisation needs two images)"),
        ("gradient_acc", c.gradient_acc >= 1, "at least 1"),
        ("num_epoch", c.num_epoch >= 1, "at least 1"),
        (
            "warmup_epoch",
            c.warmup_epoch < c.num_epoch,
            f"below num_epoch = {c.num_epoch} (set warmup_epoch=0 for none)",
        ),
        ("lr_power", c.lr_power is None or c.lr_power > 0, "above 0, or None"),
        ("lr_end", c.lr_end >= 0, "at least 0"),
        ("lr_steps", _rises(c.lr_steps or ()), "rising epochs above 0, such as (8, 14)"),
        ("lr_gamma", 0 < c.lr_gamma <= 1, "above 0 and at most 1"),
        ("max_nonfinite", c.max_nonfinite >= 1, "at least 1"),
        ("seed", c.seed >= 0, "at least 0"),
        ("timeout_s", c.timeout_s > 0, "above 0"),
        ("verbose", c.verbose >= 0, "at least 0"),
        ("frequent", c.frequent >= 1, "at least 1"),
        ("checkpoint_steps", c.checkpoint_steps >= 0, "at least 0"),
        ("checkpoint_minutes", c.checkpoint_minutes >= 0, "at least 0"),
        ("checkpoint_full_every", c.checkpoint_full_every >= 1, "at least 1"),
        ("keep_checkpoints", c.keep_checkpoints >= 1, "at least 1"),
    ]
    for key, holds, allowed in rules:
        if not holds:
            raise ValueError(f"{key} must be {allowed}, got {getattr(c, key)!r}")


def _network_takes(c: Config) -> bool:
    """Whether images may have this size: backbones/ has the last word on how small a ViT's may be."""
    height, width = c.image_size
    return c.image_size == (112, 112) or (c.network.startswith(("vit_", "vtiny")) and height == width >= 1)


def _rises(epochs: tuple[float, ...]) -> bool:
    return all(before < after for before, after in pairwise((0.0, *epochs)))


def _check_combinations(c: Config) -> None:
    if c.lr_schedule == "step" and c.lr_steps is None:
        raise ValueError(
            "lr_schedule = 'step' needs lr_steps: the epochs after which the rate falls, such as (8, 14)"
        )
    if c.lr_scaling == "sqrt" and c.lr_batch is None:
        raise ValueError("lr_scaling = 'sqrt' needs lr_batch: the total batch that lr is meant for")
    if c.nesterov and (c.momentum == 0 or c.optimizer != "sgd"):
        raise ValueError("nesterov needs optimizer = 'sgd' and momentum above 0")
    if c.row_idle == "dense" and c.optimizer != "sgd":
        raise ValueError("row_idle = 'dense' needs optimizer = 'sgd'; AdamW takes 'keep' or 'decay'")
    if c.compile and (c.sync_bn or c.gradient_checkpointing):
        other = "sync_bn" if c.sync_bn else "gradient_checkpointing"
        raise ValueError(f"compile = True does not go with {other} = True: set one of them to False")
    if c.dali_aug and c.augment not in (None, "insightface"):
        raise ValueError(f"dali_aug = True means augment = 'insightface', but augment = {c.augment!r}: give only one")
    if isinstance(c.num_classes, tuple) and c.head_size not in (None, c.num_classes[1]):
        raise ValueError(
            f"num_classes = {list(c.num_classes)} means heads of {c.num_classes[1]} classes, but head_size = "
            f"{c.head_size}; give num_classes as one number, or leave head_size out"
        )
    if c.freeze_backbone and c.init_backbone is None and not c.resume:
        raise ValueError("freeze_backbone = True keeps the weights of init_backbone: give it a file of weights")
    if c.freeze_bn and c.init_backbone is None and not c.resume:
        raise ValueError(
            f"freeze_bn = {c.freeze_bn!r} keeps the statistics of init_backbone: give it a file of weights; a new "
            "network has none yet"
        )
    if c.init_centres == "class_means" and c.init_backbone is None and not c.resume:
        raise ValueError(
            "init_centres = 'class_means' needs init_backbone: the network whose embeddings are averaged"
        )
    if c.centres_map is not None and c.init_centres in (None, "class_means"):
        raise ValueError("centres_map says who is who in the older run of init_centres: give its folder there")
    if (c.checkpoint_steps or c.checkpoint_minutes) and not c.save_all_states:
        raise ValueError(
            "checkpoint_steps or checkpoint_minutes asks for checkpoints, but save_all_states = False switches them "
            "off"
        )
    if c.keep_best is not None and not (c.val_targets and c.save_all_states):
        raise ValueError("keep_best needs a set in val_targets, and save_all_states = True")
    has_heads = isinstance(c.num_classes, tuple) or c.head_size is not None
    if c.negative_rate is not None and not has_heads:
        raise ValueError("negative_rate needs head_size; PartialFC's share of classes is sample_rate")
    if c.head_size is not None and c.sample_rate != 1:
        raise ValueError(
            f"sample_rate = {c.sample_rate} is PartialFC's, but head_size = {c.head_size} asks for heads; "
            "use negative_rate for further heads, or leave head_size out"
        )
    if c.head_cache_gib and c.head_storage == "device":
        raise ValueError(
            f"head_cache_gib = {c.head_cache_gib:g} keeps heads of host memory or files on the device, but "
            "head_storage = 'device' keeps all of them there: set head_cache_gib to 0, or head_storage to 'host' or "
            "'file'"
        )
    if c.interclass_filtering_threshold and c.margin_list is None:
        raise ValueError("interclass_filtering_threshold belongs to the combined margin: give margin_list too")
    if c.loss == "combined" and c.margin_list is None:
        raise ValueError("loss = 'combined' needs margin_list = (m1, m2, m3)")
    if c.rec == "synthetic" and c.num_classes == "auto":
        raise ValueError("rec = 'synthetic' needs num_classes as a number")
    if not isinstance(c.rec, str) and ("synthetic" in c.rec or "" in c.rec):
        raise ValueError(f"a list in rec holds folders and .rec files, got {list(c.rec)}")
    if c.rec_weights is not None and len(c.rec_weights) != len(c.sources()):
        raise ValueError(f"rec_weights needs one number for each set of rec, {len(c.sources())}, got {c.rec_weights}")
    if c.class_map is not None and c.rec == "synthetic":
        raise ValueError("class_map joins people of sets that rec names; 'synthetic' has none")
