package memcached_test

import (
	"net"
	"strings"
	"testing"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testfault"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

// TestOutages causes everything that can happen to one server, while visitors are at work. Sessions are lost where the
// server was killed, nowhere else, and that it was is counted.
func TestOutages(t *testing.T) {
	const limit = 100
	srv := testserver.Memcached(t, testserver.MemcachedOptions{Args: []string{"-c", "100"}})
	testfault.Outages(t, testfault.Target{
		Server: srv, Addr: srv.Addr, Pool: 64,
		Open: func(t testing.TB, addr string) driver.Store {
			s := mustOpen(t, "memcached://"+addr)
			t.Cleanup(func() {
				killed := strings.Contains(t.Name(), "killed") || strings.Contains(t.Name(), "restarted")
				if l := s.Losses(); (l.Restarts > 0) != killed || l.Evictions > 0 {
					t.Errorf("Losses = %+v, want restarts: %v, and no evictions", l, killed)
				}
			})
			return s
		},
		Faults: []testfault.Fault{{
			Name: "connections used up", Load: testfault.ErrEither, Create: testfault.ErrEither, Write: testfault.ErrEither, Delete: testfault.ErrEither,
			Cause: func(t testing.TB) func() {
				var taken []net.Conn
				for range limit { // more than are left: the server closes those
					conn, err := net.Dial("tcp", srv.Addr)
					if err != nil {
						t.Fatal(err)
					}
					taken = append(taken, conn)
				}
				return func() {
					for _, conn := range taken {
						conn.Close()
					}
				}
			},
		}},
	})
}

// The server is not taken for one that is down because a connection to it is cut, also not one that is being made: nobody
// notices but who used it.
func TestOneConnectionCut(t *testing.T) {
	srv := testserver.Memcached(t)
	p := testfault.NewProxy(t, srv.Addr, 1)
	s := mustOpen(t, "memcached://"+p.Addr)
	mustSave(t, s, idOf(1), record("ada"), 0)
	for _, n := range []int{0, 1, 100} { // bytes of the first answer on a new connection that arrive
		p.Cut()
		before := p.Stats()
		p.CutOneAnswer(n)
		mustLoad(t, s, idOf(1))
		if after := p.Stats(); after.Cuts != before.Cuts+1 || after.Accepted != before.Accepted+2 {
			t.Errorf("%d connections were made and %d cut, want 2 and 1", after.Accepted-before.Accepted, after.Cuts-before.Cuts)
		}
	}
	// Two one after the other are a server that closes connections.
	p.Cut()
	p.CutAnswers(1)
	_, err := s.Load(t.Context(), idOf(1))
	wantErr(t, "Load with each new connection cut", err, driver.ErrUnavailable)
	p.CutAnswers(-1)
	_, err = s.Load(t.Context(), idOf(1))
	wantErr(t, "Load just after that", err, driver.ErrUnavailable)
	eventually(t, "a moment later", func() error { _, err := s.Load(t.Context(), idOf(1)); return err })
}
