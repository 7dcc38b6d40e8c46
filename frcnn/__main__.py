"""python -m frcnn: the same as the `frcnn` command; torchrun needs a module."""

from frcnn.cli import main

if __name__ == "__main__":
    main()
