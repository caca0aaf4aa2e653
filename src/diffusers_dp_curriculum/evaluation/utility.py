"""Measures the utility of synthetic images: the accuracy on real images of classifiers that are trained on them.

Classifiers are trained on synthetic images only, selected on a held-out part of these, and tested on real images.
Selecting on the real test set, as is common, would make the choice depend on records that no ledger counts, and would
overstate the accuracy for someone who has only the synthetic images.
"""

import copy

import torch
import torch.nn.functional as F
from sklearn.metrics import confusion_matrix as count_confusions
from torch import nn
from tqdm.auto import tqdm
from transformers import ResNetConfig, ResNetForImageClassification
from transformers.models.resnet.modeling_resnet import ResNetConvLayer

from ..checks import CLASSIFIER
from ..data.image_dataset import ImageDataset
from ..errors import InputError


EVALUATION_BATCH_SIZE = 500


class Classifier(nn.Module):
    """A network that maps `uint8` images of shape `(N, C, H, W)` to logits of shape `(N, num_classes)`.

    Attributes:
        selection_accuracy (`float`): Accuracy on the part of the training images that was held out for selection.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.selection_accuracy = 0.0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        outputs = self.network(ImageDataset.to_model_range(images))
        return outputs if torch.is_tensor(outputs) else outputs.logits

    @torch.no_grad()
    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Return the most likely class of each image: `int64` of shape `(N,)`, on the CPU."""
        device = next(self.parameters()).device
        batches = images.split(EVALUATION_BATCH_SIZE)
        return torch.cat([self(batch.to(device)).argmax(dim=1).cpu() for batch in batches])


def make_cnn(channels: int, num_classes: int) -> nn.Module:
    """Build a CNN of three convolutions, each with batch normalization and pooling."""
    layers: list[nn.Module] = []
    for width in (32, 64, 128):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2, ceil_mode=True)]
        channels = width
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels, num_classes)
    )


def make_resnet(channels: int, num_classes: int) -> nn.Module:
    """Build a ResNet of 14 layers ([He et al. 2016](https://arxiv.org/abs/1512.03385)) for small images."""
    config = ResNetConfig(
        num_channels=channels,
        embedding_size=32,
        hidden_sizes=[32, 64, 128],
        depths=[2, 2, 2],
        layer_type="basic",
        num_labels=num_classes,
    )
    model = ResNetForImageClassification(config)
    # The default first layer is made for 224 pixels: it is 7 wide and halves the size, as does the pooling after it.
    model.resnet.embedder.embedder = ResNetConvLayer(channels, config.embedding_size, kernel_size=3, stride=1)
    return model


ARCHITECTURES = {"cnn": make_cnn, "resnet": make_resnet}


def train_classifier(
    images: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    architecture: str = "cnn",
    *,
    epochs: int = 20,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    selection_share: float = 0.1,
    seed: int = 0,
    device: str | torch.device | None = None,
    description: str | None = None,
) -> Classifier:
    """Train a classifier on the given images only.

    A random share of the images is held out, and the weights of the epoch with the best accuracy on them are returned.

    Args:
        images (`torch.Tensor`): `uint8` of shape `(N, C, H, W)`.
        labels (`torch.Tensor`): `int64` of shape `(N,)`, from 0 to `num_classes - 1`.
        num_classes (`int`): The number of classes; some of them may have no images.
        architecture (`str`, *optional*, defaults to `"cnn"`): `"cnn"` or `"resnet"`.
        epochs (`int`, *optional*, defaults to 20): Passes over the images that are not held out.
        batch_size (`int`, *optional*, defaults to 128): Images per step.
        learning_rate (`float`, *optional*, defaults to 2e-3): Maximum of AdamW's one-cycle learning rate.
        selection_share (`float`, *optional*, defaults to 0.1): The share of the images that is held out.
        seed (`int`, *optional*, defaults to 0): Seed of the split, the initial weights and the order.
        device (`str` or `torch.device`, *optional*): By default a GPU if there is one, else the CPU.
        description (`str`, *optional*): Title of the progress bar; without it there is none.

    Returns:
        [`Classifier`]: The trained classifier in evaluation mode.

    Raises:
        InputError: If the architecture is unknown, images and labels do not fit together, or there are too few images.
    """
    CLASSIFIER.check("architecture", architecture)
    held_out = round(selection_share * len(images))
    _check_images(images, labels, num_classes, held_out)
    chosen_device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    generator = torch.Generator().manual_seed(seed)
    selection, training = torch.randperm(len(images), generator=generator).tensor_split([held_out])
    images, labels = images.to(chosen_device), labels.to(chosen_device)

    with torch.random.fork_rng(devices=[chosen_device] if chosen_device.type == "cuda" else []):
        torch.manual_seed(seed)
        classifier = Classifier(ARCHITECTURES[architecture](images.shape[1], num_classes)).to(chosen_device)
        optimizer = torch.optim.AdamW(classifier.parameters(), lr=learning_rate, weight_decay=0.05)
        steps = epochs * -(-len(training) // batch_size)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
        best: dict[str, torch.Tensor] = {}
        with tqdm(total=steps, desc=description, leave=False, disable=description is None) as progress:
            for _ in range(epochs):
                classifier.train()
                for batch in training[torch.randperm(len(training), generator=generator)].split(batch_size):
                    if len(batch) == 1:  # batch normalization needs at least two images
                        continue
                    loss = F.cross_entropy(classifier(images[batch]), labels[batch])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    scheduler.step()
                    progress.update()
                classifier.eval()
                score = accuracy(classifier, images[selection], labels[selection])
                if not best or score > classifier.selection_accuracy:
                    classifier.selection_accuracy = score
                    best = copy.deepcopy(classifier.state_dict())
    classifier.load_state_dict(best)
    return classifier


def _check_images(images: torch.Tensor, labels: torch.Tensor, num_classes: int, held_out: int) -> None:
    """Refuse images and labels that do not fit together, or are too few to hold out some of them."""
    if images.dtype != torch.uint8 or images.ndim != 4 or labels.shape != images.shape[:1]:
        raise InputError(
            f"The images are {images.dtype} of shape {tuple(images.shape)} and the labels of shape "
            f"{tuple(labels.shape)}: pass uint8 images of shape (N, C, H, W) and N labels."
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise InputError(f"A label is not between 0 and {num_classes - 1}: correct it or `num_classes`.")
    if not 0 < held_out <= len(images) - 2:
        raise InputError(
            f"Of {len(images)} images {held_out} would be held out for selection: pass more images, or another "
            "`selection_share`."
        )


def accuracy(classifier: Classifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Compute the share of `uint8` images `(N, C, H, W)` whose label, `int64` `(N,)`, is predicted."""
    return float((classifier.predict(images) == labels.cpu()).double().mean())


def confusion_matrix(
    classifier: Classifier, images: torch.Tensor, labels: torch.Tensor, num_classes: int
) -> torch.Tensor:
    """Count how often each class is predicted as each class: `int64` of shape `(true class, predicted class)`."""
    counts = count_confusions(labels.cpu(), classifier.predict(images), labels=range(num_classes))
    return torch.from_numpy(counts)
