package redisstore_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"go.uber.org/goleak"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store/redisstore"
)

var (
	_ driver.Store     = (*redisstore.Store)(nil)
	_ driver.Merger    = (*redisstore.Store)(nil)
	_ driver.Toucher   = (*redisstore.Store)(nil)
	_ driver.Watcher   = (*redisstore.Store)(nil)
	_ driver.Lister    = (*redisstore.Store)(nil)
	_ driver.Stater    = (*redisstore.Store)(nil)
	_ driver.Describer = (*redisstore.Store)(nil)
)

func TestMain(m *testing.M) { testserver.Main(patientMain{m}) }

// patientMain waits, before anybody looks for goroutines that are left, for one that ends by itself: rueidis closes its
// connections to nodes that have left a cluster five seconds later, also if it was closed itself meanwhile.
type patientMain struct{ *testing.M }

func (m patientMain) Run() int {
	status := m.M.Run()
	for end := time.Now().Add(10 * time.Second); goleak.Find() != nil && time.Now().Before(end); {
	}
	return status
}

// TestOneCommand counts what the server is sent: one command a call, whatever happens to it.
func TestOneCommand(t *testing.T) {
	srv := testserver.Redis(t)
	s, admin := mustOpen(t, "redis://"+srv.Addr), mustAdmin(t, srv)
	id := idOf(1)
	rec := record("ada", "a", "1")
	next := after(rec, set("a", "2"))
	raced := after(rec, set("b", "3"))
	touched := next
	touched.Seen, touched.Revision = touched.Seen.Add(time.Second), driver.NewRevision(next.Revision)
	mustSave(t, s, idOf(2), rec, 0) // the scripts are sent once, when the server does not know them
	if _, err := s.Merge(t.Context(), idOf(2), rec, next, []driver.Change{set("a", "2")}); err != nil {
		t.Fatal(err)
	}
	if err := s.Touch(t.Context(), idOf(2), touched, next.Revision); err != nil {
		t.Fatal(err)
	}

	calls := []struct {
		name string
		call func() error
		want error
		sent string
	}{
		{"create", func() error { return s.Save(t.Context(), id, rec, 0) }, nil, "evalsha"},
		{"load", func() error { _, err := s.Load(t.Context(), id); return err }, nil, "get"},
		{"load absent", func() error { _, err := s.Load(t.Context(), idOf(9)); return err }, driver.ErrNotFound, "get"},
		{"save", func() error { return s.Save(t.Context(), id, next, rec.Revision) }, nil, "evalsha"},
		{"save, conflict", func() error { return s.Save(t.Context(), id, raced, rec.Revision) }, driver.ErrConflict, "evalsha"},
		{"merge, raced", func() error {
			_, err := s.Merge(t.Context(), id, rec, raced, []driver.Change{set("b", "3")})
			return err
		}, nil, "evalsha"},
		{"touch, conflict", func() error { return s.Touch(t.Context(), id, touched, rec.Revision) }, driver.ErrConflict, "evalsha"},
		{"delete", func() error { return s.Delete(t.Context(), id) }, nil, "del"},
		{"merge, absent", func() error {
			_, err := s.Merge(t.Context(), id, rec, raced, []driver.Change{set("b", "3")})
			return err
		}, driver.ErrNotFound, "evalsha"},
		{"touch, absent", func() error { return s.Touch(t.Context(), id, touched, rec.Revision) }, driver.ErrNotFound, "evalsha"},
	}
	for _, c := range calls {
		mustDo(t, admin, "CONFIG", "RESETSTAT")
		if err := c.call(); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if got := sent(t, admin); got != c.sent+"=1" {
			t.Errorf("%s: the server was sent %s, want %s=1", c.name, got, c.sent)
		}
	}
}

// sent returns how often the server ran each command that the store sends; scripts run others.
func sent(t *testing.T, admin rueidis.Client) string {
	t.Helper()
	var out []string
	for line := range strings.Lines(mustDo(t, admin, "INFO", "commandstats")) {
		name, rest, _ := strings.Cut(strings.TrimPrefix(line, "cmdstat_"), ":calls=")
		n, _, _ := strings.Cut(rest, ",")
		switch name {
		case "evalsha", "eval", "get", "del", "scan", "mget", "wait":
			out = append(out, name+"="+n)
		}
	}
	return strings.Join(out, " ")
}

// A touch sends and rewrites a header, whatever the size of the record, and keeps the fields.
func TestTouchSendsNoFields(t *testing.T) {
	srv := testserver.Redis(t)
	s, admin := mustOpen(t, "redis://"+srv.Addr), mustAdmin(t, srv)
	rec := record("ada", "big", strings.Repeat("x", 100_000))
	mustSave(t, s, idOf(1), rec, 0)
	for range 2 { // the first sends the script too
		next := rec
		next.Seen, next.Expires = rec.Seen.Add(time.Minute), rec.Expires.Add(time.Minute)
		next.Revision = driver.NewRevision(rec.Revision)
		before := infoNumber(t, admin, "stats", "total_net_input_bytes")
		if err := s.Touch(t.Context(), idOf(1), next, rec.Revision); err != nil {
			t.Fatal(err)
		}
		if n := infoNumber(t, admin, "stats", "total_net_input_bytes") - before; n > 4000 {
			t.Errorf("Touch of a record of %d bytes sent %v bytes", rec.EncodedLen(), n)
		}
		rec = next
		wantStored(t, s, idOf(1), rec)
		wantTTL(t, admin, idOf(1), rec.Expires)
	}
}

// Keys live as long as the client says, however long ago the server's clock thinks that was, and a key that is still
// there after its record expired counts as absent.
func TestExpiry(t *testing.T) {
	srv := testserver.Redis(t)
	s, admin := mustOpen(t, "redis://"+srv.Addr), mustAdmin(t, srv)
	ctx := t.Context()

	rec := record("ada", "a", "1")
	mustSave(t, s, idOf(1), rec, 0)
	wantTTL(t, admin, idOf(1), rec.Expires)

	shorter := after(rec)
	shorter.Expires = rec.Expires.Add(-20 * time.Minute)
	raced := after(shorter, set("b", "2"))
	mustSave(t, s, idOf(1), shorter, rec.Revision)
	wantTTL(t, admin, idOf(1), shorter.Expires)
	if _, err := s.Merge(ctx, idOf(1), rec, raced, []driver.Change{set("b", "2")}); err != nil {
		t.Fatal(err)
	}
	wantTTL(t, admin, idOf(1), raced.Expires)

	longer := after(rec, set("c", "3"))
	longer.Expires = rec.Expires.Add(time.Hour)
	if _, err := s.Merge(ctx, idOf(1), rec, longer, []driver.Change{set("c", "3")}); err != nil {
		t.Fatal(err)
	}
	wantTTL(t, admin, idOf(1), longer.Expires)

	for _, expires := range []time.Time{{}, time.UnixMilli(-1), time.Now().Add(-time.Millisecond)} {
		old := rec
		old.Expires = expires
		next := after(old, set("a", "2"))
		next.Expires = time.Now().Add(time.Hour)
		mustSet(t, admin, idOf(2), old)
		if _, err := s.Load(ctx, idOf(2)); !errors.Is(err, driver.ErrNotFound) {
			t.Errorf("expires %v: Load = %v, want ErrNotFound", expires, err)
		}
		if _, err := s.Merge(ctx, idOf(2), old, next, []driver.Change{set("a", "2")}); !errors.Is(err, driver.ErrNotFound) {
			t.Errorf("expires %v: Merge = %v, want ErrNotFound", expires, err)
		}
		if err := s.Touch(ctx, idOf(2), next, old.Revision); !errors.Is(err, driver.ErrNotFound) {
			t.Errorf("expires %v: Touch = %v, want ErrNotFound", expires, err)
		}
		if err := s.Save(ctx, idOf(2), next, old.Revision); !errors.Is(err, driver.ErrConflict) {
			t.Errorf("expires %v: Save over it = %v, want ErrConflict", expires, err)
		}
		mustSave(t, s, idOf(2), next, 0)
		wantStored(t, s, idOf(2), next)
	}

	far := record("ada")
	far.Expires = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
	mustSave(t, s, idOf(3), far, 0)
	wantStored(t, s, idOf(3), far)
	gone := after(far)
	gone.Expires = time.Now().Add(-time.Hour)
	mustSave(t, s, idOf(3), gone, far.Revision)
	if _, err := s.Load(ctx, idOf(3)); !errors.Is(err, driver.ErrNotFound) {
		t.Errorf("replaced by an expired record: Load = %v, want ErrNotFound", err)
	}
}

// Two writers that start from the same record may choose the same revision and the same contents, as when both add 1
// to a counter within a millisecond. Only one of them has saved.
func TestSameRevision(t *testing.T) {
	srv := testserver.Redis(t)
	s := mustOpen(t, "redis://"+srv.Addr)
	ctx := t.Context()
	rec := record("ada", "n", "1")
	next := after(rec, set("n", "2"))
	touched := after(next)
	mustSave(t, s, idOf(1), rec, 0)
	if err := s.Save(ctx, idOf(1), rec, 0); !errors.Is(err, driver.ErrConflict) {
		t.Errorf("second Save of a new record = %v, want ErrConflict", err)
	}
	mustSave(t, s, idOf(1), next, rec.Revision)
	if err := s.Save(ctx, idOf(1), next, rec.Revision); !errors.Is(err, driver.ErrConflict) {
		t.Errorf("second Save = %v, want ErrConflict", err)
	}
	if err := s.Touch(ctx, idOf(1), touched, next.Revision); err != nil {
		t.Errorf("Touch = %v", err)
	}
	if err := s.Touch(ctx, idOf(1), touched, next.Revision); !errors.Is(err, driver.ErrConflict) {
		t.Errorf("second Touch = %v, want ErrConflict", err)
	}
	wantStored(t, s, idOf(1), touched)
}

func TestList(t *testing.T) {
	srv := testserver.Redis(t)
	s, admin := mustOpen(t, "redis://"+srv.Addr+"?prefix=a:"), mustAdmin(t, srv)
	other := mustOpen(t, "redis://"+srv.Addr+"?prefix=a")
	const n = 2500
	want := make(map[driver.ID]uint64)
	for i := range n {
		rec := record("ada", "n", strconv.Itoa(i))
		mustSave(t, s, idOf(i), rec, 0)
		want[idOf(i)] = rec.Revision
	}
	mustSave(t, other, idOf(n), record("eve"), 0)
	mustSet(t, admin, idOf(n), driver.Record{}) // the default prefix
	for _, key := range []string{"a:x", "a:" + strings.ToUpper(idOf(0xabc).Hex()), "a:" + idOf(n).Hex() + "0", "b:" + idOf(n).Hex()} {
		mustDo(t, admin, "SET", key, "x")
	}
	mustDo(t, admin, "SET", "a:"+idOf(n+1).Hex(), "no record")
	mustDo(t, admin, "LPUSH", "a:"+idOf(n+2).Hex(), "x")

	for item, err := range s.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if want[item.ID] != item.Record.Revision {
			t.Errorf("List yields %s at revision %d, want %d", item.ID, item.Record.Revision, want[item.ID])
		}
		delete(want, item.ID)
		if len(want) == n/2 { // the table is rehashed while it is scanned
			for i := range 3 * n {
				mustDo(t, admin, "SET", "filler"+strconv.Itoa(i), "")
			}
		}
	}
	if len(want) > 0 {
		t.Errorf("List left out %d of %d records", len(want), n)
	}
	for range s.List(t.Context()) {
		break
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range s.List(ctx) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("List under a cancelled context yields %v", err)
		}
	}
}

// Attack 6: characters that Redis gives a meaning to stay plain bytes.
func TestSpecialCharactersAreInert(t *testing.T) {
	srv := testserver.Redis(t)
	s, admin := mustOpen(t, "redis://"+srv.Addr), mustAdmin(t, srv)
	names := []string{"*", "{tag}", "a\r\nDEL x\r\n", "\x00", "\"'`;--", "[a-z]", "$5\r\nhello", strings.Repeat("é", 100), "redis.call('FLUSHALL')"}
	recs := make([]driver.Record, len(names))
	for i, name := range names {
		recs[i] = record(name, name, name)
		mustSave(t, s, idOf(i), recs[i], 0)
		next := after(recs[i], set(name+"2", name))
		mustSave(t, s, idOf(i), after(recs[i]), recs[i].Revision)
		merged, err := s.Merge(t.Context(), idOf(i), recs[i], next, []driver.Change{set(name+"2", name)})
		if err != nil {
			t.Errorf("user %q: Merge = %v", name, err)
		}
		recs[i] = merged
	}
	for i := range names {
		wantStored(t, s, idOf(i), recs[i])
	}
	keys, err := admin.Do(t.Context(), admin.B().Keys().Pattern("*").Build()).AsStrSlice()
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		if _, err := driver.ParseID(strings.TrimPrefix(key, "holdfast:")); err != nil {
			t.Errorf("key %q", key)
		}
	}
	if err := s.Delete(t.Context(), idOf(0)); err != nil {
		t.Fatal(err)
	}
	if got := mustDo(t, admin, "DBSIZE"); got != strconv.Itoa(len(names)-1) {
		t.Errorf("%s keys are left after one Delete of %d", got, len(names))
	}
}

func TestForeignValues(t *testing.T) {
	srv := testserver.Redis(t)
	s, admin := mustOpen(t, "redis://"+srv.Addr), mustAdmin(t, srv)
	rec := record("ada", "a", "1")
	good := mustEncode(t, rec)
	future := "\x02" + good[1:]
	tests := []struct {
		name  string
		store []string
		want  error
	}{
		{"list", []string{"LPUSH", key(1), "x"}, driver.ErrCorrupt},
		{"short", []string{"SET", key(1), good[:20]}, driver.ErrCorrupt},
		{"user past the end", []string{"SET", key(1), good[:36]}, driver.ErrCorrupt},
		{"field past the end", []string{"SET", key(1), good[:len(good)-1]}, driver.ErrCorrupt},
		{"field header past the end", []string{"SET", key(1), good + "\x00\x01"}, driver.ErrCorrupt},
		{"unknown version", []string{"SET", key(1), future}, driver.ErrVersion},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			mustDo(t, admin, "DEL", key(1))
			mustDo(t, admin, tt.store...)
			if _, err := s.Load(t.Context(), idOf(1)); !errors.Is(err, tt.want) {
				t.Errorf("Load = %v, want %v", err, tt.want)
			}
			base := after(rec)
			changes := []driver.Change{set("b", "2")}
			if _, err := s.Merge(t.Context(), idOf(1), base, after(base, changes...), changes); !errors.Is(err, tt.want) {
				t.Errorf("Merge = %v, want %v", err, tt.want)
			}
			dump := mustDo(t, admin, "DUMP", key(1))
			if err := s.Save(t.Context(), idOf(1), rec, 0); err == nil {
				t.Error("Save of a new record over it succeeds")
			}
			if mustDo(t, admin, "DUMP", key(1)) != dump {
				t.Error("it was changed")
			}
		})
	}

}

// Redis answers too large a record by closing the connection under everybody: the store asks for the limit first.
func TestTooLarge(t *testing.T) {
	srv := testserver.Redis(t, testserver.RedisOptions{Config: []string{"proto-max-bulk-len 1mb"}})
	s := mustOpen(t, "redis://"+srv.Addr)
	fits := record("ada", "big", "")
	fits.Fields = fits.Fields.With(set("big", strings.Repeat("x", 1<<20-fits.EncodedLen())))
	large := after(fits, set("b", ""))
	mustSave(t, s, idOf(1), fits, 0)
	if err := s.Save(t.Context(), idOf(1), large, fits.Revision); !errors.Is(err, driver.ErrTooLarge) {
		t.Errorf("Save of %d bytes = %v, want ErrTooLarge", large.EncodedLen(), err)
	}
	if _, err := s.Merge(t.Context(), idOf(1), fits, large, []driver.Change{set("b", "")}); !errors.Is(err, driver.ErrTooLarge) {
		t.Errorf("Merge to %d bytes = %v, want ErrTooLarge", large.EncodedLen(), err)
	}
	wantStored(t, s, idOf(1), fits)
	if got := s.Describe().MaxBytes; got != 1<<20 {
		t.Errorf("Describe says MaxBytes %d, want %d", got, 1<<20)
	}
}

func TestDescribe(t *testing.T) {
	tests := []struct {
		name   string
		config []string
		evicts bool
		want   string
	}{
		{"default", nil, false, "snapshot"},
		{"append-only file", []string{"appendonly yes"}, false, "append-only"},
		{"policy without a limit", []string{"maxmemory-policy allkeys-lru"}, false, ""},
		{"limit without eviction", []string{"maxmemory 100mb"}, false, ""},
		{"limit with eviction", []string{"maxmemory 100mb", "maxmemory-policy volatile-ttl"}, true, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			srv := testserver.Redis(t, testserver.RedisOptions{Config: tt.config})
			d := mustOpen(t, "redis://"+srv.Addr).Describe()
			if d.Name != "redis" || !d.Shared || d.Evicts != tt.evicts || !strings.Contains(d.Durable, tt.want) {
				t.Errorf("Describe = %+v, want Evicts %v, Durable with %q", d, tt.evicts, tt.want)
			}
		})
	}
}

// infoNumber returns a number from a section of INFO.
func infoNumber(t testing.TB, admin rueidis.Client, section, name string) float64 {
	t.Helper()
	_, rest, _ := strings.Cut(mustDo(t, admin, "INFO", section), "\n"+name+":")
	value, _, _ := strings.Cut(rest, "\r")
	n, err := strconv.ParseFloat(value, 64)
	if err != nil {
		t.Fatalf("INFO %s, %s: %v", section, name, err)
	}
	return n
}

func wantTTL(t *testing.T, admin rueidis.Client, id driver.ID, expires time.Time) {
	t.Helper()
	ttl := time.Duration(mustInt(t, mustDo(t, admin, "PTTL", "holdfast:"+id.Hex()))) * time.Millisecond
	if off := ttl - time.Until(expires); off < -10*time.Millisecond || off > time.Minute/2 {
		t.Errorf("the key lives for %v, the record for %v", ttl, time.Until(expires))
	}
}

func wantStored(t *testing.T, s *redisstore.Store, id driver.ID, want driver.Record) {
	t.Helper()
	got, err := s.Load(t.Context(), id)
	if err != nil {
		t.Errorf("Load(%s) = %v", id, err)
		return
	}
	if mustEncode(t, got) != mustEncode(t, want) {
		t.Errorf("Load(%s) = %+v, want %+v", id, got, want)
	}
}

func mustOpen(t testing.TB, url string) *redisstore.Store {
	t.Helper()
	s, err := redisstore.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() }) // always nil
	return s
}

func mustSave(t testing.TB, s *redisstore.Store, id driver.ID, rec driver.Record, prev uint64) {
	t.Helper()
	if err := s.Save(t.Context(), id, rec, prev); err != nil {
		t.Fatalf("Save(%s) = %v", id, err)
	}
}

// mustAdmin connects to the server beside the store.
func mustAdmin(t testing.TB, srv *testserver.Server) rueidis.Client {
	t.Helper()
	c, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{srv.Addr}, ForceSingleClient: true, DisableCache: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func mustDo(t testing.TB, c rueidis.Client, args ...string) string {
	t.Helper()
	reply, err := c.Do(context.Background(), c.B().Arbitrary(args...).Build()).ToAny()
	if err != nil {
		t.Fatalf("%s: %v", args[0], err)
	}
	return fmt.Sprint(reply)
}

// mustSet stores rec without an expiry, as a server whose clock is far behind would still have it.
func mustSet(t testing.TB, admin rueidis.Client, id driver.ID, rec driver.Record) {
	t.Helper()
	mustDo(t, admin, "SET", "holdfast:"+id.Hex(), mustEncode(t, rec))
}

func mustEncode(t testing.TB, rec driver.Record) string {
	t.Helper()
	b, err := driver.Encode(rec)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func mustInt(t testing.TB, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// idOf returns an ID that n is part of.
func idOf(n int) driver.ID {
	id := driver.ID{0: 0xab, 28: byte(n >> 24), 29: byte(n >> 16), 30: byte(n >> 8), 31: byte(n)}
	return id
}

func key(n int) string { return "holdfast:" + idOf(n).Hex() }

// record returns a new record: pairs are names and values of fields in turn.
func record(user string, pairs ...string) driver.Record {
	now := time.UnixMilli(time.Now().UnixMilli())
	rec := driver.Record{User: user, Created: now, Seen: now, Expires: now.Add(time.Hour), Revision: driver.NewRevision(0)}
	for i := 0; i < len(pairs); i += 2 {
		rec.Fields = rec.Fields.With(set(pairs[i], pairs[i+1]))
	}
	return rec
}

// after returns a record that replaces rec.
func after(rec driver.Record, changes ...driver.Change) driver.Record {
	rec.Revision = driver.NewRevision(rec.Revision)
	rec.Fields = rec.Fields.With(changes...)
	return rec
}

func set(name, value string) driver.Change { return driver.Change{Name: name, Value: []byte(value)} }

func remove(name string) driver.Change { return driver.Change{Name: name, Delete: true} }

// eventually repeats f until it returns nil.
func eventually(t testing.TB, what string, f func() error) {
	t.Helper()
	deadline, tick := time.After(15*time.Second), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("%s: still %v", what, err)
		case <-tick.C:
		}
	}
}
