"""Write images into a .beton file, or check one; every option is described by --help and docs/options.md."""

from ffcv_train.cli.main import run

if __name__ == "__main__":
    run("write")
