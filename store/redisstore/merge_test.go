package redisstore_test

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

// TestMergeRevisions tries the revisions where doubles, signed numbers and halves go wrong.
func TestMergeRevisions(t *testing.T) {
	srv := testserver.Redis(t)
	s, admin := mustOpen(t, "redis://"+srv.Addr), mustAdmin(t, srv)
	edges := []uint64{
		2, 3, 255, 256, 1<<31 - 1, 1 << 31, 1<<32 - 2, 1<<32 - 1, 1 << 32, 1<<32 + 1, 1<<33 - 1, 1<<53 - 1, 1 << 53, 1<<53 + 1, 1<<53 + 2,
		1<<63 - 1, 1 << 63, 1<<63 + 1, 0x7fffffffffffffff, 0xfffffffeffffffff, math.MaxUint64 - 1,
	}
	changes := []driver.Change{set("b", "2")}
	for _, stored := range edges {
		for _, ours := range edges {
			have := record("ada", "a", "1")
			base, next := have, after(have, changes...)
			have.Revision, base.Revision, next.Revision = stored, 1, ours
			mustSet(t, admin, idOf(1), have)
			want := max(ours, stored+1)
			got, err := s.Merge(t.Context(), idOf(1), base, next, changes)
			if err != nil || got.Revision != want {
				t.Errorf("stored %#x, ours %#x: Merge = revision %#x, %v, want %#x", stored, ours, got.Revision, err, want)
			}
			wantStored(t, s, idOf(1), got)
		}
	}
	// There is no revision after the last.
	base := record("ada", "a", "1")
	have := base
	have.Revision = math.MaxUint64
	mustSet(t, admin, idOf(1), have)
	if _, err := s.Merge(t.Context(), idOf(1), base, after(base, changes...), changes); !errors.Is(err, driver.ErrCorrupt) {
		t.Errorf("Merge over the largest revision = %v, want ErrCorrupt", err)
	}
	wantStored(t, s, idOf(1), have)
}

// TestSplice tries the script's edge cases against driver.Fields.With.
func TestSplice(t *testing.T) {
	srv := testserver.Redis(t)
	s, admin := mustOpen(t, "redis://"+srv.Addr), mustAdmin(t, srv)
	long := string(make([]byte, 70_000))
	tests := []struct {
		name    string
		stored  []string
		changes []driver.Change
	}{
		{"add to nothing", nil, []driver.Change{set("a", "1")}},
		{"add", []string{"a", "1"}, []driver.Change{set("b", "2")}},
		{"replace the only one", []string{"a", "1"}, []driver.Change{set("a", "2")}},
		{"replace the first", []string{"a", "1", "b", "2", "c", "3"}, []driver.Change{set("a", "9")}},
		{"replace the middle", []string{"a", "1", "b", "2", "c", "3"}, []driver.Change{set("b", "9")}},
		{"replace the last", []string{"a", "1", "b", "2", "c", "3"}, []driver.Change{set("c", "9")}},
		{"replace all", []string{"a", "1", "b", "2"}, []driver.Change{set("b", "9"), set("a", "8")}},
		{"remove the first", []string{"a", "1", "b", "2", "c", "3"}, []driver.Change{remove("a")}},
		{"remove all", []string{"a", "1", "b", "2"}, []driver.Change{remove("a"), remove("b")}},
		{"remove an absent one", []string{"a", "1"}, []driver.Change{remove("x")}},
		{"remove from nothing", nil, []driver.Change{remove("x")}},
		{"set, then remove", []string{"a", "1"}, []driver.Change{set("a", "2"), remove("a")}},
		{"remove, then set", []string{"a", "1"}, []driver.Change{remove("a"), set("a", "2")}},
		{"set twice", []string{"a", "1"}, []driver.Change{set("a", "2"), set("b", "3"), set("a", "4")}},
		{"nothing", []string{"a", "1"}, nil},
		{"empty name and value", []string{"", "", "a", ""}, []driver.Change{set("", "x"), set("a", "")}},
		{"bytes", []string{"\x00\xff", "\r\n"}, []driver.Change{set("\x00\xff", "\x00"), set("\x00", "\xff")}},
		{"names that begin alike", []string{"a", "1", "aa", "2", "aaa", "3"}, []driver.Change{set("aa", "9"), remove("a")}},
		{"long", []string{long[:60_000], long, "b", long}, []driver.Change{set("c", long), set("b", long[:1])}},
		{"values that look like fields", []string{"a", "\x00\x01b\x00\x00\x00\x011", "c", "2"}, []driver.Change{set("b", "9")}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			base := record("ada", "base", "0", "gone", "1")
			stored := record("ada", tt.stored...)
			stored.Created = base.Created
			next := after(base, tt.changes...)
			mustSet(t, admin, idOf(1), stored)
			got, err := s.Merge(t.Context(), idOf(1), base, next, tt.changes)
			if err != nil {
				t.Fatal(err)
			}
			want := merged(stored, next, tt.changes)
			if mustEncode(t, got) != mustEncode(t, want) {
				t.Errorf("Merge = %v, want %v", got, want)
			}
			wantStored(t, s, idOf(1), want)
		})
	}
}

// TestMergeLives: another life of the ID is never merged into.
func TestMergeLives(t *testing.T) {
	srv := testserver.Redis(t)
	s, admin := mustOpen(t, "redis://"+srv.Addr), mustAdmin(t, srv)
	base := record("ada", "a", "1")
	changes := []driver.Change{set("b", "2")}
	next := after(base, changes...)
	for name, change := range map[string]func(*driver.Record){
		"other user":           func(r *driver.Record) { r.User = "eve" },
		"longer user":          func(r *driver.Record) { r.User = "ada2" },
		"shorter user":         func(r *driver.Record) { r.User = "ad" },
		"no user":              func(r *driver.Record) { r.User = "" },
		"created later":        func(r *driver.Record) { r.Created = r.Created.Add(time.Millisecond) },
		"created at no time":   func(r *driver.Record) { r.Created = time.Time{} },
		"a marker":             func(r *driver.Record) { *r = driver.Record{Expires: r.Expires, Revision: r.Revision} },
		"user past the fields": func(r *driver.Record) { r.User, r.Fields = string(make([]byte, 300)), driver.Fields{} },
	} {
		stored := after(base)
		change(&stored)
		mustSet(t, admin, idOf(1), stored)
		if _, err := s.Merge(t.Context(), idOf(1), base, next, changes); !errors.Is(err, driver.ErrConflict) {
			t.Errorf("%s: Merge = %v, want ErrConflict", name, err)
		}
		wantStored(t, s, idOf(1), stored)
	}
}

// merged is what driver.Merger asks for when the stored record is a later state of the caller's base.
func merged(stored, next driver.Record, changes []driver.Change) driver.Record {
	stored.Fields = stored.Fields.With(changes...)
	if next.Seen.After(stored.Seen) {
		stored.Seen = next.Seen
	}
	if next.Expires.After(stored.Expires) {
		stored.Expires = next.Expires
	}
	stored.Revision = max(next.Revision, stored.Revision+1)
	return stored
}

// TestMergeRandom compares the script with the contract over random records.
func TestMergeRandom(t *testing.T) {
	srv := testserver.Redis(t)
	s, admin := mustOpen(t, "redis://"+srv.Addr), mustAdmin(t, srv)
	const rounds = 3000
	counts := make(map[string]int)
	for seed := range uint64(rounds) {
		r := rand.New(rand.NewPCG(seed, 1))
		now := time.UnixMilli(time.Now().UnixMilli())
		life := driver.Record{User: pick(r, "", "ada", "*", "{a}"), Created: now.Add(-time.Hour)}
		base := state(r, life, now)
		stored := state(r, life, now)
		if stored.Revision == base.Revision {
			stored.Revision++
		}
		want, kind := driver.Record{}, "merged"
		changes := randomChanges(r)
		next := state(r, life, now)
		next.Fields = base.Fields.With(changes...)
		next.Revision = driver.NewRevision(base.Revision)
		if r.IntN(3) == 0 {
			next.Revision = r.Uint64() >> r.IntN(64)
		}
		var wantErr error
		switch r.IntN(8) {
		case 0:
			kind, stored = "whole", base
			want = next
		case 1:
			kind, wantErr = "other life", driver.ErrConflict
			stored.Created = stored.Created.Add(time.Duration(1+r.IntN(5)) * time.Millisecond)
		case 2:
			kind, wantErr = "expired", driver.ErrNotFound
			stored.Expires = now.Add(-time.Duration(r.IntN(1000)) * time.Millisecond)
		default:
			want = merged(stored, next, changes)
		}
		counts[kind]++
		mustSet(t, admin, idOf(1), stored)
		got, err := s.Merge(t.Context(), idOf(1), base, next, changes)
		if !errors.Is(err, wantErr) || (err == nil) != (wantErr == nil) {
			t.Fatalf("seed %d (%s): Merge = %v, want %v", seed, kind, err, wantErr)
		}
		if wantErr != nil {
			if raw := mustDo(t, admin, "GET", key(1)); raw != mustEncode(t, stored) {
				t.Fatalf("seed %d (%s): the stored record was changed", seed, kind)
			}
			continue
		}
		if mustEncode(t, got) != mustEncode(t, want) {
			t.Fatalf("seed %d (%s): Merge = %v, want %v", seed, kind, got, want)
		}
		if raw := mustDo(t, admin, "GET", key(1)); raw != mustEncode(t, want) {
			t.Fatalf("seed %d (%s): stored is not what Merge returned", seed, kind)
		}
	}
	if len(counts) != 4 {
		t.Errorf("only %v were tried", counts)
	}
}

// state returns a random state of a record's life.
func state(r *rand.Rand, life driver.Record, now time.Time) driver.Record {
	life.Seen = now.Add(-time.Duration(r.IntN(100_000)) * time.Millisecond)
	life.Expires = now.Add(time.Duration(60_000+r.IntN(100_000)) * time.Millisecond)
	life.Revision = 1 + r.Uint64()>>1>>r.IntN(63)
	for range r.IntN(8) {
		life.Fields = life.Fields.With(set(randomName(r), randomName(r)))
	}
	return life
}

func randomChanges(r *rand.Rand) []driver.Change {
	changes := make([]driver.Change, r.IntN(5))
	for i := range changes {
		changes[i] = driver.Change{Name: randomName(r), Value: []byte(fmt.Sprint(r.IntN(1000))), Delete: r.IntN(3) == 0}
	}
	return changes
}

func randomName(r *rand.Rand) string {
	return pick(r, "", "a", "b", "ab", "c", "\x00", "\xff\xff", "a longer name", string(make([]byte, 300)))
}

func pick(r *rand.Rand, from ...string) string { return from[r.IntN(len(from))] }
