package main

// Blocks: boxo's bitswap over a store that is the node's, and fetches that the node asks for.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/client"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	"github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
)

const (
	outstanding = 4 << 20              // bytes of blocks on their way to one peer
	unstored    = 8 << 20              // bytes of blocks that came and are not yet in the node's store
	gather      = 2 * time.Millisecond // how long wants are collected before they are sent
	batch       = 512                  // wants of one fetch at once: a peer keeps 1024 of ours
	stall       = 2 * time.Second      // without a block for so long the wants are sent again; doubled each time
)

// serveBlocks runs bitswap until the link ends.
func (n *node) serveBlocks(conn net.Conn) error {
	l := newLink(conn)
	s := &store{link: l, score: n.score}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	bs := bitswap.New(ctx, bsnet.NewFromIpfsHost(n.host), nil, s, bitswap.WithPeerBlockRequestFilter(s.may),
		bitswap.MaxOutstandingBytesPerPeer(outstanding), bitswap.WithoutDuplicatedBlockStats(), bitswap.WithWantHaveReplaceSize(0),
		bitswap.WithClientOption(client.WithPerPeerSendDelay(gather)), bitswap.WithTracer(n.score))
	defer bs.Close()
	n.host.SetStreamHandler(quickProtocol, s.give)
	defer n.host.RemoveStreamHandler(quickProtocol)
	l.fetch = func(ctx context.Context, body []byte) (byte, []byte) { return n.fetch(ctx, bs, s, body) }
	return l.run()
}

// store is boxo's blockstore, answered by the node.
type store struct {
	link   *link
	score  *score
	asking [64]sync.Mutex // by a hash of the peer: a peer has one question before the node at a time
}

func prefixed(b []byte) []byte {
	return append(le.AppendUint16(make([]byte, 0, 2+len(b)), uint16(len(b))), b...)
}

func (s *store) ask(ctx context.Context, op byte, c cid.Cid) ([]byte, error) {
	r, b, err := s.link.ask(ctx, op, c.Bytes())
	if err == nil && r != opYes {
		err = ipld.ErrNotFound{Cid: c}
	}
	return b, err
}

func (s *store) Has(ctx context.Context, c cid.Cid) (bool, error) {
	r, _, err := s.link.ask(ctx, opHas, c.Bytes())
	return r == opYes, err
}

func (s *store) GetSize(ctx context.Context, c cid.Cid) (int, error) {
	b, err := s.ask(ctx, opSize, c)
	if err == nil && len(b) != 4 {
		err = fmt.Errorf("a size of %d bytes, not 4", len(b))
	}
	if err != nil {
		return -1, err
	}
	return int(le.Uint32(b)), nil
}

func (s *store) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	b, err := s.ask(ctx, opGet, c)
	if err != nil {
		return nil, err
	}
	return blocks.NewBlockWithCid(b, c)
}

func (s *store) Put(ctx context.Context, b blocks.Block) error {
	r, _, err := s.link.ask(ctx, opPut, prefixed(b.Cid().Bytes()), b.RawData())
	if err == nil && r != opYes {
		err = fmt.Errorf("the node did not store block %s", b.Cid())
	}
	return err
}

func (s *store) PutMany(ctx context.Context, bs []blocks.Block) error {
	for _, b := range bs {
		if err := s.Put(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

func (s *store) DeleteBlock(context.Context, cid.Cid) error {
	return errors.New("the node deletes its blocks itself")
}

func (s *store) AllKeysChan(context.Context) (<-chan cid.Cid, error) {
	return nil, errors.New("the node lists its blocks itself")
}

// may is bitswap's filter: does the node hold the block, and may the peer have it? Bitswap asks when a want arrives and never again, so a yes for a
// block that is yet to come would send it later, whatever the node has decided since. Any failure means no.
func (s *store) may(p peer.ID, c cid.Cid) bool {
	lock := &s.asking[p[len(p)-1]%64]
	lock.Lock()
	defer lock.Unlock()
	r, _, err := s.link.ask(context.Background(), opMay, prefixed([]byte(p.String())), c.Bytes())
	yes := err == nil && r == opYes
	if !yes {
		s.score.denied(p)
	}
	return yes
}

type wanted struct {
	timeout time.Duration
	peers   []peer.ID
	cids    []cid.Cid
}

func parseFetch(body []byte) (w wanted, err error) {
	c := cursor{b: body}
	w.timeout = time.Duration(c.u32()) * time.Millisecond
	for n := c.u16(); n > 0 && !c.bad; n-- {
		s := c.str()
		p, err := peer.Decode(s)
		if err != nil {
			return w, fmt.Errorf("%q is not a peer id", cut(s, 100))
		}
		w.peers = append(w.peers, p)
	}
	for n := c.u32(); n > 0 && !c.bad; n-- {
		b := c.take(int(c.u16()))
		k, id, err := cid.CidFromBytes(b)
		if err != nil || k != len(b) {
			return w, fmt.Errorf("%x is not a CID", b[:min(len(b), 50)])
		}
		w.cids = append(w.cids, id)
	}
	if c.bad || len(c.b) > 0 {
		return w, errors.New("a fetch that is cut short, or too long")
	}
	return w, nil
}

// fetch answers opFetch. Every block is in the node's store before the answer.
func (n *node) fetch(ctx context.Context, bs *bitswap.Bitswap, s *store, body []byte) (byte, []byte) {
	w, err := parseFetch(body)
	if err != nil {
		return opError, []byte(err.Error())
	}
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	s.score.want(w.cids, 1)
	defer time.AfterFunc(lateTime, func() { s.score.want(w.cids, -1) })
	for _, p := range w.peers {
		go n.connect(ctx, p) // bitswap asks whoever connects while it is asking
	}
	missing := map[cid.Cid]bool{}
	for _, c := range w.cids {
		missing[c] = true
	}
	n.quick(ctx, bs, s, w, missing)
	session, patience := bs.NewSession(ctx), stall
	for len(missing) > 0 && ctx.Err() == nil {
		before := len(missing)
		stalled, err := fetchBatch(ctx, bs, session, s, some(w.cids, missing), missing, patience)
		if err != nil {
			return opError, []byte(err.Error())
		}
		if len(missing) < before {
			patience = stall
		}
		if stalled {
			session, patience = bs.NewSession(ctx), 2*patience
		}
	}
	if len(missing) == 0 {
		return opYes, nil
	}
	var out []byte
	for _, c := range w.cids {
		if missing[c] {
			delete(missing, c)
			out = append(out, prefixed(c.Bytes())...)
		}
	}
	return opNo, out
}

func some(cids []cid.Cid, missing map[cid.Cid]bool) (l []cid.Cid) {
	for _, c := range cids {
		if missing[c] && len(l) < batch && !slices.Contains(l, c) {
			l = append(l, c)
		}
	}
	return l
}

// fetchBatch takes off `missing` what came and is stored. A want that was refused is not answered again when the refusal ends, hence `stalled`: true
// if nothing came for a while, so that the caller asks anew.
func fetchBatch(ctx context.Context, bs *bitswap.Bitswap, session exchange.Fetcher, s *store, cids []cid.Cid, missing map[cid.Cid]bool,
	patience time.Duration) (stalled bool, err error) {
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	came, err := session.GetBlocks(asking, cids)
	if err != nil {
		return false, err
	}
	puts, failed := errgroup.WithContext(ctx)
	room := semaphore.NewWeighted(unstored)
	timer := time.NewTimer(patience)
	var stored []cid.Cid
	var mu sync.Mutex
	for open := true; open; {
		select {
		case b, ok := <-came:
			if open = ok; !ok {
				break
			}
			timer.Reset(patience)
			weight := min(int64(len(b.RawData())), unstored)
			if open = room.Acquire(failed, weight) == nil; !open {
				break
			}
			puts.Go(func() error {
				defer room.Release(weight)
				if err := s.Put(failed, b); err != nil {
					return err
				}
				mu.Lock()
				stored = append(stored, b.Cid())
				mu.Unlock()
				return bs.NotifyNewBlocks(failed, b)
			})
		case <-timer.C:
			open, stalled = false, true
		case <-failed.Done():
			open = false
		}
	}
	err = puts.Wait()
	for _, c := range stored {
		delete(missing, c)
	}
	if ctx.Err() != nil { // out of time: what is stored counts, what is not is missing
		err = nil
	}
	return stalled, err
}
