"""The classifier on a GPU, wherever its heads live, against the same calls in float64 on the CPU."""

import os
import sys

import pytest
import torch

from gpu_ranks import run_launched
from heads.optim import RowAdamW, RowSGD
from losses import get_margin
from partial_fc_mhs import PartialFCMHS
from ranks import free_port
from utils.distributed import close_ranks, init_ranks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]
C, L, D, B = 203, 4, 32, 24
# First centres come from float32 cosines and logarithms, which a GPU rounds otherwise: one part in ten million.
TOLERANCE = {torch.float64: 5e-5, torch.float32: 1e-3}
OPTIMIZERS = {
    "sgd": lambda shard: RowSGD(shard, 0.5, 0.9, 5e-4, nesterov=True),
    "sgd dense": lambda shard: RowSGD(shard, 0.5, 0.9, 5e-4, idle="dense"),
    "adamw": lambda shard: RowAdamW(shard, 0.01, weight_decay=0.1),
}


def course(
    device, place, folder, dtype=torch.float64, loss="arcface", optimizer="sgd", scope="batch", part=slice(None)
):
    """Announced steps, a forward without a step, an evaluation, two forwards of one step; all results on the CPU."""
    classifier = PartialFCMHS(
        get_margin(loss, 16.0, margin_list=(1.0, 0.3, 0.1) if loss == "combined" else None),
        D,
        C,
        head_size=L,
        head_storage=place,
        head_folder=folder,
        head_scope=scope,
        negative_rate=0.2,
        dtype=dtype,
        device=device,
    )
    rows = OPTIMIZERS[optimizer](classifier.shard)
    g, found = torch.Generator().manual_seed(1), []
    x = torch.randn(13, B, D, generator=g, dtype=torch.float64)
    batches = [labels[part].contiguous() for labels in torch.randint(0, C, (13, B), generator=g).unbind()]
    classifier.shard.prefetch(batches[0])
    for i, labels in enumerate(batches):
        if i < 12:
            classifier.shard.prefetch(batches[i + 1])
        x_BD = x[i][part].to(device=device, dtype=dtype).requires_grad_()
        value = classifier(x_BD, labels)
        value.backward()
        found += [value.detach(), x_BD.grad]
        if i % 4 == 3:
            rows.zero_grad()  # a skipped step
        elif i % 4 != 1:  # after 1, two forwards make one step
            rows.step()
            rows.zero_grad()
        if i == 6:
            with torch.no_grad():
                found.append(classifier(x_BD.detach(), labels))
    classifier.shard.forget_prefetched()
    here = classifier.shard.layout
    found += [
        classifier.shard.centres(torch.arange(here.class_start, here.class_end)),
        classifier.shard.visits.clone(),
    ]
    classifier.shard.storage.close()
    return [value.double().cpu() for value in found]


def assert_close(found, wanted, tolerance):
    assert len(found) == len(wanted)
    for number, (a, b) in enumerate(zip(found, wanted, strict=True)):
        difference = float((a - b).abs().max() / b.abs().max().clamp(min=1e-3))
        assert difference < tolerance, f"result {number} differs by {difference:.2g} of its largest"


@pytest.fixture(scope="module", params=["alone", "NCCL group of one"])
def device(request):
    """The first GPU, once without a process group and once in one."""
    if request.param == "alone":
        yield torch.device("cuda", 0)
        return
    names = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    names["MASTER_PORT"] = str(free_port())
    os.environ.update(names)
    try:
        yield init_ranks("cuda", timeout_s=60).device
    finally:
        close_ranks()
        for name in names:
            os.environ.pop(name)


@pytest.mark.parametrize("place", ["device", "host", "file"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_a_course_of_steps_equals_the_cpu(tmp_path, device, place, dtype):
    wanted = course("cpu", "device", tmp_path)
    assert_close(course(device, place, tmp_path, dtype), wanted, TOLERANCE[dtype])


@pytest.mark.parametrize("place", ["device", "host", "file"])
@pytest.mark.parametrize(
    ("loss", "optimizer", "scope"),
    [
        ("cosface", "adamw", "own"),
        ("adaface", "sgd dense", "batch"),
        ("magface", "sgd", "own"),
        ("curricularface", "adamw", "batch"),
        ("combined", "sgd", "batch"),
    ],
)
def test_every_loss_and_optimizer_equals_the_cpu(tmp_path, place, loss, optimizer, scope):
    options = {"loss": loss, "optimizer": optimizer, "scope": scope}
    wanted = course("cpu", "device", tmp_path, **options)
    assert_close(course("cuda", place, tmp_path, **options), wanted, TOLERANCE[torch.float64])


def test_heads_on_the_host_and_in_files_give_the_same_numbers(tmp_path):
    host, file = (course("cuda", place, tmp_path, torch.float32) for place in ("host", "file"))
    assert_close(host, file, 1e-6)


def test_half_precision_stays_near(tmp_path):
    torch.manual_seed(0)
    x, labels = torch.randn(B, D), torch.randint(0, C, (B,))
    losses = {}
    for amp in (None, torch.float16, torch.bfloat16):
        classifier = PartialFCMHS(get_margin("arcface", 16.0), D, C, head_size=L, amp_dtype=amp, device="cuda")
        losses[amp] = float(classifier(x.cuda().requires_grad_(), labels).detach())
    assert losses[torch.float16] == pytest.approx(losses[None], rel=5e-3)
    assert losses[torch.bfloat16] == pytest.approx(losses[None], rel=3e-2)


@pytest.mark.distributed
@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="this machine has one GPU")
@pytest.mark.parametrize("place", ["device", "host", "file"])
def test_all_gpus_together_equal_one_cpu(tmp_path, place):
    world_size = max(n for n in range(1, torch.cuda.device_count() + 1) if B % n == 0)
    run_launched(__file__, world_size, str(tmp_path), place, device="cuda")
    check_ranks(tmp_path, world_size)


def check_ranks(folder, world_size):
    """Losses, the embeddings' gradients and the centres of all ranks together are those of one on the CPU."""
    wanted = course("cpu", "device", folder)
    ranks = [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]
    joined = []
    for number, parts in enumerate(zip(*ranks, strict=True)):
        # The gradient that a rank sees is W times its part of the mean's, as DDP wants it.
        is_gradient = parts[0].ndim == 2 and number < len(wanted) - 2
        joined.append(parts[0] if parts[0].ndim == 0 else torch.cat(parts) / (world_size if is_gradient else 1))
    assert_close(joined, wanted, TOLERANCE[torch.float64])


if __name__ == "__main__":
    from pathlib import Path

    output, where, kind = sys.argv[1:]
    ranks = init_ranks(kind, timeout_s=60)
    each = B // ranks.world_size
    own = slice(ranks.rank * each, (ranks.rank + 1) * each)
    torch.save(course(ranks.device, where, Path(output) / "heads", part=own), Path(output) / f"{ranks.rank}.pt")
    close_ranks()
