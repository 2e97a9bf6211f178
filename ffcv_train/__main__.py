"""`python -m ffcv_train COMMAND …`, the same as `ffcv-train`."""

from ffcv_train.cli.main import main

if __name__ == "__main__":
    main()
