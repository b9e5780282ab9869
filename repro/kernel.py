"""A Jupyter kernel that is forked from a process which has imported what notebooks need, on Linux.

These imports take three seconds, as long as many a notebook takes to draw; sixteen kernels share one. (On macOS a fork may
crash in what was imported before it.)
"""

import asyncio
import multiprocessing
import os

import seaborn  # noqa: F401
import torch
from ipykernel.kernelapp import IPKernelApp
from jupyter_client import AsyncKernelManager

from repro import claims, experiment, plots  # noqa: F401


class ForkingManager(AsyncKernelManager):
    """Jupyter's own manager of a kernel, but for how it starts it."""

    async def _async_launch_kernel(self, command, env, **_):
        kernel = _Process(target=_be_kernel, args=(self.connection_file, env, os.getpid()))
        kernel.start()
        _leave_group(kernel.pid)
        self.provisioner.process, self.provisioner.pgid = kernel, kernel.pid


class _Process(multiprocessing.get_context("fork").Process):
    """A forked process with those attributes of a `subprocess.Popen` that Jupyter looks at."""

    stdin = stdout = stderr = None

    def poll(self) -> int | None:
        return self.exitcode

    def wait(self) -> int | None:
        self.join()
        return self.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def _leave_group(pid: int) -> None:
    """Give a kernel a process group of its own: Ctrl-C in the terminal does not reach it, and what ends the group ends its
    workers, too. Kernel and parent both call this, so that it is done whichever goes on first."""
    os.setpgid(pid, pid)


def _be_kernel(connection: str, environment: dict, parent: int) -> None:
    """What `python -m ipykernel_launcher` does; ends with its parent."""
    _leave_group(os.getpid())
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # of which torch knew nothing when it was imported
    asyncio.set_event_loop(asyncio.new_event_loop())  # the one that was forked is its parent's
    IPKernelApp.launch_instance(["-f", connection, f"--IPKernelApp.parent_handle={parent}"])
