package main

// The bulk socket of a conversation: a unix socket spliced to its stream, each direction by itself, the end of one passed on as a half-close.

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
)

const (
	bulkTime   = 10 * time.Second // from naming the socket to connecting to it
	lingerTime = time.Minute      // the node has closed its end: so long the peer may take to close its own. If it sends instead, it is reset
	bulkBuffer = 1 << 20          // of the socket, towards the node
	pumpFirst  = 8 << 10          // an idle stream costs this much each way, a busy one pumpMost
	pumpMost   = 256 << 10
	pathMost   = 107 // bytes of a unix socket's path
)

// nameBulk makes the socket, once, and gives its path.
func (c *conv) nameBulk(context.Context) (string, error) {
	c.claimed()
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.bulk != "":
		return c.bulk + "\n", nil
	case c.state != "Established":
		return "", fmt.Errorf("conversation %d is not connected", c.n)
	}
	path := filepath.Join(c.t.run, fmt.Sprint("c", c.n))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return "", fmt.Errorf("no socket can be made for bulk transfer: %w", err)
	}
	c.bulk = path
	c.holds++
	go c.splice(l, c.stream)
	return path + "\n", nil
}

func (c *conv) splice(l *net.UnixListener, s network.Stream) {
	defer c.release()
	conn, err := acceptFrom(os.Getuid(), l, time.Now().Add(bulkTime))
	l.Close() // removes the socket file
	if err != nil {
		log.Printf("conversation %d: nobody came to its bulk socket within %v", c.n, bulkTime)
		s.Reset()
		return
	}
	defer conn.Close()
	conn.SetWriteBuffer(bulkBuffer)
	ended := make(chan struct{})
	go func() {
		if err := pump(s, conn); err != nil {
			s.Reset() // the node or the peer went away in the middle: the other direction ends too
			close(ended)
			return
		}
		s.CloseWrite()
		close(ended)
		awaitClose(conn)
		s.SetReadDeadline(time.Now().Add(lingerTime))
	}()
	if err := pump(conn, s); err != nil {
		s.Reset()
		conn.Close()
	} else {
		conn.CloseWrite()
	}
	<-ended
}

// acceptFrom takes the first connection of a user; others are closed.
func acceptFrom(user int, l *net.UnixListener, until time.Time) (*net.UnixConn, error) {
	l.SetDeadline(until)
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if uid, err := peerUID(conn); err == nil && uid == user {
			return conn, nil
		}
		conn.Close()
	}
}

// pump copies until the end of src (nil) or an error of either side.
func pump(dst io.Writer, src io.Reader) error {
	b := make([]byte, pumpFirst)
	for {
		k, err := src.Read(b)
		if k > 0 {
			if _, err := dst.Write(b[:k]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if k == len(b) && k < pumpMost {
			b = make([]byte, pumpMost)
		}
	}
}
