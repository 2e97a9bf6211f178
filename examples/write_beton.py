"""Any data set of (Pillow image, label) as a .beton file: python examples/write_beton.py FOLDER out.beton"""

import sys

from torchvision.datasets import ImageFolder

from ffcv_train import WriteConfig, open_data_set, write_dataset


def main(folder: str, path: str) -> int:
    config = WriteConfig(write_path=path, write_mode="jpg", max_resolution=500)
    written = open_data_set(write_dataset(config, ImageFolder(folder)))
    print(f"{len(written)} images of the classes {', '.join(written.class_names or ())}")
    return len(written)


if __name__ == "__main__":  # worker processes import this file
    main(*sys.argv[1:])
