package main

// Store: boxo's blockstore, answered by the node over a Link; and the node's permission for each peer and block.

import (
	"context"
	"errors"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/libp2p/go-libp2p/core/peer"
)

type Store struct{ l *Link }

func prefixed(b []byte) []byte {
	return append(le.AppendUint16(make([]byte, 0, 2+len(b)), uint16(len(b))), b...)
}

func (s Store) ask(ctx context.Context, op byte, c cid.Cid) ([]byte, error) {
	r, b, err := s.l.Ask(ctx, op, c.Bytes())
	if err == nil && r != opYes {
		err = ipld.ErrNotFound{Cid: c}
	}
	return b, err
}

func (s Store) Has(ctx context.Context, c cid.Cid) (bool, error) {
	r, _, err := s.l.Ask(ctx, opHas, c.Bytes())
	return r == opYes && err == nil, err
}

func (s Store) GetSize(ctx context.Context, c cid.Cid) (int, error) {
	b, err := s.ask(ctx, opSize, c)
	if err != nil {
		return -1, err
	}
	if len(b) != 4 {
		return -1, errors.New("a size of a wrong length")
	}
	return int(le.Uint32(b)), nil
}

func (s Store) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	b, err := s.ask(ctx, opGet, c)
	if err != nil {
		return nil, err
	}
	return blocks.NewBlockWithCid(b, c)
}

func (s Store) Put(ctx context.Context, b blocks.Block) error {
	r, _, err := s.l.Ask(ctx, opPut, prefixed(b.Cid().Bytes()), b.RawData())
	if err == nil && r != opYes {
		err = errors.New("the node refused the block")
	}
	return err
}

func (s Store) PutMany(ctx context.Context, bs []blocks.Block) error {
	for _, b := range bs {
		if err := s.Put(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

func (s Store) DeleteBlock(context.Context, cid.Cid) error { return errors.New("the node deletes") }
func (s Store) AllKeysChan(context.Context) (<-chan cid.Cid, error) {
	return nil, errors.New("the node lists")
}

// May is bitswap's filter. The node says yes only for a block that it holds: bitswap asks when a want arrives and never again, so a yes
// for a block that comes later would be a yes for ever. Any failure means no.
func (s Store) May(p peer.ID, c cid.Cid) bool {
	r, _, err := s.l.Ask(context.Background(), opMay, prefixed([]byte(p)), c.Bytes())
	return err == nil && r == opYes
}
