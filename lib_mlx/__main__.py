"""`python -m lib_mlx`: the command line."""

from lib_mlx.cli import main

if __name__ == "__main__":
    main()
