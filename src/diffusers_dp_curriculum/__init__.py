"""Diffusion models under differential privacy, from easy to hard."""

from .accounting import Mechanism, compute_epsilon
from .central_images import CentralImageDataset
from .config import DPCurriculumConfig
from .data import ImageDataset, load_image_dataset, to_image_dataset
from .errors import InputError, TrainingError
from .ledger import PrivacyLedger
from .pipeline import ClassConditionalPipeline
from .randomness import MechanismRandomness
from .statement import recompute_epsilon
from .synthesis import generate_dataset
from .trainer import DPCurriculumTrainer


__all__ = [
    "CentralImageDataset",
    "ClassConditionalPipeline",
    "DPCurriculumConfig",
    "DPCurriculumTrainer",
    "ImageDataset",
    "InputError",
    "Mechanism",
    "MechanismRandomness",
    "PrivacyLedger",
    "TrainingError",
    "compute_epsilon",
    "generate_dataset",
    "load_image_dataset",
    "recompute_epsilon",
    "to_image_dataset",
]
