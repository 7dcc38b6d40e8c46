"""The `frcnn` command, and python -m frcnn, which torchrun needs."""


def main() -> None:
    try:
        from frcnn.cli import main
    except KeyboardInterrupt:  # what it imports takes a moment
        raise SystemExit(130) from None
    main()


if __name__ == "__main__":
    main()
