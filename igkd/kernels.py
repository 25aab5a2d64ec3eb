"""Kernels that run this interpreter, whatever kernels are installed for the user.

On Linux they are forked from one process that has imported what the notebooks need: importing it takes longer than most
notebooks compute. Each is a process of its own all the same, in which no notebook has run before. Elsewhere, where a
fork of a process that has loaded system libraries is not safe, each kernel is started afresh.
"""

import gc
import multiprocessing
import os
import signal
import sys
import threading
import uuid
from collections.abc import Mapping
from multiprocessing import forkserver
from pathlib import Path

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner

from igkd.errors import ctrl_c_for_us_alone

FORKED = sys.platform == "linux"
_IMPORTED = ["ipykernel.kernelapp", "igkd.claims", "igkd.findings", "igkd.figures", "igkd.other_images", "captum.attr"]
_context = multiprocessing.get_context("forkserver" if FORKED else "spawn")


def prepare() -> None:
    """Begin to import what the notebooks need, beside whatever this process does next."""
    if FORKED:
        # matplotlib chooses where it draws when it is imported, before the kernel has told it.
        os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        _context.set_forkserver_preload(_IMPORTED)
        with ctrl_c_for_us_alone():
            forkserver.ensure_running()


def kernel_manager(log: Path, environment: Mapping[str, str], started: list | None = None) -> type[AsyncKernelManager]:
    """The class of a manager whose kernels run this interpreter.

    Parameters
    ----------
    log : path
        Gets what the kernel's process itself prints.
    environment : mapping
        Environment variables to set in the kernel.
    started : list, optional
        Gets the process number of the kernel once it has started.
    """
    # The debugger warns of Python's frozen modules at each start.
    everything = os.environ | {"PYDEVD_DISABLE_FILE_VALIDATION": "1"} | environment

    class ThisInterpreter(AsyncKernelManager):
        # A kernel "python3" that is installed for the user may start another Python. Where no folder is searched,
        # what remains is ipykernel's own specification, whose command is sys.executable.
        def _kernel_spec_manager_default(self):
            return KernelSpecManager(parent=self, kernel_dirs=[])

        async def start_kernel(self, **options):
            if FORKED:
                self.kernel_id = str(uuid.uuid4())
                self.provisioner = _Forked(kernel_id=self.kernel_id, kernel_spec=self.kernel_spec, parent=self)
            with open(log, "ab") as output:
                await super().start_kernel(**options, stdout=output, stderr=output, env=everything)
            if started is not None:
                started.append(self.provisioner.pid)

    return ThisInterpreter


class _Forked(LocalProvisioner):
    """Starts kernels from the process that `prepare` started."""

    async def launch_kernel(self, cmd, *, env, stdout, cwd=None, **_):
        prepare()
        self.cwd = str(cwd or Path.cwd())
        arguments = cmd[cmd.index("-f") :]
        process = _context.Process(target=_serve, args=(arguments, self.cwd, env, stdout.name))
        process.start()
        self.process = _AsPopen(process)
        self.pid = self.pgid = process.pid
        return self.connection_info


class _AsPopen:
    """A process of `multiprocessing` as the part of `subprocess.Popen` that the provisioner uses."""

    stdin = stdout = stderr = None

    def __init__(self, process):
        self.process, self.pid = process, process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int:
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()


def _serve(arguments: list[str], folder: str, environment: dict[str, str], log: str) -> None:
    """Become a kernel: the leader of a group of processes, with the environment of a process started afresh."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # with which Jupyter interrupts a cell
    os.setsid()
    os.chdir(folder)
    gc.freeze()  # what is imported stays, so that collecting garbage need not go through it each time
    os.environ.clear()
    os.environ.update(environment)
    os.environ.pop("JPY_PARENT_PID", None)  # of a kernel that called us: ours would end, its parent being another
    threading.Thread(target=_end_with, args=[multiprocessing.parent_process()], daemon=True).start()
    with open(log, "ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    if "OMP_NUM_THREADS" in environment:  # read when the library was loaded, which it is by now
        import torch

        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    from ipykernel.kernelapp import IPKernelApp

    IPKernelApp.launch_instance(argv=arguments)


def _end_with(caller) -> None:
    """Kill this group of processes when the caller ends without having done so."""
    caller.join()
    os.killpg(0, signal.SIGKILL)
