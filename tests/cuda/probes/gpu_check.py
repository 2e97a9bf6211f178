"""The rows of `gpu-check` on the stub; apart from gpu_check_rows.py, for the writer's processes import this file."""

if __name__ == "__main__":
    from gpu_check_rows import main

    main()
