package postgres_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store/sqlstore"
	"github.com/holdfast-sessions/holdfast/store/sqlstore/postgres"
	"github.com/holdfast-sessions/holdfast/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestStore proves the contract, with two clients too, while the server is up and while it is frozen.
func TestStore(t *testing.T) {
	srv := testserver.Postgres(t)
	admin := mustAdmin(t, srv)
	const first = "logged"
	variants := map[string]string{first: ""}
	if testserver.Scale(0, 1) == 1 { // other tests of this package show where they differ
		variants["unprepared"], variants["unlogged"] = "&prepare=false", "&unlogged=true"
	}
	for name, options := range variants {
		t.Run(name, func(t *testing.T) {
			open := func(t testing.TB) driver.Store { return mustOpen(t, address(srv)+"?table="+name+options) }
			o := storetest.Options{
				Reopen: func(t testing.TB, s driver.Store) driver.Store {
					if err := s.Close(); err != nil {
						t.Errorf("Close = %v", err)
					}
					return open(t)
				},
			}
			if name == first { // the others differ in little
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

// address returns the URL of a store on srv, without options.
func address(srv *testserver.Server) string {
	return "postgres://" + testserver.DatabaseUser + ":" + testserver.DatabasePassword + "@" + srv.Addr + "/" + testserver.Database
}

func mustOpen(t testing.TB, url string) *sqlstore.Store {
	t.Helper()
	s, err := postgres.Open(t.Context(), url)
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
