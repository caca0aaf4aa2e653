import os

import torch


# The networks of the tests are too small to share between cores: with one thread they run several times faster, here
# and in the processes that the tests start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
