"""Every option of a run, declared once: default, help, range, group, and whether it changes the result."""

from dataclasses import InitVar, asdict, dataclass
from pathlib import Path
from typing import Any

from .checks import (
    ACCOUNTANT,
    AUTO,
    DELTA,
    FREQUENCY_FEATURES_OR_NONE,
    GUIDANCE_SCALE,
    KERNEL_WIDTH,
    LABEL_DROPOUT,
    MODE_BINS,
    NOISE_LEVEL_STD,
    PROBABILITY_BELOW_ONE,
    S_CHURN,
    SAMPLE_RATE,
    SEED,
    STATISTIC,
    TIMESTEP_SAMPLING,
    above,
    at_least,
    auto_or,
    check_trainable,
    one_of,
)
from .errors import InputError
from .files import local_path
from .options import check_options, declared_options, options_of_group


TRAINING = "Loss, learning-rate schedule and average, in every stage"
SAMPLES = "Samples shown at the end"

_output = options_of_group("Output")
_execution = options_of_group("Execution (changes no result but for rounding)", execution=True)
_checkpoints = options_of_group("Checkpoints, previews and logging", execution=True)
_start = options_of_group("Start from a public model")
_budget = options_of_group("Privacy budget of the whole run")
_noise = options_of_group("Source of the noise")
_central = options_of_group("Stage 1: central images, and the warm-up on them")
_frequency = options_of_group("Stage 2: frequency features, and the warm-up on images that have them")
_dp_sgd = options_of_group("Stage 3: DP-SGD")
_training = options_of_group(TRAINING)
_samples = options_of_group(SAMPLES)
_publishing = options_of_group("Publishing", execution=True)

# The options that ordinary training on public images has, see `pretrain`.
PRETRAINING_OPTIONS = (
    *("output_dir", "seed", "mixed_precision", "gradient_checkpointing", "checkpointing_steps"),
    *("checkpoints_total_limit", "resume_from_checkpoint", "logger", "logging_dir", "pretrained_model_name_or_path"),
    "vae_name_or_path",
    *("train_batch_size", "max_train_steps", "learning_rate", "timestep_sampling", "noise_level_mean"),
    *("noise_level_std", "label_dropout", "random_flip", "lr_scheduler", "lr_warmup_steps", "use_ema"),
    *("ema_max_decay", "ema_inv_gamma", "ema_power", "num_inference_steps", "guidance_scale", "s_churn", "s_tmin"),
    *("s_tmax", "hub_license", "hub_dataset_name"),
)

# transformers resumes by `True` from the last checkpoint, and by `False` from none.
RESUME_WORDS = {"true": "latest", "false": None}


@dataclass(frozen=True)
class DPCurriculumConfig:
    """Hyper-parameters of a [`DPCurriculumTrainer`] run; also the flags of `dp-curriculum train`.

    Flags that diffusers' `train_unconditional.py` has keep their names and meaning. "Paper" is "From Easy to Hard"
    (DP-FETA, S&P 2025, arXiv:2504.01395). A value out of range raises an `InputError` when the object is made. The
    object cannot be changed: `dataclasses.replace(config, seed=1)` makes another one, which is checked again.

    Examples:
        >>> from dataclasses import replace
        >>> from diffusers_dp_curriculum import DPCurriculumConfig
        >>> config = DPCurriculumConfig(target_epsilon=1.0)
        >>> replace(config, max_train_steps=100).target_epsilon
        1.0
        >>> replace(config, target_epsilon=-5.0)
        Traceback (most recent call last):
        ...
        diffusers_dp_curriculum.errors.InputError: `target_epsilon` is -5.0: give a number above 0.
    """

    output_dir: str = _output(
        "dp-curriculum-model", "Directory for the pipeline, privacy.json and the model card.", execution=True
    )
    seed: int = _output(
        0, "Seed of initial weights, frequencies, warm-up and samples, never of sampling or noise.", limits=SEED
    )

    max_physical_batch_size: int = _execution(
        16, "Records whose gradients are in memory at a time.", limits=at_least(1)
    )
    mixed_precision: str | None = _execution(
        None,
        "Number type of forward and backward passes; by default that of `accelerate launch`. Clipping and noise "
        "do not change.",
        limits=one_of("no", "fp16", "bf16"),
    )
    gradient_checkpointing: bool = _execution(False, "Compute activations twice instead of keeping them: saves memory.")
    grad_sample_mode: str = _execution(
        "auto",
        "How the gradients of the records are computed: folded (all at once), loop (one by one) or auto (the faster).",
        limits=one_of("auto", "folded", "loop"),
    )

    checkpointing_steps: int = _checkpoints(
        500, "Steps of any stage between two checkpoints, kept in private/.", limits=at_least(1)
    )
    checkpoints_total_limit: int | None = _checkpoints(None, "Checkpoints to keep; all by default.", limits=at_least(1))
    resume_from_checkpoint: str | None = _checkpoints(
        None,
        'Resume from "latest" or true (a new run where there is none), or from the path of a checkpoint of this run.',
    )
    save_images_steps: int | None = _checkpoints(
        None, "Steps of any stage between two grids of samples, in private/; none by default.", limits=at_least(1)
    )
    logger: str | None = _checkpoints(
        None,
        "Where to log epsilon, the learning rate and the loss of the warm-up stages. Its timestamps tell how long "
        "each step took, and steps with more records take longer: keep it as private as the printed log.",
        limits=one_of("tensorboard", "wandb", "trackio"),
    )
    logging_dir: str = _checkpoints("logs", "Directory in private/ for the logger.")
    log_sensitive_curves: bool = _checkpoints(
        False,
        "Write the loss on the sensitive records to private/sensitive_curves.csv. NOT covered by epsilon: who sees it, "
        "or chooses settings by it, learns something about the records.",
    )

    # Not a hyper-parameter, since it may be a path, which must not be published: the ledger names the start.
    pretrained_model_name_or_path: str | None = _start(
        None,
        "Directory or Hub id of a public pipeline or UNet2DModel to start from, which must have learned nothing from "
        "these records; a Hub id is published. It brings its network and, if it is a pipeline, its noise scheduler: "
        "flags of these two are for random starts. The result of a run on sensitive records has to be named in "
        "prior_runs as well.",
        execution=True,
    )

    vae_name_or_path: str | None = _start(
        None,
        "Directory or Hub id of a public autoencoder (AutoencoderKL, AutoencoderTiny or VQModel, or a pipeline with "
        "one), which must have learned nothing from these records; a Hub id is published. The network is then one of "
        "its latents, which suits images of 64 pixels and more. A start that has an autoencoder brings its own.",
        execution=True,
    )

    target_epsilon: float = _budget(
        10.0,
        "Epsilon of the whole run and of prior_runs together, for zeroing out one record or user.",
        limits=above(0),
    )
    target_delta: float = _budget(1e-5, "Delta of the whole run and of prior_runs together.", limits=DELTA)
    accountant: str = _budget("prv", "Opacus' accountant that computes epsilon; prv is tighter.", limits=ACCOUNTANT)
    # Not a hyper-parameter: the card learns from the ledger what previous runs have released, and their paths must not
    # be published.
    prior_runs: list[str] | None = _budget(
        None,
        "Previous runs on the same records that the target has to cover as well: directories of runs or of synthetic "
        "data sets, privacy.json files, or Hub ids. A resumed run keeps the previous runs that it was started with.",
        execution=True,
    )

    secure_rng: bool = _noise(
        True, "Draw noise from a cryptographic generator, safe against floating-point attacks, not from PyTorch's."
    )
    insecure_noise_seed: int | None = _noise(
        None,
        "For tests only: reproducible noise. It takes all privacy away, and such a run may not be published.",
        limits=SEED,
    )

    central_statistic: str = _central(
        "mean",
        "Images of the mean or of the mode; none leaves the stage out (with frequency_features 0: DP-SGD alone, the "
        "DPDM baseline).",
        limits=one_of(*STATISTIC.values, "none"),
    )
    central_images_per_class: int = _central(
        5, "Number of queries; each gives one image of each class (paper: 5).", limits=at_least(1)
    )
    central_noise_multiplier: float | str = _central(
        AUTO,
        "Noise standard deviation over sensitivity, per query. auto is that of the paper, 5, or more where the queries "
        "would cost over a quarter of target_epsilon, or of what prior_runs leave of it.",
        limits=auto_or(above(0)),
    )
    central_sample_rate: float = _central(
        0.1, "Probability of each record or user, per query (paper: 6,000/60,000).", limits=SAMPLE_RATE
    )
    central_pool_factor: int = _central(
        1, "Area-pool images by this factor before a query (paper: 2).", limits=at_least(1)
    )
    central_mode_bins: int = _central(
        8, "Bins of the histogram over [0, 1] that mode images are read from.", limits=MODE_BINS
    )
    central_train_steps: int = _central(
        500, "Warm-up steps on the central images; they cost no privacy.", limits=at_least(0)
    )
    central_batch_size: int = _central(64, "Images per warm-up step (paper: 50 to 64).", limits=at_least(1))
    central_learning_rate: float = _central(1e-3, "Learning rate of Adam in the warm-up.", limits=above(0))
    central_augmentation: str = _central(
        "affine",
        "Variations of the central images; randaugment applies 2 operations, as in the paper.",
        limits=one_of("affine", "randaugment", "none"),
    )

    frequency_features: int | str = _frequency(
        AUTO,
        "Number of random Fourier features of one query of all records; 0 leaves the stage out (the curriculum of the "
        "paper). auto chooses by the number of records (or users) and classes and by the budget, see docs/concepts.md.",
        limits=auto_or(FREQUENCY_FEATURES_OR_NONE),
    )
    frequency_noise_multiplier: float | str = _frequency(
        AUTO, "Noise standard deviation over sensitivity of that query.", limits=auto_or(above(0))
    )
    frequency_kernel_widths: list[float] | None = _frequency(
        None,
        "Widths of the features' Gaussian kernels, as L2 distances between images with pixels in [0, 1]; by default "
        "in proportion to the square root of the number of pixels.",
        limits=KERNEL_WIDTH,
    )
    # Not a hyper-parameter, since it may be a path, which must not be published: the ledger names the model.
    feature_extractor: str | None = _frequency(
        None,
        "Directory or Hub id of a public vision model of transformers, whose features are queried in the place of "
        "random ones, and which must have learned nothing from these records; a Hub id is published. It brings the "
        "number of features, and no kernel widths are used.",
        execution=True,
    )
    frequency_generator_steps: int = _frequency(
        1600, "Steps of fitting the generator to the features; they cost no privacy.", limits=at_least(1)
    )
    frequency_train_steps: int = _frequency(
        1500, "Warm-up steps on the generator's images; they cost no privacy.", limits=at_least(0)
    )
    frequency_batch_size: int = _frequency(64, "Images per warm-up step.", limits=at_least(1))
    frequency_learning_rate: float = _frequency(1e-3, "Learning rate of Adam in the warm-up.", limits=above(0))

    train_batch_size: int = _dp_sgd(
        256,
        "Expected number of records or users per step over all processes, sample rate x N; at most N.",
        limits=at_least(1),
    )
    max_train_steps: int = _dp_sgd(
        200,
        "DP-SGD steps; with 0 the run ends after the warm-up, which may take the whole budget.",
        limits=at_least(0),
    )
    noise_multiplicity: int = _dp_sgd(
        8, "K: noise draws per record or user and step, averaged before clipping (paper: 32).", limits=at_least(1)
    )
    max_grad_norm: float = _dp_sgd(
        1.0, "C: L2 norm to which the gradient of each record or user is clipped.", limits=above(0)
    )
    learning_rate: float = _dp_sgd(1e-3, "Peak learning rate of Adam in DP-SGD (paper: 3e-4).", limits=above(0))
    adam_beta1: float = _dp_sgd(0.9, "First-moment decay of Adam.", limits=PROBABILITY_BELOW_ONE)
    adam_beta2: float = _dp_sgd(0.999, "Second-moment decay of Adam.", limits=PROBABILITY_BELOW_ONE)
    adam_weight_decay: float = _dp_sgd(0.0, "Decoupled weight decay of Adam.", limits=at_least(0))
    adam_epsilon: float = _dp_sgd(1e-8, "Epsilon of Adam (no privacy meaning).", limits=above(0))

    trainable: str = _dp_sgd(
        "all",
        "What DP-SGD trains: all; attention or lora (adapters on attention), both with the class embedding; "
        "class_embedding; or the parameters whose whole names match a regular expression. The warm-up trains all.",
    )
    lora_rank: int = _dp_sgd(8, "Rank of the adapters, with trainable lora (DP-LoRA: 8).", limits=at_least(1))

    timestep_sampling: str = _training(
        "log_normal", "log_normal over noise levels, or uniform over timesteps.", limits=TIMESTEP_SAMPLING
    )
    noise_level_mean: float = _training(-0.6, "Mean of log sigma for log_normal (EDM and paper: -1.2).")
    noise_level_std: float = _training(
        1.2, "Standard deviation of log sigma for log_normal (paper: 1.2).", limits=NOISE_LEVEL_STD
    )
    label_dropout: float = _training(
        0.1,
        "Probability of dropping a draw's label, for classifier-free guidance (paper: 0.1).",
        limits=LABEL_DROPOUT,
    )
    random_flip: bool = _training(False, "Mirror half of the noise draws; costs no privacy.")
    # The schedules of diffusers' `get_scheduler` that need nothing but a number of steps.
    lr_scheduler: str = _training(
        "constant",
        "Learning-rate schedule of each stage but the generator.",
        limits=one_of("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts"),
    )
    lr_warmup_steps: int = _training(
        0,
        "Number w of steps in which the learning rate rises from 1/w of its peak, if lr_scheduler warms up.",
        limits=at_least(0),
    )
    use_ema: bool = _training(True, "Keep, sample and publish the exponential moving average of the weights.")
    ema_max_decay: float = _training(
        0.999, "Largest decay of the average (paper: 0.999).", limits=PROBABILITY_BELOW_ONE
    )
    ema_inv_gamma: float = _training(
        1.0, "Inverse gamma of the average's warm-up, see diffusers' EMAModel.", limits=above(0)
    )
    ema_power: float = _training(0.75, "Power of the average's warm-up, see diffusers' EMAModel.", limits=above(0))

    num_inference_steps: int = _samples(50, "Denoising steps per sampled image.", limits=at_least(1))
    guidance_scale: float = _samples(1.0, "Classifier-free guidance of the samples; 1 is none.", limits=GUIDANCE_SCALE)
    s_churn: float = _samples(
        0.0, "Fresh noise of EDM's stochastic sampler (Karras et al. 2022, algorithm 2).", limits=S_CHURN
    )
    s_tmin: float = _samples(0.05, "Lowest noise level at which s_churn adds noise.", limits=at_least(0))
    s_tmax: float = _samples(50.0, "Highest noise level at which s_churn adds noise.", limits=at_least(0))

    push_to_hub: bool = _publishing(False, "Push the pipeline to the Hub when it is saved; checkpoints never are.")
    hub_model_id: str | None = _publishing(
        None, "Repository to push to, USER/NAME or NAME; the name of output_dir by default."
    )
    hub_private_repo: bool = _publishing(False, "Make the repository private, if it does not exist yet.")
    # Not a field: cards, logs and checkpoints are written from the fields, and must not contain the token.
    hub_token: InitVar[str | None] = _publishing(
        None, "Token of the Hub. Prefer `hf auth login` or HF_TOKEN: other users of the machine can see a command line."
    )
    hub_license: str | None = _publishing(
        None, 'License of the model, for its card, as the Hub calls it, such as "apache-2.0".'
    )
    hub_dataset_name: str | None = _publishing(
        None, "Name of the training data, for the card, if it may be known; a link if it is a Hub id."
    )

    def __post_init__(self, hub_token: str | None) -> None:
        object.__setattr__(self, "hub_token", hub_token)  # where `dataclasses.replace` looks for it
        which = RESUME_WORDS.get(str(self.resume_from_checkpoint).lower(), self.resume_from_checkpoint)
        object.__setattr__(self, "resume_from_checkpoint", which)
        check_options(self)
        check_trainable(self.trainable)
        object.__setattr__(self, "output_dir", str(local_path(self.output_dir)))
        if self.guidance_scale != 1 and self.label_dropout == 0:
            raise InputError(
                "`guidance_scale` needs the null class, which `label_dropout` 0 never trains: raise `label_dropout`."
            )
        if self.push_to_hub and self.insecure_noise_seed is not None:
            raise InputError(
                "`push_to_hub` is for private runs, and `insecure_noise_seed` takes privacy away: leave out one."
            )

    @property
    def token(self) -> str | None:
        """The `hub_token` that was given; `repr`, `asdict` and the other attributes do not show it."""
        token: str | None = vars(self)["hub_token"]
        return token

    @property
    def repo_id(self) -> str:
        """The repository on the Hub to push to: `hub_model_id`, or else the name of `output_dir`."""
        return self.hub_model_id or Path(self.output_dir).absolute().name

    def hyper_parameters(self) -> dict[str, Any]:
        """The options that define a run's result: all except those that only say where and how it is executed."""
        values = asdict(self)
        return {declared.name: values[declared.name] for declared in declared_options(self) if not declared.execution}

    def training_parameters(self) -> dict[str, Any]:
        """The hyper-parameters that a run must keep when it is resumed: all except those of its samples."""
        of_samples = {declared.name for declared in declared_options(self) if declared.group == SAMPLES}
        return {name: value for name, value in self.hyper_parameters().items() if name not in of_samples}
