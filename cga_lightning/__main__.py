"""`python -m cga_lightning`, the same as the command `cga-lightning`."""

from cga_lightning.cli import main

if __name__ == "__main__":
    main()
