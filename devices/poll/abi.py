"""Constants of <asm-generic/poll.h>, <linux/eventpoll.h>, <linux/eventfd.h>."""

from __future__ import annotations

import struct
from typing import Annotated

from devices.args import UINT, EnumSet, FlagSet

POLLIN, POLLPRI, POLLOUT, POLLERR, POLLHUP, POLLNVAL = 1, 2, 4, 8, 16, 32
POLLRDNORM, POLLRDBAND, POLLWRNORM, POLLWRBAND, POLLMSG, POLLREMOVE = 64, 128, 256, 512, 0x400, 0x1000
POLLRDHUP = 0x2000
ALWAYS = POLLERR | POLLHUP
"""Reported whether asked for or not."""

POLLFD = struct.Struct("<ihH")
"""struct pollfd: fd, events, revents."""

EPOLL_CLOEXEC = 0o2000000
EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD = 1, 2, 3
EPOLLEXCLUSIVE, EPOLLWAKEUP, EPOLLONESHOT, EPOLLET = 1 << 28, 1 << 29, 1 << 30, 1 << 31
EPOLL_PRIVATE = EPOLLWAKEUP | EPOLLONESHOT | EPOLLET | EPOLLEXCLUSIVE
EPOLLINOUT = POLLIN | POLLOUT
EPOLLEXCLUSIVE_OK = EPOLLINOUT | ALWAYS | EPOLLWAKEUP | EPOLLET | EPOLLEXCLUSIVE
EPOLL_EVENT = struct.Struct("<IQ")
"""struct epoll_event, packed on x86-64: events, data."""
EP_MAX_NESTS = 4
EP_MAX_EVENTS = 0x7FFF_FFFF // EPOLL_EVENT.size

EFD_SEMAPHORE, EFD_NONBLOCK, EFD_CLOEXEC = 1, 0o4000, 0o2000000

EpollOp = Annotated[
    int, EnumSet({"EPOLL_CTL_ADD": EPOLL_CTL_ADD, "EPOLL_CTL_DEL": EPOLL_CTL_DEL, "EPOLL_CTL_MOD": EPOLL_CTL_MOD})
]
EpollFlags = Annotated[int, FlagSet({"EPOLL_CLOEXEC": EPOLL_CLOEXEC})]
EventfdFlags = Annotated[
    int, FlagSet({"EFD_SEMAPHORE": EFD_SEMAPHORE, "EFD_NONBLOCK": EFD_NONBLOCK, "EFD_CLOEXEC": EFD_CLOEXEC}, code=UINT)
]
