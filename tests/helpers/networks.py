"""Networks for the tests of gradients."""

import random
from types import SimpleNamespace

import torch
from diffusers import UNet2DModel

from helpers import tiny_unet


# Each block type of the down path, with its counterpart of the up path.
BLOCKS = {
    "DownBlock2D": "UpBlock2D",
    "AttnDownBlock2D": "AttnUpBlock2D",
    "ResnetDownsampleBlock2D": "ResnetUpsampleBlock2D",
}
SKIP_BLOCKS = {"SkipDownBlock2D": "SkipUpBlock2D", "AttnSkipDownBlock2D": "AttnSkipUpBlock2D"}


def random_unet(seed):
    """A network with a random configuration of `UNet2DModel`."""
    pick = random.Random(seed)
    torch.manual_seed(seed)
    if skip := pick.random() < 0.25:
        pairs, channels, levels = SKIP_BLOCKS, [32, 64, 64], 2  # these blocks fix 32 groups and three colours
    else:
        pairs, channels, levels = BLOCKS, pick.sample([8, 16, 24, 32], 3), pick.choice([1, 2, 3])
    down = [pick.choice(list(pairs)) for _ in range(levels)]
    conditional = pick.random() < 0.75
    return UNet2DModel(
        sample_size=8,
        in_channels=(colours := 3 if skip else pick.choice([1, 3])),
        out_channels=colours,
        block_out_channels=tuple(channels[:levels]),
        layers_per_block=pick.choice([1, 2]),
        down_block_types=tuple(down),
        up_block_types=tuple(pairs[name] for name in reversed(down)),
        norm_num_groups=pick.choice([2, 4, 8]),
        num_class_embeds=4 if conditional else None,
        class_embed_type=pick.choice([None, "timestep"]) if conditional else None,
        time_embedding_type=pick.choice(["positional", "fourier", "learned"]),
        num_train_timesteps=1000,
        resnet_time_scale_shift=pick.choice(["default", "scale_shift"]),
        downsample_type=pick.choice(["conv", "resnet"]),
        upsample_type=pick.choice(["conv", "resnet"]),
        attention_head_dim=pick.choice([4, 8, None]),
        attn_norm_num_groups=pick.choice([None, 4]),
        mid_block_scale_factor=pick.choice([1, 2**0.5]),
        mid_block_type=pick.choice(["UNetMidBlock2D", None]),
        add_attention=pick.random() < 0.7,
        center_input_sample=pick.random() < 0.3,
        act_fn=pick.choice(["silu", "gelu"]),
        flip_sin_to_cos=pick.random() < 0.5,
    )


class Wrapped(torch.nn.Module):
    """A UNet whose input first goes through `before`, which subclasses define."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.unet = tiny_unet()
        self.config = self.unet.config
        self.conv = torch.nn.Conv2d(1, 1, 3, padding=1)

    def before(self, noisy):
        return noisy

    def forward(self, noisy, timesteps, labels):
        return self.unet(self.before(noisy), timesteps, labels)


class Small(torch.nn.Module):
    """A network that is compiled in a second."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 1, 3, padding=1)
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, inputs, timesteps, labels):
        return SimpleNamespace(sample=self.dropout(self.conv(inputs)))
