"""One thread is fastest for nets this small."""

import torch

torch.set_num_threads(1)
