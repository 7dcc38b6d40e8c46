"""The `frcnn` command, and python -m frcnn, which torchrun needs."""

import os
import signal


def main() -> None:
    try:
        from frcnn.cli import main
    except KeyboardInterrupt:  # what it imports takes a moment
        raise SystemExit(130) from None
    try:
        main()
    finally:
        # A signal that arrives while Python ends has nothing left to stop, but would leave a traceback.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: os._exit(128 + number))


if __name__ == "__main__":
    main()
