package filestore

import (
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-sessions/holdfast/driver"
)

var longest = token{
	state: gone, life: 1, count: 2, revision: 1<<64 - 1, expires: millis(time.UnixMilli(-1)), seen: 0, generation: 1 << 63, data: 5,
	chain: []generation{6, 7, 8, 9, 10, 11, 1<<64 - 1},
}

func TestToken(t *testing.T) {
	first := token{state: live, life: 1 << 60, revision: 1<<60 + 1, expires: 1 << 42, seen: 1 << 41, generation: 1 << 60, data: 1 << 60}
	tests := []struct {
		name string
		want token
		ok   bool
	}{
		{first.name(), first, true},
		{longest.name(), longest, true},
		{"1-at-1000000000000000-0000000000000000-1000000000000001-0000040000000000-0000020000000000-1000000000000000-1000000000000000", first, true},
		{"", token{}, false},
		{"1-", token{}, false},
		{"1-at", token{}, false},
		{"2-" + first.name()[2:], token{}, false},
		{"1-of" + first.name()[4:], token{}, false},
		{strings.ToUpper(first.name()), token{}, false},
		{first.name()[:len(first.name())-1], token{}, false},
		{first.name() + "-", token{}, false},
		{first.name() + "-00", token{}, false},
		{longest.name() + "-0000000000000000", token{}, false},
		{strings.Replace(first.name(), "0", "A", 1), token{}, false},
		{strings.Replace(first.name(), "-1", "-+", 1), token{}, false},
	}
	for _, tt := range tests {
		got, ok := parseToken(tt.name)
		if ok != tt.ok || ok && !cmp.Equal(got, tt.want, cmp.AllowUnexported(token{})) {
			t.Errorf("parseToken(%s) = %+v, %v, want %+v, %v", tt.name, got, ok, tt.want, tt.ok)
		}
	}
	if n := len(longest.name()); n != 244 {
		t.Errorf("the longest name has %d bytes, want 244", n)
	}
	for name, want := range map[string]bool{"2-at": true, "9-": true, "1-at": false, "d-0": false, "0-at": false, "2": false, ".nfs2-": false} {
		if got := isNewerToken(name); got != want {
			t.Errorf("isNewerToken(%s) = %v", name, got)
		}
	}
}

// FuzzToken: whatever is a token has one name.
func FuzzToken(f *testing.F) {
	f.Add(longest.name())
	f.Add(token{state: live}.name())
	f.Add("1-end-")
	f.Add("d-0000000000000000")
	f.Fuzz(func(t *testing.T, name string) {
		tok, ok := parseToken(name)
		if !ok {
			return
		}
		if got := tok.name(); got != name {
			t.Errorf("parsed as %+v, which is %q", tok, got)
		}
		if len(name) > 255 {
			t.Errorf("%d bytes", len(name))
		}
		next := tok.next(1<<63, ended, driver.Record{}, 0)
		if again, ok := parseToken(next.name()); !ok || again.name() != next.name() {
			t.Errorf("the next one is %q", next.name())
		}
	})
}

// FuzzNFSData: whatever is a data file holds what it was made from.
func FuzzNFSData(f *testing.F) {
	tok := token{data: 7}
	f.Add(encodeNFS(driver.ID{1}, 7, nil))
	record, _ := driver.Encode(driver.Record{User: "ann"})
	f.Add(encodeNFS(driver.ID{1}, 7, record))
	f.Fuzz(func(t *testing.T, b []byte) {
		rec, err := decodeNFS(driver.ID{1}, tok, b)
		if err != nil {
			return
		}
		again, err := driver.Encode(rec)
		if err != nil || len(again) != len(b)-nfsStart {
			t.Errorf("%d bytes hold a record of %d: %v", len(b), len(again), err)
		}
	})
}

// TestFate: attempts of processes, each of which has one under way and settles it before it begins another, in all sorts
// of orders. What a token tells is true; and it tells nothing only when more than chainLen other processes have won since.
func TestFate(t *testing.T) {
	type attempt struct {
		base token
		g    generation
		won  bool
		sent bool
		at   int // when it was sent
	}
	told := make(map[fate]int)
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 0))
		processes := 1 + r.IntN(14)
		drawn := make([]lanes, processes)
		under := make([]*attempt, processes)
		now := token{state: live, life: 1, generation: 1}
		history := []token{now}
		winners := []int{-1}
		for range 400 {
			i := r.IntN(processes)
			switch a := under[i]; {
			case a == nil:
				under[i] = &attempt{base: now, g: drawn[i].next()}
			case !a.sent:
				a.sent, a.at = true, len(history)
				if a.base.generation == now.generation {
					now = now.next(a.g, live, driver.Record{}, 0)
					a.won = true
					history = append(history, now)
					winners = append(winners, i)
				}
			default:
				seen := now
				if r.IntN(8) == 0 { // an old list
					seen = history[r.IntN(len(history))]
				}
				got := seen.fate(a.base, a.g)
				told[got]++
				since := make(map[int]bool)
				for n := int(a.base.count) + 1; n < len(history); n++ {
					if winners[n] != i {
						since[winners[n]] = true
					}
				}
				switch {
				case got == won && !a.won, got == lost && a.won:
					t.Fatalf("seed %d: fate %d of an attempt that won: %v\n%+v\n%+v", seed, got, a.won, a.base, seen)
				case got == pending && seen.count > a.base.count:
					t.Fatalf("seed %d: pending, when the token is a later one", seed)
				case got == unknown && len(since) <= chainLen:
					t.Fatalf("seed %d: unknown, when %v have won since", seed, slices.Collect(maps.Keys(since)))
				}
				if got != pending {
					under[i] = nil
				}
			}
		}
	}
	for _, f := range []fate{won, lost, pending, unknown} {
		if told[f] == 0 {
			t.Errorf("fate %d was never told", f)
		}
	}
	other := token{life: 2, count: 9, generation: 9}
	if got := other.fate(token{life: 1, generation: 1}, 5); got != unknown {
		t.Errorf("fate by another life = %d", got)
	}
}

// TestLanes: no generation comes twice, and each lane is of one process.
func TestLanes(t *testing.T) {
	var one, other lanes
	seen := make(map[generation]bool)
	lanesOf := func(l *lanes) map[uint64]bool {
		drawn := make(map[uint64]bool)
		for range 200_000 {
			g := l.next()
			if seen[g] || g.lane() == 0 {
				t.Fatalf("%v drawn twice", g)
			}
			seen[g] = true
			drawn[g.lane()] = true
		}
		return drawn
	}
	a, b := lanesOf(&one), lanesOf(&other)
	if len(a) != 4 || len(b) != 4 {
		t.Errorf("%d and %d lanes, want 4", len(a), len(b))
	}
	for lane := range a {
		if b[lane] {
			t.Error("a lane of two processes")
		}
	}
}
