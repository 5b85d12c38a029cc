package main

// Conversations, as in Plan 9's /net: /clone makes one, its ctl connects or announces, its stream is `data`, or for bulk a unix socket.
// A conversation lives while one of its files is open or its bulk socket is spliced; one that came in and that nobody opens ends after idle.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

const (
	idle        = 30 * time.Second
	dialTimeout = 20 * time.Second
	maxConvs    = 4096
	backlog     = 64 // calls that wait for a listener to read them
)

type conv struct {
	n      int
	d      *daemon
	mu     sync.Mutex
	users  int
	used   bool
	state  string
	stream network.Stream
	proto  protocol.ID
	calls  chan int
	dir    *File
}

func (d *daemon) newConv() (*conv, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.convs) >= maxConvs {
		return nil, fmt.Errorf("more than %d conversations", maxConvs)
	}
	d.next++
	c := &conv{n: d.next, d: d, state: "open"}
	files := []*File{
		c.file("ctl", &text{make: c.number, command: c.ctl}),
		c.file("status", &text{make: c.status}),
		c.file("remote", &text{make: c.remote}),
		newFile("data", func() (Handle, error) { return c.open(&dataHandle{c}), nil }),
		newFile("listen", func() (Handle, error) { return c.open(&text{make: c.listen}), nil }),
		c.file("bulk", &text{make: c.bulk}),
	}
	c.dir = newDir(strconv.Itoa(c.n), files, nil, nil)
	d.convs[c.n] = c
	return c, nil
}

func (c *conv) file(name string, t *text) *File {
	return newFile(name, func() (Handle, error) { return c.open(&text{make: t.make, command: t.command}), nil })
}

type counted struct {
	Handle
	c    *conv
	once sync.Once
}

func (h *counted) Close() { h.once.Do(func() { h.Handle.Close(); h.c.release() }) }

func (c *conv) open(h Handle) Handle {
	c.hold()
	return &counted{Handle: h, c: c}
}

func (c *conv) hold() { c.mu.Lock(); c.users++; c.used = true; c.mu.Unlock() }

func (c *conv) release() {
	c.mu.Lock()
	c.users--
	end := c.users == 0
	c.mu.Unlock()
	if end {
		c.end()
	}
}

func (c *conv) end() {
	c.d.mu.Lock()
	delete(c.d.convs, c.n)
	c.d.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stream != nil {
		c.stream.Close()
		c.stream.Reset()
	}
	if c.calls != nil {
		c.d.h.RemoveStreamHandler(c.proto)
		c.calls = nil
	}
	c.state = "closed"
}

func (c *conv) number(context.Context) (string, error) { return fmt.Sprintln(c.n), nil }

func (c *conv) status(context.Context) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Sprintf("state %s\nprotocol %s\n", c.state, c.proto), nil
}

func (c *conv) remote(context.Context) (string, error) {
	s, err := c.connected()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s %s\n", s.Conn().RemotePeer(), s.Conn().RemoteMultiaddr()), nil
}

func (c *conv) connected() (network.Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stream == nil {
		return nil, fmt.Errorf("conversation %d is not connected", c.n)
	}
	return c.stream, nil
}

func (c *conv) ctl(ctx context.Context, line string) error {
	w := strings.Fields(line)
	switch {
	case len(w) >= 3 && w[0] == "connect":
		return c.connect(ctx, w[1], w[2], w[3:])
	case len(w) == 2 && w[0] == "announce":
		return c.announce(protocol.ID(w[1]))
	case len(w) == 1 && w[0] == "hangup":
		c.end()
		return nil
	}
	return fmt.Errorf("%q is not a command of a conversation; it knows connect PEER PROTOCOL [ADDRESS...], announce PROTOCOL, hangup", line)
}

func (c *conv) connect(ctx context.Context, id, proto string, addrs []string) error {
	p, err := peer.Decode(id)
	if err != nil {
		return fmt.Errorf("%q is not a peer id", id)
	}
	c.d.learn(p, addrs)
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	s, err := c.d.h.NewStream(network.WithAllowLimitedConn(ctx, "ipos"), p, protocol.ID(proto))
	if err != nil {
		return fmt.Errorf("cannot reach %s: %w", id, err)
	}
	c.mu.Lock()
	c.stream, c.proto, c.state = s, protocol.ID(proto), "connected"
	c.mu.Unlock()
	return nil
}

func (c *conv) announce(proto protocol.ID) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.calls != nil || c.stream != nil {
		return fmt.Errorf("conversation %d is in use", c.n)
	}
	calls := make(chan int, backlog)
	c.calls, c.proto, c.state = calls, proto, "announced"
	c.d.h.SetStreamHandler(proto, func(s network.Stream) {
		in, err := c.d.newConv()
		if err != nil {
			s.Reset()
			return
		}
		in.stream, in.proto, in.state = s, proto, "connected"
		select {
		case calls <- in.n:
			time.AfterFunc(idle, func() {
				in.mu.Lock()
				unused := !in.used
				in.mu.Unlock()
				if unused {
					in.end()
				}
			})
		default:
			in.end()
		}
	})
	return nil
}

func (c *conv) listen(ctx context.Context) (string, error) {
	c.mu.Lock()
	calls := c.calls
	c.mu.Unlock()
	if calls == nil {
		return "", fmt.Errorf("conversation %d announces nothing", c.n)
	}
	select {
	case n := <-calls:
		return fmt.Sprintln(n), nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

type dataHandle struct{ c *conv }

func (h *dataHandle) Read(ctx context.Context, _ uint64, n int) ([]byte, error) {
	s, err := h.c.connected()
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { s.SetReadDeadline(time.Now()) })
	defer func() {
		if !stop() {
			s.SetReadDeadline(time.Time{})
		}
	}()
	b := make([]byte, n)
	k, err := s.Read(b)
	if k > 0 || errors.Is(err, io.EOF) {
		return b[:k], nil
	}
	return nil, err
}

func (h *dataHandle) Write(_ context.Context, b []byte) (int, error) {
	s, err := h.c.connected()
	if err != nil {
		return 0, err
	}
	return s.Write(b)
}

func (h *dataHandle) Close() {}

// bulk names a unix socket that takes one connection, of this user's, and is the stream.
func (c *conv) bulk(context.Context) (string, error) {
	s, err := c.connected()
	if err != nil {
		return "", err
	}
	path := filepath.Join(c.d.run, fmt.Sprintf("b%d", c.n))
	os.Remove(path)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return "", err
	}
	c.hold()
	go func() {
		defer c.release()
		l.SetDeadline(time.Now().Add(idle))
		u, err := l.AcceptUnix()
		l.Close() // removes the file too
		if err != nil || !sameUser(u) {
			return
		}
		splice(u, s)
	}()
	return path + "\n", nil
}

func sameUser(u *net.UnixConn) bool {
	raw, err := u.SyscallConn()
	if err != nil {
		return false
	}
	ok := false
	raw.Control(func(fd uintptr) {
		cred, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
		ok = err == nil && int(cred.Uid) == os.Getuid()
	})
	return ok
}

// splice copies both ways until both directions have ended; each end of file is passed on by itself.
func splice(u *net.UnixConn, s network.Stream) {
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := io.CopyBuffer(struct{ io.Writer }{u}, struct{ io.Reader }{s}, make([]byte, 256<<10))
		if err != nil {
			u.Close()
			return
		}
		u.CloseWrite()
	})
	wg.Go(func() {
		_, err := io.CopyBuffer(struct{ io.Writer }{s}, struct{ io.Reader }{u}, make([]byte, 256<<10))
		if err != nil {
			s.Reset()
			return
		}
		s.CloseWrite()
	})
	wg.Wait()
	u.Close()
	s.Close()
}
