package main

// A few blocks at once between our own nodes, /ipos/block/1: bitswap waits 20 ms before each message that it sends, twice for one block.
//   request  = (u16 length, cid)..., at most quickMost, then the end of the direction
//   answer   = for each in order u32 length, block; length 0: not here, or not for you

import (
	"context"
	"encoding/binary"
	"io"
	"time"

	"github.com/ipfs/boxo/bitswap"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
)

const (
	quickProtocol = "/ipos/block/1"
	quickMost     = 16
	quickTime     = 2 * time.Second // then bitswap takes over
	quickPeers    = 3               // asked one after the other
	maxBlock      = 2 << 20
	maxCid        = 128
)

// give answers one stream.
func (s *store) give(stream network.Stream) {
	defer stream.Close()
	stream.SetDeadline(time.Now().Add(quickTime))
	b, err := io.ReadAll(io.LimitReader(stream, quickMost*(2+maxCid)+1))
	ask := cursor{b: b}
	for n := 0; err == nil && len(ask.b) > 0; n++ {
		raw := ask.take(int(ask.u16()))
		k, c, bad := cid.CidFromBytes(raw)
		if bad != nil || ask.bad || k != len(raw) || n == quickMost {
			s.score.offence(stream.Conn().RemotePeer(), 5, "a request for blocks that is none")
			stream.Reset()
			return
		}
		var data []byte
		if s.may(stream.Conn().RemotePeer(), c) {
			if held, err := s.Get(context.Background(), c); err == nil {
				data = held.RawData()
			}
		}
		s.score.gave(stream.Conn().RemotePeer(), len(data))
		if _, err = stream.Write(le.AppendUint32(nil, uint32(len(data)))); err == nil {
			_, err = stream.Write(data)
		}
	}
	if err != nil {
		stream.Reset()
	}
}

// quick asks the peers of a small fetch that are connected and speak the protocol, and takes off `missing` what came and is stored.
func (n *node) quick(ctx context.Context, bs *bitswap.Bitswap, s *store, w wanted, missing map[cid.Cid]bool) {
	asked := 0
	for _, p := range w.peers {
		if len(missing) == 0 || len(w.cids) > quickMost || asked == quickPeers || ctx.Err() != nil {
			return
		}
		if !n.serves(p, quickProtocol) || len(n.host.Network().ConnsToPeer(p)) == 0 {
			continue
		}
		asked++
		ctx, cancel := context.WithTimeout(network.WithNoDial(ctx, "quick"), quickTime)
		if stream, err := n.host.NewStream(ctx, p, quickProtocol); err == nil {
			stream.SetDeadline(time.Now().Add(quickTime))
			s.take(ctx, bs, stream, some(w.cids, missing), missing)
			stream.Reset()
		}
		cancel()
	}
}

func (s *store) take(ctx context.Context, bs *bitswap.Bitswap, stream network.Stream, cids []cid.Cid, missing map[cid.Cid]bool) {
	var request []byte
	for _, c := range cids {
		request = append(request, prefixed(c.Bytes())...)
	}
	if _, err := stream.Write(request); err != nil || stream.CloseWrite() != nil {
		return
	}
	for _, c := range cids {
		var size uint32
		if binary.Read(stream, le, &size) != nil || size > maxBlock {
			return
		}
		data := make([]byte, size)
		if _, err := io.ReadFull(stream, data); err != nil || size == 0 {
			continue
		}
		if got, err := c.Prefix().Sum(data); err != nil || !got.Equals(c) {
			s.score.offence(stream.Conn().RemotePeer(), 20, "a block that is not what was asked for")
			return
		}
		if b, err := blocks.NewBlockWithCid(data, c); err == nil && s.Put(ctx, b) == nil {
			delete(missing, c)
			bs.NotifyNewBlocks(ctx, b)
		}
	}
}
