"""Compare criteria: train each from every seed with otherwise equal settings, measure, tabulate."""

from ffcv_train.cli.main import run

if __name__ == "__main__":
    run("compare")
