"""MixUp or CutMix in a LightningModule, on scikit-learn's handwritten digits; half a minute on a CPU.

pip install lightning && python examples/lightning_module.py
"""

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fastmix.methods import CutMix, MixUp, Switch

EPOCHS, BATCH = 10, 50


class Classifier(lightning.LightningModule):
    """Any LightningModule: the batch is mixed on its device, at the beginning of the training step."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = Switch(MixUp(0.8), CutMix(1.0), p=0.5)
        self.net = nn.Sequential(
            nn.Conv2d(1, 32, 3, 1, 1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
        )  # fmt: skip

    def training_step(self, batch, _number):
        images, labels = batch
        mixed = self.mix(images, labels)
        return mixed.loss(self.net(mixed.x), smoothing=0.1)

    def validation_step(self, batch, _number):
        images, labels = batch
        self.log("accuracy", (self.net(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None].sub(5).div(6)
labels = torch.tensor(digits.target)
order = torch.randperm(len(labels))
train, test = (TensorDataset(images[part], labels[part]) for part in (order[:400], order[400:]))

trainer = lightning.Trainer(
    max_epochs=EPOCHS, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
)
model = Classifier()
trainer.fit(model, DataLoader(train, BATCH, shuffle=True), DataLoader(test, len(test)))
print(f"test accuracy: {trainer.callback_metrics['accuracy']:.1%} with {len(train)} training images")
