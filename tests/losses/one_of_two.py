"""One of two processes that play the adversarial game together; test_adversarial.py starts both."""

import sys
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from ddpm_hf.config.loss import AdversarialConfig
from ddpm_hf.losses.adversarial import AdversarialLoss
from ddpm_hf.runtime.cli import leave

folder = Path(sys.argv[1])
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")  # finds the other by the environment
rank = torch.distributed.get_rank()

given = torch.load(folder / "given.pt", weights_only=True)
adversary = AdversarialLoss(AdversarialConfig(**given["options"]), image_channels=1, sides=(8, 8))
adversary.load_state_dict(given["weights"])
wrapped = DistributedDataParallel(adversary)
optimizer = adversary.make_optimizer()
for batch in given["batches"]:
    fake, real, timesteps = (each.chunk(2)[rank] for each in batch)
    optimizer.zero_grad()
    # the network's turn comes first and must leave no trace
    adversary.network_term(fake.requires_grad_(), real, timesteps).sum().backward()
    wrapped(fake, real, timesteps).loss.backward()
    optimizer.step()
torch.save(adversary.state_dict(), folder / f"weights_of_{rank}.pt")
leave(0)
