package main

import (
	"fmt"
	"net/http"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"
)

// shared are the servers that all tests share, by kind.
var shared struct {
	mu      sync.Mutex // mu guards the fields below
	servers map[string]server
	stops   []func()
}

// mustServer returns a server that all tests share, or the memory.
func mustServer(t testing.TB, kind string) server {
	t.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	at, ok := shared.servers[kind]
	if ok || kind == "memory" {
		return at
	}
	at, stop, err := startServer(kind)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	if shared.servers == nil {
		shared.servers = make(map[string]server)
	}
	shared.servers[kind] = at
	shared.stops = append(shared.stops, stop)
	return at
}

func TestMain(m *testing.M) {
	status := m.Run()
	for _, stop := range shared.stops {
		stop()
	}
	os.Exit(status)
}

// BenchmarkRequest is for profiles and for benchstat; go run . compares. Over Redis 16 requests run at a time.
//
//	go test -run '^$' -bench 'Request/memory/0.23_KB,_10_fields/read/holdfast' -cpuprofile cpu.out
func BenchmarkRequest(b *testing.B) {
	for _, store := range allStores {
		b.Run(store, func(b *testing.B) {
			at := mustServer(b, store)
			for _, sh := range shapes(true) {
				b.Run(sh.String(), func(b *testing.B) {
					for _, o := range operations {
						for _, lib := range able(store, o) {
							b.Run(fmt.Sprintf("%s/%s", o, lib.name), func(b *testing.B) { benchmark(b, lib, o, sh, at) })
						}
					}
				})
			}
		})
	}
}

func benchmark(b *testing.B, lib library, o operation, sh shape, at server) {
	a, err := lib.open(o.setup(at))
	if err != nil {
		b.Fatal(err)
	}
	defer a.close()
	h := a.handler(o, sh)
	requests, err := a.requests(o, sh, 1)
	if err != nil {
		b.Skip(err) // too large for a cookie
	}
	b.ReportAllocs()
	if at.kind != "" && !o.consumes() {
		b.SetParallelism(16 / runtime.GOMAXPROCS(0))
		b.RunParallel(func(pb *testing.PB) {
			var r http.Request
			w := newResponse()
			for pb.Next() {
				r = *requests[0]
				w.reset()
				h.ServeHTTP(w, &r)
				if err := w.err(); err != nil {
					b.Error(err)
				}
			}
		})
		return
	}
	var r http.Request
	w := newResponse()
	for i := 0; b.Loop(); i++ {
		if o.consumes() && i == len(requests) {
			b.StopTimer()
			if requests, err = a.requests(o, sh, 1000); err != nil {
				b.Fatal(err)
			}
			i = 0
			b.StartTimer()
		}
		r = *requests[i%len(requests)]
		w.reset()
		h.ServeHTTP(w, &r)
		if err := w.err(); err != nil {
			b.Fatal(err)
		}
	}
}

// quick is enough to count allocations and round trips.
var quick = effort{rounds: 1, sample: time.Millisecond}

// margin is what other programs on the machine may do to a comparison of times.
const margin = 0.5

// TestBars compares Holdfast with what it has to reach. With -short it leaves out what depends on the machine.
func TestBars(t *testing.T) {
	e := effort{rounds: 9, sample: 20 * time.Millisecond}
	if testing.Short() {
		e = quick
	}
	check := func(t *testing.T, table table) {
		for _, b := range table.bars() {
			t.Log(b)
			if (b.exact || !testing.Short()) && !b.met(margin) {
				t.Errorf("bar missed: %v", b)
			}
		}
	}
	t.Run("memory", func(t *testing.T) { check(t, measureMemory(small, e)) })
	for _, store := range allStores[1:] {
		t.Run(store, func(t *testing.T) {
			table, err := measureServer(small, mustServer(t, store), e)
			if err != nil {
				t.Fatal(err)
			}
			check(t, table)
		})
	}
}

func TestNoHarm(t *testing.T) {
	for _, store := range allStores {
		t.Run(store, func(t *testing.T) {
			at := mustServer(t, store)
			for _, lib := range able(store, opRead) {
				d, err := harm(lib, at)
				if err != nil {
					t.Errorf("%s: %v", lib.name, err)
				}
				t.Logf("%s: %+v", lib.name, d)
				if clean := (damage{writers: d.writers, logouts: d.logouts}); lib.name == holdfastName && d != clean {
					t.Errorf("%s: %+v, want no damage", lib.name, d)
				}
			}
		})
	}
}

// TestOperations proves that the libraries do what is measured: a write is read again, a renewed session has another
// token and the old one is worth nothing, a session that ended is empty.
func TestOperations(t *testing.T) {
	for _, store := range allStores {
		at := mustServer(t, store)
		for _, lib := range able(store, opRead) {
			t.Run(store+"/"+lib.name, func(t *testing.T) {
				a, err := lib.open(setup{server: at})
				if err != nil {
					t.Fatal(err)
				}
				defer a.close()
				b := mustBegin(t, a)
				wantUser(t, a, b.cookie(), "alice")
				first := b.cookie()
				if a.renew != nil {
					mustDo(t, b, a.handle(func(_ http.ResponseWriter, r *http.Request) error { return a.renew(r) }))
					if b.cookie() == first {
						t.Error("renewed session has the cookie it had")
					}
					wantUser(t, a, b.cookie(), "alice")
					wantUser(t, a, first, "")
				}
				mustDo(t, b, a.handle(a.end))
				wantUser(t, a, b.cookie(), "")
			})
		}
	}
}

func mustBegin(t testing.TB, a *app) browser {
	t.Helper()
	b, err := begin(a)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustDo(t testing.TB, b browser, h http.Handler) {
	t.Helper()
	if err := b.do(h); err != nil {
		t.Fatal(err)
	}
}

func wantUser(t testing.TB, a *app, cookie, want string) {
	t.Helper()
	got, err := a.user(cookie)
	if err != nil || got != want {
		t.Errorf("field 0 of the session is %q, %v, want %q", got, err, want)
	}
}
