"""Train a diffusion model on sensitive images from easy to hard: the script that `accelerate launch` starts.

    accelerate launch examples/train_dp_curriculum.py                                  # handwritten digits, minutes
    accelerate launch examples/train_dp_curriculum.py --train_data_dir DIR --resolution 28 --target_epsilon 10

The same as `dp-curriculum train`; `--help` explains the flags.
"""

import sys

from diffusers_dp_curriculum.cli import run


if __name__ == "__main__":
    sys.exit(run("train"))
