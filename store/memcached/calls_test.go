package memcached_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

// TestOneRoundTrip counts what the server is sent: one command for a read, and one for a write that follows it. The
// server counts add, cas and set as "set".
func TestOneRoundTrip(t *testing.T) {
	srvs, url := mustServers(t, 1)
	s, a := mustOpen(t, url), admin{t, srvs[0].Addr}
	id := idOf(1)
	first := record("ada", "a", "1")
	var rec, stale, third driver.Record
	second := func() driver.Record { r := after(rec, set("a", "2")); r.Tag = rec.Tag; return r }
	steps := []struct {
		name string
		call func() error
		want error
		sent string
	}{
		{"load absent", func() error { _, err := s.Load(t.Context(), id); return err }, driver.ErrNotFound, "get=1"},
		{"create", func() error { return s.Save(t.Context(), id, first, 0) }, nil, "set=1"},
		{"create again", func() error { return s.Save(t.Context(), id, first, 0) }, driver.ErrConflict, "get=1 set=1"},
		{"load", func() (err error) { rec, err = s.Load(t.Context(), id); return err }, nil, "get=1"},
		{"save with the Tag of that", func() error { return s.Save(t.Context(), id, second(), rec.Revision) }, nil, "set=1 stored by cas=1"},
		{"save from before", func() error { return s.Save(t.Context(), id, second(), rec.Revision) }, driver.ErrConflict, "get=1 set=1 cas conflict=1"},
		{"load", func() (err error) { stale = rec; rec, err = s.Load(t.Context(), id); return err }, nil, "get=1"},
		{"save without a Tag", func() error {
			third = after(rec)
			third.Tag = 0
			return s.Save(t.Context(), id, third, rec.Revision)
		}, nil, "get=1 set=1 stored by cas=1"},
		{"save with an earlier Tag", func() error {
			next := after(third)
			next.Tag = stale.Tag
			return s.Save(t.Context(), id, next, third.Revision)
		}, nil, "get=1 set=1 stored by cas=1"},
		{"delete", func() error { return s.Delete(t.Context(), id) }, nil, "set=1"},
		{"load ended", func() error { _, err := s.Load(t.Context(), id); return err }, driver.ErrNotFound, "get=1"},
		{"save over the end", func() error { return s.Save(t.Context(), id, second(), rec.Revision) }, driver.ErrConflict, ""},
		{"create anew", func() error { return s.Save(t.Context(), id, first, 0) }, nil, "get=1 set=2 stored by cas=1"},
	}
	for _, step := range steps {
		var err error
		sent := a.sent(func() { err = step.call() })
		if !errors.Is(err, step.want) {
			t.Errorf("%s = %v, want %v", step.name, err, step.want)
		}
		if step.sent != "" && sent != step.sent {
			t.Errorf("%s: the server was sent %s, want %s", step.name, sent, step.sent)
		}
	}
}

// A save with a second copy asks the second server first; a read asks one server.
func TestRoundTripsWithCopies(t *testing.T) {
	srvs, url := mustServers(t, 2)
	s := mustOpen(t, url+"?copies=2")
	first, second := s.ServerOf(idOf(1))
	a, b := admin{t, srvs[first].Addr}, admin{t, srvs[second].Addr}
	var rec driver.Record
	for _, step := range []struct {
		name         string
		call         func() error
		sentA, sentB string
	}{
		{"create", func() error { return s.Save(t.Context(), idOf(1), record("ada"), 0) }, "set=1", "get=1 set=1"},
		{"load", func() (err error) { rec, err = s.Load(t.Context(), idOf(1)); return err }, "get=1", ""},
		{"save", func() error {
			next := after(rec)
			next.Tag = rec.Tag
			return s.Save(t.Context(), idOf(1), next, rec.Revision)
		},
			"set=1 stored by cas=1", "get=1 set=1 stored by cas=1"},
		{"delete", func() error { return s.Delete(t.Context(), idOf(1)) }, "set=1", "set=2"},
	} {
		var sentA string
		sentB := b.sent(func() {
			sentA = a.sent(func() {
				if err := step.call(); err != nil {
					t.Errorf("%s = %v", step.name, err)
				}
			})
		})
		if sentA != step.sentA || sentB != step.sentB {
			t.Errorf("%s: the first server was sent %q and the second %q, want %q and %q", step.name, sentA, sentB, step.sentA, step.sentB)
		}
	}
}

// A server that restarted counts its CAS IDs from 1. A save with the CAS ID of the life before does not hit what somebody
// else stored since under the same one.
func TestTagOfAnotherLife(t *testing.T) {
	srvs, url := mustServers(t, 1)
	s := mustOpen(t, url)
	for n := range 20 {
		mine, theirs := record("ada", "whose", "mine"), record("ada", "whose", "theirs")
		theirs.Revision = mine.Revision + 1
		mustSave(t, s, idOf(n), mine, 0)
		loaded := mustLoad(t, s, idOf(n))
		srvs[0].Restart()
		mustSave(t, s, idOf(n), theirs, 0) // CAS ID 1, as mine had
		next := after(loaded)
		next.Tag = loaded.Tag
		wantErr(t, "Save from before the restart", s.Save(t.Context(), idOf(n), next, loaded.Revision), driver.ErrConflict)
		wantStored(t, s, idOf(n), theirs)
	}
}

// Delete is final: of saves that started before it, with a Tag or without, none brings the session back (attack 15).
func TestLateSave(t *testing.T) {
	srvs, url := mustServers(t, 2)
	for _, options := range []string{"", "?copies=2"} {
		s := mustOpen(t, url+options)
		mustSave(t, s, idOf(1), record("ada", "a", "1"), 0)
		rec := mustLoad(t, s, idOf(1))
		mustDelete(t, s, idOf(1))
		for _, tag := range []uint64{rec.Tag, 0} {
			late := after(rec, set("a", "2"))
			late.Tag = tag
			wantErr(t, "late Save", s.Save(t.Context(), idOf(1), late, rec.Revision), driver.ErrConflict)
			_, err := s.Load(t.Context(), idOf(1))
			wantErr(t, "Load after it", err, driver.ErrNotFound)
		}
		for _, srv := range srvs { // what the server has is the note that it ended, or nothing
			if got := (admin{t, srv.Addr}).do("get "+key(idOf(1))+"\r\n", 1)[0]; got != "END" && !strings.HasSuffix(got, " 0 9") {
				t.Errorf("the server has %q after Delete", got)
			}
		}
	}
}

// Attack 5: a key is the prefix and 64 hexadecimal characters, whatever the session holds, and below 250 bytes.
func TestKeys(t *testing.T) {
	srvs, url := mustServers(t, 1)
	prefix := strings.Repeat("p", 64)
	s := mustOpen(t, url+"?prefix="+prefix)
	evil := "x\r\nflush_all\r\nset evil 0 0 1\r\ny\r\n"
	rec := record(evil, evil, evil, strings.Repeat("k", 251), "long name")
	mustSave(t, s, idOf(1), rec, 0)
	mustSave(t, s, idOf(2), rec, 0)
	wantStored(t, s, idOf(1), rec)
	mustDelete(t, s, idOf(2))
	a := admin{t, srvs[0].Addr}
	if n := number(t, a.stats(), "curr_items"); n != 2 || number(t, a.stats(), "cmd_flush") != 0 {
		t.Errorf("the server has %d keys and was flushed %d times, want 2 and 0", n, number(t, a.stats(), "cmd_flush"))
	}
	for _, line := range a.do("lru_crawler metadump hash\r\n", 2) {
		name := strings.TrimPrefix(strings.Fields(line)[0], "key=")
		if _, err := driver.ParseID(strings.TrimPrefix(name, prefix)); err != nil || len(name) != 128 {
			t.Errorf("the server has a key %q, want the prefix and 64 hexadecimal characters", name)
		}
	}
}

// The life of a key is a duration up to 30 days, grace included, and a date beyond, as the server's own list shows.
func TestLifeOfKeys(t *testing.T) {
	srvs, url := mustServers(t, 1)
	s, a := mustOpen(t, url+"?grace=10m"), admin{t, srvs[0].Addr}
	for i, life := range []time.Duration{time.Minute, 29 * 24 * time.Hour, 30*24*time.Hour - 10*time.Minute, 30 * 24 * time.Hour, 31 * 24 * time.Hour, 400 * 24 * time.Hour} {
		rec := record("ada")
		rec.Expires = rec.Created.Add(life)
		mustSave(t, s, idOf(i), rec, 0)
		wantStored(t, s, idOf(i), rec)
		want := rec.Expires.Add(10 * time.Minute).Unix()
		var exp int64
		for _, line := range a.do("lru_crawler metadump hash\r\n", i+1) {
			if strings.Contains(line, idOf(i).Hex()) {
				if _, err := fmt.Sscanf(strings.Fields(line)[1], "exp=%d", &exp); err != nil {
					t.Fatal(err)
				}
			}
		}
		// The server counts in seconds of its own, which come late on a busy machine. That is within the grace.
		if d := exp - want; d < -3 || d > 10 {
			t.Errorf("a record that lives %v: its key ends %d s after Expires and the grace, want -3 to 10", life, d)
		}
	}
	far := record("ada")
	far.Expires = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
	mustSave(t, s, idOf(99), far, 0)
	wantStored(t, s, idOf(99), far)
}

// What memcached refuses to hold is ErrTooLarge before it is sent, and one byte less is stored.
func TestTooLarge(t *testing.T) {
	srvs, url := mustServers(t, 1, testserver.MemcachedOptions{Args: []string{"-I", "512k"}})
	s := mustOpen(t, url)
	limit := s.Describe().MaxBytes
	if limit < 511<<10 || limit > 512<<10 {
		t.Errorf("MaxBytes is %d with memcached's limit at 512 KiB", limit)
	}
	rec := record("ada", "a", "")
	fits := after(rec, set("a", strings.Repeat("x", limit-rec.EncodedLen())))
	mustSave(t, s, idOf(1), fits, 0)
	wantStored(t, s, idOf(1), fits)
	over := after(fits, set("a", strings.Repeat("x", limit-rec.EncodedLen()+1)))
	sent := admin{t, srvs[0].Addr}.sent(func() {
		wantErr(t, "Save of one byte more", s.Save(t.Context(), idOf(1), over, fits.Revision), driver.ErrTooLarge)
	})
	if sent != "" {
		t.Errorf("the server was sent %s", sent)
	}
	wantStored(t, s, idOf(1), fits)
}

// A server with a smaller limit than the others, which was down when the store was opened, refuses by itself.
func TestTooLargeForALateServer(t *testing.T) {
	small := testserver.Memcached(t, testserver.MemcachedOptions{Args: []string{"-I", "512k"}})
	large := testserver.Memcached(t)
	small.Stop()
	s := mustOpen(t, "memcached://"+small.Addr+","+large.Addr)
	small.Restart()
	rec := record("ada", "a", strings.Repeat("x", 600_000))
	for n := range 20 {
		first, _ := s.ServerOf(idOf(n))
		var err error
		eventually(t, "a save", func() error {
			if err = s.Save(t.Context(), idOf(n), rec, 0); errors.Is(err, driver.ErrUnavailable) {
				return err
			}
			return nil
		})
		if first == 0 {
			wantErr(t, "Save on the small server", err, driver.ErrTooLarge)
		} else if err != nil {
			t.Errorf("Save on the large server = %v", err)
		}
	}
}
