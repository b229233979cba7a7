"""Heads written and read without a checkpoint around them."""

from heads.checkpoint import load_heads
from heads.saved import open_heads
from training.saving import Saver


def load(shard, folder):
    """Restore a rank's heads from below ``folder``."""
    load_heads(shard, open_heads(folder, shard.settings(), None))


def write_checkpoint(checkpoint, shard):
    """Write a folder step_N with the heads of all ranks, and no network."""
    saver = Saver(checkpoint.parent.parent, shard, keep=9)
    saver.begin(int(checkpoint.name.removeprefix("step_")), {"head": shard.settings()}, None)
    saver.close()
