package main

// The tree that netd serves: docs/protocols/netd.md describes every file.

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
)

const maxCommand = 64 << 10

// text is a file whose content is made anew when its first byte is read.
func text(make func(ctx context.Context) (string, error)) func(*fid) error {
	return func(f *fid) error {
		f.handle = snapshot(make)
		return nil
	}
}

func snapshot(make func(ctx context.Context) (string, error)) *handle {
	var now string
	return &handle{read: func(ctx context.Context, offset uint64, count uint32) (b []byte, err error) {
		if offset == 0 {
			if now, err = make(ctx); err != nil {
				return nil, err
			}
		}
		from := min(offset, uint64(len(now)))
		return []byte(now[from:min(from+uint64(count), uint64(len(now)))]), nil
	}}
}

// commands makes of writes one call a line.
func commands(run func(ctx context.Context, words []string) error) func(context.Context, []byte) (int, error) {
	return func(ctx context.Context, b []byte) (int, error) {
		if len(b) > maxCommand {
			return 0, fmt.Errorf("a command of %d bytes; at most %d are allowed", len(b), maxCommand)
		}
		for line := range strings.Lines(string(b)) {
			if words := strings.Fields(line); len(words) > 0 {
				if err := run(ctx, words); err != nil {
					return 0, err
				}
			}
		}
		return len(b), nil
	}
}

// directory has fixed entries; each is given its place.
func directory(path string, up *file, entries ...*file) *file {
	d := &file{path: path, up: up, mode: 0o500}
	for _, e := range entries {
		e.up = d
		e.path = strings.TrimSuffix(path, "/") + "/" + e.path
	}
	d.list = func() []*file { return entries }
	d.walk = func(name string) *file {
		for _, e := range entries {
			if e.name() == name {
				return e
			}
		}
		return nil
	}
	return d
}

// tree is the root: fixed files, peers, and the conversations by number.
func (n *node) tree() *file {
	root := directory("/", nil,
		&file{path: "status", mode: 0o400, open: text(n.status)},
		&file{path: "addrs", mode: 0o400, open: text(func(context.Context) (string, error) { return lines(n.addrs()), nil })},
		&file{path: "ctl", mode: 0o200, open: func(f *fid) error { f.handle = &handle{write: commands(n.command)}; return nil }},
		&file{path: "events", mode: 0o400, open: func(f *fid) error { f.handle = &handle{read: n.seen.reader()}; return nil }},
		&file{path: "relay", mode: 0o600, open: func(f *fid) error {
			f.handle = snapshot(n.relay.text)
			f.handle.write = commands(n.relay.command)
			return nil
		}},
		&file{path: "routing", mode: 0o600, open: questions(n.ask)},
		&file{path: "blocked", mode: 0o400, open: text(func(context.Context) (string, error) { return n.score.blocked(), nil })},
		&file{path: "clone", mode: 0o600, open: n.convs.clone})
	peers := &file{path: "/peers", up: root, mode: 0o500}
	peers.walk = func(name string) *file {
		if p, err := peer.Decode(name); err == nil && len(n.host.Network().ConnsToPeer(p)) > 0 {
			return n.peerDir(p, peers)
		}
		return nil
	}
	peers.list = func() (l []*file) {
		for _, p := range n.host.Network().Peers() {
			l = append(l, n.peerDir(p, peers))
		}
		return l
	}
	list, walk := root.list, root.walk
	root.list = func() []*file {
		l := append(slices.Clone(list()), peers)
		for _, c := range n.convs.all() {
			l = append(l, c.dir(root))
		}
		return l
	}
	root.walk = func(name string) *file {
		if name == "peers" {
			return peers
		}
		if k, err := strconv.Atoi(name); err == nil {
			if c := n.convs.get(k); c != nil && strconv.Itoa(k) == name {
				return c.dir(root)
			}
			return nil
		}
		return walk(name)
	}
	return root
}

func (n *node) peerDir(p peer.ID, up *file) *file {
	return directory("/peers/"+p.String(), up,
		&file{path: "status", mode: 0o400, open: text(func(context.Context) (string, error) { return n.peerStatus(p) })},
		&file{path: "ping", mode: 0o400, open: text(func(ctx context.Context) (string, error) {
			rtt, err := n.pulse.ping(ctx, p)
			return fmt.Sprintf("%.2f ms\n", rtt.Seconds()*1e3), err
		})})
}

func lines(l []string) string {
	if len(l) == 0 {
		return ""
	}
	return strings.Join(l, "\n") + "\n"
}

func (n *node) status(context.Context) (string, error) {
	conns, streams := n.host.Network().Conns(), 0
	for _, c := range conns {
		streams += len(c.GetStreams())
	}
	return fmt.Sprintf("version %s\npeer %s\naddresses %s\nlistening %s\nuptime_s %d\npeers %d\nconnections %d\nstreams %d\nconversations %d\n",
		version, n.host.ID(), strings.Join(n.addrs(), " "), strings.Join(n.listening(), " "), int(time.Since(n.since).Seconds()), len(n.host.Network().Peers()),
		len(conns), streams, len(n.convs.all())) + fmt.Sprintf("dht_%s %d\n", strings.ToLower(fmt.Sprint(n.dht.Mode()))[:1], n.dht.RoutingTable().Size()) + n.reach.text(), nil
}

func (n *node) peerStatus(p peer.ID) (string, error) {
	conns, _ := n.ways(p)
	if len(conns) == 0 {
		return "", fmt.Errorf("%s is not connected", p)
	}
	var addrs []string
	streams := 0
	for _, c := range conns {
		addrs = append(addrs, c.RemoteMultiaddr().String())
		streams += len(c.GetStreams())
	}
	best := conns[0].Stat()
	rtt, heard := n.pulse.last(p)
	s := fmt.Sprintf("peer %s\naddresses %s\ndirection %s\ntransport %s\nage_s %d\nheard_s %.1f\nstreams %d\n", p, strings.Join(addrs, " "),
		strings.ToLower(best.Direction.String()), conns[0].ConnState().Transport, int(time.Since(best.Opened).Seconds()), heard.Seconds(), streams)
	if rtt > 0 {
		s += fmt.Sprintf("rtt_ms %.2f\n", rtt.Seconds()*1e3)
	}
	path, why := n.reach.path(p)
	return s + fmt.Sprintf("path %s\nwhy %s\nrelays %v\n", path, why, n.serves(p, proto.ProtoIDv2Hop)) + n.score.text(p), nil
}

// command is a line of /ctl.
func (n *node) command(ctx context.Context, words []string) error {
	if words[0] == "connect" && len(words) > 1 {
		infos, err := peer.AddrInfosFromP2pAddrs(multiaddrs(words[1:])...)
		if err != nil || len(infos) != 1 {
			return fmt.Errorf("connect takes addresses of one peer, each ending in /p2p/PEER, not %q", cut(strings.Join(words[1:], " "), 200))
		}
		n.host.Peerstore().AddAddrs(infos[0].ID, infos[0].Addrs, peerstore.TempAddrTTL)
		return n.connect(ctx, infos[0].ID)
	}
	if words[0] == "pool" && len(words) <= maxPool {
		var l []peer.ID
		for _, w := range words[1:] {
			p, err := peer.Decode(w)
			if err != nil {
				return fmt.Errorf("pool: %q is not a peer id", cut(w, 100))
			}
			l = append(l, p)
		}
		n.reach.setPool(l)
		return nil
	}
	change, known := map[string]func(peer.ID) error{
		"disconnect": n.host.Network().ClosePeer,
		"protect":    func(p peer.ID) error { n.host.ConnManager().Protect(p, "asked"); return nil },
		"unprotect":  func(p peer.ID) error { n.host.ConnManager().Unprotect(p, "asked"); return nil },
		"unblock":    n.score.unblock,
	}[words[0]]
	if !known || len(words) != 2 {
		return fmt.Errorf("%q is not a command here; it knows connect ADDR..., pool PEER..., disconnect PEER, protect PEER, unprotect PEER, unblock PEER", cut(strings.Join(words, " "), 200))
	}
	p, err := peer.Decode(words[1])
	if err != nil {
		return fmt.Errorf("%s: %q is not a peer id", words[0], cut(words[1], 100))
	}
	return change(p)
}
