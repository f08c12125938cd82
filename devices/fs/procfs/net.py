"""/proc/net: the tables of a network that has a loopback interface and no sockets (net/core/net-procfs.c...)."""

from __future__ import annotations

from devices.fs.pseudo import Node, text

DEV = (
    b"Inter-|   Receive                                                |  Transmit\n"
    b" face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier"
    b" compressed\n"
    b"    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0"
    b"          0\n"
)
SOCKETS = b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"
SOCKETS6 = (
    b"  sl  local_address                         remote_address                        st tx_queue rx_queue tr "
    b"tm->when retrnsmt   uid  timeout inode"
)
DATAGRAMS = b" ref pointer drops"
ROUTE = b"Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT"
IF_INET6 = b"00000000000000000000000000000001 01 80 10 80       lo\n"
SOCKSTAT = (
    b"sockets: used 0\nTCP: inuse 0 orphan 0 tw 0 alloc 0 mem 0\nUDP: inuse 0 mem 0\nUDPLITE: inuse 0\n"
    b"RAW: inuse 0\nFRAG: inuse 0 memory 0\n"
)
SOCKSTAT6 = b"TCP6: inuse 0\nUDP6: inuse 0\nUDPLITE6: inuse 0\nRAW6: inuse 0\nFRAG6: inuse 0 memory 0\n"


def fixed(contents: bytes) -> Node:
    return text(lambda task: contents)


TABLE: dict[bytes, Node] = {
    b"dev": fixed(DEV),
    b"tcp": fixed(SOCKETS.ljust(149) + b"\n"),
    b"tcp6": fixed(SOCKETS6 + b"\n"),
    b"udp": fixed((b" " + SOCKETS + DATAGRAMS).ljust(127) + b"\n"),
    b"udp6": fixed(SOCKETS6 + DATAGRAMS + b"\n"),
    b"raw": fixed(SOCKETS + DATAGRAMS + b"\n"),
    b"raw6": fixed(SOCKETS6 + DATAGRAMS + b"\n"),
    b"unix": fixed(b"Num       RefCount Protocol Flags    Type St Inode Path\n"),
    b"route": fixed(ROUTE.ljust(127) + b"\n"),
    b"arp": fixed(b"IP address       HW type     Flags       HW address            Mask     Device\n"),
    b"if_inet6": fixed(IF_INET6),
    b"ipv6_route": fixed(b""),
    b"packet": fixed(b"sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n"),
    b"netlink": fixed(b"sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n"),
    b"sockstat": fixed(SOCKSTAT),
    b"sockstat6": fixed(SOCKSTAT6),
}
