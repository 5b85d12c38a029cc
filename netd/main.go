// ipos-netd: the network process of an IPOS node. It owns the libp2p host and serves it to the node as a 9P2000 tree on an inherited
// socket; blocks, and the question who may have them, go over another. It ends when its standard input does.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	"github.com/multiformats/go-multiaddr"
)

const (
	outstanding = 4 << 20         // bytes of blocks on their way to one peer
	keepalive   = 5 * time.Second // how often a peer is pinged
	deaf        = 8 * time.Second // a ping without an answer for so long closes its connections
	mdnsName    = "_ipos._udp"
)

type daemon struct {
	h     host.Host
	hub   *Hub
	store Store
	bs    *bitswap.Bitswap
	run   string
	start time.Time
	mu    sync.Mutex
	convs map[int]*conv
	next  int
	rtt   map[peer.ID]time.Duration
}

func main() {
	key := flag.String("key", "", "file of the ed25519 key; made if it is not there")
	listen := flag.String("listen", "", "multiaddrs to listen on, comma separated; empty: none")
	run := flag.String("run", "", "directory for the sockets of bulk streams, readable by this user only")
	nine := flag.Int("nine", -1, "inherited descriptor: 9P2000")
	blocks := flag.Int("blocks", -1, "inherited descriptor: blocks")
	local := flag.Bool("mdns", false, "find and be found on the local network")
	flag.Parse()
	log.SetFlags(0)
	if err := serve(*key, *listen, *run, *nine, *blocks, *local); err != nil {
		log.Fatal("ipos-netd: ", err)
	}
}

func inherited(n int, what string) (net.Conn, error) {
	f := os.NewFile(uintptr(n), what)
	if f == nil {
		return nil, fmt.Errorf("-%s wants an inherited socket", what)
	}
	defer f.Close()
	return net.FileConn(f)
}

func serve(key, listen, run string, nine, blocks int, local bool) error {
	tree, err := inherited(nine, "nine")
	if err != nil {
		return err
	}
	link, err := inherited(blocks, "blocks")
	if err != nil {
		return err
	}
	d := &daemon{run: run, start: time.Now(), convs: map[int]*conv{}, rtt: map[peer.ID]time.Duration{}}
	if d.h, err = newHost(key, listen); err != nil {
		return err
	}
	defer d.h.Close()
	d.store = Store{NewLink(link, func(op byte, body []byte) (byte, []byte) {
		if op != opFetch {
			return opError, []byte(fmt.Sprintf("op %d is not served", op))
		}
		return d.fetch(body)
	})}
	go d.store.l.Run()
	ctx := context.Background()
	d.bs = bitswap.New(ctx, bsnet.NewFromIpfsHost(d.h), nil, d.store, bitswap.WithPeerBlockRequestFilter(d.store.May),
		bitswap.MaxOutstandingBytesPerPeer(outstanding), bitswap.WithoutDuplicatedBlockStats(), bitswap.WithWantHaveReplaceSize(0))
	d.hub = &Hub{readers: map[*eventReader]bool{}, now: d.now}
	d.h.Network().Notify(&network.NotifyBundle{
		ConnectedF: func(_ network.Network, c network.Conn) {
			d.hub.Emit(Event{"connected", c.RemotePeer().String(), []string{c.RemoteMultiaddr().String()}})
		},
		DisconnectedF: func(n network.Network, c network.Conn) {
			if n.Connectedness(c.RemotePeer()) != network.Connected {
				d.hub.Emit(Event{"gone", c.RemotePeer().String(), []string{}})
			}
		},
	})
	if local {
		if err := mdns.NewMdnsService(d.h, mdnsName, found{d}).Start(); err != nil {
			log.Print("mDNS does not work here: ", err)
		}
	}
	go d.keepalive()
	go Serve9P(tree, d.tree())
	io.Copy(io.Discard, os.Stdin)
	return nil
}

func newHost(path, listen string) (host.Host, error) {
	k, err := loadKey(path)
	if err != nil {
		return nil, err
	}
	options := []libp2p.Option{libp2p.Identity(k), libp2p.UserAgent("ipos-netd/1"), libp2p.DisableMetrics(), libp2p.DisableRelay()}
	if listen == "" {
		options = append(options, libp2p.NoListenAddrs)
	} else {
		options = append(options, libp2p.ListenAddrStrings(strings.Split(listen, ",")...))
	}
	return libp2p.New(options...)
}

func loadKey(path string) (crypto.PrivKey, error) {
	b, err := os.ReadFile(path)
	if err == nil {
		return crypto.UnmarshalPrivateKey(b)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	k, _, err := crypto.GenerateKeyPair(crypto.Ed25519, 0)
	if err != nil {
		return nil, err
	}
	if b, err = crypto.MarshalPrivateKey(k); err != nil {
		return nil, err
	}
	if err = os.WriteFile(path+".new", b, 0o600); err != nil {
		return nil, err
	}
	return k, os.Rename(path+".new", path)
}

type found struct{ d *daemon }

func (f found) HandlePeerFound(p peer.AddrInfo) {
	if p.ID == f.d.h.ID() {
		return
	}
	var addrs []string
	for _, a := range p.Addrs {
		addrs = append(addrs, a.String())
	}
	f.d.h.Peerstore().AddAddrs(p.ID, p.Addrs, peerstore.TempAddrTTL)
	f.d.hub.Emit(Event{"found", p.ID.String(), addrs})
}

func (d *daemon) learn(p peer.ID, addrs []string) {
	for _, s := range addrs {
		if a, err := multiaddr.NewMultiaddr(s); err == nil {
			d.h.Peerstore().AddAddr(p, a, peerstore.TempAddrTTL)
		}
	}
}

// keepalive pings every peer: a silent one (a cable pulled, a process stopped) is noticed within keepalive + deaf.
func (d *daemon) keepalive() {
	for range time.Tick(keepalive) {
		for _, p := range d.h.Network().Peers() {
			go func() {
				ctx, cancel := context.WithTimeout(context.Background(), deaf)
				defer cancel()
				r := <-ping.Ping(ctx, d.h, p)
				if r.Error != nil && ctx.Err() != nil {
					log.Printf("%s is silent, its connections are closed", p)
					d.h.Network().ClosePeer(p)
					return
				}
				d.mu.Lock()
				d.rtt[p] = r.RTT
				d.mu.Unlock()
			}()
		}
	}
}

// now is the state that a new reader of /events gets.
func (d *daemon) now() []Event {
	out := []Event{{"addresses", d.h.ID().String(), d.addrs()}}
	for _, p := range d.h.Network().Peers() {
		var addrs []string
		for _, c := range d.h.Network().ConnsToPeer(p) {
			addrs = append(addrs, c.RemoteMultiaddr().String())
		}
		out = append(out, Event{"connected", p.String(), addrs})
	}
	return out
}

func (d *daemon) addrs() []string {
	out := []string{}
	for _, a := range d.h.Addrs() {
		out = append(out, a.String())
	}
	return out
}

func (d *daemon) tree() *File {
	peers := newDir("peers", nil, func(name string) *File {
		p, err := peer.Decode(name)
		if err != nil || d.h.Network().Connectedness(p) != network.Connected {
			return nil
		}
		return d.peerDir(p)
	}, func() (out []*File) {
		for _, p := range d.h.Network().Peers() {
			out = append(out, d.peerDir(p))
		}
		return
	})
	files := []*File{
		textFile("status", d.status, nil),
		textFile("addrs", func(context.Context) (string, error) { return strings.Join(d.addrs(), "\n") + "\n", nil }, nil),
		textFile("ctl", nil, d.ctl),
		newFile("events", d.hub.Open),
		newFile("clone", func() (Handle, error) {
			c, err := d.newConv()
			if err != nil {
				return nil, err
			}
			return c.open(&text{make: c.number, command: c.ctl}), nil
		}),
		peers,
	}
	return newDir("/", files, func(name string) *File {
		n, err := strconv.Atoi(name)
		if err != nil {
			return nil
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		if c := d.convs[n]; c != nil {
			return c.dir
		}
		return nil
	}, func() (out []*File) {
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, c := range d.convs {
			out = append(out, c.dir)
		}
		sort.Slice(out, func(i, j int) bool { return out[i].Path < out[j].Path })
		return
	})
}

func (d *daemon) status(context.Context) (string, error) {
	d.mu.Lock()
	convs := len(d.convs)
	d.mu.Unlock()
	return fmt.Sprintf("peer %s\naddresses %s\nuptime_s %d\nconnections %d\nconversations %d\n", d.h.ID(), strings.Join(d.addrs(), " "),
		int(time.Since(d.start).Seconds()), len(d.h.Network().Conns()), convs), nil
}

func (d *daemon) ctl(ctx context.Context, line string) error {
	w := strings.Fields(line)
	if len(w) < 2 || (w[0] != "connect" && w[0] != "disconnect") {
		return fmt.Errorf("%q is not a command of /net/ctl; it knows connect PEER [ADDRESS...], disconnect PEER", line)
	}
	p, err := peer.Decode(w[1])
	if err != nil {
		return fmt.Errorf("%q is not a peer id", w[1])
	}
	if w[0] == "disconnect" {
		return d.h.Network().ClosePeer(p)
	}
	d.learn(p, w[2:])
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if err := d.h.Connect(ctx, d.h.Peerstore().PeerInfo(p)); err != nil {
		return fmt.Errorf("cannot reach %s: %w", p, err)
	}
	return nil
}

func (d *daemon) peerDir(p peer.ID) *File {
	return newDir(p.String(), []*File{
		textFile("status", func(context.Context) (string, error) {
			out := ""
			for _, c := range d.h.Network().ConnsToPeer(p) {
				out += fmt.Sprintf("address %s\ndirection %s\nstreams %d\n", c.RemoteMultiaddr(), c.Stat().Direction, len(c.GetStreams()))
			}
			d.mu.Lock()
			defer d.mu.Unlock()
			if rtt, ok := d.rtt[p]; ok {
				out += fmt.Sprintf("rtt_ms %.2f\n", float64(rtt.Microseconds())/1000)
			}
			return out, nil
		}, nil),
		textFile("ping", func(ctx context.Context) (string, error) {
			ctx, cancel := context.WithTimeout(ctx, deaf)
			defer cancel()
			r := <-ping.Ping(ctx, d.h, p)
			return fmt.Sprintf("%.2f ms\n", float64(r.RTT.Microseconds())/1000), r.Error
		}, nil),
	}, nil, nil)
}
