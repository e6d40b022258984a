package memcached_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testfault"
	"github.com/holdfast-sessions/holdfast/store/memcached"
)

// TestExploreCopies runs two calls on one record with a second copy in every order that their requests to the two servers
// can reach them in, and, in each order, with either server losing its memory at every moment, or none.
func TestExploreCopies(t *testing.T) {
	t.Parallel()
	at := time.UnixMilli(time.Now().UnixMilli())
	base := driver.Record{User: "ada", Created: at, Seen: at, Expires: at.Add(time.Hour), Revision: 30}
	next := func(revision uint64, by string) driver.Record {
		r := base
		r.Revision = revision
		r.Fields = r.Fields.With(set("by", by))
		return r
	}
	save := func(revision, prev uint64) func(*memcached.Store, driver.ID) error {
		return func(s *memcached.Store, id driver.ID) error {
			return s.Save(t.Context(), id, next(revision, fmt.Sprint(revision)), prev)
		}
	}
	remove := func(s *memcached.Store, id driver.ID) error { return s.Delete(t.Context(), id) }
	load := func(s *memcached.Store, id driver.ID) error { _, err := s.Load(t.Context(), id); return err }
	absent := func(*explorer, driver.ID) {}
	present := func(e *explorer, id driver.ID) { mustSave(e.t, e.plain, id, base, 0) }
	half := func(e *explorer, id driver.ID) { present(e, id); e.forget(0, id) }
	ended := func(e *explorer, id driver.ID) { mustDelete(e.t, e.plain, id) }

	scenarios := []struct {
		name   string
		before func(*explorer, driver.ID)
		calls  [2]func(*memcached.Store, driver.ID) error
		anew   bool // one of them may make the record anew after a Delete
	}{
		{"save and delete", present, [2]func(*memcached.Store, driver.ID) error{save(40, 30), remove}, false},
		{"save and save", present, [2]func(*memcached.Store, driver.ID) error{save(40, 30), save(41, 30)}, false},
		{"load that copies back and delete", half, [2]func(*memcached.Store, driver.ID) error{load, remove}, false},
		{"load that copies back and save", half, [2]func(*memcached.Store, driver.ID) error{load, save(40, 30)}, false},
		{"save over a second copy alone and delete", half, [2]func(*memcached.Store, driver.ID) error{save(40, 30), remove}, false},
		{"save over a second copy alone, twice", half, [2]func(*memcached.Store, driver.ID) error{save(40, 30), save(41, 30)}, false},
		{"two deletes", present, [2]func(*memcached.Store, driver.ID) error{remove, remove}, false},
		{"new record and delete", ended, [2]func(*memcached.Store, driver.ID) error{save(40, 0), remove}, true},
		{"new record, twice", absent, [2]func(*memcached.Store, driver.ID) error{save(40, 0), save(41, 0)}, false},
	}
	for _, sc := range scenarios {
		t.Run(sc.name, func(t *testing.T) {
			t.Parallel() // each waits for servers of its own
			e := newExplorer(t)
			orders, lossy, lostUpdates := 0, 0, 0
			for _, loses := range []int{-1, 0, 1} { // the server that loses its memory
				e.every(loses, sc.before, sc.calls, func(id driver.ID, order string, errs [2]error) {
					if orders++; loses >= 0 {
						lossy++
					}
					fail := func(format string, args ...any) {
						t.Errorf("order %s (%v, %v): %s; first server: %s, second: %s", order, errs[0], errs[1],
							fmt.Sprintf(format, args...), e.show(0, id), e.show(1, id))
					}
					for _, err := range errs {
						switch {
						case err == nil, errors.Is(err, driver.ErrConflict), errors.Is(err, driver.ErrNotFound):
						case errors.Is(err, driver.ErrUnavailable) && loses >= 0:
						default:
							fail("a call returns %v", err)
						}
					}
					deleted := sc.name == "two deletes" || strings.HasSuffix(sc.name, "delete") && errs[1] == nil
					first, second := e.live(0, id), e.live(1, id)
					if deleted && !sc.anew && (first || second) {
						fail("a session that was ended is still there")
					}
					saved := func(i int) bool {
						return errs[i] == nil && strings.Contains(sc.name, "save") || errs[i] == nil && sc.name == "new record, twice"
					}
					_, loadErr := e.plain.Load(t.Context(), id)
					if !strings.HasSuffix(sc.name, "delete") && sc.name != "two deletes" {
						if loadErr != nil {
							// A server alone that has a record, and loses it, loses it.
							if !(loses >= 0 && (e.show(0, id) == "nothing" && e.show(1, id) == "nothing")) {
								fail("Load = %v", loadErr)
							}
						}
						if loses < 0 && (!first || !second) {
							fail("a copy is missing")
						}
					}
					if strings.HasSuffix(sc.name, "save and save") || strings.HasSuffix(sc.name, "twice") {
						if saved(0) && saved(1) {
							if lostUpdates++; loses != 0 {
								fail("both saved over one revision")
							}
						}
						if loses < 0 && !saved(0) && !saved(1) {
							fail("neither saved")
						}
					}
				})
			}
			t.Logf("%d orders, %d of them with a loss of memory; in %d of those, of the first server's, both writers saved", orders, lossy, lostUpdates)
		})
	}
}

// explorer holds back the requests of two stores, one for each call, and lets them through one at a time.
type explorer struct {
	t      *testing.T
	conns  [2]net.Conn // to the servers, beside the stores
	lines  [2]*bufio.Scanner
	plain  *memcached.Store
	stores [2]*memcached.Store
	gates  [2]*gate
	nextID int
}

func newExplorer(t *testing.T) *explorer {
	srvs, url := mustServers(t, 2)
	e := &explorer{t: t, plain: mustOpen(t, url+"?copies=2")}
	for i, srv := range srvs {
		conn, err := net.Dial("tcp", srv.Addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		e.conns[i], e.lines[i] = conn, bufio.NewScanner(conn)
	}
	for i := range e.stores {
		e.gates[i] = &gate{requests: make(chan chan struct{})}
		var addrs []string
		for _, srv := range srvs {
			addrs = append(addrs, e.gates[i].mustListen(t, srv.Addr))
		}
		e.stores[i] = mustOpen(t, "memcached://"+strings.Join(addrs, ",")+"?copies=2&timeout=1m")
	}
	return e
}

// id returns an ID whose first server is number 0, for every one of the stores: their addresses, and so their rings,
// differ.
func (e *explorer) id() driver.ID {
	for {
		id := idOf(e.nextID)
		e.nextID++
		a, _ := e.plain.ServerOf(id)
		b, _ := e.stores[0].ServerOf(id)
		c, _ := e.stores[1].ServerOf(id)
		if a == 0 && b == 0 && c == 0 {
			return id
		}
	}
}

// ask sends a command to a server and returns the first line of the answer.
func (e *explorer) ask(server int, command string) string {
	if _, err := e.conns[server].Write([]byte(command + "\r\n")); err != nil || !e.lines[server].Scan() {
		e.t.Fatalf("no answer to %s: %v, %v", command, err, e.lines[server].Err())
	}
	return e.lines[server].Text()
}

func (e *explorer) forget(server int, id driver.ID) { e.ask(server, "delete "+key(id)) }

// value returns what a server has, or nil.
func (e *explorer) value(server int, id driver.ID) []byte {
	if e.ask(server, "get "+key(id)) == "END" {
		return nil
	}
	var lines []string
	for e.lines[server].Scan() && e.lines[server].Text() != "END" {
		lines = append(lines, e.lines[server].Text())
	}
	return []byte(strings.Join(lines, "\n"))
}

// live reports whether a server has a record that is not the end of one.
func (e *explorer) live(server int, id driver.ID) bool {
	b := e.value(server, id)
	return b != nil && b[0] == 1
}

func (e *explorer) show(server int, id driver.ID) string {
	switch b := e.value(server, id); {
	case b == nil:
		return "nothing"
	case b[0] == 1:
		return fmt.Sprintf("a record, revision %d", b[9])
	default:
		return "the end"
	}
}

// every runs the calls in every order of their requests, and of the moment at which a server loses its memory, and
// reports each.
func (e *explorer) every(loses int, before func(*explorer, driver.ID), calls [2]func(*memcached.Store, driver.ID) error, report func(driver.ID, string, [2]error)) {
	absent := e.id()
	var choices, options []int // of the order that is tried: which of those that could go on did, and how many could
	for {
		id := e.id()
		before(e, id)
		var errs [2]error
		var done [2]chan struct{}
		for i := range calls {
			// A connection to each server, made before the call, so that the call's requests are all that is held back.
			e.gates[i].open(true)
			if _, err := e.stores[i].Load(e.t.Context(), absent); !errors.Is(err, driver.ErrNotFound) { // of neither
				e.t.Fatalf("Load of what is on neither server = %v", err)
			}
			e.gates[i].open(false)
			done[i] = make(chan struct{})
		}
		var wg sync.WaitGroup
		for i, call := range calls {
			wg.Go(func() { defer close(done[i]); errs[i] = call(e.stores[i], id) })
		}
		var waiting [2]chan struct{} // the requests that are held back
		var over [2]bool
		lost := loses < 0
		order := ""
		for step := 0; ; step++ {
			var can []int // 0 and 1: the calls; 2: the loss
			for i := range calls {
				if !over[i] && waiting[i] == nil {
					select {
					case waiting[i] = <-e.gates[i].requests:
					case <-done[i]:
						over[i] = true
					}
				}
				if waiting[i] != nil {
					can = append(can, i)
				}
			}
			if !lost {
				can = append(can, 2)
			}
			if len(can) == 0 {
				break
			}
			if step == len(choices) {
				choices, options = append(choices, 0), append(options, len(can))
			}
			switch who := can[choices[step]]; who {
			case 2:
				e.forget(loses, id)
				lost = true
				order += "x"
			default:
				close(waiting[who])
				waiting[who] = nil
				order += string(rune('a' + who))
				// It has gone on when it asks again or is done.
				select {
				case waiting[who] = <-e.gates[who].requests:
				case <-done[who]:
					over[who] = true
				}
			}
		}
		wg.Wait()
		report(id, order, errs)
		// The next order.
		for len(choices) > 0 && choices[len(choices)-1] == options[len(options)-1]-1 {
			choices, options = choices[:len(choices)-1], options[:len(options)-1]
		}
		if len(choices) == 0 {
			return
		}
		choices[len(choices)-1]++
	}
}

// gate forwards connections, and holds back each request until the channel that it sends for it is closed.
type gate struct {
	requests chan chan struct{}

	mu sync.Mutex

	// mu guards the field below.
	opened bool
}

func (g *gate) open(open bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.opened = open
}

// mustListen returns the address to connect to instead of a server's.
func (g *gate) mustListen(t *testing.T, to string) string {
	t.Helper()
	g.open(true)
	end := t.Context().Done()
	return testfault.Forward(t, to,
		func(server, client net.Conn) { g.forward(server, client, end) },
		func(client, server net.Conn) { _, _ = io.Copy(client, server) })
}

// forward holds back what a client sends: a request fits a write, and so a read, as the records are small.
func (g *gate) forward(server, client net.Conn, end <-chan struct{}) {
	buf := make([]byte, 16<<10)
	for {
		n, err := client.Read(buf)
		if err != nil {
			return
		}
		g.mu.Lock()
		opened := g.opened
		g.mu.Unlock()
		if !opened {
			release := make(chan struct{})
			select {
			case g.requests <- release:
			case <-end:
				return
			}
			select {
			case <-release:
			case <-end:
				return
			}
		}
		if _, err := server.Write(buf[:n]); err != nil {
			return
		}
	}
}
