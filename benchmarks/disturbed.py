"""Runs a command and disturbs it once: a signal, or a deleted folder. Used by `benchmarks.faults`.

    python -m benchmarks.disturbed '{"action": "KILL", "folder": "workdir/demo", "part": "checkpoints", "count": 3,
        "log": "operations.txt"}' kd_jax train --config=…

This sends SIGKILL before the third operation on a file under `folder` whose path contains `part`: an open for writing,
a rename, a removal, a new folder. With "seconds" instead of "count" it acts after this time. The log has one line for
each operation, and the line `acted TIME`.
"""

import itertools
import json
import os
import runpy
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate")  # of sys.addaudithook


def disturb(plan: Mapping) -> None:
    """Logs the operations of this process and acts at the moment that the plan names."""
    folder, log = os.path.abspath(plan["folder"]), os.open(plan["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    counted = itertools.count(1)

    def act():
        os.write(log, f"acted {time.time()}\n".encode())
        if plan["action"] == "delete":
            shutil.rmtree(folder, ignore_errors=True)
        else:
            os.kill(os.getpid(), getattr(signal, f"SIG{plan['action']}"))

    def watch(event: str, arguments: tuple):
        if event not in EVENTS or (event == "open" and not arguments[2] & WRITING):
            return
        paths = [os.path.abspath(os.fsdecode(x)) for x in arguments[:2] if isinstance(x, str | bytes | os.PathLike)]
        inside = [os.path.relpath(path, folder) for path in paths if path.startswith(folder + os.sep)]
        if not inside:
            return
        os.write(log, f"{inside[0]}\n".encode())
        if any(plan.get("part", "") in path for path in inside) and next(counted) == plan.get("count"):
            act()

    sys.addaudithook(watch)
    if "seconds" in plan:
        timer = threading.Timer(plan["seconds"], act)
        timer.daemon = True
        timer.start()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for a job in the background
    disturb(json.loads(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
