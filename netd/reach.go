package main

// How peers are reached: directly, through a hole that both ends punch, or through a relay; and why not directly. Relays are sought among the
// machines of the pool and the bootstrap list; this node holds a place at some of them as long as nobody has proved that it can be dialled itself.

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	circuit "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

const (
	relaysWanted = 2
	lookTime     = 5 * time.Second         // between looks for relays and the bootstrap list; events come in between
	refusedTime  = 2 * time.Second         // a relay that refused is left alone for so long
	absentTime   = 15 * time.Second        // and so is a bootstrap peer that did not answer
	reserveTime  = 3 * time.Second         // what a relay may take to give a place
	punchTime    = 1200 * time.Millisecond // how long a new stream waits for the direct way before it takes the relayed one
	punchAgain   = time.Minute             // after a hole was not punched, streams wait no more for so long
	idleTime     = 10 * time.Second        // a relayed connection beside a direct one is closed when it has been idle and is so old
	quicTime     = 1500 * time.Millisecond
	youngTime    = 3 * time.Second
	maxPool      = 4096
	relayAddrs   = 4 // addresses that are announced for one relay
)

// attempt is what became of the last try to reach a peer directly.
type attempt struct {
	at    time.Time
	words string // "": it was reached
}

type place struct {
	until time.Time
	addrs []multiaddr.Multiaddr
}

type reach struct {
	n         *node
	wake      chan struct{}
	announce  event.Emitter
	bootstrap []peer.AddrInfo

	mu      sync.Mutex
	pool    map[peer.ID]bool // machines that work together: their relays are used, and they may use ours
	held    map[peer.ID]place
	busy    map[peer.ID]time.Time // whom not to ask before then
	tried   map[peer.ID]attempt
	verdict network.Reachability
}

func newReach(n *node) *reach {
	return &reach{n: n, wake: make(chan struct{}, 1), pool: map[peer.ID]bool{}, held: map[peer.ID]place{}, busy: map[peer.ID]time.Time{}, tried: map[peer.ID]attempt{}}
}

func relayed(a multiaddr.Multiaddr) bool {
	_, err := a.ValueForProtocol(multiaddr.P_CIRCUIT)
	return err == nil
}

// ways are the connections to a peer, the direct ones first, and how many of them are direct.
func (n *node) ways(p peer.ID) (l []network.Conn, direct int) {
	for _, c := range n.host.Network().ConnsToPeer(p) {
		if relayed(c.RemoteMultiaddr()) {
			l = append(l, c)
		} else {
			l = slices.Insert(l, direct, c)
			direct++
		}
	}
	return l, direct
}

func (n *node) serves(p peer.ID, what ...protocolID) bool {
	l, err := n.host.Peerstore().SupportsProtocols(p, what...)
	return err == nil && len(l) > 0
}

// Trace is called by the hole puncher.
func (r *reach) Trace(e *holepunch.Event) {
	a := attempt{at: time.Now()}
	switch e := e.Evt.(type) {
	case *holepunch.DirectDialEvt:
		if !e.Success {
			return // a hole is punched next
		}
	case *holepunch.EndHolePunchEvt:
		if !e.Success {
			a.words = "the NATs between let nobody in: " + cut(oneLine(e.Error), 300)
		}
	case *holepunch.ProtocolErrorEvt:
		a.words = "no hole was punched: " + cut(oneLine(e.Error), 300)
	default:
		return
	}
	r.note(e.Remote, a)
}

func (r *reach) note(p peer.ID, a attempt) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.tried) < maxPool {
		r.tried[p] = a
	}
}

func (r *reach) last(p peer.ID) attempt {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tried[p]
}

func (r *reach) ours(p peer.ID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pool[p]
}

func (r *reach) setPool(l []peer.ID) {
	r.mu.Lock()
	old := r.pool
	r.pool = map[peer.ID]bool{}
	for _, p := range l {
		r.pool[p] = true
	}
	now := maps.Clone(r.pool)
	r.mu.Unlock()
	for p := range old {
		if !now[p] {
			r.n.host.ConnManager().Unprotect(p, "pool")
		}
	}
	for p := range now {
		r.n.host.ConnManager().Protect(p, "pool")
	}
	r.nudge()
}

func (r *reach) nudge() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// relays are the peers with a direct connection that relay, and that may be asked to.
func (r *reach) relays() (l []peer.ID) {
	known := map[peer.ID]bool{}
	for _, b := range r.bootstrap {
		known[b.ID] = true
	}
	for _, p := range r.n.host.Network().Peers() {
		if _, direct := r.n.ways(p); direct > 0 && (known[p] || r.ours(p)) && r.n.serves(p, proto.ProtoIDv2Hop) {
			l = append(l, p)
		}
	}
	slices.Sort(l)
	return l
}

// through are addresses of a peer by way of every relay at hand: whether it has a place there, the relay will say.
func (r *reach) through(p peer.ID) (l []multiaddr.Multiaddr) {
	for _, relay := range r.relays() {
		if relay != p {
			conns, _ := r.n.ways(relay)
			l = append(l, multiaddr.Join(conns[0].RemoteMultiaddr(), circuitOf(relay)))
		}
	}
	return l
}

func circuitOf(relay peer.ID) multiaddr.Multiaddr {
	return multiaddr.StringCast("/p2p/" + relay.String() + "/p2p-circuit")
}

// keep runs as long as netd does.
func (r *reach) keep(ctx context.Context) error {
	bus := r.n.host.EventBus()
	sub, err := bus.Subscribe([]any{new(event.EvtPeerIdentificationCompleted), new(event.EvtPeerProtocolsUpdated), new(event.EvtLocalProtocolsUpdated), new(event.EvtLocalReachabilityChanged), new(event.EvtPeerConnectednessChanged)})
	if err != nil {
		return err
	}
	if r.announce, err = bus.Emitter(new(event.EvtAutoRelayAddrsUpdated), eventbus.Stateful); err != nil {
		return err
	}
	go func() {
		for tick := time.NewTicker(lookTime); ctx.Err() == nil; r.look(ctx) {
			select {
			case e := <-sub.Out():
				if e, ok := e.(event.EvtLocalReachabilityChanged); ok {
					r.mu.Lock()
					r.verdict = e.Reachability
					r.mu.Unlock()
				}
			case <-tick.C:
				r.tidy()
			case <-r.wake:
			}
		}
	}()
	return nil
}

// look gives up places that are lost, asks for those that are wanted, and dials whoever of the bootstrap list is not connected.
func (r *reach) look(ctx context.Context) {
	relays := r.relays()
	r.mu.Lock()
	changed := false
	for p, h := range r.held {
		if !slices.Contains(relays, p) || time.Now().After(h.until) {
			delete(r.held, p)
			changed = true
		}
	}
	wanted := relaysWanted - len(r.held)
	for _, p := range relays {
		h, has := r.held[p]
		if r.verdict == network.ReachabilityPublic || !r.prepared() || time.Now().Before(r.busy[p]) || has && time.Until(h.until) > time.Minute || !has && wanted <= 0 {
			continue
		}
		wanted--
		r.busy[p] = time.Now().Add(reserveTime + refusedTime)
		go r.reserve(ctx, p)
	}
	for _, b := range r.bootstrap {
		if time.Now().After(r.busy[b.ID]) && len(r.n.host.Network().ConnsToPeer(b.ID)) == 0 && b.ID != r.n.host.ID() {
			r.busy[b.ID] = time.Now().Add(absentTime)
			go r.bootUp(ctx, b)
		}
	}
	r.mu.Unlock()
	if changed {
		r.tell()
	}
}

// bootUp dials by QUIC first: what a relay sees of this node's address is where holes are punched, and NATs let UDP through more often than TCP.
func (r *reach) bootUp(ctx context.Context, b peer.AddrInfo) {
	quic := slices.DeleteFunc(slices.Clone(b.Addrs), func(a multiaddr.Multiaddr) bool {
		_, err := a.ValueForProtocol(multiaddr.P_QUIC_V1)
		return err != nil
	})
	r.n.host.Peerstore().AddAddrs(b.ID, quic, peerstore.PermanentAddrTTL)
	short, cancel := context.WithTimeout(ctx, quicTime)
	defer cancel()
	err := r.n.connect(short, b.ID)
	r.n.host.Peerstore().AddAddrs(b.ID, b.Addrs, peerstore.PermanentAddrTTL)
	if err != nil {
		err = r.n.connect(ctx, b.ID)
	}
	if err == nil {
		r.free(b.ID)
	}
}

func (r *reach) free(p peer.ID) {
	r.mu.Lock()
	delete(r.busy, p)
	r.mu.Unlock()
	r.nudge()
}

// reserve asks a relay for a place.
func (r *reach) reserve(ctx context.Context, p peer.ID) {
	ctx, cancel := context.WithTimeout(ctx, reserveTime)
	defer cancel()
	got, err := circuit.Reserve(ctx, r.n.host, peer.AddrInfo{ID: p})
	if err != nil {
		r.mu.Lock()
		r.busy[p] = time.Now().Add(refusedTime)
		r.mu.Unlock()
		time.AfterFunc(refusedTime+time.Millisecond, r.nudge)
		r.note(p, attempt{time.Now(), "it gives no place as a relay: " + cut(oneLine(err.Error()), 300)})
		return
	}
	addrs := got.Addrs
	for _, c := range r.n.host.Network().ConnsToPeer(p) {
		if c.Stat().Direction == network.DirOutbound {
			addrs = slices.Insert(addrs, 0, c.RemoteMultiaddr())
		}
	}
	var l []multiaddr.Multiaddr
	for _, a := range addrs {
		if at, _ := peer.SplitAddr(a); at != nil && !relayed(at) {
			l = append(l, multiaddr.Join(at, circuitOf(p)))
		}
	}
	l = multiaddr.Unique(l)
	r.mu.Lock()
	r.held[p] = place{got.Expiration, l[:min(len(l), relayAddrs)]}
	delete(r.busy, p)
	r.mu.Unlock()
	r.tell()
}

// tell announces the addresses by way of relays, or that there are none any more.
func (r *reach) tell() {
	r.mu.Lock()
	var l []multiaddr.Multiaddr
	for _, h := range r.held {
		l = append(l, h.addrs...)
	}
	r.mu.Unlock()
	r.announce.Emit(event.EvtAutoRelayAddrsUpdated{RelayAddrs: l})
}

// tidy closes relayed connections that a direct one has made needless, and forgets who is gone.
func (r *reach) tidy() {
	for _, p := range r.n.host.Network().Peers() {
		conns, direct := r.n.ways(p)
		for _, c := range conns[direct:] {
			if direct > 0 && len(c.GetStreams()) == 0 && time.Since(c.Stat().Opened) > idleTime {
				c.Close()
			}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for p, a := range r.tried {
		if time.Since(a.at) > punchAgain && len(r.n.host.Network().ConnsToPeer(p)) == 0 {
			delete(r.tried, p)
		}
	}
	maps.DeleteFunc(r.busy, func(_ peer.ID, t time.Time) bool { return time.Now().After(t) })
}

// prepared: whether this node can punch holes, or is too old for it to come. A relayed connection made before is never replaced by a direct one, so
// in its first seconds a node neither makes one nor takes a place at a relay.
func (r *reach) prepared() bool {
	return time.Since(r.n.since) > youngTime || slices.Contains(r.n.host.Mux().Protocols(), holepunch.Protocol)
}

// direct gives a fresh relayed connection the time in which it usually becomes a direct one.
func (r *reach) direct(ctx context.Context, p peer.ID) {
	began := time.Now()
	before := r.last(p)
	if before.words != "" && time.Since(before.at) < punchAgain {
		return
	}
	if slices.ContainsFunc(r.n.host.Peerstore().Addrs(p), func(a multiaddr.Multiaddr) bool { return !relayed(a) && manet.IsPrivateAddr(a) }) {
		go r.n.host.Connect(network.WithForceDirectDial(ctx, "on the same network?"), peer.AddrInfo{ID: p}) // the hole puncher tries public ones alone
	}
	for {
		_, direct := r.n.ways(p)
		if now := r.last(p); direct > 0 || now.at != before.at && now.words != "" || ctx.Err() != nil {
			return
		}
		if time.Since(began) > punchTime {
			why := fmt.Sprintf("no direct way was found within %v", punchTime)
			if !r.n.serves(p, holepunch.Protocol) {
				why = "one of both ends knows no public address of its own"
			}
			r.note(p, attempt{time.Now(), why})
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// path says how a peer is reached now, and why so.
func (r *reach) path(p peer.ID) (path, why string) {
	conns, direct := r.n.ways(p)
	a := r.last(p)
	switch {
	case len(conns) == 0:
		return "none", "not connected"
	case direct > 0 && !a.at.IsZero() && a.words == "":
		return "direct", "a hole was punched, or a direct dial worked, after it was reached through a relay"
	case direct > 0:
		return "direct", "one end can be dialled by the other"
	}
	relay, _ := conns[0].RemoteMultiaddr().ValueForProtocol(multiaddr.P_P2P)
	if a.words == "" {
		a.words = "the direct way is being tried"
	}
	return "relay " + relay, a.words
}

// text is the part of /status on this node's own reachability.
func (r *reach) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	public := 0
	for _, a := range r.n.host.Addrs() {
		if !relayed(a) && manet.IsPublicAddr(a) {
			public++
		}
	}
	s := fmt.Sprintf("reachability %s\npublic_addresses %d\npunches_holes %v\n", verdicts[r.verdict], public, slices.Contains(r.n.host.Mux().Protocols(), holepunch.Protocol))
	for p, h := range r.held {
		s += fmt.Sprintf("relay_%s %d\n", p, int(time.Until(h.until).Seconds()))
	}
	return s
}

var verdicts = map[network.Reachability]string{network.ReachabilityUnknown: "unknown", network.ReachabilityPublic: "public", network.ReachabilityPrivate: "private"}
