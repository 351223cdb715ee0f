"""A ``libcuda.so.1`` without a GPU.

As it starts it changes the system like NVIDIA's driver 570 and later.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_SOURCE = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static int initialised, opened;
static const char *wanted;
static sem_t asked, answered;

static void told(const char *what)
{
    char line[100];
    int length = snprintf(line, sizeof line, "DRIVER %d %s\n", (int)getpid(), what);
    if (write(2, line, length) < 0)
        return;
}

/* Waits for events, as the driver's own threads do; here also told what to open. */
static void *wait_for_events(void *nothing)
{
    for (;;) {
        sem_wait(&asked);
        int file = open(wanted, O_RDONLY);
        opened = file < 0 ? errno : 0;
        if (file >= 0)
            close(file);
        sem_post(&answered);
    }
    return nothing;
}

/* The C library names a thread other than the caller through /proc/self/task/TID/comm. */
static int start_thread(const char *name)
{
    pthread_t thread;
    return pthread_create(&thread, 0, wait_for_events, 0) || pthread_setname_np(thread, name);
}

static int readable(const char *path)
{
    int file = open(path, O_RDONLY);
    if (file < 0)
        return errno == ENOENT;
    close(file);
    return 1;
}

int cuInit(unsigned flags)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int handle, memory;
    if (initialised)
        return 0;
    told("cuInit");
    sem_init(&asked, 0, 0);
    sem_init(&answered, 0, 0);
    if (start_thread("cuda-EvtHandlr") || !readable("/proc/devices") || !readable("/proc/modules") ||
        !readable("/proc/driver/nvidia") || !readable("/proc/driver/nvidia-uvm"))
        return 304;
    snprintf(name.sun_path + 1, 40, "cuda-uvmfd-%d", (int)getpid());
    handle = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    if (handle < 0 || bind(handle, (struct sockaddr *)&name, offsetof(struct sockaddr_un, sun_path) + 40) ||
        listen(handle, 16))
        return 304;
    memory = memfd_create("driver", 0);
    if (memory < 0 || fchmod(memory, 0600))
        return 304;
    initialised = 1;
    return 0;
}

int cuDriverGetVersion(int *version)
{
    *version = 13000;
    return 0;
}

int cuDeviceGetCount(int *count)
{
    *count = initialised;
    return initialised ? 0 : 3;
}

/* What it does later, as with a new stream. */
int start_another_thread(void)
{
    return start_thread("cuda-later") ? 304 : 0;
}

/* Have the driver's own thread open a file: what errno it met. */
int open_elsewhere(const char *path)
{
    wanted = path;
    sem_post(&asked);
    sem_wait(&answered);
    return opened;
}
"""


def build_driver(folder: Path) -> Path:
    """Compile it into a folder for ``LD_LIBRARY_PATH``.

    Returns that folder; without a compiler the test is skipped.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler, with which the stub of the driver is made")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "driver.c").write_text(_SOURCE)
    options = ["-shared", "-fPIC", "-pthread", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([compiler, *options, "-o", folder / "libcuda.so.1", folder / "driver.c"], check=True)
    return folder
