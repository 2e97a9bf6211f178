"""What a step asks of the device, of `gpu-check`: a file of few imports, as gpu_check_numbers.py."""

if __name__ == "__main__":
    from gpu_check_rows import main

    main()
