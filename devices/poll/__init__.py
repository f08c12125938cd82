"""Waiting for files: poll, ppoll, select, pselect6, epoll, and the files that exist to be waited for (eventfd, timerfd,
signalfd).

A file says what it is ready for (`OpenFile.poll`) and tells its `PollQueue` (devices/wait.py) when that may have
changed. A file that lives in the host has a `host_poll_fd` instead; a wait that includes one sleeps in the host's poll
(`Task.wait_host`). Follows fs/select.c, fs/eventpoll.c, fs/eventfd.c, fs/timerfd.c, fs/signalfd.c.
"""
