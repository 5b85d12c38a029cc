// ipos-netd: the network process of an IPOS node. It owns the libp2p host; the node steers it over 9P2000 (-nine), and answers its questions about
// blocks over a framed link (-blocks). docs/protocols/netd.md describes both. It ends when its standard input does, or either socket.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	dht "github.com/libp2p/go-libp2p-kad-dht"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
)

const version = "0.1.0"

// source is the hash of the sources, set by build.sh.
var source = "unknown"

const defaultListen = "/ip4/0.0.0.0/tcp/0,/ip4/0.0.0.0/udp/0/quic-v1,/ip6/::/tcp/0,/ip6/::/udp/0/quic-v1"

type options struct {
	key, listen, nine, blocks, run, bootstrap string
	mdns, portMap                             bool
}

// node is everything: the host and what we keep beside it.
type node struct {
	host   host.Host
	since  time.Time
	root   *file
	convs  *convs
	seen   *seen
	pulse  *pulse
	reach  *reach
	relay  *relaying
	score  *score
	dht    *dht.IpfsDHT
	pubsub *pubsub.PubSub
}

func main() {
	log.SetFlags(0)
	var o options
	flag.StringVar(&o.key, "key", "", "`file` of the ed25519 key; made if it is missing")
	flag.StringVar(&o.listen, "listen", defaultListen, "multiaddrs, separated by commas; a port that is taken is replaced by a free one")
	flag.StringVar(&o.nine, "nine", "", "`fd:N`, a connected socket on which 9P2000 is served")
	flag.StringVar(&o.blocks, "blocks", "", "`fd:N`, a connected socket on which the node answers for its blocks")
	flag.StringVar(&o.run, "run", "", "`directory` of mode 0700 for bulk sockets; a short path")
	flag.StringVar(&o.bootstrap, "bootstrap", "", "multiaddrs with /p2p/PEER, separated by commas, to stay connected to")
	flag.BoolVar(&o.mdns, "mdns", false, "announce this node on the local network, and look for others")
	flag.BoolVar(&o.portMap, "portmap", false, "ask the router for a port, by UPnP and NAT-PMP")
	asked := flag.Bool("version", false, "print version and hash of the sources, and leave")
	flag.Parse()
	if *asked {
		fmt.Println(version, source)
		return
	}
	if err := serve(o); err != nil {
		log.Fatal(err)
	}
}

// serve returns when the node is gone (nil), or with the sentence why it cannot go on.
func serve(o options) error {
	control, err := inherited("-nine", o.nine)
	if err != nil {
		return err
	}
	if err := checkRun(o.run); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	n, err := newNode(ctx, o)
	if err != nil {
		return err
	}
	defer n.host.Close()
	ends := make(chan error, 3)
	if o.blocks != "" {
		conn, err := inherited("-blocks", o.blocks)
		if err != nil {
			return err
		}
		go func() { ends <- fmt.Errorf("the block link ended: %w", n.serveBlocks(conn)) }()
	}
	go func() { ends <- fmt.Errorf("the 9P connection ended: %w", serve9P(control, n.root)) }()
	go func() { io.Copy(io.Discard, os.Stdin); ends <- nil }()
	return <-ends
}

// newNode makes the host and all that needs no node.
func newNode(ctx context.Context, o options) (*node, error) {
	key, err := loadKey(o.key)
	if err != nil {
		return nil, err
	}
	n := &node{since: time.Now(), seen: newSeen(), pulse: newPulse()}
	n.convs = &convs{n: n, run: o.run, byN: map[int]*conv{}}
	n.reach, n.relay = newReach(n), &relaying{n: n}
	bootstrap := strings.FieldsFunc(o.bootstrap, func(r rune) bool { return r == ',' })
	if n.reach.bootstrap, err = peer.AddrInfosFromP2pAddrs(multiaddrs(bootstrap)...); err != nil || len(multiaddrs(bootstrap)) != len(bootstrap) {
		return nil, fmt.Errorf("-bootstrap takes multiaddrs that end in /p2p/PEER, not %q", cut(o.bootstrap, 300))
	}
	if n.score, err = newScore(n.reach.ours); err != nil {
		return nil, err
	}
	if n.host, err = newHost(key, o.listen, o.portMap, n); err != nil {
		return nil, err
	}
	n.pulse.host, n.score.host = n.host, n.host
	n.root = n.tree()
	for _, begin := range []func() error{n.startRouting, func() error { return n.startTopics(ctx) }, func() error { return n.reach.keep(ctx) }, func() error { return n.watch(o.mdns) }} {
		if err := begin(); err != nil {
			n.host.Close()
			return nil, err
		}
	}
	n.reach.nudge()
	go n.pulse.beat(ctx)
	return n, nil
}

func inherited(option, value string) (net.Conn, error) {
	number, ok := strings.CutPrefix(value, "fd:")
	n, err := strconv.Atoi(number)
	if !ok || err != nil {
		return nil, fmt.Errorf("%s takes fd:N, the number of a connected socket, not %q", option, value)
	}
	f := os.NewFile(uintptr(n), option)
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("%s %s is not a connected socket: %w", option, value, err)
	}
	return conn, nil
}
