"""Compare criteria: train each from every seed with otherwise equal settings, measure, tabulate.

python compare.py --config-file cifar_configs/cifar10_resnet20.yaml --losses ce,ls,maxsup --seeds 0,1,2 \
    --out comparison --data.train_dataset=train.beton --data.val_dataset=val.beton
"""

import sys

from ffcv_train.comparison.estimate import print_plan
from ffcv_train.comparison.plan import check_plan, claim_folder, parse_plan
from ffcv_train.comparison.report import collect, summarise, write_report
from ffcv_train.comparison.run import Interrupted, run_all
from ffcv_train.errors import UserError, run_main


def main() -> None:
    """Parse, check, run, report."""
    plan = parse_plan(sys.argv[1:])
    check_plan(plan)
    if plan.dry_run:
        print_plan(plan)
        return
    claim_folder(plan)
    try:
        failures = run_all(plan)
    except Interrupted as stopped:
        write_report(plan, summarise(plan, collect(plan), []))
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_status)
    for path in write_report(plan, summarise(plan, collect(plan), failures)):
        print(path)
    if failures:
        names = ", ".join(failure.run.name for failure in failures)
        raise UserError(
            f"{len(failures)} of {len(plan.runs)} runs failed ({names}), the others are in the report; the reasons "
            "stand above, and the same command tries these again"
        )


if __name__ == "__main__":
    run_main(main)
