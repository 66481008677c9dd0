"""AutoMix in a plain PyTorch loop, on scikit-learn's handwritten digits; under a minute on a CPU.

python examples/automix_loop.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from fastmix.train import AutoMix


def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Net(nn.Module):
    """Any classifier will do; AutoMix needs the name of one of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.layer2 = stage(1, 32, 1), stage(32, 32, 2)
        self.layer3, self.layer4 = stage(32, 64, 1), stage(64, 128, 2)
        self.fc = nn.Linear(128, 10)

    def forward(self, x):
        return self.fc(self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3)))


torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None].sub(5).div(6)
images = nn.functional.interpolate(images, size=(16, 16), mode="bilinear")
labels = torch.tensor(digits.target)
order = torch.randperm(len(labels))
train, test = order[:200], order[200:]

STEPS, BATCH = 300, 50
automix = AutoMix(Net(), num_classes=10, feature="layer3", total_steps=STEPS)
optimizer = torch.optim.SGD(automix.param_groups(lr=0.1, mix_lr=0.03), momentum=0.9, weight_decay=1e-4)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.1, 0.03], STEPS, cycle_momentum=False)

for step in range(STEPS):
    batch = train[torch.randperm(len(train))[:BATCH]]
    out = automix(images[batch], labels[batch])
    optimizer.zero_grad()
    out.loss.backward()
    optimizer.step()
    schedule.step()
    automix.update_teacher()
    if (step + 1) % 50 == 0:
        parts = "  ".join(f"{name} {getattr(out, name):.2f}" for name in ("cls", "mix", "gen", "mask"))
        print(f"step {step + 1}: {parts}  mask spread {out.mix_draw.mask.std():.2f}")

with torch.no_grad():
    accuracy = (automix.eval()(images[test]).argmax(1) == labels[test]).float().mean()
print(f"test accuracy of the {automix.head} head: {accuracy:.1%} with {len(train)} training images")
