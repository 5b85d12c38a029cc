package main

// The DHT of IPOS nodes, /ipos/kad/1.0.0: who provides a block, where a peer is, and small records that only the holder of a key can write.

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	kadpb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/record"
)

const (
	routeTime = 20 * time.Second
	maxValue  = 4 << 10 // bytes of a record's value
	maxFind   = 100     // providers
	freshTime = 5 * time.Second
)

// signed is the content of a record: any bytes, newer ones replace older ones.
type signed struct {
	at    uint64 // ns since 1970
	value []byte
}

func (*signed) Domain() string { return "ipos-record" }
func (*signed) Codec() []byte  { return []byte("/ipos/record") }
func (s *signed) MarshalRecord() ([]byte, error) {
	return append(le.AppendUint64(nil, s.at), s.value...), nil
}

func (s *signed) UnmarshalRecord(b []byte) error {
	if len(b) < 8 || len(b) > 8+maxValue {
		return fmt.Errorf("a record of %d bytes; its value may have %d", len(b), maxValue)
	}
	s.at, s.value = le.Uint64(b), bytes.Clone(b[8:])
	return nil
}

func recordKey(p peer.ID, name string) string { return "/ipos/" + p.String() + "/" + name }

// records checks and compares what the DHT stores under /ipos/PEER/NAME: signed by that peer, not from the future.
type records struct{}

func opened(key string, b []byte) (*signed, error) {
	var s signed
	e, err := record.ConsumeTypedEnvelope(b, &s)
	if err != nil {
		return nil, err
	}
	p, err := peer.IDFromPublicKey(e.PublicKey)
	if who, _, _ := strings.Cut(strings.TrimPrefix(key, "/ipos/"), "/"); err != nil || who != p.String() {
		return nil, fmt.Errorf("the record %q is signed by %s", cut(key, 100), p)
	}
	if time.Unix(0, int64(s.at)).After(time.Now().Add(time.Hour)) {
		return nil, fmt.Errorf("the record %q is from the future", cut(key, 100))
	}
	return &s, nil
}

func (records) Validate(key string, b []byte) error {
	_, err := opened(key, b)
	return err
}

func (records) Select(key string, all [][]byte) (best int, err error) {
	var newest uint64
	best = -1
	for i, b := range all {
		if s, err := opened(key, b); err == nil && (best < 0 || s.at > newest) {
			best, newest = i, s.at
		}
	}
	if best < 0 {
		return 0, errors.New("no record of them is valid")
	}
	return best, nil
}

func (n *node) startRouting() (err error) {
	n.dht, err = dht.New(n.host, dht.ProtocolPrefix("/ipos"), dht.Mode(dht.ModeAutoServer), dht.NamespacedValidator("ipos", records{}),
		dht.AddressFilter(nil), dht.RoutingTableFilter(nil), dht.QueryFilter(func(any, peer.AddrInfo) bool { return true }),
		dht.OnRequestHook(func(_ context.Context, s network.Stream, m *kadpb.Message) {
			if t := m.GetType(); t == kadpb.Message_ADD_PROVIDER || t == kadpb.Message_PUT_VALUE {
				n.score.offence(s.Conn().RemotePeer(), 0.1, "a flood of records for the DHT")
			}
		}))
	return err
}

// ask answers a line of /routing: what it gives is read from the same file.
func (n *node) ask(ctx context.Context, words []string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, routeTime)
	defer cancel()
	switch word, args := words[0], words[1:]; {
	case word == "provide" && len(args) == 1:
		return "", n.provide(ctx, args[0])
	case word == "find" && (len(args) == 1 || len(args) == 2):
		return n.find(ctx, args)
	case word == "peer" && len(args) == 1:
		p, err := peer.Decode(args[0])
		if err != nil {
			return "", fmt.Errorf("%q is not a peer id", cut(args[0], 100))
		}
		info, err := n.dht.FindPeer(ctx, p)
		if err != nil {
			return "", fmt.Errorf("nobody knows where %s is: %w", p, err)
		}
		return lines(texts(info.Addrs)), nil
	case word == "put" && len(args) == 2:
		return "", n.put(ctx, args[0], args[1])
	case word == "get" && len(args) == 2:
		p, err := peer.Decode(args[0])
		if err != nil {
			return "", fmt.Errorf("%q is not a peer id", cut(args[0], 100))
		}
		key := recordKey(p, args[1])
		b, err := n.dht.GetValue(ctx, key)
		if err != nil {
			return "", fmt.Errorf("no record %s of %s was found: %w", cut(args[1], 100), p, err)
		}
		s, err := opened(key, b)
		if err != nil {
			return "", err
		}
		return base64.StdEncoding.EncodeToString(s.value) + "\n", nil
	}
	return "", fmt.Errorf("%q is not a question here; it knows provide CID, find CID [COUNT], peer PEER, put NAME BASE64, get PEER NAME", cut(strings.Join(words, " "), 200))
}

func (n *node) provide(ctx context.Context, text string) error {
	c, err := cid.Decode(text)
	if err != nil {
		return fmt.Errorf("%q is not a CID", cut(text, 100))
	}
	if n.dht.RoutingTable().Size() == 0 {
		return fmt.Errorf("%s cannot be announced: no other node is connected", c)
	}
	if time.Since(n.seen.lastUp()) < freshTime { // whoever has just come is not found by it yet: once more when it is
		time.AfterFunc(freshTime/4, func() { n.dht.Provide(context.Background(), c, true) })
	}
	return n.dht.Provide(ctx, c, true)
}

func (n *node) find(ctx context.Context, args []string) (string, error) {
	c, err := cid.Decode(args[0])
	count := 20
	if err == nil && len(args) == 2 {
		count, err = strconv.Atoi(args[1])
	}
	if err != nil || count < 1 || count > maxFind {
		return "", fmt.Errorf("find takes a CID and a count of at most %d, not %q", maxFind, cut(strings.Join(args, " "), 100))
	}
	var l []string
	for info := range n.dht.FindProvidersAsync(ctx, c, count) {
		l = append(l, strings.Join(append([]string{info.ID.String()}, texts(info.Addrs)...), " "))
	}
	return lines(l), nil
}

func (n *node) put(ctx context.Context, name, text string) error {
	value, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(value) > maxValue || strings.Contains(name, "/") || len(name) > 100 {
		return fmt.Errorf("put takes a name of at most 100 bytes without / and at most %d bytes in base64", maxValue)
	}
	e, err := record.Seal(&signed{uint64(time.Now().UnixNano()), value}, n.host.Peerstore().PrivKey(n.host.ID()))
	if err != nil {
		return err
	}
	b, err := e.Marshal()
	if err != nil {
		return err
	}
	return n.dht.PutValue(ctx, recordKey(n.host.ID(), name), b)
}

// questions is a file that answers what is written to it, each open file for itself.
func questions(ask func(context.Context, []string) (string, error)) func(*fid) error {
	return func(f *fid) error {
		answer := ""
		h := snapshot(func(context.Context) (string, error) { return answer, nil })
		h.write = commands(func(ctx context.Context, words []string) (err error) {
			answer, err = ask(ctx, words)
			return err
		})
		f.handle = h
		return nil
	}
}
