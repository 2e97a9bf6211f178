"""What loads and computes, of `gpu-check`: a file of few imports, for the writer's processes import it too."""

if __name__ == "__main__":
    from gpu_check_rows import main

    main()
