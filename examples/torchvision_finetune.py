"""Fine-tune a torchvision model with MixUp and CutMix, on scikit-learn's handwritten digits; two minutes on a CPU.

pip install torchvision && python examples/torchvision_finetune.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torchvision.models import get_model

from fastmix.methods import CutMix, MixUp, Switch

WEIGHTS = "DEFAULT"  # ImageNet's, which torchvision downloads once; None starts from random ones
STEPS, BATCH = 40, 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

torch.manual_seed(0)
digits = load_digits()
pixels = torch.tensor(digits.images / 16 * 255, dtype=torch.float32)[:, None]
pixels = nn.functional.interpolate(pixels, size=(64, 64), mode="bilinear").expand(-1, 3, -1, -1).to(torch.uint8)
labels = torch.tensor(digits.target)
order = torch.randperm(len(labels))
train, test = order[:400], order[400:800]

model = get_model("resnet18", weights=WEIGHTS)
model.fc = nn.Linear(model.fc.in_features, 10)
new = {"params": model.fc.parameters(), "lr": 1e-2}
old = {"params": [p for name, p in model.named_parameters() if not name.startswith("fc.")], "lr": 1e-3}
optimizer = torch.optim.SGD([new, old], momentum=0.9, weight_decay=1e-4)
# Bytes in, normalised float32 out: mixing and normalising are one pass.
mix = Switch(MixUp(0.2), CutMix(1.0), p=0.5, normalize=(MEAN, STD))

model.train()
for step in range(STEPS):
    chosen = train[torch.randperm(len(train))[:BATCH]]
    batch = mix(pixels[chosen], labels[chosen])
    loss = batch.loss(model(batch.x), smoothing=0.1)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if (step + 1) % 20 == 0:
        print(f"step {step + 1}: loss {loss:.2f}")

model.eval()
mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
with torch.no_grad():
    right = [model((pixels[part] / 255 - mean) / std).argmax(1) == labels[part] for part in test.split(100)]
print(f"test accuracy: {torch.cat(right).float().mean():.1%} with {len(train)} training images")
