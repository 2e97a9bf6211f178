"""Train a classifier on .beton files; every option is described by --help and docs/options.md."""

from ffcv_train.cli.main import run

if __name__ == "__main__":
    run("train")
