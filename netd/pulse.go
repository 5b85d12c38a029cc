package main

// Who is silent. TCP notices a pulled cable after minutes and a stopped process never, so every peer is pinged; one from which no byte came for
// silentTime loses its connections. Any byte counts, not only our pongs: on a slow uplink a pong can be late for as long as we send, but the peer's
// own pings still arrive.

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/metrics"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
)

const (
	beatTime   = 4 * time.Second
	silentTime = 14 * time.Second // noticed at the next beat: within 18 s
)

type pulse struct {
	metrics.Reporter // the other methods: never called, metrics are off
	host             host.Host
	peers            sync.Map // peer.ID -> *heard
}

type heard struct {
	at      atomic.Int64 // when a byte last came, ns since `start`
	rtt     atomic.Int64 // of the last ping, ns
	pinging atomic.Bool
}

var start = time.Now()

func now() int64 { return int64(time.Since(start)) }

func newPulse() *pulse { return &pulse{Reporter: metrics.NewBandwidthCounter()} }

func (l *pulse) of(p peer.ID) *heard {
	if v, ok := l.peers.Load(p); ok {
		return v.(*heard)
	}
	fresh := &heard{}
	fresh.at.Store(now())
	v, _ := l.peers.LoadOrStore(p, fresh)
	return v.(*heard)
}

func (l *pulse) LogSentMessage(int64)                                   {}
func (l *pulse) LogRecvMessage(int64)                                   {}
func (l *pulse) LogSentMessageStream(int64, protocol.ID, peer.ID)       {}
func (l *pulse) LogRecvMessageStream(_ int64, _ protocol.ID, p peer.ID) { l.of(p).at.Store(now()) }

// last: the last ping's time (0: none yet) and how long ago a byte came.
func (l *pulse) last(p peer.ID) (rtt, ago time.Duration) {
	h := l.of(p)
	return time.Duration(h.rtt.Load()), time.Duration(now() - h.at.Load())
}

func (l *pulse) ping(ctx context.Context, p peer.ID) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(network.WithNoDial(ctx, "ping"), silentTime)
	defer cancel()
	select {
	case r := <-ping.Ping(ctx, l.host, p):
		if r.Error != nil {
			return 0, outOfReach(p, r.Error)
		}
		l.of(p).rtt.Store(int64(r.RTT))
		return r.RTT, nil
	case <-ctx.Done():
		return 0, outOfReach(p, errors.New("no answer to a ping"))
	}
}

func (l *pulse) beat(ctx context.Context) {
	tick := time.NewTicker(beatTime)
	for before := now(); ctx.Err() == nil; before = now() {
		<-tick.C
		late := now()-before > int64(2*beatTime) // it is us who slept: everybody starts anew
		l.peers.Range(func(k, v any) bool {
			p, h := k.(peer.ID), v.(*heard)
			if len(l.host.Network().ConnsToPeer(p)) == 0 {
				l.peers.Delete(p)
			} else if late {
				h.at.Store(now())
			}
			return true
		})
		for _, p := range l.host.Network().Peers() {
			h := l.of(p)
			if now()-h.at.Load() > int64(silentTime) {
				l.peers.Delete(p)
				go l.host.Network().ClosePeer(p)
			} else if h.pinging.CompareAndSwap(false, true) {
				go func() {
					l.ping(ctx, p)
					h.pinging.Store(false)
				}()
			}
		}
	}
}
