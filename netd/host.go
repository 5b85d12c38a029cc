package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	tls "github.com/libp2p/go-libp2p/p2p/security/tls"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	webrtc "github.com/libp2p/go-libp2p/p2p/transport/webrtc"
	"github.com/libp2p/go-libp2p/p2p/transport/websocket"
	webtransport "github.com/libp2p/go-libp2p/p2p/transport/webtransport"
	"github.com/multiformats/go-multiaddr"
)

const (
	connectTime    = 15 * time.Second
	punchDialTime  = 2 * time.Second
	findTime       = 3 * time.Second // to ask the DHT where a peer is of which nothing is known
	peersLow       = 512             // above peersHigh connections, those without a conversation are closed down to peersLow
	peersHigh      = 640
	connsPerIP     = 64 // a household behind one address
	streamsPerPeer = 1024
)

// loadKey reads the key, or makes one: no other process ever sees half a file, and the first of two wins.
func loadKey(path string) (crypto.PrivKey, error) {
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("the key %s may be read by others (mode %o): chmod 600 %s", path, info.Mode().Perm(), path)
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && path != "" {
		if err := makeKey(path); err != nil {
			return nil, fmt.Errorf("no key can be made at %s: %w", path, err)
		}
		b, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, fmt.Errorf("the key %q cannot be read: %w", path, err)
	}
	key, err := crypto.UnmarshalPrivateKey(b)
	if err != nil || key.Type() != crypto.Ed25519 {
		return nil, fmt.Errorf("%s is not an ed25519 key of libp2p", path)
	}
	return key, nil
}

func makeKey(path string) error {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return err
	}
	b, err := crypto.MarshalPrivateKey(key)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".key-") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// checkRun refuses a directory that others can enter, and removes what an earlier netd left there.
func checkRun(run string) error {
	info, err := os.Stat(run)
	if err != nil || !info.IsDir() || info.Mode().Perm() != 0o700 {
		return fmt.Errorf("-run takes a directory of mode 0700 for bulk sockets, not %q", run)
	}
	if longest := filepath.Join(run, "c1234567890"); len(longest) > pathMost {
		return fmt.Errorf("the directory %s is too long for sockets: at most %d bytes", run, pathMost-len("/c1234567890"))
	}
	old, err := filepath.Glob(filepath.Join(run, "c[0-9]*"))
	for _, path := range old {
		os.Remove(path)
	}
	return err
}

type protocolID = protocol.ID

// newHost listens. `portMap`: also ask routers for a mapping, by UPnP and NAT-PMP.
func newHost(key crypto.PrivKey, listen string, portMap bool, n *node) (host.Host, error) {
	limits := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&limits)
	many := rcmgr.ResourceLimits{Conns: 1024, ConnsInbound: 1024, ConnsOutbound: 1024, FD: 2048, Streams: 16384, StreamsInbound: 16384, StreamsOutbound: 16384}
	each := rcmgr.ResourceLimits{Streams: 2 * streamsPerPeer, StreamsInbound: streamsPerPeer, StreamsOutbound: 2 * streamsPerPeer}
	fixed := rcmgr.PartialLimitConfig{System: many, PeerDefault: each, ProtocolDefault: many, ProtocolPeerDefault: each}
	resources, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(fixed.Build(limits.AutoScale())), rcmgr.WithMetricsDisabled(),
		rcmgr.WithLimitPerSubnet([]rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: connsPerIP}}, []rcmgr.ConnLimitPerSubnet{{PrefixLength: 56, ConnCount: connsPerIP}}))
	if err != nil {
		return nil, err
	}
	conns, err := connmgr.NewConnManager(peersLow, peersHigh)
	if err != nil {
		return nil, err
	}
	mapping := func(*libp2p.Config) error { return nil }
	if portMap {
		mapping = libp2p.NATPortMap()
	}
	h, err := libp2p.New(libp2p.Identity(key), libp2p.UserAgent("ipos-netd/"+version), libp2p.DisableMetrics(), libp2p.EnableRelay(), libp2p.NoListenAddrs,
		libp2p.ShareTCPListener(), libp2p.Transport(tcp.NewTCPTransport), libp2p.Transport(quic.NewTransport), libp2p.Transport(websocket.New),
		libp2p.Transport(webtransport.New), libp2p.Transport(webrtc.New),
		libp2p.Security(tls.ID, tls.New), libp2p.Security(noise.ID, noise.New),
		libp2p.ResourceManager(resources), libp2p.ConnectionManager(conns), libp2p.BandwidthReporter(n.pulse), libp2p.ConnectionGater(n.score.gater),
		libp2p.EnableHolePunching(holepunch.WithTracer(n.reach), holepunch.DirectDialTimeout(punchDialTime)), libp2p.EnableAutoNATv2(), libp2p.EnableNATService(), mapping,
		libp2p.SwarmOpts(swarm.WithDialRanker(inTurn)))
	if err != nil {
		return nil, err
	}
	port := "0"
	for _, a := range strings.FieldsFunc(listen, func(r rune) bool { return r == ',' }) {
		if err := listenOn(h, a, &port); err != nil {
			h.Close()
			return nil, err
		}
	}
	return h, nil
}

// listenOn takes any free port where the one asked for is taken; where any will do, first that of the first address, so that all transports share a
// number. A machine without IPv6 does without it.
func listenOn(h host.Host, address string, port *string) error {
	if _, err := multiaddr.NewMultiaddr(address); err != nil {
		return fmt.Errorf("%q is not a multiaddr to listen on: %w", address, err)
	}
	parts := strings.Split(address, "/") // "", ip4, HOST, tcp, PORT, ...
	ports := []string{""}
	if len(parts) > 4 {
		ports = []string{parts[4], *port, "0"}
	}
	if ports[0] == "0" {
		ports = ports[1:]
	}
	var err error
	for _, p := range ports {
		if p != "" {
			parts[4] = p
		}
		if err = h.Network().Listen(multiaddr.StringCast(strings.Join(parts, "/"))); err == nil {
			for _, l := range texts(h.Network().ListenAddresses()) {
				if at := strings.Split(l, "/"); len(at) > 4 && *port == "0" {
					*port = at[4]
				}
			}
			return nil
		}
		if errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL) && strings.HasPrefix(address, "/ip6/::/") {
			return nil
		}
	}
	return fmt.Errorf("nothing can listen on %s: %w", address, err)
}

// listening are the addresses to listen on again after a restart.
func (n *node) listening() (l []string) {
	for _, a := range texts(n.host.Network().ListenAddresses()) {
		if a, _, _ = strings.Cut(a, "/certhash"); !slices.Contains(l, a) && !strings.Contains(a, "p2p-circuit") {
			l = append(l, a)
		}
	}
	return l
}

// inTurn: TCP carries twice what QUIC does here, so QUIC is dialled where TCP does not answer at once, then what browsers need, and relays where
// nothing else does.
func inTurn(addrs []multiaddr.Multiaddr) (l []network.AddrDelay) {
	first := time.Hour
	for _, a := range addrs {
		delay := 150 * time.Millisecond
		for _, p := range a.Protocols() {
			switch p.Code {
			case multiaddr.P_TCP:
				delay = 0
			case multiaddr.P_WS, multiaddr.P_WSS, multiaddr.P_WEBTRANSPORT, multiaddr.P_WEBRTC_DIRECT:
				delay = 300 * time.Millisecond
			}
		}
		if relayed(a) {
			delay = 400 * time.Millisecond
		}
		first = min(first, delay)
		l = append(l, network.AddrDelay{Addr: a, Delay: delay})
	}
	for i := range l {
		l[i].Delay -= first
	}
	return l
}

// addrs are the addresses under which others may reach this node.
func (n *node) addrs() []string { return texts(n.host.Addrs()) }

func texts(addrs []multiaddr.Multiaddr) (l []string) {
	for _, a := range addrs {
		l = append(l, a.String())
	}
	return l
}

// connect makes sure that there is a connection. Whoever asks decides when to try again, so an earlier failure does not count.
func (n *node) connect(ctx context.Context, p peer.ID) error {
	if p == n.host.ID() {
		return fmt.Errorf("%s is this node itself", p)
	}
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	if s, ok := n.host.Network().(*swarm.Swarm); ok {
		s.Backoff().Clear(p)
	}
	if len(n.host.Peerstore().Addrs(p)) == 0 && n.dht.RoutingTable().Size() > 0 {
		asking, cancel := context.WithTimeout(ctx, findTime)
		if info, err := n.dht.FindPeer(asking, p); err == nil {
			n.host.Peerstore().AddAddrs(p, info.Addrs, peerstore.TempAddrTTL)
		}
		cancel()
	}
	if l := n.reach.through(p); len(l) > 0 && len(n.host.Network().ConnsToPeer(p)) == 0 {
		for !n.reach.prepared() && ctx.Err() == nil {
			time.Sleep(10 * time.Millisecond)
		}
		n.host.Peerstore().AddAddrs(p, l, peerstore.TempAddrTTL)
	}
	if err := n.host.Connect(ctx, peer.AddrInfo{ID: p}); err != nil {
		return outOfReach(p, err)
	}
	return nil
}

// outOfReach makes one sentence of an error of libp2p. The words "is out of reach" are part of the protocol.
func outOfReach(p peer.ID, err error) error {
	var dial *swarm.DialError
	var other sec.ErrPeerIDMismatch
	why := err.Error()
	switch {
	case errors.Is(err, swarm.ErrNoAddresses):
		why = "no address of it is known"
	case errors.Is(err, swarm.ErrGaterDisallowedConnection):
		why = "it is cut off for a while: /blocked says why"
	case errors.As(err, &other):
		why = fmt.Sprintf("%s answers there", other.Actual)
	case errors.As(err, &dial) && len(dial.DialErrors) > 0:
		var each []string
		for _, e := range dial.DialErrors {
			each = append(each, fmt.Sprintf("%s: %v", e.Address, e.Cause))
		}
		why = strings.Join(each, "; ")
	case errors.Is(err, context.DeadlineExceeded):
		why = fmt.Sprintf("no answer within %v", connectTime)
	}
	return fmt.Errorf("%s is out of reach (%s)", p, cut(oneLine(why), 500))
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
