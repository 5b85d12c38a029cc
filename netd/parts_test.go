package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-multihash"
)

func TestTheKeyIsMadeOnceForTheUserAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	var ids sync.Map
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			key, err := loadKey(path)
			if err != nil {
				t.Error(err)
				return
			}
			id, _ := peer.IDFromPrivateKey(key)
			ids.Store(id, true)
		})
	}
	all.Wait()
	n := 0
	ids.Range(func(any, any) bool { n++; return true })
	info, err := os.Stat(path)
	left, _ := os.ReadDir(filepath.Dir(path))
	if n != 1 || err != nil || info.Mode().Perm() != 0o600 || len(left) != 1 {
		t.Fatal(n, err, info.Mode(), left)
	}
	os.Chmod(path, 0o640)
	if _, err := loadKey(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Fatal(err)
	}
	os.Chmod(path, 0o600)
	os.WriteFile(path, []byte("garbage"), 0o600)
	if _, err := loadKey(path); err == nil || !strings.Contains(err.Error(), "is not an ed25519 key") {
		t.Fatal(err)
	}
}

func TestOnlyADirectoryOfItsOwnIsUsedForSockets(t *testing.T) {
	dir := t.TempDir()
	os.Chmod(dir, 0o755)
	if err := checkRun(dir); err == nil || !strings.Contains(err.Error(), "mode 0700") {
		t.Fatal(err)
	}
	os.Chmod(dir, 0o700)
	os.WriteFile(filepath.Join(dir, "c12"), nil, 0o600)
	os.WriteFile(filepath.Join(dir, "other"), nil, 0o600)
	if err := checkRun(dir); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 || left[0].Name() != "other" {
		t.Fatal(left)
	}
	long := filepath.Join(dir, strings.Repeat("x", 100))
	os.Mkdir(long, 0o700)
	if err := checkRun(long); err == nil || !strings.Contains(err.Error(), "too long for sockets") {
		t.Fatal(err)
	}
}

func TestATakenPortIsReplacedByAFreeOne(t *testing.T) {
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	address := fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", taken.Addr().(*net.TCPAddr).Port)
	n := testNode(t, options{listen: address + ",/ip4/127.0.0.1/udp/0/quic-v1"})
	got := n.listening()
	if len(got) != 2 || strings.Contains(strings.Join(got, " "), address) || strings.Contains(strings.Join(got, " "), "/tcp/0") {
		t.Fatal(got)
	}
	if _, err := newNode(t.Context(), options{key: filepath.Join(t.TempDir(), "key"), listen: "nonsense"}); err == nil || !strings.Contains(err.Error(), `"nonsense" is not a multiaddr`) {
		t.Fatal(err)
	}
}

func TestAllTransportsShareOnePort(t *testing.T) {
	const on = "/ip4/127.0.0.1/"
	n := testNode(t, options{listen: on + "tcp/0," + on + "tcp/0/ws," + on + "udp/0/quic-v1," + on + "udp/0/quic-v1/webtransport," + on + "udp/0/webrtc-direct"})
	ports := map[string]bool{}
	for _, a := range n.listening() {
		ports[strings.Split(a, "/")[4]] = true
	}
	if len(ports) != 1 || len(n.listening()) != 5 {
		t.Fatal(n.listening())
	}
	for _, a := range n.host.Addrs() {
		client := testNode(t, options{})
		client.host.Peerstore().AddAddrs(n.host.ID(), []multiaddr.Multiaddr{a}, peerstore.PermanentAddrTTL)
		if err := client.connect(t.Context(), n.host.ID()); err != nil {
			t.Fatal(a, err)
		}
		if _, err := client.pulse.ping(t.Context(), n.host.ID()); err != nil {
			t.Fatal(a, err)
		}
	}
}

// testNode is a whole node in this process, on loopback, that ends with the test.
func testNode(t *testing.T, o options) *node {
	t.Helper()
	o.key = filepath.Join(t.TempDir(), "key")
	if o.listen == "" {
		o.listen = "/ip4/127.0.0.1/tcp/0"
	}
	n, err := newNode(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.host.Close() })
	return n
}

func TestOnlyTheNodesOwnUserGetsABulkSocket(t *testing.T) {
	for _, c := range []struct {
		user int
		good bool
	}{{os.Getuid(), true}, {os.Getuid() + 1, false}} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "c1"), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		conn, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		taken, err := acceptFrom(c.user, l, time.Now().Add(50*time.Millisecond))
		if (err == nil) != c.good {
			t.Fatal(c, err)
		}
		if c.good {
			taken.Close()
		}
		if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
			t.Fatal("the connection was not closed:", err)
		}
	}
}

func TestAddressesAreDialledInTurn(t *testing.T) {
	const at, relay = "/ip4/1.2.3.4/", "/p2p/12D3KooWB2127hQmrNLBWSfyiMZm61jP1E25ZzuoVEZpUwpwrFBF/p2p-circuit"
	order := []string{at + "tcp/1", at + "udp/1/quic-v1", at + "tcp/1/ws", at + "tcp/1" + relay}
	var addrs []multiaddr.Multiaddr
	for _, a := range order {
		addrs = append(addrs, multiaddr.StringCast(a))
	}
	last := -time.Second
	for i, d := range inTurn(addrs) {
		if d.Addr.String() != order[i] || d.Delay <= last {
			t.Fatal(d)
		}
		last = d.Delay
	}
	if d := inTurn(addrs[3:]); d[0].Delay != 0 {
		t.Fatal("where there is nothing but a relay, nothing is waited for:", d)
	}
}

func events(t *testing.T, read func(context.Context, uint64, uint32) ([]byte, error)) (l []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	b, err := read(ctx, 0, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for text := range strings.Lines(string(b)) {
		var v line
		if err := json.Unmarshal([]byte(text), &v); err != nil {
			t.Fatal(err)
		}
		l = append(l, strings.TrimSpace(v.Event+" "+v.Peer[len(v.Peer)-1:]+" "+strings.Join(v.Addresses, " ")))
	}
	return l
}

func same(t *testing.T, got []string, expected ...string) {
	t.Helper()
	if strings.Join(got, ", ") != strings.Join(expected, ", ") {
		t.Fatalf("got %q, expected %q", got, expected)
	}
}

func TestAReaderOfEventsIsToldTheStateAndThenTheDifference(t *testing.T) {
	decode := func(n int) peer.ID {
		h, _ := multihash.Sum(fmt.Append(nil, n), multihash.IDENTITY, -1)
		return peer.ID(h)
	}
	me, p, q := decode(1), decode(2), decode(3)
	last := func(id peer.ID) string { s := id.String(); return s[len(s)-1:] }
	s := newSeen()
	s.me = me
	s.addresses([]string{"/a"})
	s.up(p, []string{"/p"})
	s.down(p)
	s.up(p, []string{"/p2"})
	read := s.reader()
	same(t, events(t, read), "addresses "+last(me)+" /a", "connected "+last(p)+" /p2")
	s.down(p)
	same(t, events(t, read), "gone "+last(p))
	s.up(p, nil)
	events(t, read)
	s.down(p) // gone and back while nobody looked: streams were lost, so both are told
	s.up(p, nil)
	same(t, events(t, read), "gone "+last(p), "connected "+last(p))

	at := multiaddr.StringCast("/ip4/10.0.0.3/tcp/1")
	for range 3 { // mDNS repeats itself
		s.HandlePeerFound(peer.AddrInfo{ID: q, Addrs: []multiaddr.Multiaddr{at}})
	}
	s.HandlePeerFound(peer.AddrInfo{ID: me, Addrs: []multiaddr.Multiaddr{at}})
	same(t, events(t, read), "found "+last(q)+" "+at.String())
	s.up(q, nil)
	s.down(q)
	s.HandlePeerFound(peer.AddrInfo{ID: q, Addrs: []multiaddr.Multiaddr{at}})
	same(t, events(t, read), "found "+last(q)+" "+at.String())
	for i := range 2 * maxFound {
		s.HandlePeerFound(peer.AddrInfo{ID: decode(100 + i), Addrs: []multiaddr.Multiaddr{at}})
	}
	if len(s.found) != maxFound {
		t.Fatal(len(s.found))
	}
	ctx, cancel := context.WithCancel(context.Background())
	events(t, read)
	cancel()
	if _, err := read(ctx, 0, 1); err == nil {
		t.Fatal("a flushed read of events goes on")
	}
}

func TestALinkEndsWithASentence(t *testing.T) {
	for words, b := range map[string][]byte{
		"a frame of 4 bytes":          {4, 0, 0, 0, 1, 0, 0, 0, 0},
		"a frame of 4294967295 bytes": {255, 255, 255, 255, 1, 0, 0, 0, 0},
		"op 9 of 0 bytes":             {5, 0, 0, 0, 1, 0, 0, 0, 9},
		"op 17 of 1 bytes":            {6, 0, 0, 0, 1, 0, 0, 0, 17, 0},
	} {
		ours, theirs := net.Pipe()
		l := newLink(theirs)
		go ours.Write(b)
		if err := l.run(); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%x: %v", b, err)
		}
		if _, _, err := l.ask(context.Background(), opHas, []byte("x")); err == nil {
			t.Error("a link that is over answers")
		}
	}
}

func FuzzLink(f *testing.F) {
	f.Add([]byte{5, 0, 0, 0, 1, 0, 0, 0, 0})
	f.Add([]byte{9, 0, 0, 0, 1, 0, 0, 0, 17, 1, 0, 0, 0})
	f.Add([]byte{7, 0, 0, 0, 1, 0, 0, 0, 16, 1, 2})
	f.Fuzz(func(t *testing.T, b []byte) {
		ours, theirs := net.Pipe()
		l := newLink(theirs)
		l.fetch = func(_ context.Context, body []byte) (byte, []byte) {
			parseFetch(body)
			return opNo, nil
		}
		done := make(chan error, 1)
		go func() { done <- l.run() }()
		go func() {
			b := make([]byte, 1024)
			for {
				if _, err := ours.Read(b); err != nil {
					return
				}
			}
		}()
		ours.SetWriteDeadline(time.Now().Add(time.Second))
		ours.Write(b)
		ours.Close()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Fatal("the link does not end with its connection")
		}
	})
}

func FuzzParseFetch(f *testing.F) {
	h, _ := multihash.Sum([]byte("x"), multihash.SHA2_256, -1)
	c := cid.NewCidV1(cid.Raw, h)
	good := append([]byte{1, 0, 0, 0, 0, 0, 1, 0, 0, 0}, prefixed(c.Bytes())...)
	if w, err := parseFetch(good); err != nil || len(w.cids) != 1 || w.cids[0] != c || w.timeout != time.Millisecond {
		f.Fatal(w, err)
	}
	f.Add(good)
	f.Add([]byte{1, 0, 0, 0, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		if w, err := parseFetch(b); err == nil && len(w.cids) > len(b) {
			t.Fatal("more CIDs than bytes")
		}
	})
}
