package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// talk is a 9P client for tests: it sends messages as they are and reads replies one by one.
type talk struct {
	*testing.T
	conn net.Conn
	ends chan error
}

func message(kind byte, tag uint16, fields ...any) []byte {
	b := append([]byte{0, 0, 0, 0, kind}, byte(tag), byte(tag>>8))
	for _, f := range fields {
		switch f := f.(type) {
		case byte:
			b = append(b, f)
		case uint16:
			b = le.AppendUint16(b, f)
		case uint32:
			b = le.AppendUint32(b, f)
		case uint64:
			b = le.AppendUint64(b, f)
		case string:
			b = putString(b, f)
		case []byte:
			b = append(b, f...)
		default:
			panic(fmt.Sprintf("%T", f))
		}
	}
	le.PutUint32(b, uint32(len(b)))
	return b
}

func walkTo(tag uint16, fid, newfid uint32, names ...string) []byte {
	fields := []any{fid, newfid, uint16(len(names))}
	for _, n := range names {
		fields = append(fields, n)
	}
	return message(twalk, tag, fields...)
}

func open9(tag uint16, fid uint32, mode byte) []byte { return message(topen, tag, fid, mode) }
func read9(tag uint16, fid uint32, offset uint64, count uint32) []byte {
	return message(tread, tag, fid, offset, count)
}
func write9(tag uint16, fid uint32, data string) []byte {
	return message(twrite, tag, fid, uint64(0), uint32(len(data)), []byte(data))
}

func (t *talk) send(messages ...[]byte) {
	t.Helper()
	if _, err := t.conn.Write(bytes.Join(messages, nil)); err != nil {
		t.Fatal(err)
	}
}

type reply struct {
	kind byte
	tag  uint16
	body []byte
}

func (r reply) String() string {
	if r.kind == rerror {
		return string(r.body[2:])
	}
	if r.kind == tread+1 {
		return string(r.body[4:])
	}
	return fmt.Sprint(r.kind, r.body)
}

func (t *talk) next() reply {
	t.Helper()
	t.conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	var size [4]byte
	if _, err := io.ReadFull(t.conn, size[:]); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, le.Uint32(size[:])-4)
	if _, err := io.ReadFull(t.conn, b); err != nil {
		t.Fatal(err)
	}
	return reply{b[0], le.Uint16(b[1:]), b[3:]}
}

func (t *talk) expect(tag uint16, kind byte, words string) reply {
	t.Helper()
	r := t.next()
	if r.tag != tag || r.kind != kind || !strings.Contains(r.String(), words) {
		t.Fatalf("got tag %d kind %d %q; expected tag %d kind %d %q", r.tag, r.kind, r, tag, kind, words)
	}
	return r
}

// ended waits for the server to give up on the connection.
func (t *talk) ended(words string) {
	t.Helper()
	select {
	case err := <-t.ends:
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Fatalf("ended with %v; expected %q", err, words)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the connection goes on")
	}
}

// a small tree: hello (text), deaf (a read blocks until it is flushed), sum (what was written), dir/deep.
func smallTree(closed *int) *file {
	var written []byte
	root := directory("/", nil,
		&file{path: "hello", mode: 0o400, open: text(func(context.Context) (string, error) { return "hello world\n", nil })},
		&file{path: "deaf", mode: 0o600, open: func(f *fid) error {
			f.handle = &handle{close: func() { *closed++ }, read: func(ctx context.Context, _ uint64, _ uint32) ([]byte, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}}
			return nil
		}},
		&file{path: "sum", mode: 0o600, open: func(f *fid) error {
			f.handle = snapshot(func(context.Context) (string, error) { return string(written), nil })
			f.handle.write = func(_ context.Context, b []byte) (int, error) { written = append(written, b...); return len(b), nil }
			return nil
		}})
	dir := directory("/dir", root, &file{path: "deep", mode: 0o400, open: text(func(context.Context) (string, error) { return "deep\n", nil })})
	walk, list := root.walk, root.list
	root.walk = func(name string) *file {
		if name == "dir" {
			return dir
		}
		return walk(name)
	}
	root.list = func() []*file { return append(append([]*file{}, list()...), dir) }
	return root
}

func socketpair(t *testing.T) (a, b net.Conn) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if a, err = inherited("-a", fmt.Sprint("fd:", fds[0])); err == nil {
		b, err = inherited("-b", fmt.Sprint("fd:", fds[1]))
	}
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

func dial9(t *testing.T) (*talk, *int) {
	a, b := socketpair(t)
	closed := new(int)
	k := &talk{t, a, make(chan error, 1)}
	go func() { k.ends <- serve9P(b, smallTree(closed)) }()
	t.Cleanup(func() { a.Close() })
	k.send(message(tversion, 0xffff, uint32(8192), "9P2000.u"))
	if r := k.next(); r.kind != tversion+1 || le.Uint32(r.body) != 8192 || string(r.body[6:]) != "9P2000" {
		t.Fatal(r)
	}
	k.send(message(tattach, 1, uint32(0), uint32(0xffffffff), "me", ""))
	k.expect(1, tattach+1, "")
	return k, closed
}

func TestAPipelinedReadIsAnsweredInOrder(t *testing.T) {
	k, _ := dial9(t)
	k.send(walkTo(1, 0, 5, "hello"), open9(2, 5, 0), read9(3, 5, 0, 100), read9(4, 5, 6, 5), message(tclunk, 5, uint32(5)))
	k.expect(1, twalk+1, "")
	k.expect(2, topen+1, "")
	k.expect(3, tread+1, "hello world\n")
	if r := k.expect(4, tread+1, "world"); len(r.body) != 4+5 {
		t.Fatal(r)
	}
	k.expect(5, tclunk+1, "")
	k.send(read9(6, 5, 0, 1))
	k.expect(6, rerror, "fid 5 is not in use")
}

func TestABlockedReadHoldsUpNobodyAndIsFlushed(t *testing.T) {
	k, closed := dial9(t)
	k.send(walkTo(1, 0, 5, "deaf"), open9(2, 5, 0), read9(3, 5, 0, 100), message(tclunk, 4, uint32(5)), walkTo(6, 0, 7, "hello"))
	for range 3 { // the read and the clunk behind it wait; another fid does not
		if r := k.next(); r.tag != 1 && r.tag != 2 && r.tag != 6 || r.kind == rerror {
			t.Fatal(r)
		}
	}
	if *closed != 0 {
		t.Fatal("the clunk overtook the read")
	}
	k.send(message(tflush, 9, uint16(3)))
	got := map[uint16]byte{}
	for range 2 {
		r := k.next()
		got[r.tag] = r.kind
	}
	if got[9] != tflush+1 || got[4] != tclunk+1 || *closed != 1 {
		t.Fatal(got, *closed)
	}
}

func TestAFlushedRequestThatWaitedKeepsTheOrderOfThoseBehindIt(t *testing.T) {
	k, closed := dial9(t)
	k.send(walkTo(1, 0, 5, "deaf"), open9(2, 5, 0), read9(3, 5, 0, 1), read9(4, 5, 0, 1), message(tclunk, 6, uint32(5)), message(tflush, 7, uint16(4)))
	k.expect(1, twalk+1, "")
	got := map[uint16]byte{} // the flush is of another request than the open: either may be answered first
	for range 2 {
		r := k.next()
		got[r.tag] = r.kind
	}
	if got[2] != topen+1 || got[7] != tflush+1 {
		t.Fatal(got)
	}
	k.send(walkTo(8, 0, 9, "hello"))
	k.expect(8, twalk+1, "")
	if *closed != 0 {
		t.Fatal("the clunk overtook the read before it")
	}
	k.send(message(tflush, 10, uint16(3)))
	k.next()
	k.next()
	if *closed != 1 {
		t.Fatal("the clunk was lost")
	}
}

func TestAFlushOfNothingIsAnswered(t *testing.T) {
	k, _ := dial9(t)
	k.send(message(tflush, 2, uint16(77)))
	k.expect(2, tflush+1, "")
}

func TestRefusalsAreSentences(t *testing.T) {
	k, _ := dial9(t)
	for _, c := range []struct {
		send  []byte
		words string
	}{
		{walkTo(1, 0, 5, "nowhere"), "nowhere: there is no such file in /"},
		{walkTo(1, 0, 5, "hello", "x"), ""}, // a partial walk is an answer, and 5 stays free
		{open9(1, 5, 0), "the fid 5 is not in use"},
		{message(tattach, 1, uint32(0), uint32(0xffffffff), "", ""), "the fid 0 is in use"},
		{message(tauth, 1, uint32(3), "", ""), "no authentication is needed"},
		{open9(1, 0, 1), "/ is a directory: it cannot be written"},
		{message(tcreate, 1, uint32(0), "new", uint32(0), byte(0)), "files cannot be made here"},
		{message(99, 1), "message 99 is not served"},
		{message(tread, 1, uint32(0)), "malformed 9P message of type 116"},
		{message(tclunk, 1, uint32(9), uint32(9)), "malformed 9P message of type 120"},
		{message(twalk, 1, uint32(0), uint32(5), uint16(17)), "a walk of 17 names; at most 16"},
		{message(twalk, 1, uint32(0), uint32(5), uint16(1), uint16(2), []byte{0xff, 0xfe}), "malformed"},
		{write9(1, 0, "x"), "/ is not open for writing"},
		{message(tremove, 1, uint32(99)), "the fid 99 is not in use"},
	} {
		k.send(c.send)
		if r := k.next(); r.tag != 1 || !strings.Contains(r.String(), c.words) || (c.words != "") != (r.kind == rerror) {
			t.Errorf("%x: %v", c.send, r)
		}
	}
}

func TestAFileIsOpenedAsItsModeAllows(t *testing.T) {
	k, _ := dial9(t)
	k.send(walkTo(1, 0, 5, "hello"))
	k.next()
	k.send(open9(1, 5, 2))
	k.expect(1, rerror, "/hello cannot be opened so: its mode is 400")
	k.send(open9(1, 5, 0))
	k.next()
	k.send(open9(1, 5, 0))
	k.expect(1, rerror, "/hello is open already")
	k.send(write9(1, 5, "x"))
	k.expect(1, rerror, "/hello is not open for writing")
	k.send(walkTo(1, 5, 6))
	k.expect(1, rerror, "/hello is open: walk from another fid")
}

func TestWritesOfOneFidKeepTheirOrder(t *testing.T) {
	k, _ := dial9(t)
	var all [][]byte
	var expected strings.Builder
	for i := range 100 {
		all = append(all, write9(uint16(10+i), 5, fmt.Sprint(i, ",")))
		expected.WriteString(fmt.Sprint(i, ","))
	}
	k.send(append([][]byte{walkTo(1, 0, 5, "sum"), open9(2, 5, 2)}, all...)...)
	for range 102 {
		k.next()
	}
	k.send(read9(3, 5, 0, 8000))
	k.expect(3, tread+1, expected.String())
}

func TestDirectoriesAreReadInWholeEntries(t *testing.T) {
	k, _ := dial9(t)
	k.send(walkTo(1, 0, 5))
	k.next()
	k.send(open9(1, 5, 0))
	k.next()
	var names []string
	for offset := uint64(0); ; {
		k.send(read9(1, 5, offset, 130))
		b := k.next().body[4:]
		if len(b) == 0 {
			break
		}
		offset += uint64(len(b))
		for len(b) > 0 {
			c := cursor{b: b[2 : 2+le.Uint16(b)]}
			c.take(39)
			names, b = append(names, c.str()), b[2+le.Uint16(b):]
		}
	}
	if strings.Join(names, " ") != "hello deaf sum dir" {
		t.Fatal(names)
	}
	k.send(read9(1, 5, 3, 130))
	k.expect(1, rerror, "from its start or where the last read ended, not from 3")
}

func TestDotDotLeadsUpAndStopsAtTheRoot(t *testing.T) {
	k, _ := dial9(t)
	k.send(walkTo(1, 0, 5, "dir", "..", "..", "dir", "deep"))
	k.next()
	k.send(open9(1, 5, 0))
	k.next()
	k.send(read9(1, 5, 0, 10))
	k.expect(1, tread+1, "deep\n")
}

func TestVersionBeginsAnew(t *testing.T) {
	k, closed := dial9(t)
	k.send(walkTo(1, 0, 5, "deaf"), open9(2, 5, 0), read9(3, 5, 0, 100))
	k.next()
	k.next()
	k.send(message(tversion, 0xffff, uint32(4096), "9P2000"))
	if r := k.next(); r.kind != tversion+1 || le.Uint32(r.body) != 4096 || *closed != 1 {
		t.Fatal(r, *closed)
	}
	k.send(walkTo(1, 0, 5))
	k.expect(1, rerror, "the fid 0 is not in use")
	k.send(message(tversion, 0xffff, uint32(4096), "8P"))
	if r := k.next(); string(r.body[6:]) != "unknown" {
		t.Fatal(r)
	}
}

func TestTooMuchAtOnceIsRefusedAndFlushStillWorks(t *testing.T) {
	k, _ := dial9(t)
	k.send(walkTo(1, 0, 5, "deaf"))
	k.next()
	k.send(open9(1, 5, 0))
	k.next()
	var all [][]byte
	for i := range maxRequests {
		all = append(all, read9(uint16(100+i), 5, 0, 1))
	}
	k.send(append(all, read9(50, 5, 0, 1), message(tflush, 51, uint16(100)))...)
	for range 2 {
		switch r := k.next(); {
		case r.tag == 50 && strings.Contains(r.String(), "too much at once: 1024 requests"), r.tag == 51 && r.kind == tflush+1:
		default:
			t.Fatal(r)
		}
	}
}

func TestWhatCannotBeAnsweredEndsTheConnection(t *testing.T) {
	for words, b := range map[string][]byte{
		"a 9P message of 6 bytes":          {6, 0, 0, 0, 0, 0},
		"a 9P message of 4294967295 bytes": {255, 255, 255, 255},
		"a 9P message of 8193 bytes":       {1, 0x20, 0, 0},
	} {
		k, _ := dial9(t)
		k.send(b)
		k.ended(words)
	}
	k, closed := dial9(t)
	k.send(walkTo(1, 0, 5, "deaf"))
	k.next()
	k.send(open9(1, 5, 0))
	k.next()
	k.send(read9(1, 5, 0, 1))
	k.send(read9(1, 5, 0, 1))
	k.ended("the 9P tag 1 is in use")
	if *closed != 1 {
		t.Fatal("a file was left open")
	}
}

func FuzzParse(f *testing.F) {
	for _, b := range [][]byte{walkTo(1, 0, 5, "a", "b"), read9(1, 2, 3, 4), write9(1, 2, "data"), message(tversion, 1, uint32(9), "9P2000"),
		message(tattach, 1, uint32(0), uint32(1), "a", "b"), message(twstat, 1, uint32(0), uint16(2), uint16(0)), message(200, 1), {0, 0, 0, 0, 1}} {
		f.Add(b[4:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parse(b)
		if len(b) >= 3 && r.tag != le.Uint16(b[1:]) {
			t.Fatal("the tag is lost")
		}
		if err == nil && (len(r.names) > maxWalk || len(r.data) > len(b)) {
			t.Fatal(r)
		}
	})
}

func FuzzSession(f *testing.F) {
	hello := message(tversion, 0xffff, uint32(8192), "9P2000")
	attach := message(tattach, 1, uint32(0), uint32(0xffffffff), "", "")
	f.Add(bytes.Join([][]byte{hello, attach, walkTo(1, 0, 5, "hello"), open9(2, 5, 0), read9(3, 5, 0, 9)}, nil))
	f.Add(bytes.Join([][]byte{hello, attach, walkTo(1, 0, 5, "deaf"), open9(2, 5, 0), read9(3, 5, 0, 9), message(tflush, 4, uint16(3))}, nil))
	f.Add(bytes.Join([][]byte{attach, attach, message(tclunk, 1, uint32(0)), message(tremove, 2, uint32(0))}, nil))
	f.Add([]byte("\x07\x00\x00\x00GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		ours, theirs := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- serve9P(theirs, smallTree(new(int))) }()
		go io.Copy(io.Discard, ours)
		ours.SetWriteDeadline(time.Now().Add(time.Second))
		ours.Write(b)
		ours.Close()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Fatal("the session does not end with its connection")
		}
	})
}
