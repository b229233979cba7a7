"""What changes in training: backbone, classifier, optimizers, loss scale, counters; and their checkpoints.

One step is: the next batches, forward, backward, all ranks agree that the gradients are finite, optimizers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from backbones import get_model
from backbones.base import to_network_input
from data.augment import Augmentation
from dataset import Batch
from heads.checkpoint import load_heads
from losses import get_margin
from partial_fc_mhs import PartialFCMHS
from training import checkpoint
from training.compiling import compiled_if_asked
from training.data import DamagedSamples
from training.frozen_bn import freeze_batch_norm
from training.optimizers import make_optimizer, make_row_optimizer, row_rule
from training.run_lock import FolderLock
from training.running_statistics import RunningStatistics
from training.saving import Saver
from training.schedule import schedule_of
from training.sigterm import StopRequest
from training.start import start_from
from training.sync_bn import synchronise_batch_norm
from training.verification import Verification
from utils.device import to_device
from utils.distributed import Ranks, all_gather_objects, broadcast_, broadcast_object, together
from utils.log import log, warn_once
from utils.manifest import DamagedError
from utils.progress import collective
from utils.settings import Config


class TrainingRun:
    """A run in progress.

    Args:
        cfg: with the counts of classes and images filled in.
        ranks: this process among its peers.
        output: the run's folder.
        steps_per_epoch: optimizer steps of an epoch.
        identity: what it trains on and with; checkpoints note it.
    """

    def __init__(
        self, cfg: Config, ranks: Ranks, output: Path, steps_per_epoch: int, identity: dict[str, Any] | None = None
    ) -> None:
        self.identity = identity or {}
        self.cfg, self.output, self.steps_per_epoch = cfg, output, steps_per_epoch
        self.rank, self.world_size, self.is_main = ranks.rank, ranks.world_size, ranks.is_main
        self.device = ranks.device
        self.amp_dtype = cfg.amp_dtype()
        self.augment = Augmentation(cfg.augmentation(), cfg.seed)
        self.backbone = self._make_backbone()
        self.model = self._join_ranks(self.backbone)
        self.classifier = self._make_classifier()
        self.total_steps = steps_per_epoch * cfg.num_epoch
        self.rate = schedule_of(cfg, ranks.world_size, steps_per_epoch)
        self.optimizer = None if cfg.freeze_backbone else make_optimizer(cfg, self.backbone, self.rate.base_lr)
        rule = row_rule(cfg, ranks.world_size)
        self.row_optimizer = together(lambda: make_row_optimizer(cfg, self.classifier.shard, self.rate.base_lr, rule))
        self.factors: dict[Optimizer, float] = {self.row_optimizer: rule.lr}  # on the rate, for each optimizer
        if self.optimizer is not None:
            self.factors[self.optimizer] = 1.0
        self.optimizers = list(self.factors)
        self.scaler = torch.amp.GradScaler(self.device.type, growth_interval=100, enabled=bool(cfg.fp16))
        self.epoch = self.step = self.step_in_epoch = 0
        self.skipped = self.skipped_in_a_row = 0  # steps without a finite gradient
        self.was_skipped = False  # the last step
        self.loss_sum = torch.zeros((), device=self.device)  # over the steps since the last log line
        self.loss_steps = torch.zeros((), device=self.device)  # those of a finite loss
        self.damaged = DamagedSamples()
        self.statistics = RunningStatistics(self.backbone, self.classifier.margin_loss)
        self.lock: FolderLock | None = None  # on the run's folder
        self.stop = StopRequest(output / "checkpoints")
        self.saver = Saver(output, self.classifier.shard, cfg.keep_checkpoints, cfg.checkpoint_full_every)
        self.stop.is_excused = lambda: self.saver.holds_up
        self._wants_save, self._saved_at = False, (-1, -1)  # (epoch, step) of the last save
        self._saved_s = time.monotonic()

    def _make_backbone(self) -> nn.Module:
        """The network with its first weights, the same on any number of ranks."""
        cfg = self.cfg
        torch.manual_seed(cfg.seed)
        backbone = get_model(**cfg.network_options())
        if cfg.init_backbone is not None:
            path = Path(cfg.init_backbone)
            fit = together(lambda: start_from(backbone, path))
            log.info("init_backbone: %.1f %% of the tensors taken from %s", 100 * fit.share, path)
            if warning := fit.warning():
                log.warning("init_backbone: %s", warning)
            if fit.left_out:
                log.info("init_backbone: left out what else is in the file: %s", fit.left_out)
        if cfg.freeze_backbone:
            backbone.eval().requires_grad_(False)
        elif cfg.freeze_bn:
            if not freeze_batch_norm(backbone, with_affine=cfg.freeze_bn is True):
                log.warning("freeze_bn = %r has no effect: %s has no batch normalisation", cfg.freeze_bn, cfg.network)
        elif cfg.sync_bn:
            backbone = synchronise_batch_norm(backbone, self.device)
        torch.manual_seed(cfg.seed + self.rank)  # dropout differs between ranks
        backbone = backbone.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return compiled_if_asked(cfg, backbone)

    def _join_ranks(self, backbone: nn.Module) -> nn.Module:
        if self.world_size == 1 or self.cfg.freeze_backbone:
            return backbone
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        model = DistributedDataParallel(backbone, device_ids, gradient_as_bucket_view=True, bucket_cap_mb=16)
        model.broadcast_buffers = False  # in forward; the argument's name depends on the version of torch
        return model

    def _make_classifier(self) -> PartialFCMHS:
        cfg = self.cfg
        num_classes = cfg.class_count()
        assert num_classes is not None
        margin = get_margin(**cfg.margin_options())
        return together(
            lambda: PartialFCMHS(
                margin,
                cfg.embedding_size,
                num_classes,
                amp_dtype=cfg.classifier_dtype(),
                device=self.device,
                **cfg.head_options(self.output),
            )
        )

    def train_step(self, batches: Iterator[Batch]) -> Tensor:
        """One optimizer step over ``gradient_acc`` batches of each rank; returns the mean loss, a scalar tensor."""
        cfg, loss_sum = self.cfg, torch.zeros((), device=self.device)
        for optimizer, factor in self.factors.items():
            for group in optimizer.param_groups:
                group["lr"] = factor * self.rate(self.steps_done)
        self.statistics.keep()
        for part in range(cfg.gradient_acc):
            batch = next(batches)
            images = to_device(batch.images_BHW3, self.device)
            images = to_network_input(self.augment(images, batch.sample_ids_B, self.epoch))
            with self._reduce_gradients(part == cfg.gradient_acc - 1):
                with torch.set_grad_enabled(not cfg.freeze_backbone):
                    embeddings_BD = self.model(images)
                loss = self.classifier(embeddings_BD, batch.labels_B) / cfg.gradient_acc
                with collective("all-reduce", "gradients"):
                    self.scaler.scale(loss).backward()
            loss_sum += loss.detach()
        self._update(loss_sum)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.step += 1
        self.step_in_epoch += 1
        is_finite = loss_sum.isfinite()
        self.loss_sum += loss_sum.where(is_finite, 0.0)
        self.loss_steps += is_finite
        return loss_sum

    def mean_loss(self) -> float:
        """Over the steps of finite loss since this was last called, nan without one; waits for the device."""
        mean = (self.loss_sum / self.loss_steps).item()
        self.loss_sum.zero_()
        self.loss_steps.zero_()
        return mean

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
        bad = ~(norm + rows + loss + self.statistics.largest()).isfinite()
        if self.is_main and 0 < self.cfg.checkpoint_minutes * 60 <= time.monotonic() - self._saved_s:
            self.stop.ask_save()
        self.was_skipped = self.stop.agree(bad, self.saver.is_writing)
        if not self.was_skipped:
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
            self.scaler.update()
            self.skipped_in_a_row = 0
            return
        self._skip(self._non_finite(loss))

    def _skip(self, what: str) -> None:
        """Undo what the step's forward has left, and say what was wrong; the same on every rank."""
        self.statistics.put_back()
        self.skipped += 1
        scale, rate = self.scaler.get_scale(), self.rate(self.steps_done)
        where = next((f"{one} on rank {rank}" for rank, one in enumerate(all_gather_objects(what)) if one), "a sum")
        if self.cfg.fp16:
            self.scaler.update(scale * self.scaler.get_backoff_factor())
            self.scaler.load_state_dict({**self.scaler.state_dict(), "_growth_tracker": 0})  # as torch does
        if scale > 1 and self.cfg.fp16:  # an overflow of the scaled loss, which a lower scale fixes
            log.info("step %d skipped on all ranks: %s overflowed at loss scale %g", self.step, where, scale)
            return
        self.skipped_in_a_row += 1
        warn_once(
            "step %d skipped on all ranks: %s is not finite (lr %g, loss scale %g)", self.step, where, rate, scale
        )
        if self.skipped_in_a_row >= self.cfg.max_nonfinite:
            self.saver.finish()
            raise FloatingPointError(
                f"{self.skipped_in_a_row} steps in a row up to step {self.step} without finite gradients; the last: "
                f"{where}, lr {rate:g}, loss scale {scale:g}. Lower lr, lengthen the warm-up, or use bf16 in place "
                f"of fp16; if it is always the same rank, look at its data. The last checkpoint is "
                f"{self.saver.last()}"
            )

    def _non_finite(self, loss: Tensor) -> str:
        """What is not finite on this rank, "" if all is."""
        if not loss.isfinite():
            return "the loss"
        for name, parameter in self.backbone.named_parameters():
            if parameter.grad is not None and not parameter.grad.isfinite().all():
                return f"the gradient of {name}"
        if any(leaf.grad is not None and not leaf.grad.isfinite().all() for leaf in self.classifier.shard.leaves):
            return "the gradient of the classifier's rows"
        statistic = self.statistics.non_finite()
        return f"the running statistic {statistic}" if statistic else ""

    def is_due(self, every: int) -> bool:
        """Whether something due every so many steps is due now; 0: never."""
        return every > 0 and self.step % every == 0

    def end_epoch(self) -> None:
        """Move the counters past the epoch's last step; begin to save model.pt and a checkpoint."""
        self.epoch, self.step_in_epoch = self.epoch + 1, 0
        self.save(model=True)

    def verify(self, verification: Verification) -> None:
        """Run the verification sets on rank 0's running statistics, the ones that model.pt holds; keep the best."""
        for buffer in self.backbone.buffers():
            broadcast_(buffer)
        figures = verification(self.backbone, self.step)
        metric = self.cfg.keep_best
        if metric is None or self.step == 0 or not figures:
            return
        if metric not in figures:
            warn_once("keep_best = %r is no figure of the verification; there are %s", metric, ", ".join(figures))
        elif self.saver.best is None or figures[metric] > self.saver.best.value:
            self.save()
            self.saver.finish()
            self.saver.write_best(checkpoint.Best(self.step, metric, figures[metric]), self.backbone.state_dict())

    def save_if_due(self) -> None:
        """Name a checkpoint that has been written, and begin the next one where it is due, asked for or overdue.

        None begins while one is being written, nor after a skipped step: while steps fail, the good ones would be
        pushed out.
        """
        if self.saver.is_pending and not self.stop.writing_agreed:
            self.saver.finish()
        if self.stop.save_agreed and not self._wants_save:
            log.info("step %d: SIGUSR1 or checkpoint_minutes asks for a checkpoint", self.step)
        self._wants_save |= self.is_due(self.cfg.checkpoint_steps) or self.stop.save_agreed
        is_free = not self.saver.is_pending and not self.was_skipped
        if self._wants_save and is_free and self.step_in_epoch < self.steps_per_epoch:
            self.save(model=not self.cfg.save_all_states)

    def save(self, model: bool = False) -> None:
        """Begin to write a checkpoint, if the config wants them, and model.pt. Collectives: the saver's.

        Nothing happens where the last checkpoint is of this very position and no model is asked for.
        """
        if self._saved_at == (self.epoch, self.step) and not model:
            return
        backbone = self.backbone.state_dict()
        training = self._state(backbone) if self.cfg.save_all_states else None
        if training is not None or model:
            self.saver.begin(self.step, training, backbone if model else None)
        self._wants_save, self._saved_at, self._saved_s = False, (self.epoch, self.step), time.monotonic()

    def _state(self, backbone: Mapping[str, Tensor]) -> dict[str, Any]:
        """What a checkpoint holds beside the heads. Collective: an object gather."""
        own = {"rng": checkpoint.rng_state(self.device), "damaged": self.damaged.counts()}
        ranks = all_gather_objects(own)
        images_in_epoch = self.step_in_epoch * self.cfg.total_batch(self.world_size)
        return {
            "format": checkpoint.FORMAT,
            "identity": self.identity,
            "backbone": backbone,
            "optimizer": {} if self.optimizer is None else self.optimizer.state_dict(),
            "row_optimizer": self.row_optimizer.state_dict(),
            "head": self.classifier.shard.settings(),
            "margin": self.classifier.margin_loss.state_dict(),
            "scaler": self.scaler.state_dict(),
            "position": {"epoch": self.epoch, "step": self.step, "images_in_epoch": images_in_epoch},
            "skipped": self.skipped,
            "logged": {"loss_sum": self.loss_sum, "steps": self.loss_steps},
            "rng": [one["rng"] for one in ranks],
            "damaged": [one["damaged"] for one in ranks],
        }

    @property
    def steps_done(self) -> int:
        """Steps of this run's length since the first epoch; not ``step`` if the batch has changed."""
        return self.epoch * self.steps_per_epoch + self.step_in_epoch

    def load(self, path: Path, check: Callable[[dict[str, Any]], None] = lambda identity: None) -> None:
        """Resume from a checkpoint written on any number of ranks.

        Weights, state and place in the data are restored; rates, decay and length come from this run's config.

        Args:
            path: a folder step_N.
            check: is given the identity noted in it, before anything is restored.

        Raises:
            DamagedError: a file is not what was written, named; this run is then of no use.
            ValueError: it belongs to another run.
        """
        state = together(lambda: checkpoint.load_training(path))
        if missing := {"backbone", "optimizer", "margin", "scaler", "position", "skipped", "rng"} - state.keys():
            raise DamagedError(f"{path / checkpoint.TRAINING} is no run's: it lacks {', '.join(sorted(missing))}")
        together(lambda: check(state.get("identity", {})))
        if name := checkpoint.first_non_finite({"backbone": state["backbone"], "optimizer": state["optimizer"]}):
            raise DamagedError(f"{path / checkpoint.TRAINING} is of no use: {name} is not finite in it")
        shard = self.classifier.shard
        shard.load_settings(state["head"])
        together(lambda: load_heads(shard, checkpoint.open_saved_heads(path, state["head"], shard.layout)))
        try:
            self.classifier.margin_loss.load_state_dict(state["margin"])
            self.backbone.load_state_dict(state["backbone"])
            if self.optimizer is not None and state["optimizer"]:  # {} where the backbone was frozen
                self.optimizer.load_state_dict(
                    {**state["optimizer"], "param_groups": self.optimizer.state_dict()["param_groups"]}
                )
            self.row_optimizer.load_state_dict(
                {**state.get("row_optimizer", {}), **self.row_optimizer.param_groups[0]}
            )
        except (RuntimeError, ValueError, KeyError) as error:
            text = " ".join(str(error).split())[:300]
            raise ValueError(
                f"{path} was written by a run with another network, loss or optimizer; set them back, or start a "
                f"new run from its model.pt with init_backbone: {text}"
            ) from error
        if self.cfg.fp16 and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        position = state["position"]
        self.epoch, self.step, self.skipped = position["epoch"], position["step"], state["skipped"]
        self.step_in_epoch = position["images_in_epoch"] // self.cfg.total_batch(self.world_size)
        self._saved_at = (self.epoch, self.step)
        if "logged" in state:
            self.loss_sum.copy_(state["logged"]["loss_sum"])
            self.loss_steps.copy_(state["logged"]["steps"])
        self._settle_buckets()
        if len(state["rng"]) == self.world_size:
            checkpoint.set_rng_state(state["rng"][self.rank], self.device)
            self.damaged.restore(state.get("damaged", [(0, 0)] * self.world_size)[self.rank])
        elif self.is_main:
            self.damaged.restore(tuple(map(sum, zip(*state.get("damaged", [(0, 0)]), strict=True))))

    def find_best(self) -> None:
        """Go on with the best checkpoint so far, once the output folder is this run's. Collective: an object."""
        best = broadcast_object(checkpoint.read_best(self.output) if self.is_main else None)
        if best is not None and best.step <= self.step and best.metric == self.cfg.keep_best:
            self.saver.best = best

    def _settle_buckets(self) -> None:
        """Let DDP lay out its gradient buckets as it has them after a first step.

        It lays them out anew in the order in which the first gradients come. With more than two ranks the sums'
        rounding depends on that layout, so without this a resumed run would differ from an uninterrupted one.
        """
        if not isinstance(self.model, DistributedDataParallel):
            return
        self.statistics.keep()
        images = torch.zeros((self.cfg.batch_size, *self.cfg.image_size, 3), dtype=torch.uint8, device=self.device)
        (self.model(to_network_input(images)).float().sum() * 0).backward()
        self.statistics.put_back()
        for parameter in self.model.parameters():
            parameter.grad = None

    def close(self) -> None:
        """Let go of files and threads."""
        self.saver.close()
        self.classifier.shard.storage.close()
        if self.lock is not None:
            self.lock.release()
