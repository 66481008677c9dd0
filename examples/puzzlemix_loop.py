"""PuzzleMix in a plain PyTorch loop, on scikit-learn's handwritten digits; under a minute on a CPU.

python examples/puzzlemix_loop.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from fastmix.methods import PuzzleMix
from fastmix.train import PuzzleMixStep


def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Net(nn.Module):
    """Any classifier will do; PuzzleMix needs its gradient with respect to the images."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(stage(1, 32, 1), stage(32, 32, 2), stage(32, 64, 1), stage(64, 128, 2))
        self.fc = nn.Linear(128, 10)

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


torch.manual_seed(0)
MEAN, STD = 0.31, 0.37
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
images = (nn.functional.interpolate(images, size=(16, 16), mode="bilinear") - MEAN) / STD
labels = torch.tensor(digits.target)
order = torch.randperm(len(labels))
train, test = order[:200], order[200:]

STEPS, BATCH = 300, 50
step = PuzzleMixStep(Net(), PuzzleMix(blocks=(2, 4, 8), mean=[MEAN], std=[STD]))
optimizer = torch.optim.SGD(step.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, STEPS, cycle_momentum=False)

for number in range(STEPS):
    batch = train[torch.randperm(len(train))[:BATCH]]
    out = step(images[batch], labels[batch])
    optimizer.zero_grad()
    out.loss.backward()
    optimizer.step()
    schedule.step()
    if (number + 1) % 50 == 0:
        print(f"step {number + 1}: loss {out.loss:.2f}  own image's share {out.batch.lam.mean():.2f}")

with torch.no_grad():
    accuracy = (step.eval()(images[test]).argmax(1) == labels[test]).float().mean()
print(f"test accuracy: {accuracy:.1%} with {len(train)} training images")
