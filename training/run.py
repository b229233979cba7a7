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

from backbones.base import to_network_input
from data.augment import Augmentation
from dataset import Batch
from heads.checkpoint import load_heads
from losses import get_margin
from partial_fc_mhs import PartialFCMHS
from training import checkpoint
from training.compiling import compiled_if_asked
from training.data import DamagedSamples
from training.ddp import join_ranks, settle_buckets, share_buffers
from training.ema import Ema
from training.loss_scale import LossScale
from training.network import make_network
from training.optimizers import make_optimizer, make_row_optimizer, row_rule
from training.parameter_groups import load_numbered_state, numbered_state
from training.run_lock import FolderLock
from training.running_statistics import RunningStatistics
from training.saving import Saver
from training.schedule import schedule_of
from training.sigterm import StopRequest
from training.verdict import Evidence, gather_evidence, step_if_good
from training.verification import Verification
from utils.device import to_device
from utils.distributed import Ranks, all_gather_objects, broadcast_object, together
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
        self.backbone = make_network(cfg, ranks)
        self.ema = Ema(self.backbone, cfg.average_decay())  # its network is verified and written to model.pt
        self._parameters = dict(self.backbone.named_parameters())  # to walk the network in each step takes its time
        self.model = join_ranks(compiled_if_asked(cfg, self.backbone), cfg, self.device)
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
        self.scaler = LossScale(self.device, bool(cfg.fp16))
        self.epoch = self.step = self.step_in_epoch = 0
        self.skipped = self.skipped_in_a_row = 0  # steps without a finite gradient
        self.was_skipped = False  # the last step whose verdict is known
        # A step later, so that the host never waits for the device; but where rows move in idle steps, too.
        self.learns_late = self.device.type != "cpu" and rule.idle != "dense"
        self._unsettled: Evidence | None = None  # of the last step, until its verdict is known
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
        grads = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        row_grads = [leaf.grad for leaf in self.classifier.shard.leaves if leaf.grad is not None]
        self.scaler.unscale_([*grads.values(), *row_grads])
        evidence = gather_evidence(
            self.step,
            self.rate(self.steps_done),
            self.scaler.factor,
            loss,
            grads,
            row_grads,
            self.statistics.largest(),
            self.statistics.non_finite,
        )
        if self.cfg.clip_grad_norm:
            nn.utils.clip_grads_with_norm_(self._parameters.values(), self.cfg.clip_grad_norm, evidence.norm)
        if self.is_main and 0 < self.cfg.checkpoint_minutes * 60 <= time.monotonic() - self._saved_s:
            self.stop.ask_save()
        self.settle()  # the step before
        bad = self.stop.ask(evidence.is_bad(), self.saver.is_writing)
        self._unsettled = evidence
        step_if_good(self.optimizers, bad, self.learns_late)
        self.statistics.put_back(bad)
        self.ema.update(bad > 0 if self.learns_late else bool(bad))
        self.scaler.update(bad)
        if not self.learns_late:
            self.settle()

    def settle(self) -> None:
        """Learn whether the last step counts, if that is not known yet; the same on every rank.

        Raises:
            FloatingPointError: too many in a row do not.
        """
        evidence, self._unsettled = self._unsettled, None
        if evidence is None:
            return
        self.was_skipped = self.stop.learn()
        self.row_optimizer.learn(self.was_skipped)
        if self.was_skipped:
            self._note_skip(evidence)
        else:
            self.skipped_in_a_row = 0

    def _note_skip(self, evidence: Evidence) -> None:
        """Count a skipped step and say what was wrong; the same on every rank."""
        self.skipped += 1
        scale, words = float(evidence.scale), all_gather_objects(evidence.in_words())
        where = next((f"{one} on rank {rank}" for rank, one in enumerate(words) if one), "a sum")
        if scale > 1 and self.cfg.fp16:  # an overflow of the scaled loss, which a lower scale fixes
            log.info("step %d skipped on all ranks: %s overflowed at loss scale %g", evidence.step, where, scale)
            return
        self.skipped_in_a_row += 1
        text = "step %d skipped on all ranks: %s is not finite (lr %g, loss scale %g)"
        warn_once(text, evidence.step, where, evidence.rate, scale)
        if self.skipped_in_a_row >= self.cfg.max_nonfinite:
            self.saver.finish()
            raise FloatingPointError(
                f"{self.skipped_in_a_row} steps in a row up to step {evidence.step} without finite gradients; the "
                f"last: {where}, lr {evidence.rate:g}, loss scale {scale:g}. Lower lr, lengthen the warm-up, or use "
                f"bf16 in place of fp16; if it is always the same rank, look at its data. The last checkpoint is "
                f"{self.saver.last()}"
            )

    def is_due(self, every: int) -> bool:
        """Whether something due every so many steps is due now; 0: never."""
        return every > 0 and self.step % every == 0

    def end_epoch(self) -> None:
        """Move the counters past the epoch's last step; begin to save model.pt and a checkpoint."""
        self.epoch, self.step_in_epoch = self.epoch + 1, 0
        self.save(model=True)

    def verify(self, verification: Verification) -> None:
        """Run the verification sets on rank 0's running statistics, the ones that model.pt holds; keep the best."""
        share_buffers(self.ema.network)
        figures = verification(self.ema.network, self.step)
        metric = self.cfg.keep_best
        if metric is None or self.step == 0 or not figures:
            return
        if metric not in figures:
            warn_once("keep_best = %r is no figure of the verification; there are %s", metric, ", ".join(figures))
        elif self.saver.best is None or figures[metric] > self.saver.best.value:
            self.save()
            self.saver.finish()
            self.saver.write_best(checkpoint.Best(self.step, metric, figures[metric]), self.ema.network.state_dict())

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
        if self._wants_save and not self.saver.is_pending and self.step_in_epoch < self.steps_per_epoch:
            self.settle()
            if not self.was_skipped:
                self.save(model=not self.cfg.save_all_states)

    def save(self, model: bool = False) -> None:
        """Begin to write a checkpoint, if the config wants them, and model.pt; all ranks go on with its buffers.

        Nothing happens where the last checkpoint is of this very position and no model is asked for.
        Collectives: those of :func:`share_buffers`, and the saver's.
        """
        self.settle()
        if self._saved_at == (self.epoch, self.step) and not model:
            return
        share_buffers(self.backbone)
        if self.ema.tensors is not None:  # else its network is the backbone
            share_buffers(self.ema.network)
        backbone = self.backbone.state_dict()
        training = self._state(backbone) if self.cfg.save_all_states else None
        if training is not None or model:
            self.saver.begin(self.step, training, backbone if model else None, self.ema.tensors if model else None)
            self.stop.writing_agreed, self.stop.save_agreed = True, False  # until a message says otherwise
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
            "optimizer": numbered_state(self.optimizer, self.backbone),
            "ema": self.ema.state_dict(),
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
        if name := checkpoint.first_non_finite({key: state.get(key) for key in checkpoint.FINITE}):
            raise DamagedError(f"{path / checkpoint.TRAINING} is of no use: {name} is not finite in it")
        shard = self.classifier.shard
        shard.load_settings(state["head"])
        together(lambda: load_heads(shard, checkpoint.open_saved_heads(path, state["head"], shard.layout)))
        try:
            self.classifier.margin_loss.load_state_dict(state["margin"])
            self.backbone.load_state_dict(state["backbone"])
            load_numbered_state(self.optimizer, self.backbone, state["optimizer"])
            self.ema.resume(state.get("ema"), path)
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
        settle_buckets(self.model, self.statistics, self.cfg, self.device)
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

    def close(self) -> None:
        """Let go of files and threads."""
        self.saver.close()
        self.classifier.shard.storage.close()
        if self.lock is not None:
            self.lock.release()
