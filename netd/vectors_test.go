package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

type vector struct {
	Dialect, Message, Layout, Why, Hex string
	Tag                                uint16
	Fields                             map[string]any
}

// number is a field of a vector: 8-byte ones are decimal text.
func (v vector) number(name string) uint64 {
	if s, ok := v.Fields[name].(string); ok {
		n, _ := strconv.ParseUint(s, 10, 64)
		return n
	}
	n, _ := v.Fields[name].(float64)
	return uint64(n)
}

// TestVectors reads ../vectors/ninep.json, which the Python end has made: two implementations of one format.
func TestVectors(t *testing.T) {
	var file struct{ Messages, Refused []vector }
	b, err := os.ReadFile("../vectors/ninep.json")
	if err == nil {
		err = json.Unmarshal(b, &file)
	}
	if err != nil {
		t.Fatal(err)
	}
	asked := map[string]int{}
	for _, v := range file.Messages {
		if v.Dialect != "9P2000" || v.Message[0] != 'T' {
			continue
		}
		asked[v.Message]++
		b, _ := hex.DecodeString(v.Hex)
		r, err := parse(b[4:])
		if err != nil {
			t.Errorf("%s: %v", v.Message, err)
			continue
		}
		got := map[string]any{
			"fid": uint64(r.fid), "newfid": uint64(r.newfid), "count": uint64(r.count), "msize": uint64(r.msize),
			"offset": r.offset, "oldtag": uint64(r.oldtag), "version": r.version, "wname": r.names, "data": hex.EncodeToString(r.data),
		}
		if v.Message == "Topen" {
			got["mode"] = uint64(r.mode)
		}
		for _, field := range strings.Fields(v.Layout) {
			name, kind, _ := strings.Cut(field, ":")
			value, read := got[name]
			want := v.Fields[name]
			if strings.ContainsAny(kind, "1248") {
				want = v.number(name)
			}
			if read && r.tag == v.Tag && fmt.Sprint(value) != fmt.Sprint(want) || r.tag != v.Tag {
				t.Errorf("%s: %s is %v, the vector says %v", v.Message, name, value, want)
			}
		}
	}
	if len(asked) != 13 {
		t.Errorf("vectors of %d requests, 9P2000 has 13: %v", len(asked), asked)
	}
	for _, v := range file.Refused {
		b, _ := hex.DecodeString(v.Hex)
		if strings.Contains(v.Why, "head") || strings.Contains(v.Why, "msize") {
			continue // the framing's
		}
		if r, err := parse(b[4:]); err == nil {
			t.Errorf("%s: parsed as %+v", v.Why, r)
		}
	}
}
