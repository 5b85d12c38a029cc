package main

// Link: requests and replies of both ends over one socket. frame = u32 length of the rest | u32 id | u8 op | body, little endian.
// Ops 0 yes, 1 no, 2 error (body is a sentence) are replies and carry the id of the request they answer.

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"sync"
)

const (
	maxFrame = 4 << 20
	opYes    = 0
	opNo     = 1
	opError  = 2
	opHas    = 3  // cid -> yes, no
	opSize   = 4  // cid -> yes u32, no
	opGet    = 5  // cid -> yes block, no
	opPut    = 6  // u16 length, cid, block -> yes, error
	opMay    = 7  // u16 length, peer id, cid -> yes: the node holds it and the peer may have it
	opFetch  = 16 // from the node: see fetch.go
)

type frame struct {
	op   byte
	body []byte
}

type Link struct {
	c     net.Conn
	serve func(op byte, body []byte) (byte, []byte)
	wmu   sync.Mutex
	mu    sync.Mutex
	next  uint32
	wait  map[uint32]chan frame
	err   error
}

func NewLink(c net.Conn, serve func(op byte, body []byte) (byte, []byte)) *Link {
	return &Link{c: c, wait: map[uint32]chan frame{}, serve: serve}
}

// Run reads until the socket ends; then every waiting Ask fails.
func (l *Link) Run() {
	r, h := bufio.NewReaderSize(l.c, 64<<10), make([]byte, 9)
	var err error
	for {
		if _, err = io.ReadFull(r, h); err != nil {
			break
		}
		n := le.Uint32(h)
		if n < 5 || n > maxFrame {
			err = errors.New("a frame of a wrong length")
			break
		}
		body := make([]byte, n-5)
		if _, err = io.ReadFull(r, body); err != nil {
			break
		}
		id, op := le.Uint32(h[4:]), h[8]
		if op > opError {
			go func() {
				op, out := l.serve(op, body)
				l.send(id, op, out)
			}()
			continue
		}
		l.mu.Lock()
		ch := l.wait[id]
		delete(l.wait, id)
		l.mu.Unlock()
		if ch != nil {
			ch <- frame{op, body}
		}
	}
	l.mu.Lock()
	l.err = err
	for id, ch := range l.wait {
		close(ch)
		delete(l.wait, id)
	}
	l.mu.Unlock()
	l.c.Close()
}

func (l *Link) send(id uint32, op byte, parts ...[]byte) error {
	n := 5
	for _, p := range parts {
		n += len(p)
	}
	h := append(le.AppendUint32(le.AppendUint32(nil, uint32(n)), id), op)
	bufs := append(net.Buffers{h}, parts...)
	l.wmu.Lock()
	defer l.wmu.Unlock()
	_, err := bufs.WriteTo(l.c) // writev: a block of 1 MiB is not copied
	return err
}

// Ask sends a request and waits for the reply.
func (l *Link) Ask(ctx context.Context, op byte, parts ...[]byte) (byte, []byte, error) {
	ch := make(chan frame, 1)
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return opError, nil, l.err
	}
	l.next++
	id := l.next
	l.wait[id] = ch
	l.mu.Unlock()
	if err := l.send(id, op, parts...); err != nil {
		l.c.Close()
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
		delete(l.wait, id)
		l.mu.Unlock()
		return opError, nil, ctx.Err()
	}
}
