"""CutMix in a loop of Hugging Face's accelerate, on scikit-learn's handwritten digits; half a minute on a CPU.

pip install accelerate && python examples/accelerate_loop.py
"""

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fastmix.methods import CutMix

EPOCHS, BATCH = 10, 50

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None].sub(5).div(6)
labels = torch.tensor(digits.target)
order = torch.randperm(len(labels))
train, test = (TensorDataset(images[part], labels[part]) for part in (order[:400], order[400:]))
net = nn.Sequential(
    nn.Conv2d(1, 32, 3, 1, 1), nn.BatchNorm2d(32), nn.ReLU(),
    nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
)  # fmt: skip

accelerator = Accelerator()
optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
net, optimizer, train_loader, test_loader = accelerator.prepare(
    net, optimizer, DataLoader(train, BATCH, shuffle=True), DataLoader(test, 500)
)
cutmix = CutMix(alpha=1.0, mode="sample")

for _ in range(EPOCHS):
    for x, y in train_loader:
        batch = cutmix(x, y)  # on the device of x; each process draws for its own part of the batch
        loss = batch.loss(net(batch.x))
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()

net.eval()
with torch.no_grad():
    right = [accelerator.gather_for_metrics(net(x).argmax(1) == y) for x, y in test_loader]
accelerator.print(f"test accuracy: {torch.cat(right).float().mean():.1%} with {len(train)} training images")
