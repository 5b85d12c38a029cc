package main

// Conversations, as in Plan 9's ip(3): a directory per stream. One lives as long as something holds it: an open file of its directory, its bulk
// socket from when it is named until the splice is over, or, for one that came in, the time in which it must be taken.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-multistream"
)

const (
	backlog     = 256              // streams of one announced protocol that nobody has taken yet
	claimTime   = 30 * time.Second // how long such a stream waits
	maxConvs    = 10000
	maxDataRead = 256 << 10
)

type convs struct {
	n    *node
	run  string // where bulk sockets are made
	mu   sync.Mutex
	next int
	byN  map[int]*conv
}

type conv struct {
	t        *convs
	n        int
	reading  chan struct{} // a token: who may read the stream
	writing  chan struct{}
	incoming chan *conv // announced only

	mu     sync.Mutex
	holds  int
	state  string // Idle, Connecting, Established, Announced, Joined, Closed
	stream network.Stream
	proto  protocol.ID
	bulk   string // path of its socket, once named
	claim  *time.Timer
	topic  *pubsub.Topic
	sub    *pubsub.Subscription
	rest   []byte // of a message, for whoever has the token `reading`
}

func (t *convs) all() (l []*conv) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.byN {
		l = append(l, c)
	}
	slices.SortFunc(l, func(a, b *conv) int { return a.n - b.n })
	return l
}

func (t *convs) get(n int) *conv {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byN[n]
}

// add makes a conversation with one hold. Numbers are never used twice.
func (t *convs) add() (*conv, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.byN) >= maxConvs {
		return nil, fmt.Errorf("there are %d conversations already; close some", maxConvs)
	}
	c := &conv{t: t, n: t.next, reading: make(chan struct{}, 1), writing: make(chan struct{}, 1), holds: 1, state: "Idle"}
	t.byN[c.n] = c
	t.next++
	return c, nil
}

// clone opens the ctl file of a new conversation.
func (t *convs) clone(f *fid) error {
	c, err := t.add()
	if err != nil {
		return err
	}
	defer c.release()
	f.file = c.dir(t.n.root).walk("ctl")
	return f.file.open(f)
}

func (c *conv) hold() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.holds == 0 {
		return fmt.Errorf("conversation %d is over", c.n)
	}
	c.holds++
	return nil
}

func (c *conv) release() {
	c.mu.Lock()
	c.holds--
	last := c.holds == 0
	c.mu.Unlock()
	if !last {
		return
	}
	c.hangup()
	c.t.mu.Lock()
	delete(c.t.byN, c.n)
	c.t.mu.Unlock()
}

// opened makes an open function of a handle: the handle holds the conversation.
func (c *conv) opened(make func() *handle) func(*fid) error {
	return func(f *fid) error {
		if err := c.hold(); err != nil {
			return err
		}
		f.handle = make()
		f.handle.close = c.release
		return nil
	}
}

// claimed: somebody works with a stream that came in, so it need not be thrown away by time.
func (c *conv) claimed() {
	c.mu.Lock()
	mine := c.claim != nil && c.claim.Stop()
	c.claim = nil
	c.mu.Unlock()
	if mine {
		c.release()
	}
}

func (c *conv) dir(root *file) *file {
	snap := func(s func() string) func(*fid) error {
		return c.opened(func() *handle { return snapshot(func(context.Context) (string, error) { return s(), nil }) })
	}
	return directory("/"+strconv.Itoa(c.n), root,
		&file{path: "ctl", mode: 0o600, open: c.opened(func() *handle {
			c.claimed()
			h := snapshot(func(context.Context) (string, error) { return fmt.Sprintln(c.n), nil })
			h.write = commands(c.command)
			return h
		})},
		&file{path: "data", mode: 0o600, open: c.opened(func() *handle {
			c.claimed()
			return &handle{read: c.read, write: c.write}
		})},
		&file{path: "listen", mode: 0o400, open: c.opened(func() *handle { return &handle{read: c.listen} })},
		&file{path: "bulk", mode: 0o400, open: c.opened(func() *handle { return snapshot(c.nameBulk) })},
		&file{path: "status", mode: 0o400, open: snap(c.status)},
		&file{path: "remote", mode: 0o400, open: snap(c.remote)})
}

func (c *conv) status() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Sprintln("state", c.state) + fmt.Sprintln("protocol", c.proto) + fmt.Sprintln("holds", c.holds)
}

func (c *conv) remote() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.topic != nil {
		return c.topicPeers()
	}
	if c.stream == nil {
		return ""
	}
	return fmt.Sprintln(c.stream.Conn().RemotePeer(), c.stream.Conn().RemoteMultiaddr())
}

func (c *conv) command(ctx context.Context, words []string) error {
	switch {
	case words[0] == "connect" && len(words) > 2:
		return c.connect(ctx, words[1], words[2], words[3:])
	case words[0] == "announce" && len(words) == 2:
		return c.announce(protocol.ID(words[1]))
	case words[0] == "join" && len(words) == 2:
		return c.join(words[1])
	case words[0] == "hangup" && len(words) == 1:
		c.hangup()
		return nil
	}
	return fmt.Errorf("%q is not a command of a conversation; it knows connect PEER PROTOCOL [ADDR...], announce PROTOCOL, join TOPIC, hangup", cut(strings.Join(words, " "), 200))
}

// begin moves an idle conversation on; a conversation is used once.
func (c *conv) begin(state string, proto protocol.ID) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != "Idle" {
		return fmt.Errorf("conversation %d is %s already; open clone for another", c.n, strings.ToLower(c.state))
	}
	c.state, c.proto = state, proto
	return nil
}

func (c *conv) connect(ctx context.Context, who, proto string, addrs []string) error {
	p, err := peer.Decode(who)
	if err != nil {
		return fmt.Errorf("%q is not a peer id", cut(who, 100))
	}
	infos := multiaddrs(addrs)
	if len(infos) != len(addrs) {
		return fmt.Errorf("not every one of %q is a multiaddr", cut(strings.Join(addrs, " "), 300))
	}
	for i, a := range infos {
		at, id := peer.SplitAddr(a)
		if id != "" && id != p {
			return fmt.Errorf("the address %s is not one of %s", a, p)
		}
		infos[i] = at
	}
	if err := c.begin("Connecting", protocol.ID(proto)); err != nil {
		return err
	}
	c.t.n.host.Peerstore().AddAddrs(p, infos, peerstore.TempAddrTTL)
	s, err := c.t.n.stream(ctx, p, protocol.ID(proto))
	if err != nil {
		c.mu.Lock()
		c.state = "Idle"
		c.mu.Unlock()
		return err
	}
	return c.establish(s)
}

func (c *conv) establish(s network.Stream) error {
	c.t.n.host.ConnManager().Protect(s.Conn().RemotePeer(), c.tag())
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == "Closed" {
		s.Reset()
		return fmt.Errorf("conversation %d was hung up meanwhile", c.n)
	}
	c.state, c.stream, c.proto = "Established", s, s.Protocol()
	return nil
}

func (c *conv) tag() string { return "conversation " + strconv.Itoa(c.n) }

func (c *conv) announce(proto protocol.ID) error {
	h := c.t.n.host
	if !strings.HasPrefix(string(proto), "/") {
		return fmt.Errorf("a protocol is named like /ipos/tree/1, not %q", cut(string(proto), 100))
	}
	c.t.mu.Lock()
	defer c.t.mu.Unlock()
	if slices.Contains(h.Mux().Protocols(), proto) {
		return fmt.Errorf("%s is announced already", proto)
	}
	if err := c.begin("Announced", proto); err != nil {
		return err
	}
	c.incoming = make(chan *conv, backlog)
	h.SetStreamHandler(proto, c.arrived)
	return nil
}

// arrived makes a conversation of a stream that came in, and queues its number for who listens.
func (c *conv) arrived(s network.Stream) {
	d, err := c.t.add()
	if err != nil {
		s.Reset()
		return
	}
	d.establish(s)
	d.mu.Lock()
	d.claim = time.AfterFunc(claimTime, d.release)
	d.mu.Unlock()
	select {
	case c.incoming <- d:
	default:
		s.Reset()
		d.claimed()
	}
}

func (c *conv) listen(ctx context.Context, _ uint64, _ uint32) ([]byte, error) {
	c.mu.Lock()
	incoming, state := c.incoming, c.state
	c.mu.Unlock()
	if state != "Announced" {
		return nil, fmt.Errorf("conversation %d has announced nothing", c.n)
	}
	select {
	case d := <-incoming:
		return []byte(fmt.Sprintln(d.n)), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// direct gives the stream to 9P reads and writes, unless the bulk socket has it.
func (c *conv) direct() (network.Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.stream == nil:
		return nil, fmt.Errorf("conversation %d is not connected", c.n)
	case c.bulk != "":
		return nil, fmt.Errorf("the stream of conversation %d is at its bulk socket", c.n)
	}
	return c.stream, nil
}

func (c *conv) read(ctx context.Context, _ uint64, count uint32) ([]byte, error) {
	if c.joined() {
		return c.message(ctx, count)
	}
	s, err := c.direct()
	if err != nil {
		return nil, err
	}
	b := make([]byte, min(count, maxDataRead))
	k, err := exclusive(ctx, c.reading, s.SetReadDeadline, func() (int, error) { return s.Read(b) })
	if k > 0 || errors.Is(err, io.EOF) {
		err = nil
	}
	return b[:k], err
}

func (c *conv) write(ctx context.Context, b []byte) (int, error) {
	if c.joined() {
		return c.publish(ctx, b)
	}
	s, err := c.direct()
	if err != nil {
		return 0, err
	}
	k, err := exclusive(ctx, c.writing, s.SetWriteDeadline, func() (int, error) { return s.Write(b) })
	if k > 0 {
		err = nil // a short write: what was not taken was not sent
	}
	return k, err
}

// exclusive does one blocking operation at a time, and ends it by a deadline in the past when it is cancelled.
func exclusive(ctx context.Context, token chan struct{}, deadline func(time.Time) error, do func() (int, error)) (int, error) {
	select {
	case token <- struct{}{}:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	defer func() { <-token }()
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { deadline(time.Unix(1, 0)); close(fired) })
	k, err := do()
	if !stop() {
		<-fired
		deadline(time.Time{})
	}
	return k, err
}

// hangup closes what is open: bytes written before still reach the peer; an announcement ends, its queue is thrown away.
func (c *conv) hangup() {
	c.mu.Lock()
	was, s, incoming := c.state, c.stream, c.incoming
	c.state = "Closed"
	c.mu.Unlock()
	if was == "Announced" {
		c.t.n.host.RemoveStreamHandler(c.proto)
		for len(incoming) > 0 {
			d := <-incoming
			d.stream.Reset()
			d.claimed()
		}
	}
	if was == "Joined" {
		c.leave()
	}
	if s != nil && was != "Closed" {
		s.Close()
		c.t.n.host.ConnManager().Unprotect(s.Conn().RemotePeer(), c.tag())
	}
}

// stream opens a stream; unlike the host's own NewStream it learns at once whether the peer serves the protocol.
func (n *node) stream(ctx context.Context, p peer.ID, proto protocol.ID) (network.Stream, error) {
	if err := n.connect(ctx, p); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(network.WithAllowLimitedConn(network.WithNoDial(ctx, "connected"), "a relay of others"), connectTime)
	defer cancel()
	n.reach.direct(ctx, p)
	n.host.Peerstore().RemoveProtocols(p, proto)
	s, err := n.host.NewStream(ctx, p, proto)
	var not multistream.ErrNotSupported[protocol.ID]
	switch {
	case errors.As(err, &not):
		return nil, fmt.Errorf("%s does not serve %s", p, proto)
	case err != nil:
		return nil, outOfReach(p, err)
	}
	return s, nil
}

// multiaddrs leaves out what is none.
func multiaddrs(words []string) (l []multiaddr.Multiaddr) {
	for _, w := range words {
		if a, err := multiaddr.NewMultiaddr(w); err == nil {
			l = append(l, a)
		}
	}
	return l
}
