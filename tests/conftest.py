"""One thread for every test: they are small, and several run as many processes as agents."""

import os

import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for processes that tests start
torch.set_num_threads(1)
