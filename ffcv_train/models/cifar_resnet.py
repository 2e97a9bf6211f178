"""Residual networks for small images."""

from collections.abc import Callable

import torch.nn.functional as F
import torchvision
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A of He et al.).

    Where the block halves the side and widens, the shortcut takes every second pixel and pads channels with zeros.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.new_channels = channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride > 1 or self.new_channels:
            before = self.new_channels // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new_channels - before))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """The CIFAR-10 network of He et al. (arXiv:1512.03385, section 4.2): 6n + 2 layers, 16-32-64 channels.

    A 3x3 stem without pooling, three stages of n blocks at full, half and quarter side, global average pooling and
    one linear layer. Takes [B, 3, H, W] of any side from 8 pixels on, returns logits [B, num_classes].
    """

    def __init__(self, blocks_per_stage: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks_per_stage, stride=1)
        self.layer2 = _stage(16, 32, blocks_per_stage, stride=2)
        self.layer3 = _stage(32, 64, blocks_per_stage, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))


def _small_image_resnet(arch: str, num_classes: int) -> nn.Module:
    """torchvision's ResNet (64 channels and up) with a 3x3 stem at stride 1 and no max-pooling."""
    model = torchvision.models.get_model(arch, weights=None, num_classes=num_classes)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


CIFAR_MODELS: dict[str, Callable[[int], nn.Module]] = {
    "cifar_resnet20": lambda num_classes: CifarResNet(3, num_classes),
    "cifar_resnet32": lambda num_classes: CifarResNet(5, num_classes),
    "cifar_resnet18": lambda num_classes: _small_image_resnet("resnet18", num_classes),
    "cifar_resnet50": lambda num_classes: _small_image_resnet("resnet50", num_classes),
}
