package main

// A small 9P2000 server (intro(5) of the Plan 9 manual) for trees made in memory. Errors are sentences. Each request runs in a
// goroutine of its own, after those before it that name the same fid; Tflush cancels and is answered when the request is gone.

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

const (
	maxMsize = 1<<20 + 24
	maxFids  = 4096
	maxTags  = 1024
)

var le = binary.LittleEndian

// Handle is an open file. Read of an event file ignores off and waits.
type Handle interface {
	Read(ctx context.Context, off uint64, n int) ([]byte, error)
	Write(ctx context.Context, b []byte) (int, error)
	Close()
}

// File is an entry of the tree. A directory has Find and Names and no Open.
type File struct {
	Name  string
	Path  uint64
	Find  func(name string) *File
	Names func() []*File
	Open  func() (Handle, error)
}

func (f *File) dir() bool { return f.Open == nil }

func (f *File) qid() []byte {
	b := make([]byte, 13)
	if f.dir() {
		b[0] = 0x80
	}
	le.PutUint64(b[5:], f.Path)
	return b
}

func putString(b []byte, s string) []byte { return append(le.AppendUint16(b, uint16(len(s))), s...) }

func (f *File) stat() []byte {
	mode := uint32(0o600)
	if f.dir() {
		mode = 0x80000000 | 0o500
	}
	b := le.AppendUint32(append(make([]byte, 6), f.qid()...), mode)
	b = append(b, make([]byte, 16)...)
	for _, s := range []string{f.Name, "ipos", "ipos", "ipos"} {
		b = putString(b, s)
	}
	return append(le.AppendUint16(nil, uint16(len(b))), b...)
}

type request struct{ b []byte }

var errShort = errors.New("the message is too short")

func (r *request) take(n int) []byte {
	if n > len(r.b) {
		panic(errShort)
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}
func (r *request) u8() byte    { return r.take(1)[0] }
func (r *request) u16() uint16 { return le.Uint16(r.take(2)) }
func (r *request) u32() uint32 { return le.Uint32(r.take(4)) }
func (r *request) u64() uint64 { return le.Uint64(r.take(8)) }
func (r *request) str() string { return string(r.take(int(r.u16()))) }

type fid struct {
	file   *File
	trail  []*File
	handle Handle
	list   []byte
}

type pending struct {
	cancel context.CancelFunc
	done   chan struct{}
}

type session struct {
	c     net.Conn
	root  *File
	mu    sync.Mutex
	wmu   sync.Mutex
	fids  map[uint32]*fid
	last  map[uint32]chan struct{}
	tags  map[uint16]*pending
	msize int
}

// Serve9P answers one connection until it ends.
func Serve9P(c net.Conn, root *File) {
	s := &session{c: c, root: root, fids: map[uint32]*fid{}, last: map[uint32]chan struct{}{}, tags: map[uint16]*pending{}, msize: 8192}
	ctx, cancel := context.WithCancel(context.Background())
	defer func() {
		cancel()
		c.Close()
		s.mu.Lock()
		fids := s.fids
		s.fids = map[uint32]*fid{}
		s.mu.Unlock()
		for _, f := range fids {
			if f.handle != nil {
				f.handle.Close()
			}
		}
	}()
	head := make([]byte, 7)
	for {
		if _, err := io.ReadFull(c, head); err != nil {
			return
		}
		size, kind, tag := le.Uint32(head), head[4], le.Uint16(head[5:])
		if size < 7 || size > maxMsize {
			return
		}
		body := make([]byte, size-7)
		if _, err := io.ReadFull(c, body); err != nil {
			return
		}
		if !s.begin(ctx, kind, tag, body) {
			return
		}
	}
}

// begin starts a request; false ends the connection (a tag used twice, too many at once).
func (s *session) begin(ctx context.Context, kind byte, tag uint16, body []byte) bool {
	if kind == 108 {
		s.flush(tag, body)
		return true
	}
	ctx, cancel := context.WithCancel(ctx)
	me := &pending{cancel, make(chan struct{})}
	var before []chan struct{}
	var names []uint32
	if len(body) >= 4 && kind >= 104 {
		names = append(names, le.Uint32(body))
		if kind == 110 && len(body) >= 8 {
			names = append(names, le.Uint32(body[4:]))
		}
	}
	s.mu.Lock()
	if s.tags[tag] != nil || len(s.tags) >= maxTags {
		s.mu.Unlock()
		cancel()
		return false
	}
	s.tags[tag] = me
	for i, n := range names {
		if w := s.last[n]; w != nil {
			before = append(before, w)
		}
		if kind != 110 || i == 1 || len(names) == 1 { // a walk only looks at where it starts
			s.last[n] = me.done
		}
	}
	s.mu.Unlock()
	go func() {
		for _, w := range before {
			<-w
		}
		out, err := s.handle(ctx, kind, &request{body})
		s.mu.Lock()
		delete(s.tags, tag)
		for _, n := range names {
			if s.last[n] == me.done {
				delete(s.last, n)
			}
		}
		s.mu.Unlock()
		if ctx.Err() == nil { // a flushed request is not answered
			if err != nil {
				s.send(107, tag, putString(nil, limit(err.Error())))
			} else {
				s.send(kind+1, tag, out)
			}
		}
		close(me.done)
		cancel()
	}()
	return true
}

func limit(s string) string { return s[:min(len(s), 2000)] }

func (s *session) flush(tag uint16, body []byte) {
	s.mu.Lock()
	var old *pending
	if len(body) >= 2 {
		old = s.tags[le.Uint16(body)]
	}
	s.mu.Unlock()
	go func() {
		if old != nil {
			old.cancel()
			<-old.done
		}
		s.send(109, tag, nil)
	}()
}

func (s *session) send(kind byte, tag uint16, body []byte) {
	h := append(le.AppendUint16(append(le.AppendUint32(nil, uint32(7+len(body))), kind), tag), body...)
	s.wmu.Lock()
	s.c.Write(h)
	s.wmu.Unlock()
}

func (s *session) at(n uint32) *fid {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.fids[n]
	if f == nil {
		panic(fmt.Errorf("fid %d is not known", n))
	}
	return f
}

func (s *session) put(n uint32, f *fid) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.fids) >= maxFids {
		panic(errors.New("too many fids"))
	}
	s.fids[n] = f
}

func (s *session) handle(ctx context.Context, kind byte, r *request) (out []byte, err error) {
	defer func() {
		if e := recover(); e != nil {
			if e, ok := e.(error); ok {
				err = e
				return
			}
			panic(e)
		}
	}()
	switch kind {
	case 100: // Tversion
		s.msize = int(min(r.u32(), maxMsize))
		if v := r.str(); v != "9P2000" || s.msize < 256 {
			return putString(le.AppendUint32(nil, uint32(s.msize)), "unknown"), nil
		}
		return putString(le.AppendUint32(nil, uint32(s.msize)), "9P2000"), nil
	case 104: // Tattach
		s.put(r.u32(), &fid{file: s.root})
		return s.root.qid(), nil
	case 110:
		return s.walk(r)
	case 112: // Topen
		f := s.at(r.u32())
		if f.handle == nil && !f.file.dir() {
			if f.handle, err = f.file.Open(); err != nil {
				return nil, err
			}
		}
		return append(f.file.qid(), 0, 0, 0, 0), nil
	case 116: // Tread
		f, off, n := s.at(r.u32()), r.u64(), int(min(r.u32(), uint32(s.msize-24)))
		var d []byte
		if f.file.dir() {
			d = f.listing(off, n)
		} else if f.handle == nil {
			return nil, errors.New("the file is not open")
		} else if d, err = f.handle.Read(ctx, off, n); err != nil {
			return nil, err
		}
		return append(le.AppendUint32(nil, uint32(len(d))), d...), nil
	case 118: // Twrite
		f, _, n := s.at(r.u32()), r.u64(), r.u32()
		if f.handle == nil {
			return nil, errors.New("the file is not open")
		}
		k, err := f.handle.Write(ctx, r.take(int(n)))
		return le.AppendUint32(nil, uint32(k)), err
	case 120: // Tclunk
		n := r.u32()
		f := s.at(n)
		s.mu.Lock()
		delete(s.fids, n)
		s.mu.Unlock()
		if f.handle != nil {
			f.handle.Close()
		}
		return nil, nil
	case 124: // Tstat
		b := s.at(r.u32()).file.stat()
		return append(le.AppendUint16(nil, uint16(len(b))), b...), nil
	case 126: // Twstat: nothing to change, `> ctl` of a shell must not fail
		return nil, nil
	}
	return nil, fmt.Errorf("9P message %d is not served here", kind)
}

func (s *session) walk(r *request) (out []byte, err error) {
	f, newfid, n := s.at(r.u32()), r.u32(), r.u16()
	file, trail := f.file, f.trail
	out = le.AppendUint16(nil, n)
	for range n {
		name := r.str()
		if name == ".." {
			if len(trail) > 0 {
				file, trail = trail[len(trail)-1], trail[:len(trail)-1]
			}
		} else {
			var next *File
			if file.dir() {
				next = file.Find(name)
			}
			if next == nil {
				return nil, fmt.Errorf("/net: no such file: %s", name)
			}
			file, trail = next, append(append([]*File{}, trail...), file)
		}
		out = append(out, file.qid()...)
	}
	s.put(newfid, &fid{file: file, trail: trail})
	return out, nil
}

func (f *fid) listing(off uint64, n int) []byte {
	if off == 0 {
		f.list = nil
		for _, c := range f.file.Names() {
			f.list = append(f.list, c.stat()...)
		}
	}
	d := f.list[min(off, uint64(len(f.list))):]
	k := 0
	for k < len(d) {
		size := 2 + int(le.Uint16(d[k:]))
		if k+size > n {
			break
		}
		k += size
	}
	return d[:k]
}
