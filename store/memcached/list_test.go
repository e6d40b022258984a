package memcached_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store/memcached"
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

// While the server's hash table grows, List waits: what it yields always has every record that was there when it began.
func TestListWhileTableGrows(t *testing.T) {
	t.Parallel() // it waits for the server most of the time
	// The smallest table grows above 6,144 keys, and again at each doubling.
	srvs, url := mustServers(t, 1, testserver.MemcachedOptions{Args: []string{"-t", "1", "-o", "hashpower=12"}})
	a := admin{t, srvs[0].Addr}
	s := mustOpen(t, url+"?timeout=1m") // it may begin to grow between the look and the list, and growing takes seconds on a busy machine
	const n = 500
	for i := range n {
		mustSave(t, s, idOf(i), record("ada"), 0)
	}
	if got := a.stats()["hash_power_level"]; got != "12" {
		t.Fatalf("hash_power_level = %s before the test, want 12", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	filled := make(chan error, 1)
	go func() { filled <- fill(ctx, srvs[0].Addr, testserver.Scale(60_000, 200_000)) }()
	// The server looks once a second whether to grow, and not while it lists.
	lists, waited, power := 0, 0, 12
	for deadline := time.Now().Add(time.Minute); power < testserver.Scale(14, 16); lists++ {
		if time.Now().After(deadline) {
			t.Fatalf("hash_power_level is still %d, after %d lists", power, lists)
		}
		seen := 0
		for _, err := range s.List(t.Context()) {
			if err != nil {
				t.Fatalf("List number %d = %v", lists, err)
			}
			seen++
		}
		if seen != n {
			t.Fatalf("List number %d yields %d records, want %d", lists, seen, n)
		}
		stats := a.stats()
		if stats["hash_is_expanding"] != "0" {
			waited++
		}
		var err error
		if power, err = strconv.Atoi(stats["hash_power_level"]); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-filled; err != nil {
		t.Fatal(err)
	}
	t.Logf("%d lists, after %d of them the table was just growing, to hashpower %d", lists, waited, power)
}

// fill stores n small values of another program, again and again until ctx ends.
func fill(ctx context.Context, addr string, n int) error {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		return err
	}
	answers := bufio.NewReader(conn)
	for i := 0; ctx.Err() == nil; {
		var b strings.Builder
		for range 1_000 {
			fmt.Fprintf(&b, "set other:%d 0 0 1 noreply\r\nx\r\n", i%n)
			i++
		}
		b.WriteString("version\r\n")
		if _, err := conn.Write([]byte(b.String())); err != nil {
			return err
		}
		if line, err := answers.ReadString('\n'); err != nil || !strings.HasPrefix(line, "VERSION") {
			return fmt.Errorf("version after key %d is answered with %q: %w", i, line, err)
		}
	}
	return nil
}

// What a server says instead of a list: which of it is worth waiting for, and which says that it has none. The second
// line is the answer of 1.6.28 and later while the hash table grows.
func TestListRefused(t *testing.T) {
	for line, wait := range map[string]bool{
		"BUSY currently processing crawler request\r\n": true,
		"ERROR locked try again later\r\n":              true,
		"ERROR\r\n":                                     false,
		"CLIENT_ERROR lru crawler disabled\r\n":         false,
	} {
		_, end, err := memcached.NextKey(strings.NewReader(line))()
		if end || errors.Is(err, memcached.ErrBusy) != wait || errors.Is(err, memcached.ErrNoCrawl) == wait {
			t.Errorf("%q is read as end %v, %v; want to wait: %v", line, end, err, wait)
		}
	}
}
