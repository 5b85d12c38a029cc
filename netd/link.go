package main

// The block link: requests and replies of both ends over one socket, little endian:
//   frame = u32 length of what follows, u32 id, u8 op, body
// Ops 0 to 2 answer the request of that id; each end numbers its own requests.

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

const (
	opYes    = 0  // what was asked
	opNo     = 1  // not here, not allowed, not all
	opError  = 2  // a sentence
	opHas    = 3  // to the node: cid -> yes, no
	opSize   = 4  // to the node: cid -> yes u32, no
	opGet    = 5  // to the node: cid -> yes block, no
	opPut    = 6  // to the node: u16 length, cid, block -> yes, error
	opMay    = 7  // to the node: u16 length, peer id text, cid -> yes: the node holds the block and the peer may have it; no
	opFetch  = 16 // to netd: u32 ms, u16 count, peers, u32 count, cids -> yes, or no and the cids that did not come; each u16 length, bytes
	opCancel = 17 // to netd: u32 id of a fetch; not answered, the fetch is (with error)

	maxFrame   = 4 << 20
	maxFetches = 256
	linkBuffer = 4 << 20
)

type frame struct {
	op   byte
	body []byte
}

type link struct {
	conn    net.Conn
	fetch   func(ctx context.Context, body []byte) (byte, []byte)
	writing sync.Mutex
	mu      sync.Mutex
	next    uint32
	waiting map[uint32]chan frame
	fetches map[uint32]context.CancelFunc
	over    error
}

func newLink(conn net.Conn) *link {
	if u, ok := conn.(*net.UnixConn); ok {
		u.SetReadBuffer(linkBuffer)
		u.SetWriteBuffer(linkBuffer)
	}
	return &link{conn: conn, waiting: map[uint32]chan frame{}, fetches: map[uint32]context.CancelFunc{}}
}

// run reads until the link ends, and says why. It never waits for a write, so both ends cannot wait for each other.
func (l *link) run() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer l.conn.Close()
	in, h := bufio.NewReaderSize(l.conn, 64<<10), make([]byte, 9)
	var err error
	for err == nil {
		if _, err = io.ReadFull(in, h); err != nil {
			break
		}
		n := le.Uint32(h)
		if n < 5 || n > maxFrame {
			err = fmt.Errorf("a frame of %d bytes; between 5 and %d are allowed", n, maxFrame)
			break
		}
		body := make([]byte, n-5)
		if _, err = io.ReadFull(in, body); err == nil {
			err = l.got(ctx, le.Uint32(h[4:]), h[8], body)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = err
	for _, ch := range l.waiting {
		close(ch)
	}
	clear(l.waiting)
	return err
}

func (l *link) got(ctx context.Context, id uint32, op byte, body []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case op <= opError:
		if ch := l.waiting[id]; ch != nil { // else: who asked has given up
			delete(l.waiting, id)
			ch <- frame{op, body}
		}
	case op == opCancel && len(body) == 4:
		if cancel := l.fetches[le.Uint32(body)]; cancel != nil {
			cancel()
		}
	case op == opFetch && l.fetches[id] == nil:
		if len(l.fetches) >= maxFetches {
			go l.send(id, opError, fmt.Appendf(nil, "%d fetches are under way already", maxFetches))
			return nil
		}
		ctx, cancel := context.WithCancel(ctx)
		l.fetches[id] = cancel
		go func() {
			op, out := l.fetch(ctx, body)
			l.mu.Lock()
			delete(l.fetches, id)
			l.mu.Unlock()
			cancel()
			l.send(id, op, out)
		}()
	default:
		return fmt.Errorf("a frame with op %d of %d bytes and id %d means nothing", op, len(body), id)
	}
	return nil
}

func (l *link) send(id uint32, op byte, parts ...[]byte) error {
	n := 5
	for _, p := range parts {
		n += len(p)
	}
	h := append(le.AppendUint32(le.AppendUint32(make([]byte, 0, 9), uint32(n)), id), op)
	all := append(net.Buffers{h}, parts...)
	l.writing.Lock()
	defer l.writing.Unlock()
	_, err := all.WriteTo(l.conn) // writev: a block is not copied
	if err != nil {
		l.conn.Close()
	}
	return err
}

// ask sends a request and waits for the reply; a reply with a sentence is an error.
func (l *link) ask(ctx context.Context, op byte, parts ...[]byte) (byte, []byte, error) {
	ch := make(chan frame, 1)
	l.mu.Lock()
	if l.over != nil {
		l.mu.Unlock()
		return opError, nil, l.over
	}
	l.next++
	id := l.next
	l.waiting[id] = ch
	l.mu.Unlock()
	if err := l.send(id, op, parts...); err != nil {
		return opError, nil, err
	}
	select {
	case r, ok := <-ch:
		if !ok {
			return opError, nil, io.ErrUnexpectedEOF
		}
		if r.op == opError {
			return opError, nil, errors.New(string(r.body))
		}
		return r.op, r.body, nil
	case <-ctx.Done():
		l.mu.Lock()
		delete(l.waiting, id)
		l.mu.Unlock()
		return opError, nil, ctx.Err()
	}
}
