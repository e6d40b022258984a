package memcached_test

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store/memcached"
)

var (
	_ driver.Store     = (*memcached.Store)(nil)
	_ driver.Lister    = (*memcached.Store)(nil)
	_ driver.Stater    = (*memcached.Store)(nil)
	_ driver.Describer = (*memcached.Store)(nil)
)

func TestMain(m *testing.M) { testserver.Main(m) }

var quiet = memcached.Config{Logger: slog.New(slog.DiscardHandler)}

func mustOpen(t testing.TB, url string) *memcached.Store {
	t.Helper()
	s, err := memcached.Open(t.Context(), url, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	return s
}

// mustServers starts n servers and returns the URL of a store over them, without options.
func mustServers(t testing.TB, n int, o ...testserver.MemcachedOptions) ([]*testserver.Server, string) {
	t.Helper()
	var srvs []*testserver.Server
	var addrs []string
	for range n {
		srv := testserver.Memcached(t, o...)
		srvs, addrs = append(srvs, srv), append(addrs, srv.Addr)
	}
	return srvs, "memcached://" + strings.Join(addrs, ",")
}

// admin speaks memcached's protocol to a server, beside the store.
type admin struct {
	t    testing.TB
	addr string
}

// do sends commands and returns the first n lines of the answers, without their ends.
func (a admin) do(commands string, n int) []string {
	a.t.Helper()
	conn, err := net.Dial("tcp", a.addr)
	if err != nil {
		a.t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second)) // the read says so
	if _, err := conn.Write([]byte(commands)); err != nil {
		a.t.Fatal(err)
	}
	lines := bufio.NewScanner(conn)
	var out []string
	for len(out) < n && lines.Scan() {
		out = append(out, lines.Text())
	}
	if len(out) < n {
		a.t.Fatalf("%q is answered with %q", commands, out)
	}
	return out
}

// stats returns the server's statistics.
func (a admin) stats() map[string]string { return a.statsOf("") }

func (a admin) statsOf(what string) map[string]string {
	a.t.Helper()
	conn, err := net.Dial("tcp", a.addr)
	if err != nil {
		a.t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("stats" + what + "\r\n")); err != nil {
		a.t.Fatal(err)
	}
	info, err := memcached.ParseStats(conn)
	if err != nil {
		a.t.Fatal(err)
	}
	return info
}

// sent is what a server was sent, as it counts: names of commands, each with how often.
func (a admin) sent(f func()) string {
	a.t.Helper()
	before := a.stats()
	f()
	after := a.stats()
	var out []string
	for _, c := range []struct{ name, stat string }{
		{"get", "cmd_get"}, {"set", "cmd_set"}, {"stored by cas", "cas_hits"}, {"cas conflict", "cas_badval"}, {"cas miss", "cas_misses"},
		{"touch", "cmd_touch"}, {"delete", "delete_hits"}, {"delete miss", "delete_misses"},
	} {
		if n := number(a.t, after, c.stat) - number(a.t, before, c.stat); n > 0 {
			out = append(out, fmt.Sprintf("%s=%d", c.name, n))
		}
	}
	return strings.Join(out, " ")
}

func number(t testing.TB, info map[string]string, name string) int {
	t.Helper()
	n, err := strconv.Atoi(info[name])
	if err != nil {
		t.Fatalf("statistic %s is %q", name, info[name])
	}
	return n
}

func mustSave(t testing.TB, s *memcached.Store, id driver.ID, rec driver.Record, prev uint64) {
	t.Helper()
	if err := s.Save(t.Context(), id, rec, prev); err != nil {
		t.Fatalf("Save(%s) = %v", id, err)
	}
}

func mustLoad(t testing.TB, s *memcached.Store, id driver.ID) driver.Record {
	t.Helper()
	rec, err := s.Load(t.Context(), id)
	if err != nil {
		t.Fatalf("Load(%s) = %v", id, err)
	}
	return rec
}

func mustDelete(t testing.TB, s *memcached.Store, id driver.ID) {
	t.Helper()
	if err := s.Delete(t.Context(), id); err != nil {
		t.Fatalf("Delete(%s) = %v", id, err)
	}
}

func wantStored(t testing.TB, s *memcached.Store, id driver.ID, want driver.Record) {
	t.Helper()
	got := mustLoad(t, s, id)
	if got.Revision != want.Revision || got.User != want.User || !got.Fields.Equal(want.Fields) || !got.Expires.Equal(want.Expires) {
		t.Errorf("%s is revision %d of %q, want %d of %q, or its fields differ", id, got.Revision, got.User, want.Revision, want.User)
	}
}

func wantErr(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s = %v, want %v", what, err, want)
	}
	for _, not := range []error{driver.ErrNotFound, driver.ErrConflict, driver.ErrUnavailable} {
		if not != want && errors.Is(err, not) && !errors.Is(want, not) {
			t.Errorf("%s = %v, which says %q too", what, err, not)
		}
	}
}

func idOf(n int) driver.ID {
	return driver.ID{0: byte(n), 1: 0xab, 28: byte(n >> 24), 29: byte(n >> 16), 30: byte(n >> 8), 31: byte(n)}
}

func key(id driver.ID) string { return "holdfast:" + id.Hex() }

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
