"""What synthetic images are worth to somebody who trains on them and applies the result to real ones.

Train on synthetic images only, select on a split of them, test on real ones. To select on the real test set, as is
common, would make the choice depend on records that no ledger knows of, and the accuracy a promise that nobody keeps.
"""

import copy

import torch
import torch.nn.functional as F
from sklearn.metrics import confusion_matrix as count_confusions
from torch import nn
from tqdm.auto import tqdm
from transformers import ResNetConfig, ResNetForImageClassification
from transformers.models.resnet.modeling_resnet import ResNetConvLayer

from ..data.image_dataset import ImageDataset
from ..errors import InputError


EVALUATION_BATCH_SIZE = 500


class Classifier(nn.Module):
    """A network that maps `uint8` images of shape `(N, C, H, W)` to logits of shape `(N, num_classes)`.

    Attributes:
        selection_accuracy (`float`): On the images that were held out of its training images.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.selection_accuracy = 0.0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The logits."""
        outputs = self.network(ImageDataset.to_model_range(images))
        return outputs if torch.is_tensor(outputs) else outputs.logits

    @torch.no_grad()
    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """The most likely class of each image: `int64` of shape `(N,)`, on the CPU."""
        device = next(self.parameters()).device
        batches = images.split(EVALUATION_BATCH_SIZE)
        return torch.cat([self(batch.to(device)).argmax(dim=1).cpu() for batch in batches])


def make_cnn(channels: int, num_classes: int) -> nn.Module:
    """Three convolutions, each with batch normalisation and pooling."""
    layers: list[nn.Module] = []
    for width in (32, 64, 128):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2, ceil_mode=True)]
        channels = width
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels, num_classes)
    )


def make_resnet(channels: int, num_classes: int) -> nn.Module:
    """A ResNet of 14 layers ([He et al. 2016](https://arxiv.org/abs/1512.03385)) for small images."""
    config = ResNetConfig(
        num_channels=channels,
        embedding_size=32,
        hidden_sizes=[32, 64, 128],
        depths=[2, 2, 2],
        layer_type="basic",
        num_labels=num_classes,
    )
    model = ResNetForImageClassification(config)
    # Its first layer is made for 224 pixels: 7 wide, and halves the size, as the pooling after it does again.
    model.resnet.embedder.embedder = ResNetConvLayer(channels, config.embedding_size, kernel_size=3, stride=1)
    return model


ARCHITECTURES = {"cnn": make_cnn, "resnet": make_resnet}


def check_architecture(architecture: str) -> None:
    """Raise an [`InputError`] if there is no such classifier."""
    if architecture not in ARCHITECTURES:
        raise InputError(f"There is no classifier {architecture!r}: take one of {', '.join(ARCHITECTURES)}.")


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
    """Train a classifier on the given images and nothing else.

    A random share of them is held out; of all epochs the one counts whose classifier does best on these.

    Args:
        images (`torch.Tensor`): `uint8` of shape `(N, C, H, W)`.
        labels (`torch.Tensor`): `int64` of shape `(N,)`, from 0 to `num_classes - 1`.
        num_classes (`int`): The number of classes, some of which may have no image.
        architecture (`str`, *optional*, defaults to `"cnn"`): `"cnn"` or `"resnet"`.
        epochs (`int`, *optional*, defaults to 20): Passes over the images that are not held out.
        batch_size (`int`, *optional*, defaults to 128): Images a step.
        learning_rate (`float`, *optional*, defaults to 2e-3): Its maximum, in one cycle of AdamW.
        selection_share (`float`, *optional*, defaults to 0.1): The share of the images that is held out.
        seed (`int`, *optional*, defaults to 0): Decides the split, the initial weights and the order.
        device (`str` or `torch.device`, *optional*): A GPU by default, if there is one.
        description (`str`, *optional*): Of the progress bar; by default there is none.

    Returns:
        [`Classifier`]: In eval mode.

    Raises:
        InputError: If the architecture is none of these, or the images and labels do not fit together.
    """
    check_architecture(architecture)
    if images.dtype != torch.uint8 or images.ndim != 4 or labels.shape != images.shape[:1]:
        raise InputError(
            f"The images are {images.dtype} of shape {tuple(images.shape)} and the labels of shape "
            f"{tuple(labels.shape)}: pass uint8 images of shape (N, C, H, W) and N labels."
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise InputError(f"A label is not between 0 and {num_classes - 1}: correct it or `num_classes`.")
    held_out = round(selection_share * len(images))
    if not 0 < held_out <= len(images) - 2:
        raise InputError(
            f"Of {len(images)} images {held_out} would be held out for selection: pass more images, or another "
            "`selection_share`."
        )
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    generator = torch.Generator().manual_seed(seed)
    selection, training = torch.randperm(len(images), generator=generator).tensor_split([held_out])
    images, labels = images.to(place), labels.to(place)

    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(seed)
        classifier = Classifier(ARCHITECTURES[architecture](images.shape[1], num_classes)).to(place)
        optimizer = torch.optim.AdamW(classifier.parameters(), lr=learning_rate, weight_decay=0.05)
        steps = epochs * -(-len(training) // batch_size)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
        best: dict[str, torch.Tensor] = {}
        with tqdm(total=steps, desc=description, leave=False, disable=description is None) as progress:
            for _ in range(epochs):
                classifier.train()
                for batch in training[torch.randperm(len(training), generator=generator)].split(batch_size):
                    if len(batch) == 1:  # batch normalisation needs company
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


def accuracy(classifier: Classifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of `uint8` images of shape `(N, C, H, W)` whose label, `int64` of shape `(N,)`, is predicted."""
    return float((classifier.predict(images) == labels.cpu()).double().mean())


def confusion_matrix(
    classifier: Classifier, images: torch.Tensor, labels: torch.Tensor, num_classes: int
) -> torch.Tensor:
    """How often each class is taken for each: `int64` of shape `(true class, predicted class)`."""
    counts = count_confusions(labels.cpu(), classifier.predict(images), labels=range(num_classes))
    return torch.from_numpy(counts)
