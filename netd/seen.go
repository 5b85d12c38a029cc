package main

// What others are told about peers: /events. A reader that is slow misses steps in between, never the state: each remembers what it was told and
// is told the difference.

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"
)

const (
	mdnsService = "_ipos._udp"
	maxFound    = 1024 // peers that mDNS saw: whoever is on the local network can make them up
	lanTime     = 2 * time.Second
)

type sighting struct {
	at        uint64 // grows with every change
	addresses []string
}

type line struct {
	Event     string   `json:"event"`
	Peer      string   `json:"peer"`
	Addresses []string `json:"addresses"`
}

type seen struct {
	mu        sync.Mutex
	clock     uint64
	me        peer.ID
	mine      sighting
	connected map[peer.ID]sighting
	found     map[peer.ID]sighting
	upAt      time.Time     // when somebody last came
	changed   chan struct{} // closed and replaced at each change
}

func newSeen() *seen {
	return &seen{connected: map[peer.ID]sighting{}, found: map[peer.ID]sighting{}, changed: make(chan struct{})}
}

func (s *seen) change(do func(sighting) bool, addresses []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clock++
	if do(sighting{s.clock, addresses}) {
		close(s.changed)
		s.changed = make(chan struct{})
	}
}

func (s *seen) addresses(l []string) {
	s.change(func(v sighting) bool { s.mine = v; return true }, l)
}

func (s *seen) up(p peer.ID, addresses []string) {
	s.change(func(v sighting) bool { s.connected[p], s.upAt = v, time.Now(); return true }, addresses)
}

func (s *seen) lastUp() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.upAt
}

// down forgets also where mDNS saw the peer, so that the next time it is seen is news.
func (s *seen) down(p peer.ID) {
	s.change(func(sighting) bool { delete(s.connected, p); delete(s.found, p); return true }, nil)
}

// HandlePeerFound is called by mDNS, again and again for the same peer.
func (s *seen) HandlePeerFound(info peer.AddrInfo) {
	var l []string
	for _, a := range info.Addrs {
		l = append(l, a.String())
	}
	slices.Sort(l)
	s.change(func(v sighting) bool {
		old, known := s.found[info.ID]
		if info.ID == s.me || slices.Equal(old.addresses, l) || !known && len(s.found) >= maxFound {
			return false
		}
		s.found[info.ID] = v
		return true
	}, l)
}

// reader gives each open file its own view: the state first, then what changes.
func (s *seen) reader() func(context.Context, uint64, uint32) ([]byte, error) {
	var rest []byte
	var told uint64 // my own addresses
	connected, found := map[peer.ID]uint64{}, map[peer.ID]uint64{}
	next := func() (b []byte, changed chan struct{}) {
		s.mu.Lock()
		defer s.mu.Unlock()
		put := func(event string, p peer.ID, addresses []string) {
			l, _ := json.Marshal(line{event, p.String(), append([]string{}, addresses...)})
			b = append(append(b, l...), '\n')
		}
		if s.mine.at != told {
			told = s.mine.at
			put("addresses", s.me, s.mine.addresses)
		}
		for p, at := range connected {
			if s.connected[p].at != at {
				delete(connected, p)
				put("gone", p, nil)
			}
		}
		for p, v := range s.connected {
			if connected[p] != v.at {
				connected[p] = v.at
				put("connected", p, v.addresses)
			}
		}
		for p := range found {
			if _, known := s.found[p]; !known {
				delete(found, p)
			}
		}
		for p, v := range s.found {
			if found[p] != v.at {
				found[p] = v.at
				put("found", p, v.addresses)
			}
		}
		return b, s.changed
	}
	return func(ctx context.Context, _ uint64, count uint32) ([]byte, error) {
		for len(rest) == 0 {
			var changed chan struct{}
			if rest, changed = next(); len(rest) > 0 {
				break
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		n := min(len(rest), int(count))
		b := rest[:n]
		rest = rest[n:]
		return b, nil
	}
}

// watch starts what tells us.
func (n *node) watch(onLAN bool) error {
	n.seen.me = n.host.ID()
	sub, err := n.host.EventBus().Subscribe([]any{new(event.EvtPeerConnectednessChanged), new(event.EvtLocalAddressesUpdated)})
	if err != nil {
		return err
	}
	n.seen.addresses(n.addrs())
	go func() {
		for e := range sub.Out() {
			switch e := e.(type) {
			case event.EvtLocalAddressesUpdated:
				n.seen.addresses(n.addrs())
			case event.EvtPeerConnectednessChanged:
				if e.Connectedness == network.NotConnected {
					n.seen.down(e.Peer)
					continue
				}
				var l []string
				for _, c := range n.host.Network().ConnsToPeer(e.Peer) {
					a := c.RemoteMultiaddr()
					if l = append(l, a.String()); c.Stat().Direction == network.DirOutbound {
						n.host.Peerstore().AddAddr(e.Peer, a, peerstore.RecentlyConnectedAddrTTL)
					}
				}
				n.seen.up(e.Peer, l)
			}
		}
	}()
	if onLAN {
		go n.meet()
	}
	return nil
}

// meet announces this node on the local network and looks for others there. The service of libp2p says for ever what was true when it was started, on
// the interfaces that were up then, and does not start where there are none: so it is started anew when they change, and a machine without a network
// waits for one.
func (n *node) meet() {
	var running mdns.Service
	before := ""
	for ; ; time.Sleep(lanTime) {
		now := n.lan()
		if now == before {
			continue
		}
		before = now
		if running != nil {
			running.Close()
		}
		running = mdns.NewMdnsService(n.host, mdnsService, n.seen)
		if err := running.Start(); err != nil {
			log.Printf("no mDNS until the network changes: %v", err)
		}
	}
}

// lan describes what mDNS goes by: the interfaces that it can use, and the addresses that it announces.
func (n *node) lan() string {
	usable := net.FlagUp | net.FlagMulticast
	var l []string
	interfaces, _ := net.Interfaces()
	for _, i := range interfaces {
		if addrs, _ := i.Addrs(); i.Flags&usable == usable {
			l = append(l, fmt.Sprint(i.Index, i.Name, addrs))
		}
	}
	addrs, _ := n.host.Network().InterfaceListenAddresses()
	addresses := texts(addrs)
	slices.Sort(addresses)
	return fmt.Sprint(l, addresses)
}
