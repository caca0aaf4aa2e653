"""Diffusion models under differential privacy, from easy to hard."""

from importlib.metadata import version

from .config import DPCurriculumConfig
from .data.image_dataset import ImageDataset, load_image_dataset, to_image_dataset
from .errors import DPCurriculumError, HubError, InputError, StorageError, TrainingError
from .mechanisms.central_images import CentralImageDataset
from .mechanisms.randomness import MechanismRandomness
from .privacy.accounting import Mechanism, compute_epsilon
from .privacy.ledger import PrivacyLedger
from .privacy.statement import recompute_epsilon
from .sampling.pipeline import ClassConditionalPipeline
from .sampling.synthesis import generate_dataset
from .trainer import DPCurriculumTrainer
from .verbosity import set_verbosity


__version__ = version("diffusers-dp-curriculum")

__all__ = [
    "CentralImageDataset",
    "ClassConditionalPipeline",
    "DPCurriculumConfig",
    "DPCurriculumError",
    "DPCurriculumTrainer",
    "HubError",
    "ImageDataset",
    "InputError",
    "Mechanism",
    "MechanismRandomness",
    "PrivacyLedger",
    "StorageError",
    "TrainingError",
    "compute_epsilon",
    "generate_dataset",
    "load_image_dataset",
    "recompute_epsilon",
    "set_verbosity",
    "to_image_dataset",
]
