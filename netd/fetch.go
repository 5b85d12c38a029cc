package main

// Fetch: the node asks for blocks. body = u32 milliseconds | u16 count, (u16 length, peer id text)... | u32 count, (u16 length, cid)...
// Every block is put into the node's store before the answer: yes if all came, no with the cids that did not (u16 length, cid)...

import (
	"context"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
)

const puts = 4 // blocks on their way into the node's store at once

func (d *daemon) fetch(body []byte) (op byte, out []byte) {
	defer func() {
		if e := recover(); e != nil {
			op, out = opError, []byte("a fetch that cannot be read")
		}
	}()
	r := &request{body}
	timeout := time.Duration(r.u32()) * time.Millisecond
	var peers []peer.ID
	for range r.u16() {
		if p, err := peer.Decode(r.str()); err == nil {
			peers = append(peers, p)
		}
	}
	want := map[cid.Cid]bool{}
	var keys []cid.Cid
	for range r.u32() {
		_, c, err := cid.CidFromBytes([]byte(r.str()))
		if err != nil {
			return opError, []byte("not a CID: " + err.Error())
		}
		keys, want[c] = append(keys, c), true
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	for _, p := range peers {
		go d.h.Connect(ctx, d.h.Peerstore().PeerInfo(p))
	}
	blocks, err := d.bs.NewSession(ctx).GetBlocks(ctx, keys)
	if err != nil {
		return opError, []byte(err.Error())
	}
	free := make(chan error, puts)
	for range puts {
		free <- nil
	}
	for b := range blocks {
		if e := <-free; e != nil && err == nil {
			err = e
		}
		delete(want, b.Cid())
		go func() {
			e := d.store.Put(ctx, b)
			if e == nil {
				e = d.bs.NotifyNewBlocks(ctx, b)
			}
			free <- e
		}()
	}
	for range puts {
		if e := <-free; e != nil && err == nil {
			err = e
		}
	}
	if err != nil {
		return opError, []byte(err.Error())
	}
	if len(want) == 0 {
		return opYes, nil
	}
	for c := range want {
		out = append(out, prefixed(c.Bytes())...)
	}
	return opNo, out
}
