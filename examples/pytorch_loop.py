"""A plain PyTorch loop with the loader and MaxSup: python examples/pytorch_loop.py quickstart_run/train.beton"""

import sys

import torch

from ffcv_train import Loader, MaxSup, Normaliser, RandomResizedCrop, create_model, open_data_set
from ffcv_train.models.normalise import IMAGENET_MEAN, IMAGENET_STD


def main(path: str, epochs: int = 3, side: int = 32) -> float:
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data_set = open_data_set(path)
    model = create_model("cifar_resnet20", len(data_set.class_names or ())).to(device)
    normalise = Normaliser(IMAGENET_MEAN, IMAGENET_STD, device)
    criterion = MaxSup(epochs=epochs).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    mean = 0.0
    with Loader(data_set, 32, crop=RandomResizedCrop(scale=(0.35, 1.0)), resolution=side, device=device) as loader:
        for epoch in range(epochs):
            criterion.start_epoch(epoch)
            total = torch.zeros((), device=device)
            for images, labels, *_ in loader:
                loss = criterion(model(normalise(images)), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach()
            mean = total.item() / len(loader)
            print(f"epoch {epoch + 1}: loss {mean:.4f}")
    return mean


if __name__ == "__main__":
    main(sys.argv[1])
