"""Several processes train one private model with DistributedDataParallel, or with fully_shard (FSDP2).

    torchrun --nproc-per-node 2 examples/distributed.py
    torchrun --nproc-per-node 2 examples/distributed.py --fsdp

Each process passes its own loader over the whole data set, with batch_size records for itself. All draw one batch from
one secret stream, each takes its part, and all add the same noise (with --fsdp each adds that of its own shard):
epsilon is that of one run with batches of batch_size * processes. Started with plain python, it is one process that
does the same.
"""

import os
import sys

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from tacit import PrivacyEngine

EPSILON, DELTA, EPOCHS, BATCH = 3.0, 1e-4, 12, 128

several = "RANK" in os.environ  # as torchrun says
if several:
    dist.init_process_group("gloo")
processes, rank = (dist.get_world_size(), dist.get_rank()) if several else (1, 0)

digits = load_digits()
x = torch.tensor(digits.data, dtype=torch.float32) / 16
y = torch.tensor(digits.target)
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
train, test = order[:1500], order[1500:]

torch.manual_seed(rank)  # the processes may start from different weights: DDP makes them equal
model: nn.Module = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
sharded = several and "--fsdp" in sys.argv
if sharded:  # before the optimizer, and before make_private()
    for block in (model[0], model[2]):
        fully_shard(block, mesh=init_device_mesh("cpu", (processes,)))
    fully_shard(model, mesh=init_device_mesh("cpu", (processes,)))
elif several:
    model = DistributedDataParallel(model)

engine = PrivacyEngine()
model, optimizer, loader = engine.make_private_with_epsilon(
    module=model,
    optimizer=torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9),
    data_loader=DataLoader(TensorDataset(x[train], y[train]), batch_size=BATCH // processes, shuffle=True),
    target_epsilon=EPSILON,
    target_delta=DELTA,
    epochs=EPOCHS,
    max_grad_norm=1.0,
)
for _ in range(EPOCHS):
    for inputs, targets in loader:  # also a process whose part is empty takes the step
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

if rank == 0 or sharded:  # a sharded model runs in all processes, or in none
    with torch.no_grad():
        accuracy = float((model(x[test]).argmax(1) == y[test]).float().mean())
if rank == 0:
    spent = engine.get_epsilon(DELTA)
    print(f"{processes} process(es): epsilon {spent:.3f} at delta {DELTA:g}, test accuracy {accuracy:.1%}")
    assert spent <= EPSILON
    assert accuracy > 0.75
if several:
    dist.destroy_process_group()
