"""Measure what `--secure_rng` costs: a whole DP-SGD step with cryptographic noise against one with PyTorch's noise.

    python benchmarks/secure_noise.py

Steps of the two kinds alternate on one thread, and the medians of the processor time are compared. The noise takes the
same time for every batch size, so its share falls as the batch grows.
"""

import statistics
import time

import torch
from diffusers import DDPMScheduler

from diffusers_dp_curriculum import ImageDataset, MechanismRandomness, PrivacyLedger, build_unet
from diffusers_dp_curriculum.gradients.losses import DenoisingLoss
from diffusers_dp_curriculum.gradients.per_record_gradients import per_record_gradients
from diffusers_dp_curriculum.mechanisms.dp_sgd import DPSGD, dp_sgd_mechanism


NUM_RECORDS, NUM_CLASSES, REPETITIONS = 1024, 10, 5


def make_dp_sgd(size: int, channels: tuple[int, int], batch_size: int, draws: int, secure_rng: bool) -> DPSGD:
    """Make one arm: a network, random records, and DP-SGD on them."""
    unet = build_unet(size, 1, NUM_CLASSES, block_out_channels=channels)
    images = torch.randint(0, 256, (NUM_RECORDS, 1, size, size), dtype=torch.uint8)
    records = ImageDataset(images, torch.arange(NUM_RECORDS) % NUM_CLASSES, [str(c) for c in range(NUM_CLASSES)])
    dp_sgd = DPSGD(
        unet,
        torch.optim.Adam(unet.parameters()),
        DenoisingLoss(DDPMScheduler(prediction_type="v_prediction"), null_label=NUM_CLASSES),
        records,
        dp_sgd_mechanism(1.0, batch_size, NUM_RECORDS, REPETITIONS + 1, 1.0),
        PrivacyLedger(1e-5),
        noise_multiplicity=draws,
        max_physical_batch_size=64,
        gradients_of=lambda batch: per_record_gradients(unet, batch, "folded"),
        randomness=MechanismRandomness(secure_rng=secure_rng),
    )
    # Instead of Poisson batches, so that each step has equal work.
    dp_sgd.batches = iter([list(range(batch_size))] * (REPETITIONS + 1))
    return dp_sgd


def main() -> None:
    """Print one row per network and batch size."""
    torch.set_num_threads(1)
    print("| network | parameters | batch size x draws | PyTorch's noise | secure noise | ratio |")
    print("|---|---|---|---|---|---|")
    for size, channels, batch_size, draws in (
        (8, (16, 32), 128, 4),
        (8, (16, 32), 512, 4),
        (28, (32, 64), 16, 8),
    ):
        arms = [make_dp_sgd(size, channels, batch_size, draws, secure_rng) for secure_rng in (False, True)]
        seconds = [[], []]
        for repetition in range(REPETITIONS + 1):
            for arm, durations in zip(arms, seconds, strict=True):
                start = time.process_time()
                arm.step()
                if repetition:  # the first one also pays for the allocations
                    durations.append(time.process_time() - start)
        plain, secure = (statistics.median(durations) for durations in seconds)
        parameters = sum(p.numel() for p in arms[0].model.parameters())
        print(
            f"| {size}x{size}, channels {channels} | {parameters:,} | {batch_size} x {draws} | {1000 * plain:,.0f} ms "
            f"| {1000 * secure:,.0f} ms | {secure / plain:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
