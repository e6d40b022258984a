package redisstore_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/keyring"
	"github.com/holdfast-sessions/holdfast/sealed/cookie"
	"github.com/holdfast-sessions/holdfast/store/redisstore"
)

// heard is what a call of Watch tells.
type heard struct {
	told   chan driver.ID
	wholes chan bool
}

func newHeard() heard { return heard{make(chan driver.ID, 10_000), make(chan bool, 1000)} }

// mustWatch watches a store until the test ends, and returns when that has begun.
func mustWatch(t *testing.T, s *redisstore.Store) heard {
	t.Helper()
	h := newHeard()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- s.Watch(ctx, func(id driver.ID) { h.told <- id }, func(whole bool) { h.wholes <- whole })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch = %v, want context.Canceled", err)
		}
	})
	h.wantWhole(t, true)
	return h
}

// wantWhole waits until the feed is whole, or is not.
func (h heard) wantWhole(t *testing.T, want bool) {
	t.Helper()
	late := time.After(30 * time.Second)
	for {
		select {
		case whole := <-h.wholes:
			if whole == want {
				return
			}
		case <-late:
			t.Fatalf("Watch does not call whole(%v)", want)
		}
	}
}

func (h heard) wantTold(t *testing.T, what string, id driver.ID) {
	t.Helper()
	late := time.After(30 * time.Second)
	for {
		select {
		case told := <-h.told:
			if told == id {
				return
			}
		case <-late:
			t.Fatalf("Watch does not tell of %s", what)
		}
	}
}

// Whatever becomes of the connection or its server, it is told, and when the server is back, so are changes.
func TestWatchFaults(t *testing.T) {
	persistent := testserver.RedisOptions{Config: []string{"appendonly yes", "appendfsync always"}}
	single := func(cause func(t *testing.T, srv *testserver.Server)) func(t *testing.T) (string, func()) {
		return func(t *testing.T) (string, func()) {
			srv := testserver.Redis(t, persistent)
			return "redis://" + srv.Addr, func() { cause(t, srv) }
		}
	}
	for name, set := range map[string]func(t *testing.T) (url string, cause func()){
		"killed":       single(func(_ *testing.T, srv *testserver.Server) { srv.Restart() }),
		"flushed":      single(func(_ *testing.T, srv *testserver.Server) { srv.MustCommand("FLUSHALL") }),
		"disconnected": single(func(_ *testing.T, srv *testserver.Server) { srv.MustCommand("CLIENT", "KILL", "TYPE", "normal") }),
		"primary killed": func(t *testing.T) (string, func()) {
			set := testserver.RedisSentinel(t)
			return "redis-sentinel://" + set.Addrs() + "?master=" + set.Name, func() { set.Primary().Stop() }
		},
		"primary frozen": func(t *testing.T) (string, func()) {
			set := testserver.RedisSentinel(t)
			return "redis-sentinel://" + set.Addrs() + "?master=" + set.Name, func() {
				old := set.Primary()
				old.Freeze()
				for set.Primary() == old {
				}
				old.Thaw()   // it tells what it does, and is not listened to
				set.Settle() // until Sentinel makes it a replica, it takes writes, too, which are lost (GUARANTEES says so)
			}
		},
		"node killed": func(t *testing.T) (string, func()) {
			set := testserver.RedisCluster(t)
			return "redis-cluster://" + set.Addrs(), func() { set.Primaries()[1].Stop() }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, cause := set(t)
			s, other := mustOpen(t, url), mustOpen(t, url)
			h := mustWatch(t, s)
			for i := range 3 {
				mustSave(t, other, idOf(i), record("ada"), 0)
				h.wantTold(t, "a change", idOf(i))
			}
			cause()
			h.wantWhole(t, false)
			h.wantWhole(t, true)
			for i := range 30 { // some on each node
				id := idOf(100 + i)
				eventually(t, "a write after it", func() error {
					if err := other.Save(t.Context(), id, record("ada"), 0); !errors.Is(err, driver.ErrConflict) {
						return err
					}
					return nil // an earlier try, whose answer was lost
				})
				h.wantTold(t, "a change after it", id)
			}
		})
	}
}

// While slots move, no cache above ends up with anything that is out of date.
func TestWatchSlotsMove(t *testing.T) {
	t.Parallel()
	cluster := testserver.RedisCluster(t)
	url := "redis-cluster://" + cluster.Addrs()
	s, other := mustOpen(t, url), mustOpen(t, url)
	const n = 60
	var mu sync.Mutex // guards the two below
	have, changes := make(map[driver.ID]uint64), make(map[driver.ID]int)
	drop := func(id driver.ID) {
		mu.Lock()
		defer mu.Unlock()
		changes[id]++
		delete(have, id)
	}
	dropAll := func(bool) {
		for i := range n {
			drop(idOf(i))
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	begun := make(chan struct{})
	begin := sync.OnceFunc(func() { close(begun) })
	running.Go(func() {
		if err := s.Watch(ctx, drop, func(whole bool) { dropAll(whole); begin() }); !errors.Is(err, context.Canceled) {
			t.Errorf("Watch = %v", err)
		}
	})
	<-begun
	load := func(i int) {
		id := idOf(i)
		mu.Lock()
		_, ok := have[id]
		before := changes[id]
		mu.Unlock()
		if ok {
			return
		}
		rec, err := s.Load(t.Context(), id)
		if err != nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if changes[id] == before {
			have[id] = rec.Revision
		}
	}
	var recs [n]driver.Record
	for i := range recs {
		recs[i] = record("ada")
		mustSave(t, other, idOf(i), recs[i], 0)
	}
	moving := make(chan struct{})
	running.Go(func() {
		defer close(moving)
		for i := range testserver.Scale(15, 60) {
			slot := redisstore.SlotOf(key(i))
			from := cluster.Owner(slot)
			for _, to := range cluster.Primaries() {
				if to != from {
					cluster.MoveSlot(slot, from, to)
					from = to
				}
			}
		}
	})
	for round, over := 0, false; !over; round++ {
		select {
		case <-moving:
			over = true
		default:
		}
		for i := range recs {
			load(i)
			next := after(recs[i], set("round", fmt.Sprint(round)))
			if err := other.Save(t.Context(), idOf(i), next, recs[i].Revision); err != nil {
				t.Fatalf("Save while slots move = %v", err)
			}
			recs[i] = next
			load(i)
		}
	}
	for i, rec := range recs {
		load(i)
		eventually(t, fmt.Sprintf("record %d, of which a cache has an earlier state", i), func() error {
			mu.Lock()
			defer mu.Unlock()
			if revision, ok := have[idOf(i)]; ok && revision != rec.Revision {
				return fmt.Errorf("revision %d, want %d", revision, rec.Revision)
			}
			return nil
		})
	}
}

// A right that is missing is named, and so is how to grant it.
func TestWatchRights(t *testing.T) {
	t.Parallel()
	least := "app on >s3cret resetkeys ~holdfast:* resetchannels -@all" + needed
	srv := testserver.Redis(t, testserver.RedisOptions{Users: []string{least + cacheRight}})
	cluster := testserver.RedisCluster(t, testserver.RedisOptions{Users: []string{least + clusterRights + cacheRight}})
	for url, servers := range map[string][]*testserver.Server{
		"redis://app:s3cret@" + srv.Addr:                      {srv},
		"redis-cluster://app:s3cret@" + cluster.Nodes[0].Addr: cluster.Nodes,
	} {
		s := mustOpen(t, url)
		h := mustWatch(t, s) // without the right to PING, too
		mustSave(t, s, idOf(1), record("ada"), 0)
		h.wantTold(t, "a change", idOf(1))
		for _, srv := range servers {
			srv.MustCommand("ACL", "SETUSER", "app", "-client|tracking")
		}
		err := s.Watch(t.Context(), func(driver.ID) {}, func(bool) {})
		if err == nil || errors.Is(err, driver.ErrUnavailable) || !strings.HasSuffix(err.Error(), "ACL SETUSER app +client|tracking") {
			t.Errorf("%s: Watch = %v, want how to grant the right", url, err)
		}
	}
}

// audible is a store of which a test hears what it tells a Manager, after that has heard it.
type audible struct {
	*redisstore.Store
	heard
}

func (s audible) Watch(ctx context.Context, changed func(driver.ID), whole func(bool)) error {
	return s.Store.Watch(ctx, func(id driver.ID) { changed(id); s.told <- id }, func(b bool) { whole(b); s.wholes <- b })
}

// A sealed session that was ended on one server is refused on another as soon as Redis has told it, with nothing but the
// next request between. While Redis is frozen or gone, that server believes what it has for the rest of 5 s (root
// TestSealedWatchLost); when Redis is back, it is told again.
func TestSealedPush(t *testing.T) {
	for name, topology := range map[string]func(t *testing.T) (url string, fault func()){
		"single": func(t *testing.T) (string, func()) {
			srv := testserver.Redis(t, testserver.RedisOptions{Config: []string{"appendonly yes", "appendfsync always"}})
			return "redis://" + srv.Addr, srv.Restart
		},
		"cached": func(t *testing.T) (string, func()) {
			srv := testserver.Redis(t)
			return "redis://" + srv.Addr + "?cache=8MB&cache_ttl=1m", func() { srv.MustCommand("CLIENT", "KILL", "TYPE", "normal") }
		},
		"sentinel": func(t *testing.T) (string, func()) {
			set := testserver.RedisSentinel(t)
			return "redis-sentinel://" + set.Addrs() + "?wait=1&wait_timeout=5s&master=" + set.Name, nil
		},
		"cluster": func(t *testing.T) (string, func()) {
			return "redis-cluster://" + testserver.RedisCluster(t).Addrs(), nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, fault := topology(t)
			keys := keyring.New(keyring.NewSet())
			store := audible{mustOpen(t, url), newHeard()}
			a, b := mustSealed(t, keys, mustOpen(t, url)), mustSealed(t, keys, store)
			for round := range 3 {
				user := fmt.Sprint("user", round)
				cookies := visit(t, a, nil, func(r *http.Request, s *holdfast.Session) {
					if err := s.Login(r.Context(), user); err != nil {
						t.Fatal(err)
					}
				})
				accepted := func() (who string) {
					visit(t, b, cookies, func(_ *http.Request, s *holdfast.Session) { who = s.User() })
					return who
				}
				if accepted(); round == 0 {
					store.wantWhole(t, true)
				}
				warm := false
				for range 10 { // what is told of the login may drop what was just remembered
					before := b.Stats().Loads
					if who := accepted(); who != user {
						t.Fatalf("user %q, want %q", who, user)
					}
					warm = b.Stats().Loads == before
				}
				if !warm {
					t.Errorf("the tenth request asked Redis")
				}
				pushed := b.Stats().Pushed
				if err := a.RevokeUser(t.Context(), user); err != nil {
					t.Fatal(err)
				}
				eventually(t, "the revocation is told", func() error {
					store.wantTold(t, "the revocation", holdfast.UserID(user))
					if b.Stats().Pushed == pushed {
						return errors.New("only the login was")
					}
					return nil
				})
				if who := accepted(); who != "" {
					t.Errorf("revoked, and told: user %q", who)
				}
				if round == 0 && fault != nil {
					fault()
					store.wantWhole(t, false)
					store.wantWhole(t, true)
				}
			}
		})
	}
}

func mustSealed(t *testing.T, keys *keyring.Ring, users driver.Store) *holdfast.Manager {
	t.Helper()
	sealer, err := cookie.New(keys, cookie.Config{})
	if err != nil {
		t.Fatal(err)
	}
	m, err := holdfast.NewSealed(sealer, users, holdfast.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() }) // always nil
	return m
}

// visit makes a request with cookies and returns those that it sets.
func visit(t *testing.T, m *holdfast.Manager, cookies []*http.Cookie, f func(*http.Request, *holdfast.Session)) []*http.Cookie {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, "https://www.example.com/", nil)
	for _, c := range cookies {
		r.AddCookie(c)
	}
	w := httptest.NewRecorder()
	m.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		s, err := m.Get(r)
		if err != nil {
			t.Errorf("Manager.Get = %v", err)
			return
		}
		f(r, s)
	})).ServeHTTP(w, r)
	return w.Result().Cookies()
}

// TestNamedPrimaries reads what nodes say of each other.
func TestNamedPrimaries(t *testing.T) {
	const id = "07c37dfeb235213a872192d90877d0cd55635b91"
	tests := []struct {
		name, line string
		want       string
	}{
		{"primary", "10.0.0.1:6379@16379 master - 0 1426238317239 4 connected 0-5460", "10.0.0.1:6379"},
		{"without slots", "10.0.0.1:6379@16379 master - 0 1426238317239 4 connected", "10.0.0.1:6379"},
		{"itself", "10.0.0.1:6379@16379 myself,master - 0 0 4 connected 0-5460 [77->-" + id + "]", "10.0.0.1:6379"},
		{"itself, of no address", ":6379@16379 myself,master - 0 0 4 connected 0-5460", "asked:6379"},
		{"with a name", "10.0.0.1:6379@16379,n1 master - 0 0 4 connected 0-5460", "n1:6379"},
		{"with a name that nobody uses", "10.0.0.1:6379@16379,n2 master - 0 0 4 connected 0-5460", "10.0.0.1:6379"},
		{"of Redis 7.2", "10.0.0.1:6379@16379,n1,tls-port=0,shard-id=" + id + " master - 0 0 4 connected 0-5460", "n1:6379"},
		{"IPv6", "fe80::1:6379@16379 master - 0 0 4 connected 0-5460", "[fe80::1]:6379"},
		{"failing", "10.0.0.1:6379@16379 master,fail? - 0 0 4 connected 0-5460", "10.0.0.1:6379"},
		{"failed", "10.0.0.1:6379@16379 master,fail - 0 0 4 connected 0-5460", "10.0.0.1:6379"},
		{"failed and replaced", "10.0.0.1:6379@16379 master,fail - 0 0 4 connected", ""},
		{"replica", "10.0.0.1:6379@16379 slave " + id + " 0 0 4 connected", ""},
		{"not known yet", "10.0.0.1:6379@16379 handshake,master - 0 0 4 connected", ""},
		{"no address", ":0@0 master,noaddr - 0 0 4 disconnected 0-5460", ""},
		{"no port", "10.0.0.1 master - 0 0 4 connected 0-5460", ""},
		{"short", "10.0.0.1:6379@16379 master", ""},
	}
	for _, tt := range tests {
		got := redisstore.NamedPrimaries(id+" "+tt.line+"\n\n", "asked:7000", func(addr string) bool { return addr == "n1:6379" })
		if want := slices.DeleteFunc([]string{tt.want}, func(s string) bool { return s == "" }); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", tt.name, got, want)
		}
	}
}

// BenchmarkWatch measures what a write costs the server when processes watch.
func BenchmarkWatch(b *testing.B) {
	for _, watchers := range []int{0, 1, 10, 50} {
		srv := testserver.Redis(b)
		admin := mustAdmin(b, srv)
		ctx, cancel := context.WithCancel(b.Context())
		var ended sync.WaitGroup
		for range watchers {
			s := mustOpen(b, "redis://"+srv.Addr)
			begun := make(chan bool, 10)
			ended.Go(func() { _ = s.Watch(ctx, func(driver.ID) {}, func(whole bool) { begun <- whole }) })
			<-begun
		}
		s := mustOpen(b, "redis://"+srv.Addr)
		const n = 1000
		var mu [n]sync.Mutex
		var recs [n]driver.Record
		for i := range recs {
			recs[i] = tenFields(1000)
			mustSave(b, s, idOf(i), recs[i], 0)
		}
		bench(b, []call{{fmt.Sprintf("save, watched by %d", watchers), func(ctx context.Context, i int) error {
			mu[i].Lock()
			defer mu[i].Unlock()
			next := after(recs[i], set("field3", "new"))
			err := s.Save(ctx, idOf(i), next, recs[i].Revision)
			if err == nil {
				recs[i] = next
			}
			return err
		}}}, n, admin)
		cancel()
		ended.Wait()
	}
}
