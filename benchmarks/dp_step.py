"""Time one whole DP-SGD step against ordinary training and against Opacus, side by side.

    python benchmarks/dp_step.py --runs 3 --output outputs/dp_step.json

For each network, a step consists of draws, forward and backward passes, optimizer and moving average, for a batch of
records in physical batches, with K draws per record. The arms alternate, so that a busy machine slows down all of them,
and their medians are compared. Everything is repeated `--runs` times; the tables show medians over the runs, and the
range of the ratio. A pass is the forward and backward pass of one draw. Peak memory is what a step adds to the process
(CPU, Linux) or to PyTorch's allocator (CUDA). On a GPU the networks are larger and run in bfloat16; `--compile` adds
the compiled step.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DModel
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from tqdm.auto import tqdm

from diffusers_dp_curriculum import (
    ClassConditionalPipeline,
    DPCurriculumConfig,
    ImageDataset,
    PrivacyLedger,
    generate_dataset,
)
from diffusers_dp_curriculum.gradients.compilation import CompiledGradients
from diffusers_dp_curriculum.gradients.losses import DenoisingLoss, denoising_error
from diffusers_dp_curriculum.gradients.per_record_gradients import per_record_gradients
from diffusers_dp_curriculum.gradients.precision import Precision
from diffusers_dp_curriculum.mechanisms.dp_sgd import DPSGD, dp_sgd_mechanism
from diffusers_dp_curriculum.mechanisms.releases import ReleasedImages
from diffusers_dp_curriculum.training.stages import warm_up_stages
from diffusers_dp_curriculum.training.training_state import make_ema
from diffusers_dp_curriculum.training.warm_up import start_warm_up, warm_up


NUM_CLASSES = 10


@dataclass(frozen=True)
class Case:
    """The sizes of a network and of the batch of a step."""

    size: int
    channels: tuple[int, int]
    num_records: int
    noise_multiplicity: int
    physical: int

    def __str__(self):
        return (
            f"{self.size}x{self.size}, channels {self.channels}, {self.num_records} records (by {self.physical}) "
            f"x {self.noise_multiplicity} draws"
        )


CPU_CASES = [
    Case(8, (16, 32), num_records=128, noise_multiplicity=4, physical=64),
    Case(16, (16, 32), num_records=64, noise_multiplicity=4, physical=32),
    Case(28, (32, 64), num_records=16, noise_multiplicity=1, physical=16),
    Case(28, (32, 64), num_records=8, noise_multiplicity=8, physical=8),
    Case(28, (32, 64), num_records=4, noise_multiplicity=32, physical=4),
]
GPU_CASES = [
    Case(28, (64, 64), num_records=1024, noise_multiplicity=32, physical=64),
    Case(28, (64, 64), num_records=1024, noise_multiplicity=1, physical=256),
    Case(32, (64, 128), num_records=256, noise_multiplicity=32, physical=32),
]


def make_unet(case: Case, device: torch.device) -> UNet2DModel:
    """Make a class-conditional network with attention at half the resolution."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=case.size,
        in_channels=1,
        out_channels=1,
        block_out_channels=case.channels,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=16,
        num_class_embeds=NUM_CLASSES + 1,
    )
    return unet.to(device)


def make_records(case: Case) -> ImageDataset:
    """Make random images; the time of a step does not depend on their content."""
    images = torch.randint(0, 256, (case.num_records, 1, case.size, case.size), dtype=torch.uint8)
    return ImageDataset(images, torch.arange(case.num_records) % NUM_CLASSES, [str(c) for c in range(NUM_CLASSES)])


class Step:
    """Base class of the arms: each has its own network, draws, optimizer and moving average."""

    def __init__(self, case: Case, device: torch.device, autocast: Callable):
        self.case, self.device, self.autocast = case, device, autocast
        self.unet = make_unet(case, device)
        self.loss = DenoisingLoss(DDPMScheduler(), null_label=NUM_CLASSES)
        self.records = make_records(case)
        self.optimizer = torch.optim.AdamW(self.unet.parameters())
        self.ema = make_ema(self.unet, DPCurriculumConfig())

    def pieces(self):
        """Yield the draws of each physical batch."""
        for piece in torch.arange(self.case.num_records).split(self.case.physical):
            yield self.loss.draw(*self.records.batch(piece, self.device), self.case.noise_multiplicity)

    def __call__(self):
        """Take one step of training."""
        self.step()
        self.ema.step(self.unet.parameters())


class NonPrivate(Step):
    """Ordinary training on the same number of rows, accumulating gradients over the physical batches."""

    def step(self):
        """Run forward and backward passes and the optimizer."""
        for draws in self.pieces():
            with self.autocast():
                error = denoising_error(self.unet, draws.flatten())
            error.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Ours(Step):
    """The library's own step, at sample rate 1, so that each batch has all records."""

    def __init__(self, case: Case, device: torch.device, autocast: Callable, mode: str):
        super().__init__(case, device, autocast)
        if mode == "compiled":
            gradients_of = CompiledGradients(self.unet, case.physical, Precision(autocast))
        else:
            gradients_of = partial(per_record_gradients, self.unet, mode=mode, precision=Precision(autocast))
        dp_sgd = DPSGD(
            self.unet,
            self.optimizer,
            self.loss,
            self.records,
            dp_sgd_mechanism(1.0, case.num_records, case.num_records, 10**6, max_grad_norm=1.0),
            PrivacyLedger(delta=1e-5),
            case.noise_multiplicity,
            case.physical,
            gradients_of=gradients_of,
        )
        self.step = dp_sgd.step


class Opacus(Step):
    """`GradSampleModule` on B x K rows, then the mean over the draws, as in published code."""

    def __init__(self, case: Case, device: torch.device, autocast: Callable, functorch: bool):
        super().__init__(case, device, autocast)
        self.wrapped = GradSampleModule(self.unet, force_functorch=functorch)
        self.optimizer = DPOptimizer(
            self.optimizer, noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=case.num_records
        )

    def step(self):
        """Run passes with Opacus' hooks, the mean over draws, and Opacus' optimizer."""
        for first_record, draws in zip(range(0, self.case.num_records, self.case.physical), self.pieces(), strict=True):
            with self.autocast():
                error = denoising_error(self.wrapped, draws.flatten())
            error.backward()
            for parameter in self.unet.parameters():
                rows = parameter.grad_sample.unflatten(0, (-1, self.case.noise_multiplicity))
                parameter.grad_sample = rows.mean(dim=1)
            self.optimizer.signal_skip_step(do_skip=first_record + self.case.physical < self.case.num_records)
            self.optimizer.step()
            self.optimizer.zero_grad()


ARMS = {
    "non-private": NonPrivate,
    "folded": lambda *inputs: Ours(*inputs, mode="folded"),
    "loop": lambda *inputs: Ours(*inputs, mode="loop"),
    "Opacus hooks": lambda *inputs: Opacus(*inputs, functorch=False),
    "Opacus functorch": lambda *inputs: Opacus(*inputs, functorch=True),
}


def seconds(work: Callable, device: torch.device) -> float:
    """Measure the wall time of `work` in seconds."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_bytes(work: Callable, device: torch.device) -> int | None:
    """Measure the peak memory that `work` adds, in bytes; None if it cannot be measured."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    if platform.system() != "Linux":
        return None
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = _kilobytes("VmRSS")
    work()
    return (_kilobytes("VmHWM") - before) * 1024


def _kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def measure(case: Case, arms: dict, device: torch.device, autocast: Callable, budget: float) -> dict:
    """Measure all arms of a case: median seconds, ratio to the non-private arm, passes per second, peak memory."""
    rows, steps = {}, {}
    for arm, make in arms.items():
        step = make(case, device, autocast)
        try:
            first = seconds(step, device)  # includes allocations and the optimizer's state
            rows[arm] = {"peak_bytes": peak_bytes(step, device), "durations": []}
        except torch.OutOfMemoryError:
            rows[arm] = {"error": "out of memory"}
            continue
        steps[arm] = step
        budget -= 2 * first
    deadline = time.perf_counter() + max(budget, 0)
    while len(rows["non-private"]["durations"]) < 3 or time.perf_counter() < deadline:
        for arm, step in steps.items():
            rows[arm]["durations"].append(seconds(step, device))
    for arm in steps:
        durations = rows[arm].pop("durations")
        rows[arm]["seconds"] = statistics.median(durations)
        rows[arm]["repetitions"] = len(durations)
        rows[arm]["ratio"] = rows[arm]["seconds"] / rows["non-private"]["seconds"]
        rows[arm]["passes_per_second"] = case.num_records * case.noise_multiplicity / rows[arm]["seconds"]
    parameters = steps["non-private"].unet.num_parameters()
    return {"case": str(case), "parameters": parameters, "arms": rows}


def measure_warm_up(case: Case, device: torch.device, autocast: Callable) -> float:
    """Measure the time of a warm-up step relative to an ordinary training step on the same batch."""
    batch_size = 64
    config = DPCurriculumConfig(central_train_steps=4, central_batch_size=batch_size, frequency_features=0)
    unet = make_unet(case, device)
    images = torch.rand(50, 1, case.size, case.size)
    (stage,) = warm_up_stages(config)
    images = ReleasedImages(images, torch.arange(50) % NUM_CLASSES)
    precision = Precision(autocast)
    loss = DenoisingLoss(DDPMScheduler(), null_label=NUM_CLASSES)
    plain = NonPrivate(Case(case.size, case.channels, batch_size, 1, batch_size), device, autocast)
    ratios = []
    for _ in range(4):
        state = start_warm_up(unet, stage, config)
        ours = seconds(partial(warm_up, state, loss, images, stage, config, precision), device)
        ratios.append(ours / seconds(lambda: [plain() for _ in range(config.central_train_steps)], device))
    return statistics.median(ratios)


def bare_sampling(unet: UNet2DModel, images: int, steps: int) -> None:
    """Run only the network's passes of sampling, in the batches of `generate_dataset`."""
    size, device = unet.config.sample_size, unet.device
    with torch.no_grad():
        for start in range(0, images, 250):
            count = min(250, images - start)
            noisy = torch.randn(count, 1, size, size, device=device)
            labels = torch.zeros(count, dtype=torch.int64, device=device)
            for _ in range(steps):
                unet(noisy, 10, labels)


def measure_sampling(case: Case, device: torch.device, images: int, steps: int = 50) -> float:
    """Measure the time of `generate_dataset` relative to the bare network."""
    unet = make_unet(case, device).eval()
    pipeline = ClassConditionalPipeline(unet, DDPMScheduler(), {c: str(c) for c in range(NUM_CLASSES)})
    ratios = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            ours = seconds(
                lambda: generate_dataset(
                    pipeline,
                    images_per_class=images // NUM_CLASSES,
                    output_dir=Path(folder) / "data",
                    num_inference_steps=steps,
                ),
                device,
            )
        bare = seconds(lambda: bare_sampling(unet, images, steps), device)
        ratios.append(ours / bare)
    return statistics.median(ratios)


def table(runs: list[dict]) -> str:
    """Render the arms of one case, over its runs, as a Markdown table."""
    lines = [
        f"**{runs[0]['case']}** ({runs[0]['parameters']:,} parameters)",
        "",
        "| step | time | ratio | passes a second | peak memory |",
        "|---|---|---|---|---|",
    ]
    for arm in runs[0]["arms"]:
        rows = [run["arms"][arm] for run in runs]
        if errors := [row["error"] for row in rows if "error" in row]:
            lines.append(f"| {arm} | {errors[0]} | | | |")
            continue
        peaks = [row["peak_bytes"] for row in rows if row["peak_bytes"] is not None]
        peak = f"{statistics.median(peaks) / 2**20:,.0f} MiB" if peaks else ""
        time_ms, passes = (statistics.median(row[name] for row in rows) for name in ("seconds", "passes_per_second"))
        ratio = median_and_range([row["ratio"] for row in rows])
        lines.append(f"| {arm} | {time_ms * 1000:,.1f} ms | {ratio} | {passes:,.0f} | {peak} |")
    return "\n".join(lines)


def median_and_range(values: list[float]) -> str:
    """Format median and range, such as "1.17 (1.12 to 1.20)"; a single value has no range."""
    spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.median(values):.2f}{spread}"


def report_as_text(report: dict) -> str:
    """Render the whole report as text: all tables, and the ratios of warm-up and sampling."""
    return "\n\n".join(
        [
            f"{report['device']}, {'bfloat16' if report['bf16'] else 'float32'}, torch {report['torch']}:",
            *map(table, report["cases"]),
            f"Warm-up step over an ordinary training step: {median_and_range(report['warm_up_ratios'])}  \n"
            f"generate_dataset over the bare network: {median_and_range(report['sampling_ratios'])}",
        ]
    )


def main() -> None:
    """Measure, print the tables and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/dp_step.json"), help="JSON file to write")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, help="autocast (default: on CUDA only)")
    parser.add_argument("--compile", action="store_true", help="also measure the step compiled by inductor")
    parser.add_argument(
        "--seconds_per_case", type=float, default=8.0, help="seconds for which each network is measured"
    )
    parser.add_argument("--runs", type=int, default=1, help="number of times that everything is repeated")
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    bf16 = device.type == "cuda" if args.bf16 is None else args.bf16

    def autocast():
        return torch.autocast(device.type, torch.bfloat16, enabled=bf16)

    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {args.threads} threads"
    arms = dict(ARMS)
    if args.compile:
        arms["compiled"] = lambda *inputs: Ours(*inputs, mode="compiled")
    cases = GPU_CASES if device.type == "cuda" else CPU_CASES
    report = {"device": name, "bf16": bf16, "torch": torch.__version__}
    report |= {"cases": [[] for _ in cases], "warm_up_ratios": [], "sampling_ratios": []}
    plain = Case(28, (32, 64), num_records=64, noise_multiplicity=1, physical=64)
    images = 10_000 if device.type == "cuda" else 20
    for _ in tqdm(range(args.runs), desc="Runs"):
        for case, results in zip(tqdm(cases, desc="Networks", leave=False), report["cases"], strict=True):
            results.append(measure(case, arms, device, autocast, args.seconds_per_case))
        report["warm_up_ratios"].append(measure_warm_up(plain, device, autocast))
        report["sampling_ratios"].append(measure_sampling(plain, device, images))
    print(report_as_text(report))
    args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"Written to {args.output}")


if __name__ == "__main__":
    main()
