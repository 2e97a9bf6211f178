"""Evaluate a checkpoint on a .beton file; every option is described by --help and docs/options.md."""

from ffcv_train.cli.main import run

if __name__ == "__main__":
    run("eval")
