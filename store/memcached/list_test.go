package memcached_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

// List yields the store's records and nothing else, in portions, and leaves the server alone when it is given up.
func TestList(t *testing.T) {
	srvs, url := mustServers(t, 2)
	s, other := mustOpen(t, url), mustOpen(t, url+"?prefix=other:")
	n := testserver.Scale(2_000, 100_000)
	for i := range n {
		mustSave(t, s, idOf(i), record(idOf(i).Hex()), 0)
	}
	for i := range 100 {
		mustSave(t, other, idOf(i), record("other"), 0)
		mustSave(t, s, idOf(n+i), record("ended"), 0)
		mustDelete(t, s, idOf(n+i))
	}
	for _, srv := range srvs { // what belongs on the other server, and what is no record
		a := admin{t, srv.Addr}
		for i := range 20 {
			a.do("add "+key(idOf(n+200+i))+" 0 0 1\r\nx\r\n", 1)
		}
		a.do("set holdfast:short 0 0 1\r\nx\r\nset a%20b 0 0 1\r\nx\r\n", 2)
	}
	seen := make(map[driver.ID]bool)
	for item, err := range s.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if item.Record.User != item.ID.Hex() || seen[item.ID] {
			t.Errorf("List yields %s of %q, seen before: %v", item.ID, item.Record.User, seen[item.ID])
		}
		seen[item.ID] = true
	}
	if len(seen) != n {
		t.Errorf("List yields %d records, want %d", len(seen), n)
	}
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		go cancel() // about when the list begins; ends by itself
		for _, err := range s.List(ctx) {
			if err != nil {
				wantErr(t, "List that is given up", err, driver.ErrUnavailable)
			}
		}
		cancel()
	}
	for i := range 100 {
		mustLoad(t, s, idOf(i))
	}
	if l := s.Losses(); l.Restarts != 0 {
		t.Errorf("%d servers restarted", l.Restarts)
	}
}

// A server that does not list its keys says how it would.
func TestListWithoutCrawler(t *testing.T) {
	_, url := mustServers(t, 1, testserver.MemcachedOptions{Args: []string{"-o", "no_lru_crawler"}})
	s := mustOpen(t, url)
	mustSave(t, s, idOf(1), record("ada"), 0)
	err := fmt.Errorf("nothing was listed")
	for _, err = range s.List(t.Context()) {
	}
	wantErr(t, "List", err, driver.ErrUnavailable)
	if !strings.Contains(err.Error(), "no_lru_crawler") {
		t.Errorf("List = %v, want it to say what the server needs", err)
	}
}
