"""What needs a GPU: `make gpu`. Left out of `make test`, and skipped where there is none."""

from __future__ import annotations

import statistics
import time

import click
import numpy as np
import pytest
import torch
from shared import small

from soupray.core.candidates import mean_of
from soupray.core.hyperparameters import Hyperparameters
from soupray.core.records import Setting
from soupray.core.trials import Training
from soupray.evaluation.local import LocalWorkers
from soupray.maths.neighbours import FAISS_GPU_K, kth_distances
from soupray.training.loop import Loop
from soupray.training.start import Alone, Group, Start

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return small(tmp_path_factory.mktemp("here"))


def loop(here, training: Training, group: Group | None = None, **hparams: float) -> Loop:
    start = Start(
        weights=here.checkpoints.load(here.trial.init),
        seed=here.trial.seed,
        device="cuda",
        training=training,
        group=group or Alone(),
    )
    return Loop(here.task, here.data, Hyperparameters(**(here.trial.hparams | hparams)), start)


def test_float32_is_float32():
    torch.backends.cuda.matmul.allow_tf32 = False  # as `wiring.world` does
    a = torch.randn(512, 512, device="cuda")
    exact = a.double() @ a.double()
    assert (a @ a - exact).abs().max() < 1e-3  # TF32 is off by about 0.05


def test_the_counts_of_the_cpu_and_of_the_gpu_agree_but_for_margins(here):
    held_out = here.data.split("held_out")
    logits = {}
    for device in ("cpu", "cuda"):
        setting = Setting(batch_size=50, threads=1, device=device)
        workers = LocalWorkers(here.task, here.data, here.checkpoints, setting)
        model = mean_of([here.basis.init.sha256])
        logits[device] = torch.from_numpy(workers.predictions(model, held_out).logits)
    assert torch.allclose(logits["cpu"], logits["cuda"], atol=1e-3)


def test_a_trial_in_bfloat16_learns_as_in_float32(here):
    losses = [loop(here, Training(precision=p)).epoch(1) for p in ("fp32", "bf16")]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_where_gpu_memory_ends_the_micro_batch_is_halved(here):
    """With all but a little of the memory taken, a batch of 200 goes in parts."""
    made = loop(here, Training(), batch_size=200)
    made.epoch(1)  # what the libraries keep for themselves is taken by now
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(max(0, free - 96 * 2**20), dtype=torch.uint8, device="cuda")
    try:
        loss = made.epoch(2)
    finally:
        del held
        torch.cuda.empty_cache()
    assert made.micro_batch < 200
    assert loss < 5


def test_one_worker_of_nccl_trains_what_nobody_shares(here, tmp_path):
    from soupray.distributed.train import TorchGroup

    torch.distributed.init_process_group(
        "nccl", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        together = loop(here, Training(), TorchGroup())
        losses = [together.epoch(1), loop(here, Training()).epoch(1)]
    finally:
        torch.distributed.destroy_process_group()
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("k", [20, FAISS_GPU_K, FAISS_GPU_K + 1, 5000])
def test_neighbours_are_those_of_brute_force(k):
    """Up to 2048 by faiss, where it is the one for GPUs; above by torch."""
    faiss = pytest.importorskip("faiss") if k <= FAISS_GPU_K else None
    if faiss and not hasattr(faiss, "index_cpu_to_gpu"):
        pytest.skip("faiss for CPUs")
    generator = np.random.default_rng(6)
    points, queries = (generator.normal(size=(n, 16)).astype(np.float32) for n in (6000, 50))
    squared = np.sort(((queries[:, None].astype(float) - points[None]) ** 2).sum(axis=2), axis=1)
    found = kth_distances(queries, points, k, gpu=True)
    assert np.allclose(found, squared[:, k - 1], rtol=1e-4, atol=1e-4)


def test_the_throughput_of_vit_b32_is_printed(capsys):
    """Images a second of a training step at batch 256: float32, and bfloat16 with a fused AdamW."""
    import open_clip

    from soupray.training.optim import adamw

    images = torch.randn(256, 3, 224, 224, device="cuda")
    labels = torch.randint(10, (256,), device="cuda")
    rates = {}
    for precision in ("fp32", "bf16"):
        visual = open_clip.create_model("ViT-B-32", load_weights=False).visual.cuda()
        optimizer = adamw(visual, 1e-5, 0.1, fused=precision == "bf16")
        seconds = []
        for _ in range(8):
            torch.cuda.synchronize()
            began = time.perf_counter()
            with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
                logits = visual(images)[:, :10]
            torch.nn.functional.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        rates[precision] = 256 / statistics.median(seconds[3:])
    with capsys.disabled():
        click.echo(f"\nViT-B/32, training: {rates} images/s on {torch.cuda.get_device_name()}")
    assert rates["bf16"] > rates["fp32"]
