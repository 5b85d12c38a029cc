package main

// Files that the tree is made of: text made when it is opened, commands a line at a time, events that wait.

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
)

var paths atomic.Uint64

func newFile(name string, open func() (Handle, error)) *File {
	return &File{Name: name, Path: paths.Add(1), Open: open}
}

// newDir is a directory of fixed files, and of those that more finds and lists.
func newDir(name string, files []*File, find func(string) *File, names func() []*File) *File {
	return &File{Name: name, Path: paths.Add(1), Find: func(n string) *File {
		for _, f := range files {
			if f.Name == n {
				return f
			}
		}
		if find != nil {
			return find(n)
		}
		return nil
	}, Names: func() []*File {
		if names == nil {
			return files
		}
		return append(append([]*File{}, files...), names()...)
	}}
}

// text is a Handle over content that is made by the first read, and over commands.
type text struct {
	make    func(ctx context.Context) (string, error)
	command func(ctx context.Context, line string) error
	closed  func()
	mu      sync.Mutex
	body    *string
}

func (t *text) Read(ctx context.Context, off uint64, n int) ([]byte, error) {
	if t.make == nil {
		return nil, errors.New("this file cannot be read")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.body == nil {
		s, err := t.make(ctx)
		if err != nil {
			return nil, err
		}
		t.body = &s
	}
	b := (*t.body)[min(off, uint64(len(*t.body))):]
	return []byte(b[:min(n, len(b))]), nil
}

func (t *text) Write(ctx context.Context, b []byte) (int, error) {
	if t.command == nil {
		return 0, errors.New("this file cannot be written")
	}
	for _, line := range strings.Split(strings.TrimRight(string(b), "\n"), "\n") {
		if err := t.command(ctx, line); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

func (t *text) Close() {
	if t.closed != nil {
		t.closed()
	}
}

func textFile(name string, read func(ctx context.Context) (string, error), command func(ctx context.Context, line string) error) *File {
	return newFile(name, func() (Handle, error) { return &text{make: read, command: command}, nil })
}

// Event is one line of /events.
type Event struct {
	Event     string   `json:"event"`
	Peer      string   `json:"peer"`
	Addresses []string `json:"addresses"`
}

// Hub hands every event to every reader; a new reader first gets what is.
type Hub struct {
	mu      sync.Mutex
	readers map[*eventReader]bool
	now     func() []Event
}

type eventReader struct {
	hub   *Hub
	wake  chan struct{}
	lines []byte
}

const backlogBytes = 4 << 20

func (h *Hub) Emit(e Event) {
	line, _ := json.Marshal(e)
	h.mu.Lock()
	defer h.mu.Unlock()
	for r := range h.readers {
		if len(r.lines) > backlogBytes {
			r.lines = r.lines[:0]
			for _, e := range h.now() {
				l, _ := json.Marshal(e)
				r.lines = append(append(r.lines, l...), '\n')
			}
		}
		r.lines = append(append(r.lines, line...), '\n')
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
}

func (h *Hub) Open() (Handle, error) {
	r := &eventReader{hub: h, wake: make(chan struct{}, 1)}
	now := h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range now {
		l, _ := json.Marshal(e)
		r.lines = append(append(r.lines, l...), '\n')
	}
	h.readers[r] = true
	return r, nil
}

func (r *eventReader) Read(ctx context.Context, _ uint64, n int) ([]byte, error) {
	for {
		r.hub.mu.Lock()
		if len(r.lines) > 0 {
			k := min(n, len(r.lines))
			out := append([]byte{}, r.lines[:k]...)
			r.lines = append(r.lines[:0], r.lines[k:]...)
			r.hub.mu.Unlock()
			return out, nil
		}
		r.hub.mu.Unlock()
		select {
		case <-r.wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (r *eventReader) Write(context.Context, []byte) (int, error) {
	return 0, errors.New("events cannot be written")
}

func (r *eventReader) Close() {
	r.hub.mu.Lock()
	delete(r.hub.readers, r)
	r.hub.mu.Unlock()
}
