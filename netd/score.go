package main

// What each peer has cost and given, and who has gone too far: offences add points, which fade by one a second; at `blockAt` the peer is cut off for
// `blockTime`. Machines of the pool are written up, never cut off: they have other ways to do harm, and the log says what happened.

import (
	"fmt"
	"log"
	"slices"
	"strings"
	"sync"
	"time"

	bsmsg "github.com/ipfs/boxo/bitswap/message"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/conngater"
)

const (
	blockAt     = 100
	blockTime   = 10 * time.Minute
	maxAccounts = 8192
	freeDenials = 4096             // wants in a row that may be refused without an offence
	lateTime    = 30 * time.Second // blocks of a fetch that has ended are no offence for so long
)

type account struct {
	points       float64
	at           time.Time
	sent, got    uint64 // bytes of blocks
	denied       uint64 // wants
	unsolicited  uint64 // blocks
	blockedUntil time.Time
	why          string
}

type score struct {
	gater *conngater.BasicConnectionGater
	host  host.Host
	ours  func(peer.ID) bool

	mu     sync.Mutex
	peers  map[peer.ID]*account
	wanted map[cid.Cid]int
}

func newScore(ours func(peer.ID) bool) (*score, error) {
	gater, err := conngater.NewBasicConnectionGater(nil)
	return &score{gater: gater, ours: ours, peers: map[peer.ID]*account{}, wanted: map[cid.Cid]int{}}, err
}

// of gives the account of a peer; with the lock held.
func (s *score) of(p peer.ID) *account {
	a := s.peers[p]
	if a == nil {
		if len(s.peers) >= maxAccounts {
			for q, b := range s.peers {
				if b.fade(); b.points == 0 && time.Now().After(b.blockedUntil) {
					delete(s.peers, q)
				}
			}
		}
		a = &account{at: time.Now()}
		s.peers[p] = a
	}
	return a
}

func (a *account) fade() {
	a.points = max(0, a.points-time.Since(a.at).Seconds())
	a.at = time.Now()
}

func (s *score) offence(p peer.ID, points float64, why string) {
	ours := s.ours(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.of(p)
	a.fade()
	before := a.points
	a.points = min(a.points+points, 2*blockAt)
	if a.points < blockAt || before >= blockAt || time.Now().Before(a.blockedUntil) {
		return // not yet, or known already
	}
	if ours {
		log.Printf("%s, a machine of the pool, overdoes it: %s", p, why)
		return
	}
	log.Printf("%s is cut off for %v: %s", p, blockTime, why)
	a.blockedUntil, a.why = time.Now().Add(blockTime), why
	s.gater.BlockPeer(p)
	go s.host.Network().ClosePeer(p)
	time.AfterFunc(blockTime, func() { s.unblock(p) })
}

func (s *score) unblock(p peer.ID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.peers[p]; a != nil {
		a.points, a.blockedUntil = 0, time.Time{}
	}
	return s.gater.UnblockPeer(p)
}

// denied counts a want that was refused, and says whether the peer is being asked too much of the node.
func (s *score) denied(p peer.ID) {
	s.mu.Lock()
	a := s.of(p)
	a.denied++
	flood := a.denied > freeDenials
	s.mu.Unlock()
	if flood {
		s.offence(p, 0.02, "a flood of wants for what it may not have or is not here")
	}
}

func (s *score) want(cids []cid.Cid, by int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range cids {
		if s.wanted[c] += by; s.wanted[c] <= 0 {
			delete(s.wanted, c)
		}
	}
}

// MessageReceived is called by bitswap.
func (s *score) MessageReceived(p peer.ID, m bsmsg.BitSwapMessage) {
	useless, bytes := 0, 0
	s.mu.Lock()
	a := s.of(p)
	for _, b := range m.Blocks() {
		a.got += uint64(len(b.RawData()))
		if s.wanted[b.Cid()] == 0 {
			useless++
			bytes += len(b.RawData())
			a.unsolicited++
		}
	}
	s.mu.Unlock()
	if useless > 0 {
		s.offence(p, float64(useless)+float64(bytes)/(256<<10), "blocks that nobody asked for")
	}
}

// MessageSent is called by bitswap.
func (s *score) MessageSent(p peer.ID, m bsmsg.BitSwapMessage) {
	for _, b := range m.Blocks() {
		s.gave(p, len(b.RawData()))
	}
}

func (s *score) gave(p peer.ID, bytes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.of(p).sent += uint64(bytes)
}

func (s *score) text(p peer.ID) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.of(p)
	a.fade()
	return fmt.Sprintf("blocks_sent_bytes %d\nblocks_got_bytes %d\nwants_denied %d\nblocks_unsolicited %d\nscore %.0f\n", a.sent, a.got, a.denied, a.unsolicited, -a.points)
}

// blocked is the file of those who are cut off.
func (s *score) blocked() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var l []string
	for p, a := range s.peers {
		if left := time.Until(a.blockedUntil); left > 0 {
			l = append(l, fmt.Sprintf("%s %d %s", p, int(left.Seconds()), strings.TrimSpace(a.why)))
		}
	}
	slices.Sort(l)
	return lines(l)
}
