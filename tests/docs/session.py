"""Runs a page's blocks in order, as one reader would: Python ones in one session, shell ones by bash.

python session.py < blocks.json, a list of [language, place, code]. Ends at the first that fails.
`frcnn`, for bash, is a process that forks from this one before the first block: torch is imported once.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import traceback
from pathlib import Path

SOCKET = ".bin/socket"
COMMAND = f"""#!{sys.executable} -IS
import json, os, socket, sys
server, folder = socket.socket(socket.AF_UNIX), os.getcwd()
os.chdir({str(Path().resolve())!r})  # the whole path may be longer than a socket's may be
server.connect({SOCKET!r})
socket.send_fds(server, [json.dumps([sys.argv[1:], folder, dict(os.environ)]).encode()], [0, 1, 2])
sys.exit(int(server.recv(16)))
"""


def main() -> None:
    import torch

    import frcnn.cli
    import frcnn.engine.detect
    import frcnn.engine.train  # noqa: F401

    torch.set_num_threads(1)
    listener = socket.socket(socket.AF_UNIX)
    Path(SOCKET).parent.mkdir()
    listener.bind(SOCKET)
    listener.listen()
    command = Path(SOCKET).with_name("frcnn")
    command.write_text(COMMAND)
    command.chmod(0o755)
    if (server := os.fork()) == 0:
        serve(listener)
    try:
        run_blocks(json.load(sys.stdin))
    finally:
        os.kill(server, 15)


def serve(listener: socket.socket) -> None:
    """Run one `frcnn` after the other, with the words, folder, environment and files of who asks."""
    while True:
        asking, _ = listener.accept()
        request, files, _, _ = socket.recv_fds(asking, 1 << 20, 3)
        words, folder, environment = json.loads(request)
        if (child := os.fork()) == 0:
            for number, file in enumerate(files):
                os.dup2(file, number)
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(environment)
            sys.argv[:] = ["frcnn", *words]
            code = 1
            try:
                with contextlib.suppress(KeyboardInterrupt):
                    sys.modules["frcnn.cli"].main()
            except SystemExit as end:
                code = int(end.code or 0)
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            os._exit(code)
        for file in files:
            os.close(file)
        _, status = os.waitpid(child, 0)
        asking.sendall(str(os.waitstatus_to_exitcode(status) & 255).encode())
        asking.close()


def run_blocks(blocks: list[tuple[str, str, str]]) -> None:
    session: dict[str, object] = {"__name__": "__main__"}
    for language, place, code in blocks:
        print(f"--- {place}", flush=True)
        if language == "python":
            try:
                exec(compile(code, place, "exec"), session)
            except BaseException:
                traceback.print_exc()
                sys.exit(1)
            sys.stdout.flush()
        else:
            done = subprocess.run(["bash", "-euo", "pipefail", "-c", code], stdin=subprocess.DEVNULL)
            if done.returncode:
                sys.exit(f"bash ended with {done.returncode}")


if __name__ == "__main__":
    main()
