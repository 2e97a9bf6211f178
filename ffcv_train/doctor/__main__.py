"""What limits training on this machine; every option is described by --help and docs/doctor.md.

python -m ffcv_train.doctor --data.train_dataset=train.beton --config-file rn50_configs/rn50_16_epochs.yaml
"""

import sys

from ffcv_train.distributed import process_group
from ffcv_train.doctor.examination import examine
from ffcv_train.doctor.report import print_report
from ffcv_train.doctor.request import parse_request
from ffcv_train.errors import run_main
from ffcv_train.records import write_json


def main() -> None:
    """Parse, examine, print and write."""
    request = parse_request(sys.argv[1:])
    with process_group(request.config.training.device) as process:
        report = examine(request, process)
        print_report(report)
        if request.json is not None:
            write_json(request.json, report)
            print(f"report: {request.json}")


if __name__ == "__main__":
    run_main(main)
