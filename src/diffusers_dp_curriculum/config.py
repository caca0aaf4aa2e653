"""Everything a run can be told, each field documented where it is declared."""

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .errors import InputError


# Those of diffusers' `get_scheduler` that need nothing but a number of steps.
LR_SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts")

# The fields that say where and how a run is executed and shared: they change no result but for rounding, another
# machine may want others, and they have no place among the card's hyper-parameters. (What previous runs have released
# is in the ledger, from which the card has it; the paths where they are must not be published.)
EXECUTION = (
    "output_dir",
    "max_physical_batch_size",
    "grad_sample_mode",
    "gradient_checkpointing",
    "mixed_precision",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "resume_from_checkpoint",
    "prior_runs",
    "save_images_steps",
    "logger",
    "logging_dir",
    "log_sensitive_curves",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "hub_token",
    "hub_license",
    "hub_dataset_name",
)


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class DPCurriculumConfig:
    """Hyper-parameters of a [`DPCurriculumTrainer`] run; also the flags of `examples/train_dp_curriculum.py`.

    Flags that diffusers' `train_unconditional.py` has keep their names and meaning. "Paper" is "From Easy to Hard"
    (DP-FETA, S&P 2025, arXiv:2504.01395). Values out of range raise `InputError` when the object is made.
    """

    output_dir: str = _option("dp-curriculum-model", "Directory for the pipeline, privacy.json and the model card.")
    seed: int = _option(0, "Seed of initial weights, warm-up and samples, never of what the mechanisms draw.")
    mixed_precision: str | None = _option(
        None, '"no", "fp16" or "bf16": type of the passes; `accelerate launch` says by default. DP stays in float32.'
    )
    gradient_checkpointing: bool = _option(False, "Compute activations twice instead of keeping them: saves memory.")

    # Interruptions and what is seen meanwhile.
    checkpointing_steps: int = _option(500, "Steps of either stage between two checkpoints, kept in private/.")
    checkpoints_total_limit: int | None = _option(None, "Checkpoints to keep; all by default.")
    resume_from_checkpoint: str | None = _option(
        None, 'Go on from "latest" (a new run where there is none), or from the path of one of this output_dir.'
    )
    save_images_steps: int | None = _option(
        None, "Steps of either stage between two grids of samples, in private/; none by default."
    )
    logger: str | None = _option(
        None,
        '"tensorboard", "wandb" or "trackio": gets epsilon, learning rate and the loss on the central images. It '
        "also notes when each step was taken, and longer steps had more records: keep it as private as the log.",
    )
    logging_dir: str = _option("logs", "Directory in private/ for the logger.")
    log_sensitive_curves: bool = _option(
        False,
        "Write the loss on the sensitive records to private/sensitive_curves.csv. NOT covered by epsilon: who sees it, "
        "or chooses by it, learns of the records.",
    )

    # The budget, for everything together.
    target_epsilon: float = _option(
        10.0, "Epsilon of the whole run and of prior_runs together, > 0, for zeroing out one record."
    )
    target_delta: float = _option(1e-5, "Delta of the same, from 1e-12 to 1/N.")
    accountant: str = _option("prv", '"prv" (tighter) or "rdp"; both are those of Opacus.')
    prior_runs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Previous runs on the same records that the target has to cover as well: directories of runs or of "
            "synthetic data sets, privacy.json files, or Hub ids. A resumed run has those that it was started with."
        },
    )

    # Where the noise comes from.
    secure_rng: bool = _option(
        True, "Noise from a cryptographic generator, safe against floating-point attacks; without it, from PyTorch's."
    )
    insecure_noise_seed: int | None = _option(
        None, "For tests alone: reproducible noise, which takes all privacy away and may not be published."
    )

    # Stage 1: central images, and the warm-up on them.
    central_statistic: str = _option("mean", '"mean" or "mode" images; "none" is DP-SGD alone (the DPDM baseline).')
    central_images_per_class: int = _option(5, "Number of queries; each gives one image of each class (paper: 5).")
    central_noise_multiplier: float = _option(5.0, "Noise standard deviation over sensitivity, per query (paper: 5).")
    central_sample_rate: float = _option(0.1, "Probability in (0, 1] of each record, per query (paper: 6,000/60,000).")
    central_pool_factor: int = _option(1, "Area-pool images by this factor before a query (paper: 2).")
    central_mode_bins: int = _option(8, "Bins of the histogram over [0, 1] that mode images are read from, >= 2.")
    central_train_steps: int = _option(500, "Warm-up steps on the central images; they cost no privacy.")
    central_batch_size: int = _option(64, "Images per warm-up step (paper: 50 to 64).")
    central_learning_rate: float = _option(1e-3, "Learning rate of Adam in the warm-up.")
    central_augmentation: str = _option(
        "affine", 'Variations of the central images: "affine", "randaugment" (2 operations, as in the paper) or "none".'
    )

    # Stage 2: DP-SGD.
    train_batch_size: int = _option(256, "Expected logical batch over all processes: sample rate x N, at most N.")
    max_train_steps: int = _option(200, "DP-SGD steps.")
    noise_multiplicity: int = _option(8, "K: noise draws per record and step, averaged before clipping (paper: 32).")
    max_grad_norm: float = _option(1.0, "C: L2 norm to which the gradient of each record is clipped, > 0.")
    max_physical_batch_size: int = _option(16, "Records whose gradients are in memory at a time; changes no result.")
    grad_sample_mode: str = _option(
        "auto", '"folded" (all records at once), "loop" (one by one) or "auto" (the faster). Changes no result.'
    )
    learning_rate: float = _option(1e-3, "Peak learning rate of Adam in DP-SGD (paper: 3e-4).")
    lr_scheduler: str = _option("constant", f"Learning-rate schedule of DP-SGD: {', '.join(LR_SCHEDULERS)}.")
    lr_warmup_steps: int = _option(
        0, "DP-SGD steps w over which the learning rate rises, from 1/w of it, where the schedule has a warm-up."
    )
    adam_beta1: float = _option(0.9, "First-moment decay of Adam.")
    adam_beta2: float = _option(0.999, "Second-moment decay of Adam.")
    adam_weight_decay: float = _option(0.0, "Decoupled weight decay of Adam.")
    adam_epsilon: float = _option(1e-8, "Epsilon of Adam (no privacy meaning).")
    use_ema: bool = _option(True, "Keep, sample and publish the exponential moving average of the weights.")
    ema_max_decay: float = _option(0.999, "Largest decay of the average (paper: 0.999).")
    ema_inv_gamma: float = _option(1.0, "Inverse gamma of the average's warm-up, see diffusers' EMAModel.")
    ema_power: float = _option(0.75, "Power of the average's warm-up, see diffusers' EMAModel.")

    # The loss of both stages.
    timestep_sampling: str = _option("log_normal", '"log_normal" over noise levels, or "uniform" over timesteps.')
    noise_level_mean: float = _option(-0.6, 'Mean of log sigma for "log_normal" (EDM and paper: -1.2).')
    noise_level_std: float = _option(1.2, 'Standard deviation of log sigma for "log_normal" (paper: 1.2).')
    label_dropout: float = _option(
        0.1, "Probability of dropping a draw's label, for classifier-free guidance (paper: 0.1)."
    )
    random_flip: bool = _option(False, "Mirror half of the noise draws; costs no privacy.")

    # The samples shown at the end.
    num_inference_steps: int = _option(50, "Denoising steps per sampled image.")
    guidance_scale: float = _option(1.0, "Classifier-free guidance of the samples; 1 is none.")
    s_churn: float = _option(0.0, "Fresh noise of EDM's stochastic sampler (Karras et al. 2022, algorithm 2).")
    s_tmin: float = _option(0.05, "Lowest noise level at which s_churn adds noise.")
    s_tmax: float = _option(50.0, "Highest noise level at which s_churn adds noise.")

    # Publishing.
    push_to_hub: bool = _option(False, "Push the pipeline to the Hub when it is saved; checkpoints never are.")
    hub_model_id: str | None = _option(
        None, "Repository to push to, USER/NAME or NAME; the name of output_dir by default."
    )
    hub_private_repo: bool = _option(False, "Make the repository private, if it does not exist yet.")
    hub_token: str | None = field(
        default=None,
        repr=False,
        metadata={
            "help": "Token of the Hub. That of `hf auth login` or HF_TOKEN is better: others see a command line."
        },
    )
    hub_license: str | None = _option(
        None, 'License of the model, for its card, as the Hub calls it, such as "apache-2.0".'
    )
    hub_dataset_name: str | None = _option(
        None, "Name of the training data, for the card, if it may be known; a link if it is a Hub id."
    )

    def __post_init__(self) -> None:
        # Taken out of the field, so that nothing that is written from the fields (a card, a log, a checkpoint) has it.
        self._hub_token, self.hub_token = self.hub_token, None
        for option in fields(self):
            value = getattr(self, option.name)
            whole = option.type in (int, int | None)
            if whole and value is not option.default and not isinstance(value, int):
                raise InputError(f"{option.name} is {value}: give a whole number.")
        _above(0, self, "target_epsilon", "central_noise_multiplier", "max_grad_norm")
        _above(0, self, "learning_rate", "central_learning_rate", "adam_epsilon")
        _at_least(1, self, "train_batch_size", "max_train_steps", "noise_multiplicity", "max_physical_batch_size")
        _at_least(
            1, self, "central_images_per_class", "central_pool_factor", "central_batch_size", "num_inference_steps"
        )
        _at_least(0, self, "central_train_steps", "lr_warmup_steps", "guidance_scale", "adam_weight_decay")
        _at_least(0, self, "s_churn", "s_tmin", "s_tmax")
        _at_least(1, self, "checkpointing_steps")
        for name in ("checkpoints_total_limit", "save_images_steps"):
            if getattr(self, name) is not None:
                _at_least(1, self, name)
        _at_least(2, self, "central_mode_bins")
        _above(0, self, "ema_inv_gamma", "ema_power", "noise_level_std")
        _one_of(self, "accountant", "prv", "rdp")
        _one_of(self, "central_statistic", "mean", "mode", "none")
        _one_of(self, "central_augmentation", "affine", "randaugment", "none")
        if self.mixed_precision is not None:
            _one_of(self, "mixed_precision", "no", "fp16", "bf16")
        if self.logger is not None:
            _one_of(self, "logger", "tensorboard", "wandb", "trackio")
        _one_of(self, "grad_sample_mode", "auto", "folded", "loop")
        _one_of(self, "lr_scheduler", *LR_SCHEDULERS)
        _one_of(self, "timestep_sampling", "log_normal", "uniform")
        if self.prior_runs is not None and not (isinstance(self.prior_runs, list) and all(self.prior_runs)):
            raise InputError(f"prior_runs is {self.prior_runs!r}: give a list of runs.")
        if not self.output_dir:
            raise InputError("output_dir is empty: give the directory that the run is to write to.")
        if not 0 < self.target_delta < 1:
            raise InputError(f"target_delta is {self.target_delta}: give a number above 0 and below 1/N.")
        if not 0 < self.central_sample_rate <= 1:
            raise InputError(f"central_sample_rate is {self.central_sample_rate}: give a number in (0, 1].")
        for name in ("seed", "insecure_noise_seed"):
            if not 0 <= (getattr(self, name) or 0) < 2**32:
                raise InputError(f"{name} is {getattr(self, name)}: give a whole number from 0 to 2**32 - 1.")
        for name in ("adam_beta1", "adam_beta2", "ema_max_decay", "label_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: give a number in [0, 1).")
        if self.guidance_scale != 1 and self.label_dropout == 0:
            raise InputError("guidance_scale needs the null class, which label_dropout 0 never trains: raise it.")
        if self.push_to_hub and self.insecure_noise_seed is not None:
            raise InputError(
                "push_to_hub is for private runs, and insecure_noise_seed takes privacy away: leave out one."
            )

    def hyper_parameters(self) -> dict[str, Any]:
        """What defines a run's result: every field but those that say where and how it is executed."""
        return {name: value for name, value in asdict(self).items() if name not in EXECUTION}


def _above(bound: float, config: "DPCurriculumConfig", *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not (math.isfinite(value) and value > bound):
            raise InputError(f"{name} is {value}: give a finite number above {bound}.")


def _at_least(bound: float, config: DPCurriculumConfig, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not (math.isfinite(value) and value >= bound):
            raise InputError(f"{name} is {value}: give at least {bound}.")


def _one_of(config: DPCurriculumConfig, name: str, *choices: str) -> None:
    value = getattr(config, name)
    if value not in choices:
        raise InputError(f'{name} is "{value}": choose {", ".join(choices[:-1])} or {choices[-1]}.')
