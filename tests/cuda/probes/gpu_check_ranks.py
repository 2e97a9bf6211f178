"""The rows of several processes, of `gpu-check`: a file of few imports, as gpu_check_numbers.py."""

if __name__ == "__main__":
    from of_ranks import main

    main()
