"""Diffusion models under differential privacy, from easy to hard."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from .verbosity import set_verbosity


if TYPE_CHECKING:
    from .config import DPCurriculumConfig
    from .data.dataset_info import DatasetInfo
    from .data.image_dataset import ImageDataset, load_image_dataset, to_image_dataset
    from .errors import DPCurriculumError, HubError, InputError, StorageError, TrainingError
    from .mechanisms.central_images import CentralImageDataset
    from .mechanisms.frequency_features import FrequencyFeatures
    from .mechanisms.perceptual_features import PerceptualFeatures
    from .mechanisms.public_eyes import PublicEyes
    from .mechanisms.randomness import MechanismRandomness
    from .presets import load_preset
    from .pretraining import pretrain
    from .privacy.accounting import Mechanism, compute_epsilon
    from .privacy.ledger import PrivacyLedger
    from .privacy.statement import PrivacyStatement, recompute_epsilon
    from .sampling.pipeline import ClassConditionalPipeline
    from .sampling.synthesis import generate_dataset
    from .trainer import DPCurriculumTrainer
    from .training.autoencoder import latent_info
    from .training.auxiliary_generator import FrequencyImageDataset
    from .training.interruption import RunStatus
    from .training.networks import build_scheduler, build_unet
    from .training.starting_point import load_starting_point


__version__ = version("diffusers-dp-curriculum")

__all__ = [
    "CentralImageDataset",
    "ClassConditionalPipeline",
    "DPCurriculumConfig",
    "DPCurriculumError",
    "DPCurriculumTrainer",
    "DatasetInfo",
    "FrequencyFeatures",
    "FrequencyImageDataset",
    "HubError",
    "ImageDataset",
    "InputError",
    "Mechanism",
    "MechanismRandomness",
    "PerceptualFeatures",
    "PrivacyLedger",
    "PrivacyStatement",
    "PublicEyes",
    "RunStatus",
    "StorageError",
    "TrainingError",
    "__version__",
    "build_scheduler",
    "build_unet",
    "compute_epsilon",
    "generate_dataset",
    "latent_info",
    "load_image_dataset",
    "load_preset",
    "load_starting_point",
    "pretrain",
    "recompute_epsilon",
    "set_verbosity",
    "to_image_dataset",
]

# The module of each name, imported on first use: otherwise `dp-curriculum --help` would wait seconds for PyTorch.
_MODULES = {
    "CentralImageDataset": "mechanisms.central_images",
    "ClassConditionalPipeline": "sampling.pipeline",
    "DPCurriculumConfig": "config",
    "DPCurriculumError": "errors",
    "DPCurriculumTrainer": "trainer",
    "DatasetInfo": "data.dataset_info",
    "FrequencyFeatures": "mechanisms.frequency_features",
    "FrequencyImageDataset": "training.auxiliary_generator",
    "HubError": "errors",
    "ImageDataset": "data.image_dataset",
    "InputError": "errors",
    "Mechanism": "privacy.accounting",
    "MechanismRandomness": "mechanisms.randomness",
    "PerceptualFeatures": "mechanisms.perceptual_features",
    "PrivacyLedger": "privacy.ledger",
    "PrivacyStatement": "privacy.statement",
    "PublicEyes": "mechanisms.public_eyes",
    "RunStatus": "training.interruption",
    "StorageError": "errors",
    "TrainingError": "errors",
    "build_scheduler": "training.networks",
    "build_unet": "training.networks",
    "compute_epsilon": "privacy.accounting",
    "generate_dataset": "sampling.synthesis",
    "latent_info": "training.autoencoder",
    "load_image_dataset": "data.image_dataset",
    "load_preset": "presets",
    "load_starting_point": "training.starting_point",
    "pretrain": "pretraining",
    "recompute_epsilon": "privacy.statement",
    "to_image_dataset": "data.image_dataset",
}

if not TYPE_CHECKING:  # otherwise a type checker would believe that every name exists

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
