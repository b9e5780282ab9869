"""Small networks of every kind that the analyses must get right, with random batch-norm statistics and dead units."""

import torch
from torch import nn
from torch.nn import functional as F

from repro import models


class Residual(nn.Module):
    """A residual branch; one ReLU works in place."""

    def __init__(self, channels=6, classes=5):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.left = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.below, self.above = nn.ReLU(), nn.ReLU(inplace=True)
        self.head = nn.Linear(channels, classes)

    def forward(self, x):
        x = self.below(self.stem(x))
        x = self.above(self.norm(self.left(x)) + x)
        return self.head(x.mean((2, 3)))


class ShortcutFirst(Residual):
    def forward(self, x):
        x = self.below(self.stem(x))
        return self.head(self.above(x + self.norm(self.left(x))).mean((2, 3)))


class Functional(Residual):
    """The same with functions in place of modules, which no hook can see."""

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.norm(self.left(x)) + x, inplace=True)
        return self.head(x.mean((2, 3)))


def weightless():
    with torch.device("meta"):
        return Residual()


class OneReLU(nn.Module):
    """One ReLU module called twice, in place, as in torchvision's ResNets."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.one, self.two, self.head = nn.Linear(12, 9), nn.Linear(9, 9), nn.Linear(9, 4)

    def forward(self, x):
        h = self.relu(self.one(x.flatten(1)))
        out = self.two(h)
        out += h
        return self.head(self.relu(out))


class Untraceable(OneReLU):
    """The same, with a branch that depends on the data."""

    def forward(self, x):
        if x.sum() > 1e9:
            return self.head(self.one(x.flatten(1)))
        return super().forward(x)


def pooled(before):
    """Two convolutions, pooled before or after the nonlinearity, as in VGG; and a hidden layer."""
    layers = []
    for channels, outputs in ((3, 6), (6, 7)):
        pair = [nn.MaxPool2d(2), nn.ReLU()] if before else [nn.ReLU(), nn.AvgPool2d(2)]
        layers += [nn.Conv2d(channels, outputs, 3, padding=1), *pair]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(28, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 5))


def randomized(model, seed=0):
    """Every parameter and statistic random; the third unit of every layer that has a bias is dead."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator).mul_(0.2)
            module.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
        if isinstance(module, nn.Linear | nn.Conv2d) and not nn.utils.parametrize.is_parametrized(module):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        if isinstance(module, nn.BatchNorm2d | nn.Linear | nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.3, generator=generator)
            if len(module.bias) > 5:
                with torch.no_grad():
                    module.bias[2] = -50.0
    return model.eval()


def images(n=37, shape=(3, 8, 8), classes=5, seed=1):
    """x (n, *shape), y (n,), every class present."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, generator=generator)
    y = torch.randint(classes, (n,), generator=generator)
    y[:classes] = torch.arange(classes)
    return x, y


def every():
    """(name, model, x, y) of each kind."""
    wide = (3, 8, 8)
    small = [6, 5, 7, 6, 5, 8, 7, 6, 8, 7, 6]
    kinds = {
        "mlp": (models.mlp(192, [11, 9], 5, dropout=0.3), wide),
        "deep mlp": (models.mlp(192, [9, 8, 7, 6], 5), wide),
        "convnet with batch norm": (models.convnet(small, classes=5), wide),
        "convnet without": (models.convnet(small, classes=5, batch_norm=False), wide),
        "resnet": (models.resnet50(5, width=0.05, small_images=True), wide),
        "residual branch": (Residual(), wide),
        "one relu": (OneReLU(), (3, 2, 2)),
        "pooled before": (pooled(before=True), wide),
        "pooled after": (pooled(before=False), wide),
    }
    for i, (name, (model, shape)) in enumerate(kinds.items()):
        yield name, randomized(model, i), *images(shape=shape, classes=4 if name == "one relu" else 5)
