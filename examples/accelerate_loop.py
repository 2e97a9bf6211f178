"""The criterion in a loop of timm's style under accelerate, with a timm network and optimizer, on any image folder:
python examples/accelerate_loop.py quickstart_run/images/train"""

import sys

import timm
from accelerate import Accelerator
from timm.data import create_transform
from timm.optim import create_optimizer_v2
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from ffcv_train import MaxSup


def main(folder: str, epochs: int = 2, cpu: bool = False) -> float:
    accelerator = Accelerator(cpu=cpu)
    data_set = ImageFolder(folder, transform=create_transform(32, is_training=True))
    model = timm.create_model("test_resnet", num_classes=len(data_set.classes))
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.05, weight_decay=1e-4)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data_set, 16, shuffle=True))
    criterion = MaxSup(epochs=epochs).to(accelerator.device)
    total = 0.0
    for epoch in range(epochs):
        criterion.start_epoch(epoch)
        model.train()
        total = 0.0
        for images, labels in loader:
            loss = criterion(model(images), labels)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            total += loss.item() / len(loader)
        accelerator.print(f"epoch {epoch + 1}: loss {total:.4f}")
    return total


if __name__ == "__main__":
    main(sys.argv[1])
