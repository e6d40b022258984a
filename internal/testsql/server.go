package testsql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testfault"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store/sqlstore"
	"github.com/holdfast-sessions/holdfast/storetest"
)

// Kind is a kind of database server, with the store that is tested on it.
type Kind struct {
	Scheme string // of URLs
	Open   func(ctx context.Context, url string, settings ...sqlstore.Config) (*sqlstore.Store, error)
	Start  func(t testing.TB) *testserver.Server
	Pair   func(t testing.TB, o ...testserver.PairOptions) *testserver.Pair
	// Admin is a connection of another client, which may do everything.
	Admin func(t testing.TB, srv *testserver.Server) *sql.DB
	// Cut ends all connections of stores.
	Cut func(t testing.TB, admin *sql.DB)
}

// URL returns the URL of a store on one server, or on the first of several that takes writes, without options.
func (k Kind) URL(srvs ...*testserver.Server) string {
	var addrs []string
	for _, srv := range srvs {
		addrs = append(addrs, srv.Addr)
	}
	return k.url(testserver.DatabaseUser+":"+testserver.DatabasePassword, strings.Join(addrs, ","))
}

func (k Kind) url(user, addrs string) string {
	return k.Scheme + "://" + user + "@" + addrs + "/" + testserver.Database
}

// MustOpen opens a store, which is closed when the test ends.
func (k Kind) MustOpen(t testing.TB, url string) *sqlstore.Store {
	t.Helper()
	s, err := k.Open(t.Context(), url)
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

// Contract proves the contract on tables that are named and made by the options of variants, "&name=value" each. On the
// variant first, of which the others differ in little, it does so with two clients too, and while the server is frozen.
func (k Kind) Contract(t *testing.T, first string, variants map[string]string) {
	srv := k.Start(t)
	admin := k.Admin(t, srv)
	for name, options := range variants {
		t.Run(name, func(t *testing.T) {
			open := func(t testing.TB) driver.Store { return k.MustOpen(t, k.URL(srv)+"?table="+name+options) }
			o := storetest.Options{Reopen: Reopen(open)}
			if name == first {
				o.Peer = func(t testing.TB, _ driver.Store) driver.Store { return open(t) }
				o.Outage = func(testing.TB, driver.Store) func() {
					srv.Freeze()
					return srv.Thaw
				}
			}
			storetest.Run(t, func(t testing.TB) driver.Store {
				// Each case lists what the ones before it have left.
				_, _ = admin.ExecContext(t.Context(), "TRUNCATE TABLE "+name) // missing at first
				return open(t)
			}, o)
		})
	}
}

// Reopen is what storetest.Options want: it closes a store and opens it again.
func Reopen(open func(t testing.TB) driver.Store) func(testing.TB, driver.Store) driver.Store {
	return func(t testing.TB, s driver.Store) driver.Store {
		if err := s.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
		return open(t)
	}
}

// Restart kills the server: calls say ErrUnavailable at once, and asks of a Load, the first call after it is back works,
// and what was acknowledged is there.
func (k Kind) Restart(t *testing.T, asks string) {
	srv := k.Start(t)
	s := k.MustOpen(t, k.URL(srv)+"?sweep=1s")
	rec := Record("ada", "a", "1")
	next := After(rec, Set("a", "2"))
	MustSave(t, s, ID(1), rec, 0)
	srv.Stop()
	if _, err := s.Load(t.Context(), ID(1)); !errors.Is(err, driver.ErrUnavailable) || !strings.Contains(err.Error(), asks) {
		t.Errorf("Load = %v, want ErrUnavailable that asks %q", err, asks)
	}
	for name, err := range map[string]error{
		"Save": s.Save(t.Context(), ID(1), next, rec.Revision), "Touch": s.Touch(t.Context(), ID(1), next, rec.Revision),
		"Delete": s.Delete(t.Context(), ID(2)),
	} {
		if !errors.Is(err, driver.ErrUnavailable) {
			t.Errorf("%s = %v, want ErrUnavailable", name, err)
		}
	}
	srv.Restart()
	MustSave(t, s, ID(1), next, rec.Revision)
	srv.Restart() // while connections are idle
	WantStored(t, s, ID(1), next)
	srv.Restart()
	MustSave(t, s, ID(1), After(next), next.Revision)
}

// AnswerLost cuts connections in mid-answer: a write is never sent twice, a read is. count returns how many statements of
// a kind, as in Call, the server has carried out.
func (k Kind) AnswerLost(t *testing.T, srv *testserver.Server, admin *sql.DB, count func(kind string) int64) {
	proxy := NewProxy(t, srv.Addr)
	s := k.MustOpen(t, strings.Replace(k.URL(srv), srv.Addr, proxy.Addr, 1)+"?sweep=never&max_conns=1")
	rec := Record("ada", "a", "1")
	next := After(rec, Set("a", "2"))
	lose := func(name, kind string, f func() error) {
		t.Helper()
		for _, c := range Calls(s) { // so that the connection has all statements
			if err := c.Do(t.Context()); err != nil && err != c.Want {
				t.Errorf("%s: %v", c.Name, err)
			}
		}
		before := count(kind)
		proxy.Cut.Store(true)
		err := f()
		proxy.Cut.Store(false)
		if !errors.Is(err, driver.ErrUnavailable) {
			t.Errorf("%s, answer lost: %v, want ErrUnavailable", name, err)
		}
		if n := count(kind) - before; n != 1 {
			t.Errorf("%s was carried out %d times, want once", name, n)
		}
	}
	lose("create", "insert", func() error { return s.Save(t.Context(), ID(3), rec, 0) })
	WantStored(t, s, ID(3), rec)
	lose("save", "update", func() error { return s.Save(t.Context(), ID(3), next, rec.Revision) })
	WantStored(t, s, ID(3), next)
	lose("delete", "delete", func() error { return s.Delete(t.Context(), ID(3)) })
	if err := s.Save(t.Context(), ID(3), After(next), next.Revision); !errors.Is(err, driver.ErrConflict) {
		t.Errorf("after Delete: Save = %v, want ErrConflict", err)
	}
	MustSave(t, s, ID(2), rec, 0)
	k.Cut(t, admin)
	WantStored(t, s, ID(2), rec)
}

// CloseFrozen closes a store whose server does not answer.
func (k Kind) CloseFrozen(t *testing.T) {
	srv := k.Start(t)
	s := k.MustOpen(t, k.URL(srv)+"?sweep=1s")
	MustSave(t, s, ID(1), Record("ada"), 0)
	testfault.CloseFrozen(t, srv, s, 20*time.Second)
}

// FailoverLoad kills a primary while applications are at work, and promotes its replica. They go on by themselves, and no
// answer is wrong. What the replica did not have is lost, a logout too, and counted; with synchronous replication it has
// everything.
func (k Kind) FailoverLoad(t *testing.T) {
	for _, tt := range []struct {
		name         string
		synchronous  bool
		parted, lost bool
	}{
		{name: "asynchronous"},
		{name: "asynchronous, behind", parted: true, lost: true},
		{name: "synchronous", synchronous: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // each has servers of its own
			pair := k.Pair(t, testserver.PairOptions{Synchronous: tt.synchronous})
			url := k.URL(pair.Primary, pair.Replica)
			l := testfault.NewLoad(t, testfault.LoadOptions{Sessions: testserver.Scale(200, 2000), Patience: time.Second, Logouts: 20},
				k.MustOpen(t, url), k.MustOpen(t, url))
			n := testserver.Scale(500, 10000)
			l.Acked(n)
			if tt.parted {
				pair.Part()
				l.Acked(n / 2)
			}
			pair.Primary.Stop()
			pair.Promote()
			l.Acked(n)
			l.Recovered(100)
			r := WantRight(t, l, k.MustOpen(t, url))
			lost := r.Lost+r.Gone+r.Revived > 0
			if tt.synchronous && lost {
				t.Error("want nothing lost: the replica has confirmed it")
			}
			if tt.lost && !lost {
				t.Error("the replica did not get everything, and nothing is lost: nothing is shown")
			}
		})
	}
}

// Promoted kills the primary of a pair while applications are at work, on stores that name both, and promotes the replica.
func (k Kind) Promoted(t *testing.T, pair *testserver.Pair) *testfault.Load {
	url := k.URL(pair.Primary, pair.Replica) + "?sweep=never"
	l := testfault.NewLoad(t, testfault.LoadOptions{Patience: time.Second}, k.MustOpen(t, url), k.MustOpen(t, url))
	l.Acked(testserver.Scale(300, 5000))
	pair.Primary.Stop()
	pair.Promote()
	l.Recovered(testserver.Scale(100, 2000))
	return l
}

// WantRight ends a load, logs what it has seen, and fails the test if an answer was wrong or late.
func WantRight(t *testing.T, l *testfault.Load, s driver.Store) testfault.Result {
	t.Helper()
	r := l.Audit(s)
	t.Log(r)
	if r.Wrong+r.Late > 0 {
		t.Errorf("want no wrong answers: %q", r.Wrongs)
	}
	return r
}

// OutageOptions say how a kind of server is hurt.
type OutageOptions struct {
	// User makes the user plain, with password s3cret, and the rights on the tables that a store needs.
	User []string
	// Lock locks the table until the connection ends.
	Lock string
	// Faults are what else can happen.
	Faults []Fault
}

// Fault is caused by one statement and ended by another.
type Fault struct {
	Name       string
	Fault      testfault.Fault // what calls are answered with meanwhile
	Begin, End string
	Cut        bool // it counts for new connections only: all that there are end
}

// Pool is how many connections a store keeps in Outages.
const Pool = 8

// Outages causes everything that can happen to a server, while visitors are at work.
func (k Kind) Outages(t *testing.T, o OutageOptions) {
	srv := k.Start(t)
	exec := func(t testing.TB, cut bool, statements ...string) {
		t.Helper()
		db := k.Admin(t, srv) // a new one: its connections break with the others
		defer db.Close()
		for _, statement := range statements {
			MustExec(t, db, statement)
		}
		if cut {
			k.Cut(t, db)
		}
	}
	k.MustOpen(t, k.URL(srv)) // makes the tables
	exec(t, false, o.User...)
	var faults []testfault.Fault
	for _, f := range o.Faults {
		fault := f.Fault
		fault.Name, fault.Cause = f.Name, func(t testing.TB) func() {
			exec(t, f.Cut, f.Begin)
			return func() { exec(t, false, f.End) }
		}
		faults = append(faults, fault)
	}
	locked := testfault.Down
	locked.Name, locked.Cause = "table locked", func(t testing.TB) func() {
		db := k.Admin(t, srv)
		conn, err := db.Conn(t.Context())
		if err == nil {
			_, err = conn.ExecContext(t.Context(), o.Lock)
		}
		if err != nil {
			t.Fatal(err)
		}
		return func() { _ = conn.Close(); db.Close() } // which unlocks
	}
	testfault.Outages(t, testfault.Target{
		Server: srv, Addr: srv.Addr, Keeps: true, Pool: Pool,
		Open: func(t testing.TB, addr string) driver.Store {
			return k.MustOpen(t, k.url("plain:s3cret", addr)+fmt.Sprint("?max_conns=", Pool))
		},
		Faults: append(faults, locked),
	})
}

// DiskFull fills the disk that the table is on, with records of so many bytes.
func (k Kind) DiskFull(t *testing.T, srv *testserver.Server, disk *testserver.Disk, bytes int) {
	testfault.Outages(t, testfault.Target{
		Addr: srv.Addr, Keeps: true, Pool: Pool,
		Open: func(t testing.TB, addr string) driver.Store {
			return k.MustOpen(t, strings.Replace(k.URL(srv), srv.Addr, addr, 1)+fmt.Sprint("?max_conns=", Pool))
		},
		Faults: []testfault.Fault{{
			Name: "disk full", Bytes: bytes, Create: driver.ErrUnavailable, Write: testfault.ErrEither,
			Cause: func(testing.TB) func() {
				disk.Fill()
				return disk.Free
			},
		}},
	})
}
