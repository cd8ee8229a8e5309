"""Confine a process that runs untrusted code: namespaces (Linux) and resource limits.

Workers import this module without site-packages, so it imports the standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x00020000, 0x08000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1, 2, 4, 8, 32, 4096, 16384, 1 << 18,
)  # fmt: skip
CAPABILITY_VERSION_3 = 0x20080522
NOBODY = 65534
OPEN_FILES = 32

PYTHON_LIBRARY = os.path.dirname(os.path.dirname(os.__file__))
SHARED_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")


def enter_namespaces() -> None:
    """Move this process to namespaces without network and files, and its future children to one without processes.

    The only files left are Python's library and the system's shared libraries, read-only. The current folder becomes
    the mount point of the new root; it should be empty. Raises `OSError` if the kernel or a container forbids it.
    """
    wanted = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
    uid, gid = os.geteuid(), os.getegid()
    if uid:
        _call("unshare", wanted | CLONE_NEWUSER)
        # Without "deny" the kernel accepts no gid_map from an unprivileged process.
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    else:
        _call("unshare", wanted)
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    root = os.getcwd()
    _mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for folder in dict.fromkeys((PYTHON_LIBRARY, *SHARED_LIBRARIES)):
        if os.path.isdir(folder):
            _show(folder, root + folder)
    _mount(None, root, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    # Not pivot_root: in a chroot the kernel allows no new user namespace, which would give capabilities back.
    os.chroot(root)
    os.chdir("/")


def _show(folder: str, target: str) -> None:
    """Mount a folder read-only at a place in the new root."""
    os.makedirs(target, exist_ok=True)
    _mount(folder, target, None, MS_BIND | MS_REC)
    # In a user namespace the kernel refuses a remount that drops one of these flags.
    locked = os.statvfs(target).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _mount(None, target, None, MS_REMOUNT | MS_BIND | MS_RDONLY | locked)


def drop_privileges() -> None:
    """Give up root and every capability for good. Other processes of this user can no longer read this one's memory.

    Raises `OSError` if Python's library cannot be read without root.
    """
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        if not os.access(os.__file__, os.R_OK):
            raise PermissionError(f"run as root, and {PYTHON_LIBRARY} cannot be read by other users")
    elif sys.platform == "linux":
        header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
        _call("capset", header, (ctypes.c_uint32 * 6)())
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        LIBC.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def die_with_parent() -> None:
    """Ask Linux to kill this process when the thread that started it ends. A change of user undoes it."""
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def close_files(nothing: int, channel: int) -> None:
    """Close every file except `channel`. Standard input, output and error become `nothing`, an open /dev/null."""
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    os.closerange(3, channel)
    os.closerange(channel + 1, OPEN_FILES)


def limit(*, cpu_seconds: int, address_bytes: int, forks: bool) -> None:
    """Limit CPU time, address space and open files of this process; forbid file contents, core dumps, maybe forks.

    A thread counts as a fork. The kernel does not limit the forks of root.
    """
    # SIGXCPU at the first, which a process can ignore, and SIGKILL at the second.
    _lower(resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + 1)
    _lower(resource.RLIMIT_AS, address_bytes)
    _lower(resource.RLIMIT_FSIZE, 0)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NOFILE, OPEN_FILES)
    if not forks:
        _lower(resource.RLIMIT_NPROC, 0)


def address_space() -> int:
    """Bytes of this process's address space; 0 if the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _lower(which: int, soft: int, hard: int | None = None) -> None:
    """Lower a limit for good. Lower limits stay as they are. `hard` None: the same as `soft`."""
    hard = soft if hard is None else hard
    _, now = resource.getrlimit(which)
    if now != resource.RLIM_INFINITY:
        soft, hard = min(soft, now), min(hard, now)
    # macOS refuses some of them.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(which, (soft, hard))


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    _call("mount", *texts[:3], ctypes.c_ulong(flags), texts[3])


def _call(name: str, *arguments: object) -> None:
    """Call a function of the C library. Raises `OSError` with the function's name."""
    if getattr(LIBC, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
