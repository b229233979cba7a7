"""One frozen, typed configuration from a Python module of differences.

``get_config("configs/NAME", ["lr=0.05"])`` lays the module's ``config`` over ``configs/base.py`` and the overrides
over both, checks every key, type and range, and returns a :class:`Config`. The files that insightface's arcface_torch
and the MHE authors ship load unchanged.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from utils.config_secrets import refuse_secrets
from utils.typed_values import typed

LossName = Literal["arcface", "cosface", "combined", "adaface", "magface", "curricularface"]
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Config:
    """Every setting of a run; a recipe in configs/ holds only what differs from configs/base.py."""

    # Data
    rec: str | tuple[str, ...]  # folder with train.rec and .idx, or of identity folders; a list; or "synthetic"
    class_map: str | None  # JSON: people who are in several sets of rec, as a list of {"SET": CLASS, "SET": CLASS};
    # SET is a set's number from 0 on, or its folder's name; CLASS the person's label or folder in it, or several
    rec_weights: tuple[float, ...] | None  # how often each set's images come in an epoch: 1 once, 0.5 half; None: 1
    num_classes: int | tuple[int, int] | Literal["auto"]  # identities C; (H, L): H heads of L; "auto": from the data
    num_image: int | None  # images; None: counted from the data, a million if it is "synthetic"
    image_size: tuple[int, int]  # height, width in pixels; the backbones take 112 x 112 only
    val_targets: tuple[str, ...]  # verification sets <rec>/<name>.bin, or paths of .bin files
    num_workers: int  # loader processes of each rank; 0: load in the training process
    shuffle_chunk: int  # for spinning disks: records read in a row, such as 512; 0: all shuffled freely
    on_bad_sample: Literal["stop", "skip"]  # damaged images and labels: an error, or replaced by others and counted
    dali: bool  # decode with nvidia-dali (requirement-dali.txt)
    dali_aug: bool  # the same as augment = "insightface", with either loader
    augment: str | dict[str, float] | None  # "adaface", "insightface", {"crop": 0.2}; None: flips alone

    # Backbone
    network: str  # a name that backbones.get_model knows
    embedding_size: int  # D, the numbers of an embedding
    dropout: float  # before the last layer, in [0, 1)
    sync_bn: bool  # batch statistics over all ranks instead of each rank's own
    init_backbone: str | None  # a file of weights to start from; None: random weights
    freeze_backbone: bool  # keep these weights and train the classifier alone

    # Margin loss
    loss: LossName  # which margin; "combined" needs margin_list
    scale: float  # factor on the cosines, above 0
    margin: float | None  # radians or, for cosface and adaface, a cosine; None: the loss's usual one
    margin_list: tuple[float, float, float] | None  # (m1, m2, m3) of insightface; decides the loss when given
    interclass_filtering_threshold: float  # combined margin: drop other classes above this cosine; 0: off

    # Classifier
    head_size: int | None  # L, classes of one head; None: L of num_classes = (H, L), else PartialFC by sample_rate
    negative_rate: float | None  # share of further heads drawn each step, 0 to 1; None: 0
    head_scope: Literal["batch", "own"]  # softmax over all selected classes, or the sample's own head
    head_storage: Literal["device", "host", "file"]  # where centres and their state live
    head_folder: str | None  # for "file": a folder on a disk of each machine; None: <output>/heads
    sample_rate: float  # PartialFC's share of classes, in (0, 1]; needs head_size None and an integer num_classes
    init_centres: str | None  # None: random; "class_means" of init_backbone's embeddings; or a run's folder or
    # checkpoint: the centres of its people who are here too
    centres_map: str | None  # for a folder: JSON {"old class or name": new class or name}; None: by their names

    # Optimization
    optimizer: Literal["sgd", "adamw"]  # for the backbone and the classifier's rows
    lr: float  # at the end of the warm-up
    lr_batch: int | None  # scale lr by (total batch / lr_batch); None: lr unscaled
    momentum: float  # SGD, in [0, 1)
    nesterov: bool  # SGD: step from where the momentum leads
    row_momentum: float | None  # SGD's momentum of class centres, in [0, 1); None: 0 if rarely visited, else momentum
    row_lr: float  # the rate of class centres, as a factor on lr
    row_idle: Literal["keep", "decay", "dense"] | None  # what steps without a class do to its momentum: nothing, make
    # it smaller, or move the centre as well, as a dense optimizer; None: "decay" with SGD, "keep" with AdamW
    weight_decay: float  # per step, of backbone and selected rows
    clip_grad_norm: float  # largest norm of the backbone's gradient; 0: no clipping
    batch_size: int  # images of one rank in one forward
    gradient_acc: int  # forwards for one step
    num_epoch: int  # passes over the data
    warmup_epoch: float  # epochs of linear rise from 0; below 0: start that far down the slope
    fp16: bool  # float16 with loss scaling
    bf16: bool  # bfloat16
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

    # Weights & Biases; the key comes from WANDB_API_KEY in the environment only
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
        """The autocast type, or None for float32 throughout."""
        return torch.float16 if self.fp16 else torch.bfloat16 if self.bf16 else None

    def total_batch(self, world_size: int) -> int:
        """Images that one optimizer step sees."""
        return self.batch_size * world_size * self.gradient_acc

    def base_lr(self, world_size: int) -> float:
        """The rate at the end of the warm-up, scaled to the total batch where ``lr_batch`` asks for it."""
        return self.lr if self.lr_batch is None else self.lr * self.total_batch(world_size) / self.lr_batch

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

    def head_layout(self) -> tuple[int, float]:
        """Classes of one head, and the share of further heads drawn each step."""
        if isinstance(self.num_classes, tuple):
            return self.num_classes[1], self.negative_rate or 0.0
        if self.head_size is not None:
            return self.head_size, self.negative_rate or 0.0
        return 1, float(self.sample_rate)

    def head_options(self, output: Path) -> dict[str, Any]:
        """What a classifier is told about its heads, under the names that ``heads.shard.HeadShard`` takes."""
        head_size, negative_rate = self.head_layout()
        return {
            "head_size": head_size,
            "negative_rate": negative_rate,
            "head_scope": self.head_scope,
            "head_storage": self.head_storage,
            "head_folder": Path(self.head_folder) if self.head_folder else output / "heads",
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
            unread += [name for name in ("sync_bn", "dropout") if getattr(self, name)]
        if self.margin_list is not None and self.margin is not None:
            unread.append("margin")  # margin_list decides
        if self.optimizer != "sgd" and self.row_momentum is not None:
            unread.append("row_momentum")
        if isinstance(self.num_classes, tuple) and self.sample_rate != 1:
            unread.append("sample_rate")  # the heads decide
        return unread

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values, for config.json."""
        return dataclasses.asdict(self)


def get_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe.

    Args:
        path: ``configs/NAME`` or ``configs/NAME.py``, from the current folder or from the project's, or a path.
        overrides: ``key=value`` texts; values are Python literals, anything else is taken as text.

    Raises:
        FileNotFoundError: no such module.
        ValueError: an unknown key, a wrong type or range, settings that exclude each other, a literal secret.
    """
    file = find_config(path)
    values = _read_module(ROOT / "configs" / "base.py")
    values.update(_read_module(file))
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator:
            raise ValueError(f"an override is key=value, such as lr=0.05; got {text.partition(':')[0]!r}")
        if key.strip() == "name":
            raise ValueError("name is the recipe's file name; suffix_run_name and output can be set")
        values[key.strip()] = _literal(value.strip())
    values["name"] = file.stem
    return make_config(values)


def make_config(values: Mapping[str, Any]) -> Config:
    """Check and freeze a complete set of values; raises ValueError as :func:`get_config`."""
    hints = typing.get_type_hints(Config)
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1, 0.5)
            raise ValueError(
                f"unknown setting {key!r}"
                + (f"; did you mean {near[0]!r}?" if near else "")
                + " All settings and their meaning stand in utils/config.py"
            )
    refuse_secrets(values)  # before any message shows a value
    missing = [key for key in hints if key not in values]
    if missing:
        raise ValueError(f"configs/base.py must give a value to {', '.join(missing)}")
    config = Config(**{key: typed(key, values[key], hint) for key, hint in hints.items()})
    config = dataclasses.replace(
        config,
        rec=_home(config.rec) if isinstance(config.rec, str) else tuple(map(_home, config.rec)),
        class_map=config.class_map and _home(config.class_map),
        init_backbone=config.init_backbone and _home(config.init_backbone),
        init_centres=config.init_centres and _home(config.init_centres),
        centres_map=config.centres_map and _home(config.centres_map),
        head_folder=config.head_folder and _home(config.head_folder),
        val_targets=tuple(_home(target) for target in config.val_targets),
    )
    _check_ranges(config)
    _check_combinations(config)
    return config


def find_config(path: str | Path) -> Path:
    """The recipe's file: ``path`` with or without .py, from the current folder, the project's, or its configs/."""
    given = Path(path).expanduser()
    if not given.name:
        raise FileNotFoundError(f"no config {str(path)!r}: give configs/NAME")
    candidates = [
        folder / name
        for folder in (Path(), ROOT, ROOT / "configs")
        for name in (given, given.with_name(given.name + ".py"))
    ]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    known = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in ("base", "__init__"))
    near = difflib.get_close_matches(given.stem, known, 1, 0.5)
    raise FileNotFoundError(
        f"no config {str(path)!r}"
        + (f"; did you mean configs/{near[0]}?" if near else "")
        + f" Shipped: {', '.join(known)}"
    )


def _read_module(file: Path) -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location(f"_config_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file} is not a Python module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = getattr(module, "config", None)
    if not isinstance(config, Mapping):
        raise ValueError(f"{file} must define config = edict(), found {type(config).__name__}")
    return dict(config)


def _literal(text: str) -> Any:
    """A Python literal; true/false/none in any case; a comma list of words; else the text itself."""
    lowered = text.lower()
    if lowered in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[lowered]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if text[:1] in "[(" and text[-1:] in "])" and len(text) > 1:
            return [part.strip() for part in text[1:-1].split(",") if part.strip()]
        return text


def _home(path: str) -> str:
    return str(Path(path).expanduser()) if path.startswith("~") else path


def _check_ranges(c: Config) -> None:
    sizes = c.num_classes if isinstance(c.num_classes, tuple) else (c.num_classes,)
    rules: list[tuple[str, bool, str]] = [
        ("num_classes", all(n == "auto" or n >= 1 for n in sizes), "at least 1"),
        ("num_image", c.num_image is None or c.num_image >= 1, "at least 1"),
        ("image_size", c.image_size == (112, 112), "(112, 112), which is what every backbone here takes"),
        ("rec_weights", all(weight > 0 for weight in c.rec_weights or ()), "above 0 for each set"),
        ("num_workers", c.num_workers >= 0, "at least 0"),
        ("shuffle_chunk", c.shuffle_chunk >= 0, "at least 0"),
        ("embedding_size", c.embedding_size >= 1, "at least 1"),
        ("dropout", 0 <= c.dropout < 1, "in [0, 1)"),
        ("scale", c.scale > 0, "above 0"),
        ("head_size", c.head_size is None or c.head_size >= 1, "at least 1"),
        ("negative_rate", c.negative_rate is None or 0 <= c.negative_rate <= 1, "in [0, 1]"),
        ("sample_rate", 0 < c.sample_rate <= 1, "in (0, 1]"),
        ("lr", c.lr > 0, "above 0"),
        ("lr_batch", c.lr_batch is None or c.lr_batch >= 1, "at least 1"),
        ("momentum", 0 <= c.momentum < 1, "in [0, 1)"),
        ("row_momentum", c.row_momentum is None or 0 <= c.row_momentum < 1, "in [0, 1)"),
        ("row_lr", c.row_lr > 0, "above 0"),
        ("weight_decay", c.weight_decay >= 0, "at least 0"),
        ("clip_grad_norm", c.clip_grad_norm >= 0, "at least 0"),
        ("batch_size", c.batch_size >= 2, "at least 2 (batch normalisation needs two images)"),
        ("gradient_acc", c.gradient_acc >= 1, "at least 1"),
        ("num_epoch", c.num_epoch >= 1, "at least 1"),
        ("warmup_epoch", c.warmup_epoch < c.num_epoch, f"below num_epoch = {c.num_epoch}"),
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


def _check_combinations(c: Config) -> None:
    if c.nesterov and (c.momentum == 0 or c.optimizer != "sgd"):
        raise ValueError("nesterov needs optimizer = 'sgd' and momentum above 0")
    if c.row_idle == "dense" and c.optimizer != "sgd":
        raise ValueError("row_idle = 'dense' needs optimizer = 'sgd'; AdamW takes 'keep' or 'decay'")
    if c.fp16 and c.bf16:
        raise ValueError("fp16 and bf16 exclude each other: set one of them to False")
    if c.dali_aug and c.augment not in (None, "insightface"):
        raise ValueError(f"dali_aug = True means augment = 'insightface', but augment = {c.augment!r}: give only one")
    if isinstance(c.num_classes, tuple) and c.head_size not in (None, c.num_classes[1]):
        raise ValueError(
            f"num_classes = {list(c.num_classes)} means heads of {c.num_classes[1]} classes, but head_size = "
            f"{c.head_size}; give num_classes as one number, or leave head_size out"
        )
    if c.freeze_backbone and c.init_backbone is None and not c.resume:
        raise ValueError("freeze_backbone = True keeps the weights of init_backbone: give it a file of weights")
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
