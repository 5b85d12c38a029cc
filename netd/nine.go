package main

// 9P2000 messages: bytes to requests and back (https://9p.io/sys/man/5/INDEX.html). Nothing here knows what a file is.

import (
	"encoding/binary"
	"fmt"
	"unicode/utf8"
)

const (
	tversion, tauth, tattach, rerror, tflush = 100, 102, 104, 107, 108
	twalk, topen, tcreate, tread, twrite     = 110, 112, 114, 116, 118
	tclunk, tremove, tstat, twstat           = 120, 122, 124, 126

	head     = 7          // u32 size, u8 type, u16 tag
	maxMsize = 1<<20 + 24 // a whole mebibyte fits one Twrite or Rread
	minMsize = 256
	ioHead   = 24 // bytes of a Twrite that are not data
	maxWalk  = 16
	maxName  = 255
	dirBit   = 0x80
)

var le = binary.LittleEndian

// request is one T-message; which fields mean something depends on its kind.
type request struct {
	kind         byte
	tag          uint16
	fid, newfid  uint32
	count, msize uint32
	offset       uint64
	oldtag       uint16
	mode         byte
	version      string
	names        []string
	data         []byte
}

// cursor takes fields off a message; `bad` stays set once a field ran over the end.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if n > len(c.b) {
		c.b, c.bad = nil, true
		return make([]byte, min(n, 8))
	}
	v := c.b[:n:n]
	c.b = c.b[n:]
	return v
}

func (c *cursor) u8() byte    { return c.take(1)[0] }
func (c *cursor) u16() uint16 { return le.Uint16(c.take(2)) }
func (c *cursor) u32() uint32 { return le.Uint32(c.take(4)) }
func (c *cursor) u64() uint64 { return le.Uint64(c.take(8)) }

func (c *cursor) str() string {
	s := string(c.take(int(c.u16())))
	c.bad = c.bad || !utf8.ValidString(s)
	return s
}

// parse reads a message without its size field: type, tag, body. The tag is valid in the result even if there is an error.
func parse(b []byte) (r request, err error) {
	c := cursor{b: b}
	r.kind, r.tag = c.u8(), c.u16()
	switch r.kind {
	case tversion:
		r.msize, r.version = c.u32(), c.str()
	case tauth, tattach:
		r.fid = c.u32()
		if r.kind == tattach {
			c.u32() // afid
		}
		c.str()
		c.str()
	case tflush:
		r.oldtag = c.u16()
	case twalk:
		r.fid, r.newfid = c.u32(), c.u32()
		n := int(c.u16())
		if n > maxWalk {
			return r, fmt.Errorf("a walk of %d names; at most %d are allowed", n, maxWalk)
		}
		for range n {
			r.names = append(r.names, c.str())
		}
	case topen:
		r.fid, r.mode = c.u32(), c.u8()
	case tcreate:
		r.fid = c.u32()
		c.str()
		c.u32()
		c.u8()
	case tread:
		r.fid, r.offset, r.count = c.u32(), c.u64(), c.u32()
	case twrite:
		r.fid, r.offset = c.u32(), c.u64()
		r.data = c.take(int(c.u32()))
	case tclunk, tremove, tstat:
		r.fid = c.u32()
	case twstat:
		r.fid = c.u32()
		c.take(int(c.u16()))
	default:
		return r, fmt.Errorf("9P message %d is not served here", r.kind)
	}
	if c.bad || len(c.b) > 0 {
		return r, fmt.Errorf("malformed 9P message of type %d", r.kind)
	}
	return r, nil
}

// named says whose order a request has to keep.
func (r *request) named() []uint32 {
	switch {
	case r.kind == tversion || r.kind == tflush:
		return nil
	case r.kind == twalk && r.newfid != r.fid:
		return []uint32{r.fid, r.newfid}
	}
	return []uint32{r.fid}
}

func putString(b []byte, s string) []byte {
	return append(le.AppendUint16(b, uint16(len(s))), s...)
}

func putData(b []byte) []byte {
	return append(le.AppendUint32(make([]byte, 0, 4+len(b)), uint32(len(b))), b...)
}

// stat is a directory entry, stat(5).
func (f *file) stat() []byte {
	mode := f.mode
	if f.walk != nil {
		mode |= dirBit << 24
	}
	b := le.AppendUint32(append(make([]byte, 6), f.qid()...), mode)
	b = append(b, make([]byte, 16)...) // atime, mtime, length
	for _, s := range []string{f.name(), "ipos", "ipos", "ipos"} {
		b = putString(b, s)
	}
	return append(le.AppendUint16(make([]byte, 0, 2+len(b)), uint16(len(b))), b...)
}
