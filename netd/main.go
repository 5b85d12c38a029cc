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

	"github.com/libp2p/go-libp2p/core/host"
)

const version = "0.1.0"

// source is the hash of the sources, set by build.sh.
var source = "unknown"

const defaultListen = "/ip4/0.0.0.0/tcp/0,/ip4/0.0.0.0/udp/0/quic-v1,/ip6/::/tcp/0,/ip6/::/udp/0/quic-v1"

// node is everything: the host and what we keep beside it.
type node struct {
	host  host.Host
	since time.Time
	root  *file
	convs *convs
	seen  *seen
	pulse *pulse
}

func main() {
	log.SetFlags(0)
	key := flag.String("key", "", "`file` of the ed25519 key; made if it is missing")
	listen := flag.String("listen", defaultListen, "multiaddrs, separated by commas; a port that is taken is replaced by a free one")
	nine := flag.String("nine", "", "`fd:N`, a connected socket on which 9P2000 is served")
	blocks := flag.String("blocks", "", "`fd:N`, a connected socket on which the node answers for its blocks")
	run := flag.String("run", "", "`directory` of mode 0700 for bulk sockets; a short path")
	mdns := flag.Bool("mdns", false, "announce this node on the local network, and look for others")
	asked := flag.Bool("version", false, "print version and hash of the sources, and leave")
	flag.Parse()
	if *asked {
		fmt.Println(version, source)
		return
	}
	if err := serve(*key, *listen, *nine, *blocks, *run, *mdns); err != nil {
		log.Fatal(err)
	}
}

// serve returns when the node is gone (nil), or with the sentence why it cannot go on.
func serve(keyFile, listen, nine, blocks, run string, mdns bool) error {
	control, err := inherited("-nine", nine)
	if err != nil {
		return err
	}
	if err := checkRun(run); err != nil {
		return err
	}
	key, err := loadKey(keyFile)
	if err != nil {
		return err
	}
	n := &node{since: time.Now(), seen: newSeen(), pulse: newPulse()}
	n.convs = &convs{n: n, run: run, byN: map[int]*conv{}}
	if n.host, err = newHost(key, listen, n.pulse); err != nil {
		return err
	}
	defer n.host.Close()
	n.pulse.host = n.host
	n.root = n.tree()
	if err := n.watch(mdns); err != nil {
		return err
	}
	ends := make(chan error, 3)
	go n.pulse.beat(context.Background())
	if blocks != "" {
		conn, err := inherited("-blocks", blocks)
		if err != nil {
			return err
		}
		go func() { ends <- fmt.Errorf("the block link ended: %w", n.serveBlocks(conn)) }()
	}
	go func() { ends <- fmt.Errorf("the 9P connection ended: %w", serve9P(control, n.root)) }()
	go func() { io.Copy(io.Discard, os.Stdin); ends <- nil }()
	return <-ends
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
