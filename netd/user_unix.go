//go:build unix

package main

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// awaitClose returns when the other end is closed altogether, not only for writing: then nobody reads any more.
func awaitClose(conn *net.UnixConn) {
	if raw, err := conn.SyscallConn(); err == nil {
		raw.Read(func(fd uintptr) bool {
			p := []unix.PollFd{{Fd: int32(fd)}}
			unix.Poll(p, 0)
			return p[0].Revents&unix.POLLHUP != 0
		})
	}
}

func peerUID(conn *net.UnixConn) (uid int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { uid, failed = uidOf(int(fd)) })
	if err != nil || failed != nil {
		return 0, fmt.Errorf("no credentials: %v %v", err, failed)
	}
	return uid, nil
}
