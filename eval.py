"""Evaluate a checkpoint on a .beton file; every option is described by --help and docs/options.md.

python eval.py --checkpoint runs/my_run/final.pt --data.val_dataset=val.beton --output metrics.json
"""

import sys

from ffcv_train.distributed import process_group
from ffcv_train.errors import run_main
from ffcv_train.evaluation_request import parse_request
from ffcv_train.evaluation_run import print_report, run_evaluation
from ffcv_train.records import write_json


def main() -> None:
    """Parse, evaluate, print and write."""
    request = parse_request(sys.argv[1:])
    with process_group(request.config.training.device) as process:
        report = run_evaluation(request, process)
        if process.is_main:
            print_report(report)
            if request.output is not None:
                write_json(request.output, report)
                print(f"metrics: {request.output}")


if __name__ == "__main__":
    run_main(main)
