package main

// A 9P2000 server for one connection. Every request runs by itself, except that requests which name the same fid run in the order in which they
// came, so a client may send walk, open, read and clunk at once. Tflush cancels; it is answered after the request it names is over.

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"path"
	"strings"
	"sync"
)

const (
	maxFids     = 4096
	maxRequests = 1024
	maxWritten  = 16 << 20 // bytes of Twrites under way
)

// file is a file or a directory of the tree, not open. The same path always means the same file.
type file struct {
	path string
	up   *file // nil: the root
	mode uint32
	walk func(name string) *file // directories only; nil: there is no such file
	list func() []*file
	open func(*fid) error // sets the fid's handle; may turn the fid to another file, as Plan 9's clone does
}

func (f *file) name() string { return path.Base(f.path) }

func (f *file) qid() []byte {
	h := fnv.New64a()
	io.WriteString(h, f.path)
	b := make([]byte, 13)
	if f.walk != nil {
		b[0] = dirBit
	}
	le.PutUint64(b[5:], h.Sum64())
	return b
}

// handle is an open file; each function may be nil.
type handle struct {
	read  func(ctx context.Context, offset uint64, count uint32) ([]byte, error)
	write func(ctx context.Context, data []byte) (int, error)
	close func()
}

type fid struct {
	file   *file
	handle *handle
	mode   byte
}

type pending struct {
	cancel         context.CancelFunc
	answered, done chan struct{} // done: answered, and so is all that had to come before
}

type session struct {
	conn    net.Conn
	root    *file
	ctx     context.Context
	running sync.WaitGroup
	writing sync.Mutex // held while a reply is written; taken before mu

	mu      sync.Mutex
	fids    map[uint32]*fid
	tags    map[uint16]*pending
	last    map[uint32]*pending // by fid: the last request that names it
	written int
	msize   uint32
}

// serve9P answers until the connection ends; the error says why.
func serve9P(conn net.Conn, root *file) error {
	ctx, cancel := context.WithCancel(context.Background())
	s := &session{conn: conn, root: root, ctx: ctx, fids: map[uint32]*fid{}, tags: map[uint16]*pending{}, last: map[uint32]*pending{}, msize: maxMsize}
	err := s.loop()
	cancel()
	conn.Close()
	s.running.Wait()
	s.clunkAll()
	return err
}

func (s *session) loop() error {
	in := bufio.NewReaderSize(s.conn, 64<<10)
	for {
		var size [4]byte
		if _, err := io.ReadFull(in, size[:]); err != nil {
			return err
		}
		n := le.Uint32(size[:])
		if n < head || n > s.msize {
			return fmt.Errorf("a 9P message of %d bytes; between %d and %d are allowed", n, head, s.msize)
		}
		b := make([]byte, n-4)
		if _, err := io.ReadFull(in, b); err != nil {
			return err
		}
		if err := s.take(b); err != nil {
			return err
		}
	}
}

// take starts one request. An error ends the connection: it could not even be answered.
func (s *session) take(b []byte) error {
	r, bad := parse(b)
	switch {
	case bad == nil && r.kind == tversion:
		s.version(r)
		return nil
	case bad == nil && r.kind == tflush:
		s.flush(r)
		return nil
	}
	ctx, cancel := context.WithCancel(s.ctx)
	p := &pending{cancel, make(chan struct{}), make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tags[r.tag] != nil {
		cancel()
		return fmt.Errorf("the 9P tag %d is in use", r.tag)
	}
	if bad == nil && (len(s.tags) >= maxRequests || s.written+len(r.data) > maxWritten) {
		bad = fmt.Errorf("too much at once: %d requests and %d bytes of writes are waiting already", len(s.tags), s.written)
	}
	s.tags[r.tag] = p
	s.written += len(r.data)
	var before []*pending
	if bad == nil {
		for _, f := range r.named() {
			if q := s.last[f]; q != nil {
				before = append(before, q)
			}
			s.last[f] = p
		}
	}
	s.running.Add(1)
	go s.run(ctx, r, p, before, bad)
	return nil
}

func (s *session) run(ctx context.Context, r request, p *pending, before []*pending, err error) {
	defer s.running.Done()
	defer p.cancel()
	var reply []byte
	for _, q := range before {
		select {
		case <-q.done:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err == nil {
		reply, err = s.do(ctx, &r)
	}
	s.writing.Lock() // a flush that finds the tag gone must answer after this reply
	s.mu.Lock()
	delete(s.tags, r.tag)
	s.written -= len(r.data)
	s.mu.Unlock()
	if err == nil {
		s.write(r.kind+1, r.tag, reply)
	} else if ctx.Err() == nil {
		s.write(rerror, r.tag, putString(nil, cut(err.Error(), 1000)))
	}
	s.writing.Unlock()
	close(p.answered)
	for _, q := range before { // one that was flushed while it waited keeps the order of those behind it
		<-q.done
	}
	s.mu.Lock()
	for _, f := range r.named() {
		if s.last[f] == p {
			delete(s.last, f)
		}
	}
	s.mu.Unlock()
	close(p.done)
}

func (s *session) write(kind byte, tag uint16, body []byte) {
	h := le.AppendUint16(append(le.AppendUint32(make([]byte, 0, head+len(body)), uint32(head+len(body))), kind), tag)
	if _, err := s.conn.Write(append(h, body...)); err != nil {
		s.conn.Close() // the loop sees it
	}
}

func (s *session) reply(kind byte, tag uint16, body []byte) {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.write(kind, tag, body)
}

func (s *session) flush(r request) {
	s.mu.Lock()
	old := s.tags[r.oldtag]
	s.mu.Unlock()
	s.running.Add(1)
	go func() {
		defer s.running.Done()
		if old != nil {
			old.cancel()
			<-old.answered
		}
		s.reply(tflush+1, r.tag, nil)
	}()
}

// version begins the session anew: what is under way is cancelled, all fids are given back.
func (s *session) version(r request) {
	s.mu.Lock()
	for _, p := range s.tags {
		p.cancel()
	}
	s.mu.Unlock()
	s.running.Wait()
	s.clunkAll()
	version := "unknown"
	if strings.HasPrefix(r.version, "9P2000") && r.msize >= minMsize {
		version, s.msize = "9P2000", min(r.msize, maxMsize)
	}
	s.reply(tversion+1, r.tag, putString(le.AppendUint32(nil, s.msize), version))
}

func (s *session) clunkAll() {
	s.mu.Lock()
	old := s.fids
	s.fids = map[uint32]*fid{}
	s.mu.Unlock()
	for _, f := range old {
		f.close()
	}
}

func (f *fid) close() {
	if f.handle != nil && f.handle.close != nil {
		f.handle.close()
	}
	f.handle = nil
}

func (s *session) fid(n uint32) (*fid, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.fids[n]; f != nil {
		return f, nil
	}
	return nil, fmt.Errorf("the fid %d is not in use", n)
}

// bind gives a fid its file; `fresh`: the number must be free.
func (s *session) bind(n uint32, f *file, fresh bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if fresh && s.fids[n] != nil {
		return fmt.Errorf("the fid %d is in use", n)
	}
	if fresh && len(s.fids) >= maxFids {
		return fmt.Errorf("%d files are open already; close some", maxFids)
	}
	s.fids[n] = &fid{file: f}
	return nil
}

func (s *session) do(ctx context.Context, r *request) ([]byte, error) {
	switch r.kind {
	case tauth:
		return nil, errors.New("no authentication is needed here: the socket was inherited")
	case tattach:
		return s.root.qid(), s.bind(r.fid, s.root, true)
	}
	f, err := s.fid(r.fid)
	if err != nil {
		return nil, err
	}
	switch r.kind {
	case twalk:
		return s.walk(f, r)
	case topen:
		if err := f.open(r.mode); err != nil {
			return nil, err
		}
		return append(f.file.qid(), 0, 0, 0, 0), nil
	case tread:
		if f.handle == nil || f.handle.read == nil || f.mode&3 == 1 {
			return nil, fmt.Errorf("%s is not open for reading", f.file.path)
		}
		b, err := f.handle.read(ctx, r.offset, min(r.count, s.msize-ioHead))
		return putData(b), err
	case twrite:
		if f.handle == nil || f.handle.write == nil || f.mode&3 == 0 {
			return nil, fmt.Errorf("%s is not open for writing", f.file.path)
		}
		n, err := f.handle.write(ctx, r.data)
		return le.AppendUint32(nil, uint32(n)), err
	case tclunk, tremove:
		s.mu.Lock()
		delete(s.fids, r.fid)
		s.mu.Unlock()
		f.close()
		if r.kind == tremove {
			return nil, fmt.Errorf("%s cannot be removed", f.file.path)
		}
		return nil, nil
	case tstat:
		b := f.file.stat()
		return append(le.AppendUint16(nil, uint16(len(b))), b...), nil
	}
	if r.kind == twstat {
		return nil, nil // a shell's `> ctl` truncates first
	}
	return nil, fmt.Errorf("%s: files cannot be made here", f.file.path)
}

func (s *session) walk(f *fid, r *request) ([]byte, error) {
	if f.handle != nil {
		return nil, fmt.Errorf("%s is open: walk from another fid", f.file.path)
	}
	at, qids := f.file, []byte{}
	for i, name := range r.names {
		var next *file
		switch {
		case name == "..":
			if next = at.up; next == nil {
				next = at
			}
		case at.walk != nil && len(name) <= maxName:
			next = at.walk(name)
		}
		if next == nil && i == 0 {
			return nil, fmt.Errorf("%s: there is no such file in %s", cut(name, 80), at.path)
		}
		if next == nil {
			return append(le.AppendUint16(nil, uint16(i)), qids...), nil
		}
		at, qids = next, append(qids, next.qid()...)
	}
	if err := s.bind(r.newfid, at, r.newfid != r.fid); err != nil {
		return nil, err
	}
	return append(le.AppendUint16(nil, uint16(len(r.names))), qids...), nil
}

func (f *fid) open(mode byte) error {
	need := []uint32{0o400, 0o200, 0o600, 0o400}[mode&3]
	switch {
	case f.handle != nil:
		return fmt.Errorf("%s is open already", f.file.path)
	case f.file.walk != nil && mode&3 != 0:
		return fmt.Errorf("%s is a directory: it cannot be written", f.file.path)
	case f.file.mode&need != need:
		return fmt.Errorf("%s cannot be opened so: its mode is %o", f.file.path, f.file.mode)
	}
	f.mode = mode
	if f.file.walk != nil {
		f.handle = listing(f.file)
		return nil
	}
	return f.file.open(f)
}

// listing reads a directory: whole entries only, as they were when offset 0 was read.
func listing(f *file) *handle {
	var entries [][]byte
	var at uint64
	return &handle{read: func(_ context.Context, offset uint64, count uint32) (b []byte, err error) {
		if offset == 0 {
			entries, at = nil, 0
			for _, e := range f.list() {
				entries = append(entries, e.stat())
			}
		} else if offset != at {
			return nil, fmt.Errorf("a directory is read from its start or where the last read ended, not from %d", offset)
		}
		for len(entries) > 0 && len(b)+len(entries[0]) <= int(count) {
			b, entries = append(b, entries[0]...), entries[1:]
		}
		at += uint64(len(b))
		return b, nil
	}}
}

func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "..."
}
