package main

// This node as a relay for others, when it is told to be one: /relay. Circuits have no end and no cap of their own; all together they get so many
// bytes a second.

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	pbv2 "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/pb"
	circuit "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/time/rate"
)

const (
	relayBuffer   = 64 << 10 // of one circuit, each way
	relayLeast    = 16 << 10 // bytes a second
	relayPlaces   = 256
	relayCircuits = 64 // of one peer
	relayPerIP    = 32
)

type relaying struct {
	n       *node
	mu      sync.Mutex
	service *circuit.Relay
	limit   int // bytes a second; 0: no limit
	anyone  bool
	places  atomic.Int64
	open    atomic.Int64
	bytes   atomic.Int64
}

func (r *relaying) text(context.Context) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.service == nil {
		return "service off\n", nil
	}
	who := "pool"
	if r.anyone {
		who = "anyone"
	}
	return fmt.Sprintf("service on\nfor %s\nlimit_bytes_s %d\nplaces %d\ncircuits %d\nbytes %d\n", who, r.limit, r.places.Load(), r.open.Load(), r.bytes.Load()), nil
}

// command: `on [limit N[K|M|G]] [for pool|anyone]`, `off`.
func (r *relaying) command(_ context.Context, words []string) error {
	limit, anyone := 0, false
	for i := 1; i < len(words); i += 2 {
		var err error
		switch {
		case words[0] != "on" || i+1 == len(words):
			err = errors.New("")
		case words[i] == "limit":
			limit, err = bytesOf(words[i+1])
		case words[i] == "for" && (words[i+1] == "anyone" || words[i+1] == "pool"):
			anyone = words[i+1] == "anyone"
		default:
			err = errors.New("")
		}
		if err != nil && err.Error() != "" {
			return err
		}
		if err != nil {
			words = []string{"", cut(strings.Join(words, " "), 100)}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case words[0] == "off" && len(words) == 1:
		return r.off()
	case words[0] == "on":
		if err := r.off(); err != nil {
			return err
		}
		return r.on(limit, anyone)
	}
	return fmt.Errorf("%q is not a command of a relay; it knows on [limit BYTES_A_SECOND] [for pool|anyone], off", strings.TrimSpace(strings.Join(words, " ")))
}

func bytesOf(s string) (int, error) {
	unit := map[byte]int{'K': 1e3, 'M': 1e6, 'G': 1e9}[(" " + s)[len(s)]]
	n, err := strconv.Atoi(strings.TrimRight(s, "KMG"))
	if err != nil || n < 0 || n > 1e9 || len(strings.TrimRight(s, "KMG"))+1 < len(s) {
		return 0, fmt.Errorf("%q is no number of bytes a second: 500K, 10M, 1G", cut(s, 50))
	}
	n *= max(unit, 1)
	if n < relayLeast {
		return 0, fmt.Errorf("a relay of %d bytes a second is of no use: at least %d", n, relayLeast)
	}
	return n, nil
}

func (r *relaying) off() error {
	if r.service == nil {
		return nil
	}
	service := r.service
	r.service = nil
	return service.Close()
}

func (r *relaying) on(limit int, anyone bool) error {
	speed := rate.NewLimiter(rate.Inf, 0)
	if limit > 0 {
		speed = rate.NewLimiter(rate.Limit(limit), max(limit/10, relayBuffer))
	}
	service, err := circuit.New(metered{r.n.host, speed}, circuit.WithMetricsTracer(r), circuit.WithACL(r),
		circuit.WithReservationAddressFilter(func(a multiaddr.Multiaddr) bool { return !manet.IsIPLoopback(a) }),
		circuit.WithResources(circuit.Resources{ReservationTTL: 30 * time.Minute, MaxReservations: relayPlaces, MaxCircuits: relayCircuits, BufferSize: relayBuffer,
			MaxReservationsPerPeer: 1, MaxReservationsPerIP: relayPerIP, MaxReservationsPerASN: relayPlaces}))
	if err != nil {
		return fmt.Errorf("no relay can be served: %w", err)
	}
	r.service, r.limit, r.anyone = service, limit, anyone
	r.places.Store(0)
	return nil
}

// AllowReserve: a place is for machines of the pool, or for anyone.
func (r *relaying) AllowReserve(p peer.ID, _ multiaddr.Multiaddr) bool {
	return r.anyone || r.n.reach.ours(p)
}

// AllowConnect: who has a place here wants to be reached, by whom it decides itself.
func (r *relaying) AllowConnect(peer.ID, multiaddr.Multiaddr, peer.ID) bool { return true }

func (r *relaying) RelayStatus(bool)                      {}
func (r *relaying) ConnectionOpened()                     { r.open.Add(1) }
func (r *relaying) ConnectionClosed(time.Duration)        { r.open.Add(-1) }
func (r *relaying) ConnectionRequestHandled(pbv2.Status)  {}
func (r *relaying) ReservationRequestHandled(pbv2.Status) {}
func (r *relaying) ReservationClosed(n int)               { r.places.Add(-int64(n)) }
func (r *relaying) BytesTransferred(n int)                { r.bytes.Add(int64(n)) }
func (r *relaying) ReservationAllowed(renewal bool) {
	if !renewal {
		r.places.Add(1)
	}
}

// metered is the host as the relay service sees it: what it reads from any stream takes its turn.
type metered struct {
	host.Host
	speed *rate.Limiter
}

type slowed struct {
	network.Stream
	speed *rate.Limiter
}

func (m metered) SetStreamHandler(p protocolID, handle network.StreamHandler) {
	m.Host.SetStreamHandler(p, func(s network.Stream) { handle(slowed{s, m.speed}) })
}

func (m metered) NewStream(ctx context.Context, p peer.ID, protos ...protocolID) (network.Stream, error) {
	s, err := m.Host.NewStream(ctx, p, protos...)
	if err != nil {
		return nil, err
	}
	return slowed{s, m.speed}, nil
}

func (s slowed) Read(b []byte) (int, error) {
	n, err := s.Stream.Read(b[:min(len(b), relayBuffer)])
	if n > 0 {
		s.speed.WaitN(context.Background(), n)
	}
	return n, err
}
