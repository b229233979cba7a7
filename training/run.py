"""What changes in training: backbone, classifier, optimizers, loss scale, counters; and their checkpoints.

One step is: the next batches, forward, backward, all ranks agree that the gradients are finite, optimizers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from backbones import get_model
from backbones.base import to_network_input
from data.augment import Augmentation
from dataset import Batch
from heads.checkpoint import load_heads, save_heads
from losses import get_margin
from partial_fc_mhs import PartialFCMHS
from training import checkpoint
from training.data import DamagedSamples
from training.optimizers import make_optimizer, make_row_optimizer, row_rule
from training.schedule import PolySchedule
from training.sigterm import StopRequest
from training.sync_bn import synchronise_batch_norm
from training.verification import Verification
from utils.config import Config
from utils.device import to_device
from utils.distributed import Ranks, broadcast_, together
from utils.log import log
from utils.progress import collective


class TrainingRun:
    """A run in progress.

    Args:
        cfg: with the counts of classes and images filled in.
        ranks: this process among its peers.
        output: the run's folder.
        steps_per_epoch: optimizer steps of an epoch.
    """

    def __init__(self, cfg: Config, ranks: Ranks, output: Path, steps_per_epoch: int) -> None:
        self.cfg, self.output, self.steps_per_epoch = cfg, output, steps_per_epoch
        self.rank, self.world_size, self.is_main = ranks.rank, ranks.world_size, ranks.is_main
        self.device = ranks.device
        self.amp_dtype = cfg.amp_dtype()
        self.augment = Augmentation(cfg.augmentation(), cfg.seed)
        self.backbone = self._make_backbone()
        self.model = self._join_ranks(self.backbone)
        self.classifier = self._make_classifier()
        self.total_steps = steps_per_epoch * cfg.num_epoch
        self.rate = PolySchedule(
            cfg.base_lr(ranks.world_size), self.total_steps, round(steps_per_epoch * cfg.warmup_epoch)
        )
        self.optimizer = make_optimizer(cfg, self.backbone, self.rate.base_lr)
        rule = row_rule(cfg, ranks.world_size)
        self.row_optimizer = together(lambda: make_row_optimizer(cfg, self.classifier.shard, self.rate.base_lr, rule))
        self.row_lr = rule.lr
        self.optimizers: tuple[Optimizer, Optimizer] = (self.optimizer, self.row_optimizer)
        self.scaler = torch.amp.GradScaler(self.device.type, growth_interval=100, enabled=cfg.fp16)
        self.epoch = self.step = self.step_in_epoch = 0
        self.skipped = self.skipped_in_a_row = 0  # steps without a finite gradient
        self.damaged = DamagedSamples()
        self.stop = StopRequest(output / "checkpoints")

    def _make_backbone(self) -> nn.Module:
        """The network with its first weights, the same on any number of ranks."""
        cfg = self.cfg
        torch.manual_seed(cfg.seed)
        backbone = get_model(cfg.network, cfg.embedding_size, cfg.dropout, amp_dtype=self.amp_dtype)
        if cfg.init_backbone is not None:
            path = Path(cfg.init_backbone)
            fit = together(lambda: checkpoint.start_from(backbone, path))
            log.info("init_backbone: %.1f %% of the tensors taken from %s", 100 * fit.share, path)
            if warning := fit.warning():
                log.warning("init_backbone: %s", warning)
        if cfg.sync_bn:
            backbone = synchronise_batch_norm(backbone, self.device)
        torch.manual_seed(cfg.seed + self.rank)  # dropout differs between ranks
        return backbone.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def _join_ranks(self, backbone: nn.Module) -> nn.Module:
        if self.world_size == 1:
            return backbone
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        model = DistributedDataParallel(backbone, device_ids, gradient_as_bucket_view=True, bucket_cap_mb=16)
        model.broadcast_buffers = False  # in forward; the argument's name depends on the version of torch
        return model

    def _make_classifier(self) -> PartialFCMHS:
        cfg = self.cfg
        num_classes = cfg.class_count()
        assert num_classes is not None
        margin = get_margin(cfg.loss, cfg.scale, cfg.margin, cfg.margin_list, cfg.interclass_filtering_threshold)
        return together(
            lambda: PartialFCMHS(
                margin,
                cfg.embedding_size,
                num_classes,
                amp_dtype=self.amp_dtype,
                device=self.device,
                **cfg.head_options(self.output),
            )
        )

    def train_step(self, batches: Iterator[Batch]) -> Tensor:
        """One optimizer step over ``gradient_acc`` batches of each rank; returns the mean loss, a scalar tensor."""
        cfg, loss_sum = self.cfg, torch.zeros((), device=self.device)
        for optimizer, factor in zip(self.optimizers, (1.0, self.row_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = factor * self.rate(self.steps_done)
        for part in range(cfg.gradient_acc):
            batch = next(batches)
            images = to_device(batch.images_BHW3, self.device)
            images = to_network_input(self.augment(images, batch.sample_ids_B, self.epoch))
            with self._reduce_gradients(part == cfg.gradient_acc - 1):
                loss = self.classifier(self.model(images), batch.labels_B) / cfg.gradient_acc
                with collective("all-reduce", "gradients"):
                    self.scaler.scale(loss).backward()
            loss_sum += loss.detach()
        self._update(loss_sum)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.step += 1
        self.step_in_epoch += 1
        return loss_sum

    def _reduce_gradients(self, now: bool) -> AbstractContextManager[None]:
        if now or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def _update(self, loss: Tensor) -> None:
        """Clip and step, if the gradients are finite on every rank; else all ranks skip the step together."""
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(self.backbone.parameters(), self.cfg.clip_grad_norm or float("inf"))
        rows = torch.stack([leaf.grad.sum() for leaf in self.classifier.shard.leaves if leaf.grad is not None]).sum()
        bad = ~(norm + rows + loss).isfinite()
        if not self.stop.agree(bad):
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
            self.scaler.update()
            self.skipped_in_a_row = 0
            return
        self.skipped += 1
        scale = self.scaler.get_scale()
        if self.cfg.fp16:
            self.scaler.update(scale * self.scaler.get_backoff_factor())
            self.scaler.load_state_dict({**self.scaler.state_dict(), "_growth_tracker": 0})  # as torch does
        if scale > 1 and self.cfg.fp16:
            return  # an overflow of the scaled loss, which a lower scale fixes
        self.skipped_in_a_row += 1
        where = self._non_finite(loss)
        rate = self.rate(self.steps_done)
        log.warning(
            "step %d skipped on all ranks: %s is not finite (lr %g, loss scale %g)", self.step, where, rate, scale
        )
        if self.skipped_in_a_row >= self.cfg.max_nonfinite:
            raise FloatingPointError(
                f"{self.skipped_in_a_row} steps in a row up to step {self.step} without finite gradients; {where} on "
                f"rank {self.rank}, lr {rate:g}, loss scale {scale:g}. Lower lr, lengthen the warm-up, or use "
                "bf16 in place of fp16"
            )

    def _non_finite(self, loss: Tensor) -> str:
        if not loss.isfinite():
            return "the loss"
        for name, parameter in self.backbone.named_parameters():
            if parameter.grad is not None and not parameter.grad.isfinite().all():
                return f"the gradient of {name}"
        if any(leaf.grad is not None and not leaf.grad.isfinite().all() for leaf in self.classifier.shard.leaves):
            return "the gradient of the classifier's rows"
        return "a gradient of another rank"

    def is_due(self, every: int) -> bool:
        """Whether something due every so many steps is due now; 0: never."""
        return every > 0 and self.step % every == 0

    def end_epoch(self) -> None:
        """Move the counters past the epoch's last step; leave model.pt and a checkpoint."""
        self.epoch, self.step_in_epoch = self.epoch + 1, 0
        self.save_model()
        self.save()

    def save_model(self) -> None:
        """Write model.pt from rank 0; an error there is raised on all ranks."""
        path = self.output / "model.pt"
        together(lambda: checkpoint.save_model(self.backbone, path) if self.is_main else None)

    def verify(self, verification: Verification) -> None:
        """Run the verification sets on rank 0's running statistics, the ones that model.pt holds."""
        for buffer in self.backbone.buffers():
            broadcast_(buffer)
        verification(self.backbone, self.step)

    def save(self) -> None:
        """Write a checkpoint, if the config wants them. Collectives: the checkpoint's own."""
        if not self.cfg.save_all_states:
            return
        images_in_epoch = self.step_in_epoch * self.cfg.total_batch(self.world_size)
        training = {
            "backbone": self.backbone.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "row_optimizer": self.row_optimizer.state_dict(),
            "head": self.classifier.shard.settings(),
            "margin": self.classifier.margin_loss.state_dict(),
            "scaler": self.scaler.state_dict(),
            "position": {"epoch": self.epoch, "step": self.step, "images_in_epoch": images_in_epoch},
            "skipped": self.skipped,
        }
        checkpoint.save_checkpoint(
            self.output / "checkpoints",
            self.step,
            training,
            lambda folder: save_heads(self.classifier.shard, folder),
            self.cfg.keep_checkpoints,
            checkpoint.rng_state(self.device),
        )

    @property
    def steps_done(self) -> int:
        """Steps of this run's length since the first epoch; not ``step`` if the batch has changed."""
        return self.epoch * self.steps_per_epoch + self.step_in_epoch

    def load(self, path: Path) -> None:
        """Resume from a checkpoint written on any number of ranks.

        Weights, state and place in the data are restored; rates, decay and length come from this run's config.
        """
        state = together(lambda: checkpoint.load_training(path))
        self.classifier.shard.load_settings(state["head"])
        self.classifier.margin_loss.load_state_dict(state["margin"])
        together(lambda: load_heads(self.classifier.shard, path / "heads"))
        try:
            self.backbone.load_state_dict(state["backbone"])
            self.optimizer.load_state_dict(
                {**state["optimizer"], "param_groups": self.optimizer.state_dict()["param_groups"]}
            )
            self.row_optimizer.load_state_dict(
                {**state.get("row_optimizer", {}), **self.row_optimizer.param_groups[0]}
            )
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{path} was written by another network: {error}") from error
        if self.cfg.fp16 and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        position = state["position"]
        self.epoch, self.step, self.skipped = position["epoch"], position["step"], state["skipped"]
        self.step_in_epoch = position["images_in_epoch"] // self.cfg.total_batch(self.world_size)
        if len(state["rng"]) == self.world_size:
            checkpoint.set_rng_state(state["rng"][self.rank], self.device)
