package main

// Peers that mean harm, against a whole node in this process: what they must not get, and what others must still get.

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	bsmsg "github.com/ipfs/boxo/bitswap/message"
	pb "github.com/ipfs/boxo/bitswap/message/pb"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/record"
	circuit "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	"github.com/multiformats/go-multihash"
)

var bitswaps = []protocolID{"/ipfs/bitswap/1.2.0", "/ipfs/bitswap/1.1.0", "/ipfs/bitswap/1.0.0", "/ipfs/bitswap"}

// pantry is the node's end of a block link: what is held, and what may leave.
type pantry struct {
	may func(peer string, c string) bool

	mu    sync.Mutex
	held  map[string][]byte
	asked int
}

func newPantry(bs ...blocks.Block) *pantry {
	p := &pantry{may: func(string, string) bool { return true }, held: map[string][]byte{}}
	for _, b := range bs {
		p.put(b)
	}
	return p
}

func (p *pantry) put(b blocks.Block) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held[string(b.Cid().Bytes())] = b.RawData()
}

func (p *pantry) has(b blocks.Block) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held[string(b.Cid().Bytes())] != nil
}

func (p *pantry) answer(op byte, body []byte) (byte, []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	held := func(c []byte) ([]byte, bool) { b, ok := p.held[string(c)]; return b, ok }
	switch op {
	case opPut:
		c := cursor{b: body}
		p.held[string(c.take(int(c.u16())))] = bytes.Clone(c.b)
		return opYes, nil
	case opMay:
		p.asked++
		c := cursor{b: body}
		who := c.str()
		if _, ok := held(c.b); ok && p.may(who, string(c.b)) {
			return opYes, nil
		}
		return opNo, nil
	}
	b, ok := held(body)
	switch {
	case !ok:
		return opNo, nil
	case op == opSize:
		return opYes, le.AppendUint32(nil, uint32(len(b)))
	case op == opGet:
		return opYes, b
	}
	return opYes, nil
}

// serve makes the node of a pantry; `fetch` asks it for blocks.
func (p *pantry) serve(t *testing.T, o options) (n *node, fetch func(context.Context, ...cid.Cid) []cid.Cid) {
	n = testNode(t, o)
	ours, theirs := socketpair(t)
	go n.serveBlocks(theirs)
	t.Cleanup(func() { ours.Close() })
	answers := make(chan frame, 16)
	var writing sync.Mutex
	send := func(id uint32, op byte, body []byte) {
		writing.Lock()
		defer writing.Unlock()
		ours.Write(append(append(le.AppendUint32(le.AppendUint32(nil, uint32(5+len(body))), id), op), body...))
	}
	go func() {
		for h := make([]byte, 9); ; {
			if _, err := io.ReadFull(ours, h); err != nil {
				return
			}
			body := make([]byte, le.Uint32(h)-5)
			io.ReadFull(ours, body)
			if h[8] <= opError {
				answers <- frame{h[8], body}
				continue
			}
			op, out := p.answer(h[8], body)
			send(le.Uint32(h[4:]), op, out)
		}
	}()
	return n, func(ctx context.Context, cids ...cid.Cid) (missing []cid.Cid) {
		until, _ := ctx.Deadline()
		body := le.AppendUint16(le.AppendUint32(nil, uint32(time.Until(until).Milliseconds())), 0)
		body = le.AppendUint32(body, uint32(len(cids)))
		for _, c := range cids {
			body = append(body, prefixed(c.Bytes())...)
		}
		send(1, opFetch, body)
		r := <-answers
		for c := (cursor{b: r.body}); r.op == opNo && len(c.b) > 0; {
			_, id, _ := cid.CidFromBytes(c.take(int(c.u16())))
			missing = append(missing, id)
		}
		return missing
	}
}

func block(n int) blocks.Block {
	data := make([]byte, n)
	rand.Read(data)
	h, _ := multihash.Sum(data, multihash.SHA2_256, -1)
	b, _ := blocks.NewBlockWithCid(data, cid.NewCidV1(cid.Raw, h))
	return b
}

// evil is a host that keeps all bytes that come to it by bitswap.
type evil struct {
	host.Host
	t   *testing.T
	mu  sync.Mutex
	got bytes.Buffer
}

func newEvil(t *testing.T, n *node) *evil {
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	e := &evil{Host: h, t: t}
	for _, p := range bitswaps {
		h.SetStreamHandler(p, func(s network.Stream) { e.keep(s) })
	}
	if err := h.Connect(t.Context(), peer.AddrInfo{ID: n.host.ID(), Addrs: n.host.Addrs()}); err != nil {
		t.Fatal(err)
	}
	return e
}

func (e *evil) keep(s io.Reader) {
	b := make([]byte, 1<<16)
	for {
		k, err := s.Read(b)
		e.mu.Lock()
		e.got.Write(b[:k])
		e.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (e *evil) has(b blocks.Block) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return bytes.Contains(e.got.Bytes(), b.RawData())
}

// send sends a message, or any bytes, on a stream of its own; what comes back on it counts.
func (e *evil) send(n *node, p protocolID, raw []byte) error {
	ctx, cancel := context.WithTimeout(e.t.Context(), 5*time.Second)
	defer cancel()
	s, err := e.NewStream(ctx, n.host.ID(), p)
	if err != nil {
		return err
	}
	go e.keep(s)
	s.SetWriteDeadline(time.Now().Add(5 * time.Second))
	_, err = s.Write(raw)
	return err
}

func raw(m bsmsg.BitSwapMessage, p protocolID) []byte {
	var b bytes.Buffer
	if strings.HasSuffix(string(p), "1.0.0") || strings.HasSuffix(string(p), "bitswap") {
		m.(interface{ ToNetV0(io.Writer) error }).ToNetV0(&b)
	} else {
		m.ToNetV1(&b)
	}
	return b.Bytes()
}

func eventually(t *testing.T, within time.Duration, what string, is func() bool) {
	t.Helper()
	for began := time.Now(); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Since(began) > within {
			t.Fatalf("%s: not within %v", what, within)
		}
	}
}

func reachable(t *testing.T, n *node) {
	t.Helper()
	other := testNode(t, options{})
	other.host.Peerstore().AddAddrs(n.host.ID(), n.host.Addrs(), time.Hour)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := other.connect(ctx, n.host.ID()); err != nil {
		t.Fatal("an honest peer is not served:", err)
	}
}

// wants asks for a block by every protocol, in every way, and in many broken ways from a seed.
func wants(t *testing.T, e *evil, n *node, c cid.Cid, seed uint64) {
	dice := mrand.New(mrand.NewPCG(seed, 0))
	e.send(n, quickProtocol, prefixed(c.Bytes()))
	if s, err := e.NewStream(t.Context(), n.host.ID(), quickProtocol); err == nil {
		s.Write(bytes.Repeat(prefixed(c.Bytes()), quickMost))
		s.CloseWrite()
		e.keep(s)
	}
	for _, p := range bitswaps {
		for _, kind := range []pb.Message_Wantlist_WantType{pb.Message_Wantlist_Block, pb.Message_Wantlist_Have} {
			m := bsmsg.New(dice.IntN(2) == 0)
			m.AddEntry(c, dice.Int32(), kind, dice.IntN(2) == 0)
			if dice.IntN(3) == 0 {
				m.Cancel(c)
				m.AddEntry(c, 1, kind, true)
			}
			b := raw(m, p)
			e.send(n, p, b)
			for range 5 {
				broken := bytes.Clone(b)
				for range 1 + dice.IntN(3) {
					if i := dice.IntN(len(broken)); i > 0 {
						broken[i] ^= byte(1 << dice.IntN(8))
					}
				}
				e.send(n, p, broken)
			}
		}
	}
}

func TestAPrivateBlockIsGivenOnNoWay(t *testing.T) {
	for _, leaky := range []bool{false, true} { // a node that permits what is private is found out
		private, late, public := block(500), block(600), block(700)
		p := newPantry(private, public)
		p.may = func(_ string, c string) bool { return leaky || c == string(public.Cid().Bytes()) }
		n, _ := p.serve(t, options{})
		e := newEvil(t, n)
		for seed := range uint64(3) {
			wants(t, e, n, private.Cid(), seed)
			wants(t, e, n, late.Cid(), seed) // asked for before it is there
		}
		p.put(late)
		wants(t, e, n, public.Cid(), 9)
		wants(t, e, n, late.Cid(), 9)
		eventually(t, 5*time.Second, "the public block", func() bool { return e.has(public) })
		time.Sleep(100 * time.Millisecond)
		if got := e.has(private) || e.has(late); got != leaky {
			t.Fatalf("leaky %v: the private block was given: %v", leaky, got)
		}
		for _, ask := range []string{"find " + private.Cid().String(), "get " + e.ID().String() + " x", "provide x"} { // nothing announces it either
			if answer, err := n.ask(t.Context(), strings.Fields(ask)); err == nil && answer != "" {
				t.Fatal(ask, answer)
			}
		}
	}
}

func TestAFloodOfWantsIsCutOffAndHoldsUpNobody(t *testing.T) {
	wanted := block(1000)
	p := newPantry(wanted)
	n, _ := p.serve(t, options{})
	e := newEvil(t, n)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	go func() {
		for i := range 50 { // a million entries
			m := bsmsg.New(false)
			for j := range 20_000 {
				h, _ := multihash.Sum(fmt.Append(nil, i, j), multihash.SHA2_256, -1)
				m.AddEntry(cid.NewCidV1(cid.Raw, h), 1, pb.Message_Wantlist_Block, true)
			}
			if e.send(n, bitswaps[0], raw(m, bitswaps[0])) != nil {
				return
			}
		}
	}()
	q := newPantry()
	honest, fetch := q.serve(t, options{})
	honest.host.Peerstore().AddAddrs(n.host.ID(), n.host.Addrs(), time.Hour)
	if err := honest.connect(t.Context(), n.host.ID()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if missing := fetch(ctx, wanted.Cid()); len(missing) > 0 {
		t.Fatal("the flood held up an honest peer")
	}
	eventually(t, 20*time.Second, "the flooder is cut off", func() bool { return strings.Contains(n.score.blocked(), e.ID().String()) })
	eventually(t, 5*time.Second, "its connection is closed", func() bool { return len(n.host.Network().ConnsToPeer(e.ID())) == 0 })
	if err := e.Connect(t.Context(), peer.AddrInfo{ID: n.host.ID(), Addrs: n.host.Addrs()}); err == nil {
		eventually(t, 5*time.Second, "it does not come back", func() bool { return len(n.host.Network().ConnsToPeer(e.ID())) == 0 })
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 150<<20 {
		t.Fatalf("%d MiB more", grown>>20)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.asked > 50_000 {
		t.Fatalf("the node was asked %d times", p.asked)
	}
}

func TestBlocksThatNobodyAskedForAreNotStored(t *testing.T) {
	p := newPantry()
	n, _ := p.serve(t, options{})
	e := newEvil(t, n)
	for range 20 {
		m := bsmsg.New(false)
		for range 10 {
			m.AddBlock(block(1000))
		}
		e.send(n, bitswaps[0], raw(m, bitswaps[0]))
	}
	eventually(t, 10*time.Second, "the sender is cut off", func() bool { return n.score.blocked() != "" })
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.held) > 0 {
		t.Fatalf("%d blocks were stored", len(p.held))
	}
}

func TestAPeerThatSaysHaveAndNeverSendsIsPassedOver(t *testing.T) {
	wanted := block(1000)
	honest, _ := newPantry(wanted).serve(t, options{})
	n, fetch := newPantry().serve(t, options{})
	e := newEvil(t, n)
	e.SetStreamHandler(bitswaps[0], func(s network.Stream) {
		for {
			m, _, err := bsmsg.FromNet(s)
			if err != nil {
				return
			}
			out := bsmsg.New(false)
			for _, w := range m.Wantlist() {
				out.AddHave(w.Cid)
			}
			e.send(n, bitswaps[0], raw(out, bitswaps[0]))
		}
	})
	n.host.Peerstore().AddAddrs(honest.host.ID(), honest.host.Addrs(), time.Hour)
	if err := n.connect(t.Context(), honest.host.ID()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	began := time.Now()
	if missing := fetch(ctx, wanted.Cid()); len(missing) > 0 {
		t.Fatal("the liar kept the block from coming from the honest peer")
	}
	t.Logf("after %v", time.Since(began))
}

func TestABlockThatIsNotWhatWasAskedForIsNotStored(t *testing.T) {
	wanted := block(1000)
	p := newPantry()
	n, _ := p.serve(t, options{})
	e := newEvil(t, n)
	for _, lie := range [][]byte{make([]byte, 1000), nil} {
		e.SetStreamHandler(quickProtocol, func(s network.Stream) {
			io.ReadAll(s)
			s.Write(append(le.AppendUint32(nil, uint32(len(lie))), lie...))
			s.Close()
		})
		missing := map[cid.Cid]bool{wanted.Cid(): true}
		eventually(t, 5*time.Second, "the liar is known to serve", func() bool { return n.serves(e.ID(), quickProtocol) })
		ours, theirs := net.Pipe()
		ours.Close()
		n.quick(t.Context(), nil, &store{link: newLink(theirs), score: n.score}, wantedOf(e.ID(), wanted.Cid()), missing)
		if len(missing) != 1 || p.has(wanted) {
			t.Fatal("a lie was taken for the block")
		}
	}
	if n.score.text(e.ID()); n.score.peers[e.ID()].points < 10 {
		t.Fatal("the lie was not written up")
	}
}

func wantedOf(p peer.ID, cids ...cid.Cid) wanted { return wanted{peers: []peer.ID{p}, cids: cids} }

func TestMessagesThatAreTooLongOrNoneEndTheirStreamAlone(t *testing.T) {
	p := newPantry()
	n, _ := p.serve(t, options{})
	e := newEvil(t, n)
	huge := binary.AppendUvarint(nil, 1<<40)
	junk := append(binary.AppendUvarint(nil, 1<<20), make([]byte, 1<<20)...)
	rand.Read(junk[3:])
	for _, proto := range append([]protocolID{"/ipos/kad/1.0.0", "/meshsub/1.1.0", "/ipfs/id/push/1.0.0", "/libp2p/circuit/relay/0.2.0/stop"}, bitswaps...) {
		e.send(n, proto, huge)
		e.send(n, proto, junk)
	}
	reachable(t, n)
}

func TestSlowPeersHoldUpNobody(t *testing.T) {
	n := testNode(t, options{})
	at := strings.Split(n.host.Addrs()[0].String(), "/")
	for i := range 48 {
		conn, err := net.Dial("tcp", at[2]+":"+at[4])
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if i%2 == 0 {
			conn.Write([]byte("\x13/multistream/1.0.")) // and never the rest
		}
	}
	reachable(t, n)
}

func TestForgedRecordsAreRefused(t *testing.T) {
	key, _, _ := crypto.GenerateEd25519Key(rand.Reader)
	other, _, _ := crypto.GenerateEd25519Key(rand.Reader)
	who, _ := peer.IDFromPrivateKey(key)
	seal := func(k crypto.PrivKey, at time.Time, value string) []byte {
		e, err := record.Seal(&signed{uint64(at.UnixNano()), []byte(value)}, k)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := e.Marshal()
		return b
	}
	now, name := time.Now(), recordKey(who, "offer")
	old, fresh := seal(key, now.Add(-time.Hour), "old"), seal(key, now, "new")
	bad := map[string][]byte{
		"another's": seal(other, now, "x"), "from the future": seal(key, now.Add(2*time.Hour), "x"), "too long": seal(key, now, strings.Repeat("x", maxValue+1)),
		"nothing": {}, "cut short": fresh[:len(fresh)-1], "changed": append(bytes.Clone(fresh[:len(fresh)-5]), 1, 2, 3, 4, 5),
	}
	if err := (records{}).Validate(name, fresh); err != nil {
		t.Fatal(err)
	}
	for what, b := range bad {
		if (records{}).Validate(name, b) == nil {
			t.Error("accepted:", what)
		}
	}
	if i, err := (records{}).Select(name, [][]byte{bad["another's"], old, fresh, bad["from the future"]}); i != 2 || err != nil {
		t.Error(i, err)
	}
	if _, err := (records{}).Select(name, [][]byte{bad["another's"]}); err == nil {
		t.Error("selected a forgery")
	}
}

func TestARelayServesWhomItIsToldTo(t *testing.T) {
	relay := testNode(t, options{})
	stranger, friend := testNode(t, options{}), testNode(t, options{})
	for _, n := range []*node{stranger, friend} {
		n.host.Peerstore().AddAddrs(relay.host.ID(), relay.host.Addrs(), time.Hour)
		if err := n.connect(t.Context(), relay.host.ID()); err != nil {
			t.Fatal(err)
		}
	}
	relay.reach.setPool([]peer.ID{friend.host.ID()})
	reserve := func(n *node) error {
		_, err := circuit.Reserve(t.Context(), n.host, peer.AddrInfo{ID: relay.host.ID()})
		return err
	}
	command := func(words string) error { return relay.relay.command(t.Context(), strings.Fields(words)) }
	if reserve(friend) == nil {
		t.Fatal("a relay that is off gave a place")
	}
	for _, wrong := range []string{"on limit", "on limit x", "on limit 1", "on limit -5M", "on limit 5X", "on limit 10MM", "on for nobody", "dance", "off now", "on limit 99999999999999999999"} {
		if err := command(wrong); err == nil {
			t.Error("accepted:", wrong)
		}
	}
	if err := command("on limit 10M"); err != nil {
		t.Fatal(err)
	}
	if reserve(friend) != nil || reserve(stranger) == nil {
		t.Fatal("places are for the pool")
	}
	if err := command("on for anyone"); err != nil || reserve(stranger) != nil {
		t.Fatal("places are for anyone now", err)
	}
	if s, _ := relay.relay.text(t.Context()); !strings.Contains(s, "for anyone\nlimit_bytes_s 0\nplaces 1\n") {
		t.Fatal(s)
	}
	if err := command("off"); err != nil || reserve(friend) == nil {
		t.Fatal("it is off again", err)
	}
}

func TestARelayKeepsItsLimit(t *testing.T) {
	relay, a, b := testNode(t, options{}), testNode(t, options{listen: ","}), testNode(t, options{listen: ","}) // nobody can dial a or b
	relay.reach.setPool([]peer.ID{a.host.ID(), b.host.ID()})
	if err := relay.relay.command(t.Context(), strings.Fields("on limit 200K")); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*node{a, b} {
		n.host.Peerstore().AddAddrs(relay.host.ID(), relay.host.Addrs(), time.Hour)
		if err := n.connect(t.Context(), relay.host.ID()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := circuit.Reserve(t.Context(), b.host, peer.AddrInfo{ID: relay.host.ID()}); err != nil {
		t.Fatal(err)
	}
	got := make(chan int64)
	b.host.SetStreamHandler("/test", func(s network.Stream) { k, _ := io.Copy(io.Discard, s); got <- k })
	a.reach.setPool([]peer.ID{relay.host.ID()})
	eventually(t, 5*time.Second, "the relay is known for one", func() bool { return len(a.reach.relays()) == 1 })
	a.since = time.Now().Add(-time.Minute)
	s, err := a.stream(t.Context(), b.host.ID(), "/test")
	if err != nil {
		t.Fatal(err)
	}
	if path, why := a.reach.path(b.host.ID()); !strings.HasPrefix(path, "relay ") || why == "" {
		t.Fatal(path, why)
	}
	began := time.Now()
	s.Write(make([]byte, 400_000))
	s.CloseWrite()
	if k := <-got; k != 400_000 || time.Since(began) < time.Second {
		t.Fatalf("%d bytes in %v by a relay of 200 KB a second", k, time.Since(began))
	}
}

func TestMachinesOfThePoolAreNeverCutOff(t *testing.T) {
	n := testNode(t, options{})
	e := newEvil(t, n)
	n.reach.setPool([]peer.ID{e.ID()})
	n.score.offence(e.ID(), 500, "a test")
	if n.score.blocked() != "" {
		t.Fatal("a machine of the pool was cut off")
	}
	n.reach.setPool(nil)
	n.score.offence(e.ID(), -500, "")
	n.score.offence(e.ID(), 500, "a test")
	if !strings.Contains(n.score.blocked(), "a test") {
		t.Fatal("a stranger was not cut off")
	}
	if err := n.score.unblock(e.ID()); err != nil || n.score.blocked() != "" {
		t.Fatal(err)
	}
}
